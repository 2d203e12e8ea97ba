"""How far raters agree: Cohen's and Fleiss' kappa, Krippendorff's alpha, each with a bootstrap interval.

Ratings come as an array (units, raters) of whole numbers from 1, NaN where a rater said nothing. Every statistic is a
function of sums over units, so that drawing units anew is one matrix product.

Where raters disagree most: what is worth a second look, by one who settles it.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Literal

import numpy as np

from meditune.review.rating_set import Axis
from meditune.review.ratings_store import RATING, Note, Rating
from meditune.statistics import AnyArray, interval, resampled

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
    ratings: AnyArray, options: int, weights: Weights = "none", clusters: Sequence[Any] | None = None, seed: int = 0
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

    def kappa(tables: AnyArray) -> AnyArray:
        tables = tables.reshape(len(tables), options, options)
        chance = tables.sum(2)[:, :, None] * tables.sum(1)[:, None, :]
        total = tables.sum((1, 2))
        return _ratio((costs * tables).sum((1, 2)) * total, (costs * chance).sum((1, 2)))

    return _estimated(each.reshape(len(each), options * options), kappa, _kept(clusters, kept), seed)


def fleiss(counts: AnyArray, clusters: Sequence[Any] | None = None, seed: int = 0) -> Agreement:
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

    def kappa(sums: AnyArray) -> AnyArray:
        chosen, agreed, units = sums[:, :-2], sums[:, -2], sums[:, -1]
        with np.errstate(invalid="ignore", divide="ignore"):
            shares = chosen / (units * number)[:, None]
            by_chance = (shares**2).sum(axis=1)
            return _ratio(1 - agreed / units, 1 - by_chance)

    return _estimated(each, kappa, clusters, seed)


def krippendorff(
    ratings: AnyArray, options: int, level: Level, clusters: Sequence[Any] | None = None, seed: int = 0
) -> Agreement:
    """Krippendorff's alpha (Krippendorff 2011) of any number of raters, with missing values.

    `ratings` is (units, raters). Units with fewer than two ratings say nothing and don't count.
    """
    counts = counted(ratings, options)
    several = counts.sum(axis=1) >= 2
    counts = counts[several]
    pairs = counts[:, :, None] * counts[:, None, :] - counts[:, :, None] * np.eye(options)
    each = pairs / (counts.sum(axis=1) - 1)[:, None, None] if len(counts) else pairs

    def alpha(coincidences: AnyArray) -> AnyArray:
        observed = coincidences.reshape(len(coincidences), options, options)
        totals = observed.sum(axis=2)
        expected = totals[:, :, None] * totals[:, None, :] - totals[:, :, None] * np.eye(options)
        apart = _differences(totals, level)
        return _ratio((observed * apart).sum((1, 2)) * (totals.sum(1) - 1), (expected * apart).sum((1, 2)))

    return _estimated(each.reshape(len(each), options * options), alpha, _kept(clusters, several), seed)


def counted(ratings: AnyArray, options: int) -> AnyArray:
    """(units, options) how many raters chose each option."""
    ratings = np.asarray(ratings, float)
    return (ratings[:, :, None] == np.arange(1, options + 1)).sum(axis=1).astype(float)


def _differences(totals: AnyArray, level: Level) -> AnyArray:
    """(b, options, options) squared differences between options, given (b, options) how often each was chosen."""
    count = totals.shape[1]
    if level == "ordinal":
        # As many ratings as lie between two options, half of those on either end counted.
        places = np.cumsum(totals, axis=1) - totals / 2
        return (places[:, :, None] - places[:, None, :]) ** 2
    numbers = np.arange(count)
    gaps = np.subtract.outer(numbers, numbers).astype(float)
    return np.broadcast_to(gaps**2 if level == "interval" else (gaps != 0).astype(float), (len(totals), count, count))


def _ratio(observed: AnyArray, expected: AnyArray) -> AnyArray:
    """1 - observed / expected disagreement; NaN where no disagreement was to be expected."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(expected > 0, 1 - observed / expected, np.nan)


def _kept(clusters: Sequence[Any] | None, kept: AnyArray) -> list[Any] | None:
    return None if clusters is None else [each for each, keep in zip(clusters, kept, strict=True) if keep]


def _estimated(
    each: AnyArray, statistic: Callable[[AnyArray], AnyArray], clusters: Sequence[Any] | None, seed: int
) -> Agreement:
    """The statistic of the sums of (units, k), and its percentile interval over draws of whole clusters."""
    if not len(each):
        return Agreement(None, None, 0)
    value = float(statistic(each.sum(axis=0, keepdims=True))[0])
    if np.isnan(value):
        return Agreement(None, None, len(each))
    return Agreement(value, interval(statistic(resampled(each, clusters, seed))), len(each))


@dataclass(frozen=True)
class Dispute:
    """An item on which raters differ."""

    item: str
    said: dict[str, dict[int, int]]
    """Axis that they differ on -> option -> how many chose it"""
    distance: float
    """0 to 1: how far two raters' words are apart, on average over the item's axes that two or more rated"""


def disputed(axes: Sequence[Axis], ratings: Iterable[Rating], notes: Iterable[Note] = ()) -> list[Dispute]:
    """Items of the first round on which two or more raters differ, the most disputed first.

    Two words on a nominal axis are 0 or 1 apart, on an ordinal one as far as their options are on the way from the best
    to the worst. "Can't judge" says nothing. Of `notes` the better answers count: where raters wrote different ones,
    all that was said of the item is in dispute.
    """
    said: dict[str, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    for rating in ratings:
        if rating.round == RATING and rating.option is not None:
            said[rating.item][rating.axis].append(rating.option)
    texts: dict[str, set[str]] = defaultdict(set)
    for note in notes:
        if note.round == RATING and note.better.strip():
            texts[note.item].add(" ".join(note.better.split()))
    known = {axis.name: axis for axis in axes}
    found = []
    for item, by_axis in said.items():
        several = {name: words for name, words in by_axis.items() if len(words) > 1 and name in known}
        rewritten = len(texts[item]) > 1
        differing = {name: dict(Counter(words)) for name, words in several.items() if rewritten or len(set(words)) > 1}
        if differing:
            apart = [_apart(known[name], words) for name, words in several.items()]
            found.append(Dispute(item, differing, sum(apart) / len(apart)))
    return sorted(found, key=lambda each: (-each.distance, each.item))


def _apart(axis: Axis, words: Sequence[int]) -> float:
    """The mean distance of two raters' words."""
    pairs = list(combinations(words, 2))
    steps = len(axis.options) - 1 if axis.level == "ordinal" else 1
    return sum(min(abs(a - b), steps) / steps for a, b in pairs) / len(pairs)
