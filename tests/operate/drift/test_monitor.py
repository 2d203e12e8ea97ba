"""Requests that come one after the other: what opens an alert, what closes it, and where it stands after a restart.

The statistical core: exact without drift, quick with it.
"""

import re
from bisect import insort
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import kstest

from meditune.errors import DataError
from meditune.operate.drift import drift_detection, e_detectors
from meditune.operate.drift.drift_detection import LAG
from meditune.operate.drift.e_detectors import BLOCK, ShareTrack, block_test, threshold
from meditune.operate.drift.monitor import Monitor
from meditune.operate.drift.reference import fit, load, read, save, write
from tests.operate.drift.test_drift_detection import requests

EMBEDDING = {"name": "invented", "dimension": 24, "space": "0"}


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    return save(fit(requests(1200, 1), EMBEDDING, "test"), tmp_path_factory.mktemp("drift") / "reference")


def opened(monitor):
    return {alert.signal: alert for alert in monitor.all_alerts}


def follow(monitor, given):
    for each in given:
        monitor.add(each)
        monitor.add_outcome(each)
    return monitor


def test_nothing_opens_without_drift(reference):
    assert not follow(Monitor(reference), requests(2000, 2)).all_alerts


def test_a_new_topic_opens_the_alerts_of_meaning_and_no_others(reference):
    monitor = follow(Monitor(reference), [*requests(300, 3), *requests(200, 4, ("vaccine",), first=301)])
    found = opened(monitor)
    assert {"topics", "novelty", "directions", "meaning"} & set(found)
    assert not {"length", "confidence", "outcome", "language"} & set(found)
    assert 280 <= found["novelty"].since <= 305
    assert found["novelty"].opened <= 340
    assert found["novelty"].severity == "large"
    assert found["meaning"].opened <= 425
    assert found["novelty"].since_id == f"r{found['novelty'].since}"


@pytest.mark.parametrize(
    ("signal", "changed"),
    [("length", {"words": (10, 20)}), ("confidence", {"confidence": (3, 8)}), ("outcome", {"outcome": 0.6})],
)
def test_each_figure_has_its_alert(reference, signal, changed):
    monitor = follow(Monitor(reference), [*requests(200, 5), *requests(200, 6, first=201, **changed)])
    assert opened(monitor)[signal].opened <= 400
    assert opened(monitor)[signal].is_open


def test_an_alert_about_ratings_names_an_answer_that_was_rated(reference):
    # Ratings are read LAG requests late; by then, the next version may be the one that answers.
    down = [replace(each, ratings=("down",)) for each in requests(100, 16, first=101)]
    given = [*requests(100, 15), *down, *requests(LAG, 17, first=201)]
    monitor = Monitor(reference)
    for place, each in enumerate(given):
        monitor.add(replace(each, ratings=None))
        if place >= LAG:
            monitor.add_outcome(given[place - LAG])
    assert opened(monitor)["ratings"].opened_id in {each.id for each in down}


@pytest.mark.parametrize("known", [0, 3, 12])
@pytest.mark.parametrize("size", [180, 3000])
def test_a_category_that_the_reference_hardly_contains_is_noticed(known, size):
    answered = {"answered": size - known} | ({"abstained": known} if known else {})
    for seed in range(20):
        track = ShareTrack(answered)
        for count in range(1, 41):
            track.add(["abstained"], count, np.random.default_rng([seed, count]))
        assert track.detector.statistic > threshold(0.1, 10_000, 17)


def test_an_alert_closes_when_the_change_is_over_and_can_open_again(reference):
    stream = [
        *requests(200, 7),
        *requests(150, 8, first=201, words=(12, 20)),
        *requests(800, 9, first=351),
        *requests(150, 10, first=1151, words=(12, 20)),
    ]
    monitor = follow(Monitor(reference), stream)
    first, second = (alert for alert in monitor.all_alerts if alert.signal == "length")
    assert first.closed is not None
    assert 500 < first.closed < 800
    assert 1150 < second.opened < 1200
    assert second.is_open


def test_a_state_goes_on_as_if_it_had_never_been_saved(reference, tmp_path):
    stream = [*requests(230, 11), *requests(150, 12, ("vaccine", "heart"), first=231)]
    whole = follow(Monitor(reference), stream)
    for start in range(0, 380, 95):
        part = Monitor.load(tmp_path / "state", reference) if start else Monitor(reference)
        follow(part, stream[start : start + 95]).save(tmp_path / "state")
    again = Monitor.load(tmp_path / "state", reference)
    assert [alert.as_dict() for alert in again.all_alerts] == [alert.as_dict() for alert in whole.all_alerts]
    assert again.all_alerts
    assert [track.detector.statistic for track in again.tracks.values()] == [
        track.detector.statistic for track in whole.tracks.values()
    ]


def test_evidence_shows_the_new_questions_masked(reference):
    marked = [*requests(200, 13), *requests(120, 14, ("vaccine",), first=201)]
    named = type(marked[0])(**{**marked[-1].__dict__, "question": "My name is John Miller, is a vaccine safe?"})
    monitor = follow(Monitor(reference), [*marked[:-1], named])
    drift_detection.gather_evidence(monitor, [*marked[:-1], named])
    groups = opened(monitor)["novelty"].evidence["groups"]
    assert any("vaccine" in group["name"] for group in groups)
    said = str([alert.evidence for alert in monitor.all_alerts])
    assert "vaccine" in said
    assert "Miller" not in said


