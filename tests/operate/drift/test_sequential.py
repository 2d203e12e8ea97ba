"""The statistical core: exact without drift, quick with it."""

import numpy as np
import pytest
from scipy.stats import kstest

from meditune.operate.drift import e_detectors
from meditune.operate.drift.e_detectors import BLOCK, block_test


def test_p_values_are_uniform_and_independent_without_drift_even_with_ties():
    rng = np.random.default_rng(1)
    values = rng.integers(0, 4, 3000).astype(float)
    p = e_detectors.p_values(values[:200], values[200:], rng.random(2800))
    assert kstest(p, "uniform").pvalue > 0.01
    assert abs(np.corrcoef(p[1:], p[:-1])[0, 1]) < 0.06


def test_every_bet_pays_one_on_average():
    p = (np.arange(200_000) + 0.5) / 200_000
    assert e_detectors.number_bets(p).mean(axis=0) == pytest.approx(1, abs=0.35)
    assert e_detectors.number_bets(p)[:, 1:3].mean(axis=0) == pytest.approx(1, abs=0.05)
    shares = np.array([0.03, 0.4])
    paid = np.mean([e_detectors.share_bets(np.full(2, each), shares) for each in p[::100]], axis=0)
    assert paid == pytest.approx(1, abs=0.05)
    assert e_detectors.block_bets(p).mean(axis=0) == pytest.approx(1, abs=0.15)


def test_false_alarms_stay_below_what_the_threshold_says():
    limit = 20 * 300
    crossed = 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        values = rng.normal(size=360)
        crossed += e_detectors.detector(values[:60], values[60:], rng.random(300)).max() >= limit
    # Doob: at most 300 / limit, a twentieth; a small reference has no chance deviations to be found.
    assert crossed <= 0.05 * 200


@pytest.mark.parametrize(("shift", "within"), [(3.0, 15), (1.0, 80), (-1.0, 80)])
def test_a_sudden_shift_is_found(shift, within):
    rng = np.random.default_rng(5)
    stream = np.concatenate([rng.normal(size=300), shift + rng.normal(size=200)])
    found = e_detectors.detector(rng.normal(size=500), stream, rng.random(500))
    limit = e_detectors.threshold(0.1, 10_000, 10)
    assert found[:300].max() < limit
    assert found[300 : 300 + within].max() >= limit


def test_a_wider_spread_with_the_same_middle_is_found():
    rng = np.random.default_rng(6)
    found = e_detectors.detector(rng.normal(size=500), 4 * rng.normal(size=150), rng.random(150))
    assert found.max() > e_detectors.threshold(0.1, 10_000, 10)


def test_the_size_of_a_change():
    rng = np.random.default_rng(7)
    reference = rng.normal(size=2000)
    same, larger, wider = (
        e_detectors.p_values(reference, made, rng.random(400))
        for made in (rng.normal(size=400), 5 + rng.normal(size=400), 5 * rng.normal(size=400))
    )
    assert abs(e_detectors.delta(same)) < 0.1
    assert e_detectors.delta(larger) > 0.7
    assert e_detectors.delta(wider) > 0.4
    assert e_detectors.cohens_h(0.5, 0.5) == 0
    assert e_detectors.cohens_h(0.1, 0.4) < -0.6


def test_blocks_have_uniform_p_values_without_drift_and_small_ones_with():
    rng = np.random.default_rng(8)
    pool = rng.normal(size=(200, 8)).astype(np.float32)
    p = [block_test(pool, rng.normal(size=(BLOCK, 8)).astype(np.float32), rng)[0] for _ in range(60)]
    assert 0.3 < np.mean(p) < 0.7
    moved, distance = block_test(pool, (1 + rng.normal(size=(BLOCK, 8))).astype(np.float32), rng)
    assert moved < 0.01
    assert distance > 0.5
