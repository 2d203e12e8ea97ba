"""A version that fails more often than the one beside it."""

import time
from math import comb

import pytest

from meditune.model_registry import Counts, fisher, is_failing


def test_failing_is_seen_early_and_not_by_chance() -> None:
    assert fisher(3, 3, 0, 20) == pytest.approx(1 / 1771)
    assert not is_failing(Counts(2, 2), Counts(500, 0))
    assert is_failing(Counts(3, 3), Counts(500, 0))
    assert not is_failing(Counts(100, 3), Counts(500, 5))
    assert not is_failing(Counts(50, 25), Counts(50, 25))


def test_the_probability_is_the_exact_one() -> None:
    cases = [(0, 5, 3, 20), (7, 7, 0, 3), (3, 90, 40, 95), (60, 100, 45, 300), (1, 1, 1, 1)]
    for failed, all, others_failed, others in cases:
        total, failures = all + others, failed + others_failed
        most = min(all, failures)
        ways = sum(comb(failures, n) * comb(total - failures, all - n) for n in range(failed, most + 1))
        assert fisher(failed, all, others_failed, others) == pytest.approx(ways / comb(total, all), rel=1e-9)


def test_many_answers_are_judged_as_quickly_as_few() -> None:
    begun = time.monotonic()
    assert fisher(2_000, 20_000, 2_000, 20_000) == pytest.approx(0.5, abs=0.01)
    assert fisher(3, 1_000_000, 500_000, 1_000_000) == pytest.approx(1)
    assert 0 <= fisher(500_000, 1_000_000, 3, 1_000_000) < 1e-300
    assert time.monotonic() - begun < 1
