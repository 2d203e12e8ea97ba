"""Comparison of base and tuned over runs with different seeds: a two-level bootstrap over seeds and items."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from meditune.config.load_recipe import load_recipe
from meditune.config.recipe import Recipe, what_counts
from meditune.errors import DataError
from meditune.evaluate.compare import FEWEST, by_cluster, claim_p, clusters_of, draws, in_order, is_wrong
from meditune.evaluate.metrics import METRICS, references_of, statistics_of
from meditune.evaluate.predictions import examples_of, groups_of, read, seed_of
from meditune.files import read_text
from meditune.statistics import Array, Metric, Statistics, holm, standard_gap

LEVEL = 0.05


def over_seeds(folders: Sequence[Path], resamples: int = 10_000, seed: int = 17) -> dict[str, Any]:
    """Return `seeds`, and for every metric that all runs measured, the spread of base, tuned and their difference.

    For each metric: `base`, `tuned` and `delta`, one value per run in the order of `seeds`; the `mean` delta, its
    standard deviation over the seeds `sd`, and its `range`; `se`, `df`, `ci95`, `p` and `seed_share` of the mean, by
    `two_level`; `p_holm`, corrected by Holm's procedure over all metrics here; `items` and `groups` of all runs
    together; `better`: True or False if the interval excludes 0, and None if it doesn't or if there are fewer than
    FEWEST groups of items; `agree`: the number of runs in which the metric improved. Detector metrics have `references`
    and `difference` as in compare.compare, with means over the runs, and follow the same rule.

    Raises DataError if the runs differ in more than their seed, or contain no predictions.
    """
    if len(folders) < 2:
        raise DataError("A comparison over seeds needs two or more runs. Name their folders.")
    seeds = [seed_of(folder) for folder in folders]
    if len(set(seeds)) < len(seeds):
        raise DataError(
            f"Two of these runs have the same seed: {', '.join(map(str, seeds))}. Use a different seed for each run."
        )
    _refuse_other_recipes(folders)
    runs = [_Run.read(folder) for folder in folders]
    shared = [name for name in METRICS if all(name in run.base and name in run.tuned for run in runs)]
    groups = {id: group for folder in folders for id, group in groups_of(examples_of(folder)).items()}
    alike: dict[tuple[tuple[str, ...], ...], list[str]] = {}
    for name in shared:
        alike.setdefault(tuple(run.base[name].ids for run in runs), []).append(name)
    found: dict[str, dict[str, Any]] = {}
    for per_run, names in alike.items():
        ids = list(dict.fromkeys(id for each in per_run for id in each))
        clusters = dict(zip(ids, clusters_of(ids, groups).tolist(), strict=True))
        metrics = [_Spread(METRICS[name], runs, clusters) for name in names]
        for drawn in draws(max(clusters.values()) + 1, resamples, seed):
            for metric in metrics:
                metric.draw(drawn)
        found |= {metric.metric.name: metric.result(seed) | {"items": len(ids)} for metric in metrics}
    adjusted = holm({name: claim_p(row) for name, row in found.items()})
    return {"seeds": seeds, "metrics": {name: found[name] | {"p_holm": adjusted[name]} for name in shared}}


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds and items, with its standard error."""

    mean: float
    se: float
    df: float
    """Degrees of freedom (Satterthwaite 1946); close to the number of seeds minus one if their variance dominates"""
    seed_share: float
    """The seeds' share of the variance of the mean, from 0 to 1"""

    def ci95(self) -> list[float]:
        """Return Student's t interval."""
        from scipy.stats import t

        reach = float(t.ppf(1 - LEVEL / 2, self.df)) * self.se
        return [self.mean - reach, self.mean + reach]

    def p(self) -> float:
        """Return the two-sided p that the mean is 0."""
        from scipy.stats import t

        return float(2 * t.sf(abs(self.mean) / self.se, self.df)) if self.se else float(self.mean == 0)


def two_level(figures: Array, drawn: Array, groups: int, seed: int) -> Estimate:
    """Return the mean of `figures` (one per seed), with a standard error from a bootstrap over seeds and items.

    `drawn` (b, seeds) contains the values on b draws of items, which form `groups` groups. A draw is the same for all
    seeds, because they answered the same items: separate draws for each seed would treat an item's difficulty as if it
    averaged out over seeds. Each draw also draws all n seeds with replacement. The variance of such draws is too small
    by the factor (n - 1) / n, so the seeds' deviations are scaled by the root of the inverse (Rao and Wu 1988). The
    variance of a few seeds is itself uncertain, which Satterthwaite's degrees of freedom account for.
    """
    seeds, mean = len(figures), float(figures.mean())
    counts = np.random.default_rng([seed, 2]).multinomial(seeds, np.full(seeds, 1 / seeds), size=len(drawn)) / seeds
    by_seed = (seeds / (seeds - 1)) ** 0.5 * (counts @ (figures - mean))
    by_item = (counts * (drawn - figures)).sum(axis=1)
    variance = float(np.nanvar(by_seed + by_item))
    of_seeds = min(float(figures.var(ddof=1)) / seeds, variance)
    parts = of_seeds**2 / (seeds - 1) + (variance - of_seeds) ** 2 / max(groups - 1, 1)
    return Estimate(mean, variance**0.5, variance**2 / parts if parts else 1.0, of_seeds / variance if variance else 0)


