"""Metrics computed from sums of per-item statistics, and the intervals, bootstraps and tests that compare them."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from statistics import NormalDist
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

AnyArray = Any
Array = NDArray[np.float64]
Direction = Literal["up", "down", "one"]
LEVEL = 0.05
"""Significance level"""
MIN_GROUPS = 6
"""Minimum number of groups for a significant difference: five groups all agree by chance in one case of 16"""
FEW_GROUPS = 20
"""With fewer groups, p comes from a permutation test, because a bootstrap over so few groups varies too little"""
RESAMPLES = 2000
BLOCK = 500
"""Number of bootstrap draws computed at a time, to limit memory use"""


@dataclass(frozen=True)
class Metric:
    """A metric's name, direction and presentation."""

    name: str
    title: str
    direction: Direction
    """up: higher is better; down: lower is better; one: closer to 1 is better."""
    digits: int
    meaning: str
    family: str = ""
    """Heading in the report under which related metrics are grouped"""
    optional: bool = False
    """True if the report leaves the metric out when the run didn't measure it"""
    share: bool = False
    """True for a percentage of items that are right or wrong, so that the value of a single item is 0 or 100"""
    detail: bool = False
    """True for a detail of another metric, which the report's verdict names only if it got significantly worse"""
    detector: bool = False
    """True if a detector of unsupported claims computes the metric. A detector also marks some true answers, so a
    change is claimed only if the worse model is significantly worse than its reference answers."""


@dataclass(frozen=True)
class Statistics:
    """Per-item statistics of one metric, and the function that computes the metric from their sums.

    The function takes the sums over all items, over a subgroup, or over a bootstrap draw.
    """

    ids: tuple[str, ...]
    items: Array
    """(n, k): k statistics of each of n items"""
    figure: Callable[[Array], Array]
    """Maps sums of shape (..., k), over any selection of items, to values of the metric of shape (...)"""

    def value(self) -> float:
        """Return the metric's value over all items."""
        return float(self.figure(self.items.sum(axis=0)))


def mean(ids: Sequence[str], values: Sequence[float]) -> Statistics:
    """Return the statistics of a metric that is the mean of `values`, with one value per item."""
    return ratio(ids, values, [1.0] * len(values))


def ratio(ids: Sequence[str], over: Sequence[float], under: Sequence[float], otherwise: float = np.nan) -> Statistics:
    """Return the statistics of a metric that is sum(over) / sum(under), or `otherwise` if sum(under) is 0."""
    items = np.array([over, under], dtype=np.float64).T

    def figure(sums: Array) -> Array:
        found: Array = np.full(sums.shape[:-1], otherwise)
        np.divide(sums[..., 0], sums[..., 1], out=found, where=sums[..., 1] != 0)
        return found

    return Statistics(tuple(ids), items, figure)


def standard_gap(metric: Metric, tuned: Any, base: Any) -> Any:
    """Return tuned minus base, or |tuned - 1| minus |base - 1| for a metric whose best value is 1."""
    return np.abs(tuned - 1) - np.abs(base - 1) if metric.direction == "one" else tuned - base


def is_wrong(metric: Metric, delta: float) -> bool:
    """Return True if `delta`, as returned by `standard_gap`, is a change for the worse."""
    return delta < 0 if metric.direction == "up" else delta > 0


def better(low: float, high: float, direction: Direction = "up") -> bool | None:
    """Return True if a difference's interval is entirely better than 0, False if entirely worse, else None."""
    if low > 0 or high < 0:
        return (low > 0) == (direction == "up")
    return None


def paired_counts(statistics: Statistics) -> Any:
    """Return (n,) booleans: whether each item counts towards the metric (as right, or as wrong if lower is better)."""
    return np.asarray(statistics.figure(statistics.items)) > 50


# Intervals


def wilson(successes: int, count: int) -> list[float]:
    """Return Wilson's 95% score interval for `successes` out of `count`, in percent (Wilson 1927)."""
    # Importing scipy.stats takes most of a second, and data preparation needs it for nothing else.
    z = NormalDist().inv_cdf(1 - LEVEL / 2)
    share, spread = successes / count, z**2 / count
    middle, half = share + spread / 2, z * sqrt(share * (1 - share) / count + spread / (4 * count))
    ends = (middle - half) / (1 + spread), (middle + half) / (1 + spread)
    return [100 * (0.0 if successes == 0 else ends[0]), 100 * (1.0 if successes == count else ends[1])]


