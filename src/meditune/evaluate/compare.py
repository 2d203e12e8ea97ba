"""Is one model better than another? Paired statistics on the same items."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from meditune.errors import DataError
from meditune.evaluate.metrics import METRICS, Metric, Statistics, statistics_of
from meditune.evaluate.metrics.metric import Array
from meditune.evaluate.predictions import Predictions
from meditune.evaluate.significance import bootstrap_p, counted, gap, holm, mcnemar
from meditune.shares import wilson

BLOCK = 500
LEVEL = 0.05
FEWEST = 6
"""Groups to tell a difference by: even if all five of five lean one way, chance does that in one case of 16"""


def compare(
    base: Predictions, tuned: Predictions, resamples: int, seed: int, groups: Mapping[str, str] | None = None
) -> dict[str, dict[str, Any]]:
    """For every metric that both have, what the difference is and how sure:

    - `delta`: tuned - base; of the distances from 1 for a metric whose best value is 1 (length_ratio).
    - `ci95`: the paired bootstrap's percentile interval (Efron and Tibshirani 1993). Items with the same group in
      `groups` (id -> group) are drawn together, because they aren't independent of each other.
    - `p`, two-sided: McNemar's exact test (McNemar 1947) where each item is right or wrong, else the bootstrap's;
      `test` says which. `p_holm`: the same, corrected by Holm's procedure (Holm 1979) over all metrics here.
    - `better`: True or False where the interval excludes 0 on the good or the bad side, and None where it doesn't, or
      where there are fewer than FEWEST groups: draws of so few hardly vary. Their bootstrap's p is 1.
    - `effect`: delta over the standard deviation of one item's part in it, Cohen's d of paired differences (Cohen
      1988, d_z), taken from the bootstrap's spread; None where the difference never varies.
    - `base_ci95`, `tuned_ci95`: each model's own interval, Wilson's (Wilson 1927) for shares of independent items.
    - `items`, `groups`: how many there are.
    - `gained`, `lost`: where each item is right or wrong, how many only the tuned or only the base model got right.

    Raises DataError where the two were measured on different items.
    """
    first, second = statistics_of(base), statistics_of(tuned)
    shared = [name for name in first if name in second]
    second |= {name: _in_order(name, first[name], second[name]) for name in shared}
    found: dict[str, dict[str, Any]] = {}
    for names in _measured_alike(shared, first):
        clusters = _clusters(first[names[0]].ids, groups or {})
        pairs = [_Pair(METRICS[name], first[name], second[name], clusters) for name in names]
        for drawn in _draws(int(clusters.max()) + 1, resamples, seed):
            for pair in pairs:
                pair.draw(drawn)
        found |= {pair.metric.name: pair.result() for pair in pairs}
    adjusted = holm({name: row["p"] for name, row in found.items()})
    return {name: found[name] | {"p_holm": adjusted[name]} for name in shared}


def _in_order(name: str, first: Statistics, second: Statistics) -> Statistics:
    """`second` with its items in the order of `first`. Raises DataError where they aren't the same items."""
    if first.ids == second.ids:
        return second
    place = {each: index for index, each in enumerate(second.ids)}
    lacking = [each for each in first.ids if each not in place]
    further = sorted(place.keys() - set(first.ids))
    if lacking or further:
        sides = [
            f"{len(ids)} only in the {side} ({', '.join(ids[:3])}{' ...' if len(ids) > 3 else ''})"
            for side, ids in (("first", lacking), ("second", further))
            if ids
        ]
        raise DataError(
            f"The two models' {name} was measured on different items, so their difference says nothing: "
            f"{', '.join(sides)}. Evaluate both with the same recipe and seed, and the same version of Python."
        )
    return Statistics(first.ids, second.items[[place[each] for each in first.ids]], second.figure)