@dataclass(frozen=True)
class _Run:
    """A run's per-item statistics of both models and of the reference answers."""

    base: dict[str, Statistics]
    tuned: dict[str, Statistics]
    references: dict[str, dict[str, Statistics]]
    """The references' statistics for base and tuned"""

    @classmethod
    def read(cls, folder: Path) -> _Run:
        base, tuned = (read(folder / "predictions", name) for name in ("base", "tuned"))
        first, second = statistics_of(base), statistics_of(tuned)
        second |= {name: in_order(name, each, second[name]) for name, each in first.items() if name in second}
        return cls(first, second, {"base": references_of(base), "tuned": references_of(tuned)})


class _Differences:
    """The differences between two sides of one metric in each run, over all items and on draws."""

    def __init__(
        self, metric: Metric, sides: Sequence[tuple[Statistics, Statistics]], clusters: Mapping[str, int]
    ) -> None:
        """Sum by cluster. `sides` has each run's subtrahend and minuend; `clusters` maps item ids to clusters."""
        self.metric, self.sides, count = metric, sides, max(clusters.values()) + 1
        numbers = [np.array([clusters[id] for id in first.ids]) for first, _ in sides]
        self.sums = [
            (by_cluster(first.items, number, count), by_cluster(second.items, number, count))
            for (first, second), number in zip(sides, numbers, strict=True)
        ]
        self.figures = np.array([float(standard_gap(metric, second.value(), first.value())) for first, second in sides])
        self.drawn: list[Array] = []

    def draw(self, drawn: Array) -> None:
        """Compute the differences on draws (b, clusters)."""
        columns = [
            standard_gap(self.metric, second.figure(drawn @ more), first.figure(drawn @ less))
            for (first, second), (less, more) in zip(self.sides, self.sums, strict=True)
        ]
        self.drawn.append(np.stack(columns, axis=1))

    def estimate(self, groups: int, seed: int) -> Estimate:
        """Return the mean difference over seeds and items."""
        return two_level(self.figures, np.concatenate(self.drawn), groups, seed)


class _Spread:
    """One metric over all runs: tuned minus base, and for a detector metric the worse model minus the references."""

    def __init__(self, metric: Metric, runs: Sequence[_Run], clusters: Mapping[str, int]) -> None:
        self.metric, self.groups = metric, len(set(clusters.values()))
        sides = [(run.base[metric.name], run.tuned[metric.name]) for run in runs]
        self.change = _Differences(metric, sides, clusters)
        self.of = "tuned" if is_wrong(metric, float(self.change.figures.mean())) else "base"
        beside = [
            (references, tuned if self.of == "tuned" else base)
            for run, (base, tuned) in zip(runs, sides, strict=True)
            if (references := run.references[self.of].get(metric.name)) and references.ids == base.ids
        ]
        enough = metric.detector and len(beside) == len(runs)
        self.excess = _Differences(metric, beside, clusters) if enough else None

    def draw(self, drawn: Array) -> None:
        """Compute every difference on draws (b, clusters)."""
        self.change.draw(drawn)
        if self.excess:
            self.excess.draw(drawn)

    def result(self, seed: int) -> dict[str, Any]:
        """Return the metric's keys of `over_seeds`, except `p_holm` and `items`."""
        deltas, upward = self.change.figures, self.metric.direction == "up"
        found, few = self.change.estimate(self.groups, seed), self.groups < FEWEST
        low, high = found.ci95()
        good_low, good_high = (low, high) if upward else (-high, -low)
        row: dict[str, Any] = {
            "base": [first.value() for first, _ in self.change.sides],
            "tuned": [second.value() for _, second in self.change.sides],
            "delta": deltas.tolist(),
            "mean": found.mean,
            "sd": float(deltas.std(ddof=1)),
            "range": [float(deltas.min()), float(deltas.max())],
            "se": found.se,
            "df": found.df,
            "seed_share": found.seed_share,
            "ci95": [low, high],
            "p": 1.0 if few else found.p(),
            "better": None if few else True if good_low > 0 else False if good_high < 0 else None,
            "agree": int((deltas > 0).sum() if upward else (deltas < 0).sum()),
            "groups": self.groups,
        }
        if self.metric.detector:
            row |= {"references": self._references(seed, few), "difference": row["better"]}
            if not (row["references"] and row["references"]["beyond"]):
                row["better"] = None
        return row

    def _references(self, seed: int, few: bool) -> dict[str, Any] | None:
        if self.excess is None:
            return None
        found = self.excess.estimate(self.groups, seed)
        p = 1.0 if few else found.p()
        return {
            "figure": float(np.mean([references.value() for references, _ in self.excess.sides])),
            "of": self.of,
            "excess": found.mean,
            "excess_ci95": found.ci95(),
            "p": p,
            "beyond": p < LEVEL and is_wrong(self.metric, found.mean),
        }


def _refuse_other_recipes(folders: Sequence[Path]) -> None:
    first, *others = (_but_for_the_seed(folder) for folder in folders)
    for folder, other in zip(folders[1:], others, strict=True):
        differing = sorted(key for key in first.keys() | other.keys() if first.get(key) != other.get(key))
        if differing:
            raise DataError(
                f"{folder} and {folders[0]} differ in more than their seed: {', '.join(differing)}. Compare them with "
                "`meditune compare` instead."
            )


def _but_for_the_seed(folder: Path) -> dict[str, Any]:
    path = folder / "recipe.yaml"
    read_text(path)
    recipe: Recipe = load_recipe(str(path)).recipe
    return {key: value for key, value in _flat(what_counts(recipe)).items() if key not in {"seed", "name"}}


def _flat(value: Any, key: str = "") -> dict[str, Any]:
    if not isinstance(value, dict):
        return {key: value}
    return {
        inner: each
        for name, part in value.items()
        for inner, each in _flat(part, f"{key}.{name}" if key else name).items()
    }
