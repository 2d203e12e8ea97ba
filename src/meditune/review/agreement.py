"""How far raters agree: Cohen's and Fleiss' kappa, Krippendorff's alpha, each with a bootstrap interval.

Ratings come as an array (units, raters) of whole numbers from 1, NaN where a rater said nothing. Every statistic is a
function of sums over units, so that drawing units anew is one matrix product.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from meditune.review.bootstrap import Array, interval, resampled

Level = Literal["nominal", "ordinal", "interval"]
Weights = Literal["none", "linear", "quadratic"]


@dataclass(frozen=True)
class Agreement:
    """A statistic that is 1 where all agree and 0 where they agree as by chance."""

    value: float | None
    """None where it isn't defined: nothing was rated twice, or all chose the same"""
    ci95: tuple[float, float] | None
    units: int
    """How many units it rests on: those that two raters rated, or as many as the statistic needs"""


def cohen(
    ratings: Array, options: int, weights: Weights = "none", clusters: Sequence[Any] | None = None, seed: int = 0
) -> Agreement:
    """Cohen's kappa of two raters (Cohen 1960); weighted (Cohen 1968) by the options' distance or its square.

    `ratings` is (units, 2); units that one of them left out don't count.
    """
    both = np.asarray(ratings, float)
    kept = ~np.isnan(both).any(axis=1)
    first, second = (both[kept, side].astype(int) - 1 for side in (0, 1))
    each = np.zeros((int(kept.sum()), options, options))
    each[np.arange(len(each)), first, second] = 1
    distances = np.abs(np.subtract.outer(np.arange(options), np.arange(options))).astype(float)
    costs = {"none": (distances > 0).astype(float), "linear": distances, "quadratic": distances**2}[weights]

    def kappa(tables: Array) -> Array:
        tables = tables.reshape(len(tables), options, options)
        chance = tables.sum(2)[:, :, None] * tables.sum(1)[:, None, :]
        total = tables.sum((1, 2))
        return _ratio((costs * tables).sum((1, 2)) * total, (costs * chance).sum((1, 2)))

    return _estimated(each.reshape(len(each), options * options), kappa, _kept(clusters, kept), seed)


def fleiss(counts: Array, clusters: Sequence[Any] | None = None, seed: int = 0) -> Agreement:
    """Fleiss' kappa (Fleiss 1971) from (units, options) counts of raters, as many for each unit.

    Raises ValueError where units have unequal numbers of raters, or fewer than two.
    """
    counts = np.asarray(counts, float)
    raters = counts.sum(axis=1)
    if len(counts) and (raters[0] < 2 or (raters != raters[0]).any()):
        raise ValueError("Fleiss' kappa needs the same number of raters, two or more, for every unit.")
    number = raters[0] if len(counts) else 2.0
    agreeing = (counts * (counts - 1)).sum(axis=1) / (number * (number - 1))
    each = np.column_stack([counts, agreeing, np.ones(len(counts))])

    def kappa(sums: Array) -> Array:
        chosen, agreed, units = sums[:, :-2], sums[:, -2], sums[:, -1]
        with np.errstate(invalid="ignore", divide="ignore"):
            shares = chosen / (units * number)[:, None]
            by_chance = (shares**2).sum(axis=1)
            return _ratio(1 - agreed / units, 1 - by_chance)

    return _estimated(each, kappa, clusters, seed)


def krippendorff(
    ratings: Array, options: int, level: Level, clusters: Sequence[Any] | None = None, seed: int = 0
) -> Agreement:
    """Krippendorff's alpha (Krippendorff 2011) of any number of raters, with missing values.

    `ratings` is (units, raters). Units with fewer than two ratings say nothing and don't count.
    """
    counts = counted(ratings, options)
    several = counts.sum(axis=1) >= 2
    counts = counts[several]
    pairs = counts[:, :, None] * counts[:, None, :] - counts[:, :, None] * np.eye(options)
    each = pairs / (counts.sum(axis=1) - 1)[:, None, None] if len(counts) else pairs

    def alpha(coincidences: Array) -> Array:
        observed = coincidences.reshape(len(coincidences), options, options)
        totals = observed.sum(axis=2)
        expected = totals[:, :, None] * totals[:, None, :] - totals[:, :, None] * np.eye(options)
        apart = _differences(totals, level)
        return _ratio((observed * apart).sum((1, 2)) * (totals.sum(1) - 1), (expected * apart).sum((1, 2)))

    return _estimated(each.reshape(len(each), options * options), alpha, _kept(clusters, several), seed)


def counted(ratings: Array, options: int) -> Array:
    """(units, options) how many raters chose each option."""
    ratings = np.asarray(ratings, float)
    return (ratings[:, :, None] == np.arange(1, options + 1)).sum(axis=1).astype(float)


def _differences(totals: Array, level: Level) -> Array:
    """(b, options, options) squared differences between options, given (b, options) how often each was chosen."""
    count = totals.shape[1]
    if level == "ordinal":
        # As many ratings as lie between two options, half of those on either end counted.
        places = np.cumsum(totals, axis=1) - totals / 2
        return (places[:, :, None] - places[:, None, :]) ** 2
    numbers = np.arange(count)
    gaps = np.subtract.outer(numbers, numbers).astype(float)
    return np.broadcast_to(gaps**2 if level == "interval" else (gaps != 0).astype(float), (len(totals), count, count))


def _ratio(observed: Array, expected: Array) -> Array:
    """1 - observed / expected disagreement; NaN where no disagreement was to be expected."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(expected > 0, 1 - observed / expected, np.nan)


def _kept(clusters: Sequence[Any] | None, kept: Array) -> list[Any] | None:
    return None if clusters is None else [each for each, keep in zip(clusters, kept, strict=True) if keep]


def _estimated(
    each: Array, statistic: Callable[[Array], Array], clusters: Sequence[Any] | None, seed: int
) -> Agreement:
    """The statistic of the sums of (units, k), and its percentile interval over draws of whole clusters."""
    if not len(each):
        return Agreement(None, None, 0)
    value = float(statistic(each.sum(axis=0, keepdims=True))[0])
    if np.isnan(value):
        return Agreement(None, None, len(each))
    return Agreement(value, interval(statistic(resampled(each, clusters, seed))), len(each))