def percentile_interval(values: AnyArray) -> list[float] | None:
    """Return the values' 95% percentile interval (Efron and Tibshirani 1993), ignoring NaN; None if all are NaN."""
    defined = values[~np.isnan(values)]
    if not len(defined):
        return None
    # Rounding errors must not make an interval exclude zero.
    low, high = np.round(np.percentile(defined, [2.5, 97.5]), 9) + 0.0
    return [float(low), float(high)]


def student_interval(difference: float, se: float, df: float) -> list[float]:
    """Return the 95% confidence interval of a difference with the standard error `se`, from Student's t."""
    from scipy.stats import t

    reach = float(t.ppf(1 - LEVEL / 2, df)) * se
    return [round(bound, 9) + 0.0 for bound in (difference - reach, difference + reach)]


# Bootstrap over clusters of items


def clusters_of(keys: Sequence[Hashable]) -> Any:
    """Return (n,) cluster numbers: items with equal keys form a cluster, numbered in order of first occurrence."""
    numbers: dict[Hashable, int] = {}
    return np.array([numbers.setdefault(key, len(numbers)) for key in keys])


def by_cluster(items: Array, clusters: Any, count: int | None = None) -> Array:
    """Return the (count, k) sums of `items` (n, k) in each cluster; `count` defaults to the number of clusters."""
    sums = np.zeros((count or int(clusters.max()) + 1, items.shape[1]))
    np.add.at(sums, clusters, items)
    return sums


def draws(count: int, resamples: int, seed: int) -> Iterator[Array]:
    """Yield (b, count) blocks of bootstrap draws: how often each draw contains each of `count` clusters."""
    generator = np.random.default_rng(seed)
    for start in range(0, resamples, BLOCK):
        size = min(BLOCK, resamples - start)
        yield generator.multinomial(count, np.full(count, 1 / count), size=size).astype(np.float64)


def bootstrap(sides: Sequence[tuple[Callable[[Array], Array], Array]], resamples: int, seed: int) -> list[Array]:
    """Return each side's (resamples,) bootstrap values, computed on the same draws of clusters.

    A side is a pair: a function from summed statistics to a value, and the (clusters, k) sums of the clusters.
    """
    blocks = [[figure(drawn @ sums) for figure, sums in sides] for drawn in draws(len(sides[0][1]), resamples, seed)]
    return [np.concatenate(column) for column in zip(*blocks, strict=True)]


def resampled(rows: AnyArray, clusters: Sequence[Any] | None, seed: int) -> AnyArray:
    """Return bootstrap sums of `rows` (units, k); each draw samples complete clusters of units with replacement.

    The result has the shape (RESAMPLES, k), or (0, k) with fewer than two clusters, because a bootstrap over a single
    cluster shows no variation.
    """
    numbers = clusters_of(clusters or range(len(rows)))
    if len(np.unique(numbers)) < 2:
        return np.zeros((0, rows.shape[1]))
    sums = by_cluster(rows, numbers)
    return np.concatenate(list(draws(len(sums), RESAMPLES, seed))) @ sums


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds and items, with its standard error."""

    mean: float
    se: float
    df: float
    """Degrees of freedom (Satterthwaite 1946); close to the number of seeds minus 1 if the seeds' variance dominates"""
    seed_share: float
    """Fraction of the mean's variance that is due to the seeds, from 0 to 1"""

    def ci95(self) -> list[float]:
        """Return the 95% confidence interval of the mean, from Student's t distribution."""
        return student_interval(self.mean, self.se, self.df)

    def p(self) -> float:
        """Return the two-sided p-value of the hypothesis that the mean is 0."""
        return student_p(self.mean, self.se, self.df)


