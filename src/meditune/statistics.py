"""Metrics as sums of per-item statistics, and the tests, corrections and intervals that comparisons share."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

_Z = 1.959963984540054
"""97.5 % quantile of the standard normal distribution"""


def wilson(successes: int, count: int) -> list[float]:
    """Return Wilson's 95 % score interval of a share, in percent (Wilson 1927)."""
    share, spread = successes / count, _Z**2 / count
    middle, half = share + spread / 2, _Z * sqrt(share * (1 - share) / count + spread / (4 * count))
    ends = (middle - half) / (1 + spread), (middle + half) / (1 + spread)
    return [100 * (0.0 if successes == 0 else ends[0]), 100 * (1.0 if successes == count else ends[1])]


AnyArray = Any
RESAMPLES = 2000


def resampled(each: AnyArray, clusters: Sequence[Any] | None, seed: int) -> AnyArray:
    """Return sums of the rows of `each` (units, k) over units drawn with replacement, whole clusters at a time.

    The result is (RESAMPLES, k). It is (0, k) if there are fewer than two clusters, because these show no variation.
    """
    numbers: dict[Any, int] = {}
    place = np.array([numbers.setdefault(key, len(numbers)) for key in (clusters or range(len(each)))])
    if len(numbers) < 2:
        return np.zeros((0, each.shape[1]))
    sums = np.zeros((len(numbers), each.shape[1]))
    np.add.at(sums, place, each)
    draws = np.random.default_rng(seed).multinomial(len(sums), np.full(len(sums), 1 / len(sums)), size=RESAMPLES)
    return draws @ sums


def interval(figures: AnyArray) -> tuple[float, float] | None:
    """Return the 95 % percentile interval (Efron and Tibshirani 1993) of the values except NaN; None without any."""
    defined = figures[~np.isnan(figures)]
    if not len(defined):
        return None
    # Rounding errors must not make an interval exclude zero.
    low, high = np.round(np.percentile(defined, [2.5, 97.5]), 9) + 0.0
    return float(low), float(high)


Array = NDArray[np.float64]
Direction = Literal["up", "down", "one"]


@dataclass(frozen=True)
class Metric:
    """A metric's name, direction and presentation."""

    name: str
    title: str
    direction: Direction
    """up: higher is better; down: lower is better; one: closer to 1 is better."""
    digits: int
    meaning: str
    optional: bool = False
    """Left out of the report of a run that didn't measure it"""
    share: bool = False
    """A percentage of items that are right or wrong: its value on a single item is 0 or 100"""
    detail: bool = False
    """A detail of another metric: the verdict names it only if it got significantly worse"""
    detector: bool = False
    """Counts a detector's marks. A detector also marks some true answers, so no change is claimed unless the model with
    more marks has significantly more of them than the reference answers."""


@dataclass(frozen=True)
class Statistics:
    """Per-item statistics of one metric, and the function that computes the metric from their sums.

    The function takes the sums over all items, over a subgroup, or over a bootstrap draw.
    """

    ids: tuple[str, ...]
    items: Array
    """(n, k): k statistics of each of n items"""
    figure: Callable[[Array], Array]
    """Maps sums (..., k) over any selection of items to the metric's value (...)"""

    def value(self) -> float:
        """Return the metric's value over all items."""
        return float(self.figure(self.items.sum(axis=0)))


def mean(ids: Sequence[str], values: Sequence[float]) -> Statistics:
    """Return the statistics of the mean of one value per item."""
    return ratio(ids, values, [1.0] * len(values))


def ratio(ids: Sequence[str], over: Sequence[float], under: Sequence[float]) -> Statistics:
    """Return the statistics of the sum of one value per item over the sum of another; NaN if the latter is 0."""
    items = np.array([over, under], dtype=np.float64).T

    def figure(sums: Array) -> Array:
        found: Array = np.full(sums.shape[:-1], np.nan)
        np.divide(sums[..., 0], sums[..., 1], out=found, where=sums[..., 1] != 0)
        return found

    return Statistics(tuple(ids), items, figure)


Key = TypeVar("Key", bound=Hashable)


def paired_counts(statistics: Statistics) -> Any:
    """Return (n,) booleans: whether each item counts in a share (as right or, if lower is better, as wrong)."""
    return np.asarray(statistics.figure(statistics.items)) > 50


def mcnemar(gained: int, lost: int) -> float:
    """Return the two-sided exact p of McNemar's test that gains and losses are equally likely."""
    from scipy.stats import binomtest

    return float(binomtest(gained, gained + lost).pvalue) if gained + lost else 1.0


def holm(p_values: Mapping[Key, float]) -> dict[Key, float]:
    """Return each p corrected for the number of tests by Holm's step-down procedure (Holm 1979)."""
    adjusted: dict[Key, float] = {}
    highest = 0.0
    for rank, name in enumerate(sorted(p_values, key=lambda name: p_values[name])):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[name]))
        adjusted[name] = highest
    return adjusted


def bootstrap_p(deltas: Array) -> float:
    """Return the two-sided p of no difference, from the bootstrap's differences."""
    tail = min((deltas <= 0).sum(), (deltas >= 0).sum())
    return float(min(1.0, 2 * (tail + 1) / (len(deltas) + 1)))


def exchange_p(first: Array, second: Array, figure: Callable[[Array], Array], swaps: Array) -> float:
    """Return the two-sided p of no difference between `first` and `second`, from a permutation test of paired items.

    `swaps` (b, n) contains 0 or 1 for each permutation and item; `first` and `second` (n, k) contain the items'
    statistics. Unlike the bootstrap's p, this p is also exact if one side has no event at all.
    """

    def difference(one: Array, other: Array) -> Array:
        found: Array = figure(one) - figure(other)
        return found

    observed = abs(float(difference(first.sum(axis=0), second.sum(axis=0))))
    moved = swaps @ (second - first)
    drawn = np.abs(difference(first.sum(axis=0) + moved, second.sum(axis=0) - moved))
    drawn = drawn[np.isfinite(drawn)]
    return float(((drawn >= observed - 1e-9).sum() + 1) / (len(drawn) + 1)) if np.isfinite(observed) else 1.0


def standard_gap(metric: Metric, tuned: Any, base: Any) -> Any:
    """Return tuned minus base, or for a metric whose best value is 1, the difference of the distances from 1."""
    return np.abs(tuned - 1) - np.abs(base - 1) if metric.direction == "one" else tuned - base
