"""A version that fails more often than the one beside it."""

import pytest

from meditune.registry.failing import Counts, fisher, is_failing


def test_failing_is_seen_early_and_not_by_chance() -> None:
    assert fisher(3, 3, 0, 20) == pytest.approx(1 / 1771)
    assert not is_failing(Counts(2, 2), Counts(500, 0))
    assert is_failing(Counts(3, 3), Counts(500, 0))
    assert not is_failing(Counts(100, 3), Counts(500, 5))
    assert not is_failing(Counts(50, 25), Counts(50, 25))