@dataclass
class _Pair:
    """One metric of both models, summed by cluster, and what the bootstrap has drawn of it so far."""

    metric: Metric
    base: Statistics
    tuned: Statistics
    clusters: Any
    """(n,) number of each item's cluster"""
    figures: list[tuple[Array, Array]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.sums = tuple(_by_cluster(each.items, self.clusters) for each in (self.base, self.tuned))

    def draw(self, drawn: Array) -> None:
        """Figures of both models on draws (b, clusters)."""
        base, tuned = (each.figure(drawn @ sums) for each, sums in zip((self.base, self.tuned), self.sums, strict=True))
        self.figures.append((base, tuned))

    def result(self) -> dict[str, Any]:
        base, tuned = (np.concatenate(column) for column in zip(*self.figures, strict=True))
        deltas = gap(self.metric, tuned, base)
        deltas = deltas[np.isfinite(deltas)]
        low, high = _interval(deltas)
        good_low, good_high = (low, high) if self.metric.direction == "up" else (-high, -low)
        delta = float(gap(self.metric, self.tuned.value(), self.base.value()))
        count, items = self.sums[0].shape[0], len(self.base.ids)
        few = count < FEWEST
        spread = float(deltas.std()) * count**0.5
        row = {
            "delta": delta,
            "ci95": [low, high],
            "p": 1.0 if few else bootstrap_p(deltas),
            "better": None if few else True if good_low > 0 else False if good_high < 0 else None,
            "test": "paired bootstrap",
            "effect": delta / spread if spread > 0 else None,
            "base_ci95": _interval(base),
            "tuned_ci95": _interval(tuned),
            "items": items,
            "groups": count,
        }
        if not self.metric.share:
            return row
        was, now = (counted(each) for each in (self.base, self.tuned))
        gained, lost = int((now & ~was).sum()), int((was & ~now).sum())
        if self.metric.direction == "down":
            gained, lost = lost, gained
        row |= {"gained": gained, "lost": lost}
        if count == items:
            row |= {"p": mcnemar(gained, lost), "test": "McNemar, exact"}
            row |= {"base_ci95": wilson(int(was.sum()), items), "tuned_ci95": wilson(int(now.sum()), items)}
        return row


def too_few(comparison: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """A sentence on the metrics that were measured on too few groups to tell a difference, if any were."""
    titles = [METRICS[name].title for name, row in comparison.items() if row["groups"] < FEWEST]
    if not titles:
        return []
    return [f"On fewer than {FEWEST} groups of items no difference can be shown, as of: {', '.join(titles)}."]


def survives(row: dict[str, Any]) -> bool:
    """Whether a metric's difference is shown even in view of how many metrics were tested."""
    return bool(row["p_holm"] < LEVEL)


def got_worse(comparison: dict[str, dict[str, Any]]) -> list[str]:
    """Names of the metrics that moved the wrong way, whether or not the interval excludes 0.

    A move that vanishes in the digits shown counts only where it is shown to be worse.
    """
    worse = []
    for name, row in comparison.items():
        metric = METRICS[name]
        wrong = row["delta"] < 0 if metric.direction == "up" else row["delta"] > 0
        if wrong and (row["better"] is False or round(row["delta"], metric.digits) != 0):
            worse.append(name)
    return worse


def _measured_alike(names: Sequence[str], statistics: Mapping[str, Statistics]) -> list[list[str]]:
    """The names in lists of those with the same items, which can share their draws."""
    found: dict[tuple[str, ...], list[str]] = {}
    for name in names:
        found.setdefault(statistics[name].ids, []).append(name)
    return list(found.values())


def _clusters(ids: Sequence[str], groups: Mapping[str, str]) -> Any:
    """(n,) the number of each item's group; an item without one is a group of its own."""
    numbers: dict[tuple[bool, str], int] = {}
    keys = [(each in groups, groups.get(each, each)) for each in ids]
    return np.array([numbers.setdefault(key, len(numbers)) for key in keys])


def _by_cluster(items: Array, clusters: Any) -> Array:
    """(clusters, k) sums of (n, k) items."""
    sums = np.zeros((int(clusters.max()) + 1, items.shape[1]))
    np.add.at(sums, clusters, items)
    return sums


def _draws(count: int, resamples: int, seed: int) -> Iterator[Array]:
    """(b, count) how often each of `count` clusters was drawn, in blocks."""
    generator = np.random.default_rng(seed)
    for start in range(0, resamples, BLOCK):
        size = min(BLOCK, resamples - start)
        yield generator.multinomial(count, np.full(count, 1 / count), size=size).astype(np.float64)


def _interval(figures: Array) -> list[float]:
    low, high = np.nanpercentile(figures, [2.5, 97.5])
    return [float(low), float(high)]
