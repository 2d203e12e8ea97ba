"""Tests, corrections and intervals that comparisons share."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from typing import Any, TypeVar

import numpy as np

from meditune.evaluate.metrics.metric import Array, Metric, Statistics

Key = TypeVar("Key", bound=Hashable)


def counted(statistics: Statistics) -> Any:
    """(n,) whether each item counts in a share: as right, or where lower is better, as wrong."""
    return np.asarray(statistics.figure(statistics.items)) > 50


def mcnemar(gained: int, lost: int) -> float:
    """Two-sided exact p of McNemar's test that as many items turn right as turn wrong."""
    from scipy.stats import binomtest

    return float(binomtest(gained, gained + lost).pvalue) if gained + lost else 1.0


def holm(p_values: Mapping[Key, float]) -> dict[Key, float]:
    """Each p corrected for their number by Holm's step-down procedure (Holm 1979)."""
    adjusted: dict[Key, float] = {}
    highest = 0.0
    for rank, name in enumerate(sorted(p_values, key=lambda name: p_values[name])):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[name]))
        adjusted[name] = highest
    return adjusted


def bootstrap_p(deltas: Array) -> float:
    """Two-sided p of no difference from the bootstrap's differences."""
    tail = min((deltas <= 0).sum(), (deltas >= 0).sum())
    return float(min(1.0, 2 * (tail + 1) / (len(deltas) + 1)))


def exchange_p(first: Array, second: Array, figure: Callable[[Array], Array], swaps: Array) -> float:
    """Two-sided p that first and second differ by no more than which of the two each item's statistics are called.

    A permutation test of paired items: `swaps` (b, n) holds 0 or 1 for each item and permutation, `first` and `second`
    (n, k) hold its statistics. Unlike the bootstrap's p it is exact where one side has no event at all.
    """

    def difference(one: Array, other: Array) -> Array:
        found: Array = figure(one) - figure(other)
        return found

    observed = abs(float(difference(first.sum(axis=0), second.sum(axis=0))))
    moved = swaps @ (second - first)
    drawn = np.abs(difference(first.sum(axis=0) + moved, second.sum(axis=0) - moved))
    drawn = drawn[np.isfinite(drawn)]
    return float(((drawn >= observed - 1e-9).sum() + 1) / (len(drawn) + 1)) if np.isfinite(observed) else 1.0


def gap(metric: Metric, tuned: Any, base: Any) -> Any:
    """Tuned minus base; for a metric whose best value is 1, of the distances from it."""
    return np.abs(tuned - 1) - np.abs(base - 1) if metric.direction == "one" else tuned - base
