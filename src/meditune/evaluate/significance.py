"""Tests, corrections and intervals that comparisons share."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
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


def gap(metric: Metric, tuned: Any, base: Any) -> Any:
    """Tuned minus base; for a metric whose best value is 1, of the distances from it."""
    return np.abs(tuned - 1) - np.abs(base - 1) if metric.direction == "one" else tuned - base