def two_level(figures: Array, resampled: Array, groups: int, seed: int) -> Estimate:
    """Return the mean of `figures` (one per seed), with a standard error from a bootstrap over seeds and items.

    `resampled` (b, seeds) contains each seed's values on b draws of the items, which form `groups` groups. All seeds
    share these draws, because their models answered the same items. Each draw also samples the n seeds with
    replacement. This underestimates the variance between seeds by the factor (n - 1) / n, so the seeds' deviations from
    the mean are scaled by sqrt(n / (n - 1)) (Rao and Wu 1988). Satterthwaite's degrees of freedom account for the
    uncertainty of a variance that is estimated from a few seeds.
    """
    seeds, mean = len(figures), float(figures.mean())
    counts = np.random.default_rng([seed, 2]).multinomial(seeds, np.full(seeds, 1 / seeds), size=len(resampled)) / seeds
    by_seed = (seeds / (seeds - 1)) ** 0.5 * (counts @ (figures - mean))
    by_item = (counts * (resampled - figures)).sum(axis=1)
    variance = float(np.nanvar(by_seed + by_item))
    of_seeds = min(float(figures.var(ddof=1)) / seeds, variance)
    parts = of_seeds**2 / (seeds - 1) + (variance - of_seeds) ** 2 / max(groups - 1, 1)
    return Estimate(mean, variance**0.5, variance**2 / parts if parts else 1.0, of_seeds / variance if variance else 0)


# Tests and corrections


def mcnemar(gained: int, lost: int, alternative: Literal["two-sided", "less"] = "two-sided") -> float:
    """Return the exact p-value of McNemar's test; the null hypothesis is that gains and losses are equally likely.

    With "less", the null hypothesis is that gains are at least as likely as losses.
    """
    from scipy.stats import binomtest

    return float(binomtest(gained, gained + lost, alternative=alternative).pvalue) if gained + lost else 1.0


def fisher(
    first: tuple[int, int], second: tuple[int, int], alternative: Literal["two-sided", "greater"] = "two-sided"
) -> float:
    """Return the p-value of Fisher's exact test; each group is given as (number of events, number of other items).

    The null hypothesis is that events are equally frequent in both groups. With "greater", it is that they aren't more
    frequent in the first group.
    """
    from scipy.stats import fisher_exact

    return float(fisher_exact([first, second], alternative=alternative).pvalue)


def student_p(difference: float, se: float, df: float) -> float:
    """Return the two-sided p-value of a difference with the standard error `se`, from Student's t distribution."""
    from scipy.stats import t

    # Rounding errors alone must not give a small p-value.
    difference, se = round(difference, 9), round(se, 9)
    return float(2 * t.sf(abs(difference) / se, df)) if se else float(difference == 0)


def bootstrap_p(deltas: Array) -> float:
    """Return the two-sided p-value of the hypothesis of no difference, from the differences on all bootstrap draws."""
    tail = min((deltas <= 0).sum(), (deltas >= 0).sum())
    return float(min(1.0, 2 * (tail + 1) / (len(deltas) + 1)))


def random_swaps(items: int, resamples: int, seed: int | Sequence[int]) -> Iterator[Array]:
    """Yield (b, items) blocks of random zeros and ones, with `resamples` rows in all, for `permutation_p`."""
    generator = np.random.default_rng(seed)
    for start in range(0, resamples, BLOCK):
        yield generator.integers(0, 2, (min(BLOCK, resamples - start), items)).astype(np.float64)


def permutation_p(first: Array, second: Array, statistic: Callable[[Array], Array], swaps: Iterable[Array]) -> float:
    """Return the two-sided p-value of a paired permutation test of no difference between `first` and `second` (n, k).

    `swaps` yields (b, n) blocks, with 1 where a permutation swaps the pair of an item, else 0. The test is exact even
    if one side has no event.
    """

    def difference(one: Array, other: Array) -> Array:
        found: Array = statistic(one) - statistic(other)
        return found

    observed = abs(float(difference(first.sum(axis=0), second.sum(axis=0))))
    moved = np.concatenate([block @ (second - first) for block in swaps])
    drawn = np.abs(difference(first.sum(axis=0) + moved, second.sum(axis=0) - moved))
    drawn = drawn[np.isfinite(drawn)]
    return float(((drawn >= observed - 1e-9).sum() + 1) / (len(drawn) + 1)) if np.isfinite(observed) else 1.0


Key = TypeVar("Key", bound=Hashable)


def holm(p_values: Mapping[Key, float]) -> dict[Key, float]:
    """Return each p-value, corrected for the number of tests by Holm's step-down procedure (Holm 1979)."""
    adjusted: dict[Key, float] = {}
    highest = 0.0
    for rank, name in enumerate(sorted(p_values, key=lambda name: p_values[name])):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[name]))
        adjusted[name] = highest
    return adjusted