def test_a_reference_is_whole_or_refused(reference, tmp_path):
    path = tmp_path / "reference"
    save(reference, path)
    assert load(path).sha256 == reference.sha256
    assert b"heart" not in load(path).shape.words.tobytes()
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match="damaged"):
        load(path)
    place = whole.index(b"number/length") + 400
    path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
    with pytest.raises(DataError, match=r"hash differs|cannot be read"):
        load(path)
    Monitor(reference).save(path)
    with pytest.raises(DataError, match="is a drift state"):
        load(path)


def test_a_reference_that_lacks_a_key_is_refused_with_what_to_do(reference, tmp_path):
    path = tmp_path / "reference"
    save(reference, path)
    about, arrays, _ = read(path, "reference", "")
    for name in ("words", "topics"):
        description = {key: value for key, value in about.items() if key not in ("kind", name)}
        write(path, "reference", description, {key: value for key, value in arrays.items() if key != name})
        with pytest.raises(DataError, match=f"no '{name}'.*meditune drift fit"):
            load(path)


def test_a_state_of_another_reference_is_refused(reference, tmp_path):
    Monitor(reference).save(tmp_path / "state")
    other = save(fit(requests(400, 15), EMBEDDING, "test"), tmp_path / "other")
    with pytest.raises(DataError, match="another reference"):
        Monitor.load(tmp_path / "state", other)


@pytest.mark.parametrize(
    "change",
    [
        lambda about: about.pop("outcomes"),
        lambda about: about.pop("reference"),
        lambda about: about["policy"].update(at_least="small"),
        lambda about: about["policy"].pop("hold"),
        lambda about: about["missing"].pop("length"),
        lambda about: about["watches"]["length"].update(until=about["watches"]["length"].pop("cool_until")),
        lambda about: about["alerts"].append({"id": "x"}),
        lambda about: about.update(policy=None),
    ],
)
def test_a_state_with_unknown_or_missing_keys_is_refused_with_what_to_do(reference, tmp_path, change):
    path = tmp_path / "state"
    Monitor(reference).save(path)
    about, arrays, _ = read(path, "state", "")
    change(about)
    write(path, "state", about, arrays)
    with pytest.raises(DataError, match=f"{re.escape(str(path))} is damaged, or another version .* Delete this"):
        Monitor.load(path, reference)


def test_a_state_without_the_arrays_of_a_signal_is_refused(reference, tmp_path):
    path = tmp_path / "state"
    Monitor(reference).save(path)
    about, arrays, _ = read(path, "state", "")
    write(path, "state", about, {name: array for name, array in arrays.items() if not name.startswith("length/")})
    with pytest.raises(DataError, match="is damaged, or another version"):
        Monitor.load(path, reference)


def test_too_few_requests_make_no_reference():
    with pytest.raises(DataError, match="has 40 requests; a reference needs at least 200"):
        fit(requests(40, 16), EMBEDDING, "test")


def p_values(reference, stream, coins):
    """The rank of each value of a stream among the reference and the stream up to it."""
    pool = sorted(reference.tolist())
    found = []
    for value, coin in zip(stream.tolist(), coins.tolist(), strict=True):
        found.append(e_detectors.p_value(pool, value, coin))
        insort(pool, value)
    return np.array(found)


def detector(reference, stream, coins):
    """The e-detector over time: the mean over all bets."""
    found, statistics = [], 0.0
    for paid in e_detectors.number_bets(p_values(reference, stream, coins)):
        statistics = e_detectors.advanced(statistics, paid)
        found.append(statistics.mean())
    return np.array(found)


def test_p_values_are_uniform_and_independent_without_drift_even_with_ties():
    rng = np.random.default_rng(1)
    values = rng.integers(0, 4, 3000).astype(float)
    p = p_values(values[:200], values[200:], rng.random(2800))
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
        crossed += detector(values[:60], values[60:], rng.random(300)).max() >= limit
    # Doob: at most 300 / limit, a twentieth; a small reference has no chance deviations to be found.
    assert crossed <= 0.05 * 200


@pytest.mark.parametrize(("shift", "within"), [(3.0, 15), (1.0, 80), (-1.0, 80)])
def test_a_sudden_shift_is_found(shift, within):
    rng = np.random.default_rng(5)
    stream = np.concatenate([rng.normal(size=300), shift + rng.normal(size=200)])
    found = detector(rng.normal(size=500), stream, rng.random(500))
    limit = e_detectors.threshold(0.1, 10_000, 10)
    assert found[:300].max() < limit
    assert found[300 : 300 + within].max() >= limit


def test_a_wider_spread_with_the_same_middle_is_found():
    rng = np.random.default_rng(6)
    found = detector(rng.normal(size=500), 4 * rng.normal(size=150), rng.random(150))
    assert found.max() > e_detectors.threshold(0.1, 10_000, 10)


def test_the_size_of_a_change():
    rng = np.random.default_rng(7)
    reference = rng.normal(size=2000)
    same, larger, wider = (
        p_values(reference, made, rng.random(400))
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
