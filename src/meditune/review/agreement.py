"""Agreement between raters: Cohen's and Fleiss' kappa, Krippendorff's alpha, each with a bootstrap interval; disputes.

Ratings are an array (units, raters) of 1-based option numbers, with NaN for missing values. Every statistic is a
function of sums over units, so that a bootstrap resample is one matrix product.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np

from meditune.review.rating_set import Axis, Level
from meditune.review.ratings_store import RATING, Note, Rating
from meditune.statistics import AnyArray, percentile_interval, resampled

Agreement = dict[str, Any]
"""`value`: 1 for perfect agreement, 0 for agreement at chance level, None if undefined; `ci95`: the bootstrap interval;
`items`: the number of items that count
"""


def cohen(
    ratings: AnyArray, options: int, level: Level = "nominal", clusters: Sequence[Any] | None = None, seed: int = 0
) -> Agreement:
    """Return Cohen's kappa (1960) of ratings (units, 2); for ordinal levels, linearly weighted kappa (1968)."""
    both = np.asarray(ratings, float)
    rated_twice = ~np.isnan(both).any(axis=1)
    first, second = (both[rated_twice, side].astype(int) - 1 for side in (0, 1))
    each = np.zeros((int(rated_twice.sum()), options, options))
    each[np.arange(len(each)), first, second] = 1
    costs = np.abs(np.subtract.outer(np.arange(options), np.arange(options))).astype(float)
    costs = costs if level == "ordinal" else np.sign(costs)

    def kappa(tables: AnyArray) -> AnyArray:
        tables = tables.reshape(len(tables), options, options)
        chance = tables.sum(2)[:, :, None] * tables.sum(1)[:, None, :]
        total = tables.sum((1, 2))
        return _ratio((costs * tables).sum((1, 2)) * total, (costs * chance).sum((1, 2)))

    return _estimated(each.reshape(len(each), options**2), kappa, _kept(clusters, rated_twice), seed)


def fleiss(counts: AnyArray, clusters: Sequence[Any] | None = None, seed: int = 0) -> Agreement:
    """Return Fleiss' kappa (1971) from the number of raters (units, options) who chose each option.

    Raises ValueError unless every unit has the same number of raters, two or more.
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
    """Return Krippendorff's alpha (2011) of ratings (units, raters) with missing values.

    Units with fewer than two ratings don't count.
    """
    counts = counted(ratings, options)
    several = counts.sum(axis=1) >= 2
    counts = counts[several]
    pairs = counts[:, :, None] * counts[:, None, :] - counts[:, :, None] * np.eye(options)
    each = pairs / (counts.sum(axis=1) - 1)[:, None, None] if len(counts) else pairs

    def alpha(matrices: AnyArray) -> AnyArray:
        observed = matrices.reshape(len(matrices), options, options)
        totals = observed.sum(axis=2)
        expected = totals[:, :, None] * totals[:, None, :] - totals[:, :, None] * np.eye(options)
        costs = _differences(totals, level)
        return _ratio((observed * costs).sum((1, 2)) * (totals.sum(1) - 1), (expected * costs).sum((1, 2)))

    return _estimated(each.reshape(len(each), options**2), alpha, _kept(clusters, several), seed)


def counted(ratings: AnyArray, options: int) -> AnyArray:
    """Return the number of raters who chose each option, an array (units, options)."""
    ratings = np.asarray(ratings, float)
    return (ratings[:, :, None] == np.arange(1, options + 1)).sum(axis=1).astype(float)


def _differences(totals: AnyArray, level: Level) -> AnyArray:
    """Return the squared differences between options, (b, options, options), given their counts (b, options)."""
    if level == "ordinal":
        # The distance of two options is the number of ratings between them, plus half the ratings of both options.
        places = np.cumsum(totals, axis=1) - totals / 2
        return (places[:, :, None] - places[:, None, :]) ** 2
    return np.broadcast_to(1 - np.eye(totals.shape[1]), (*totals.shape, totals.shape[1]))


def _ratio(observed: AnyArray, expected: AnyArray) -> AnyArray:
    """Return 1 - observed / expected disagreement; NaN if the expected disagreement is zero."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(expected > 0, 1 - observed / expected, np.nan)


def _kept(clusters: Sequence[Any] | None, mask: AnyArray) -> list[Any] | None:
    return None if clusters is None else [each for each, keep in zip(clusters, mask, strict=True) if keep]


def _estimated(
    sums: AnyArray, statistic: Callable[[AnyArray], AnyArray], clusters: Sequence[Any] | None, seed: int
) -> Agreement:
    """Return the statistic of `sums` (units, k), with its percentile interval over resamples of whole clusters."""
    value = float(statistic(sums.sum(axis=0, keepdims=True))[0]) if len(sums) else np.nan
    if np.isnan(value):
        return {"value": None, "ci95": None, "items": len(sums)}
    drawn = statistic(resampled(sums, clusters, seed))
    return {"value": value, "ci95": percentile_interval(drawn), "items": len(sums)}


@dataclass(frozen=True)
class Dispute:
    """An item on which raters disagree."""

    item: str
    votes: dict[str, dict[int, int]]
    """Disputed axis -> option -> number of raters who chose it"""
    distance: float


def disputed(axes: Sequence[Axis], ratings: Iterable[Rating], notes: Iterable[Note] = ()) -> list[Dispute]:
    """Return the items of the first round on which two or more raters disagree, the most disputed first.

    "Can't judge" is ignored. If `notes` contain different better answers for an item, all its axes with two or more
    ratings are disputed.
    """
    options: dict[str, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    for rating in ratings:
        if rating.round == RATING and rating.option is not None:
            options[rating.item][rating.axis].append(rating.option)
    texts: dict[str, set[str]] = defaultdict(set)
    for note in notes:
        if note.round == RATING and note.better.strip():
            texts[note.item].add(" ".join(note.better.split()))
    known = {axis.name: axis for axis in axes}
    found = []
    for item, by_axis in options.items():
        several = {name: words for name, words in by_axis.items() if len(words) > 1 and name in known}
        rewritten = len(texts[item]) > 1
        differing = {name: dict(Counter(words)) for name, words in several.items() if rewritten or len(set(words)) > 1}
        if differing:
            distances = []
            for name, words in several.items():
                steps = len(known[name].options) - 1 if known[name].level == "ordinal" else 1
                pairs = [min(abs(a - b), steps) / steps for a, b in combinations(words, 2)]
                distances.append(sum(pairs) / len(pairs))
            found.append(Dispute(item, differing, sum(distances) / len(distances)))
    return sorted(found, key=lambda each: (-each.distance, each.item))
