"""Comparison of base and tuned over runs with different seeds: a two-level bootstrap over seeds and items."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from meditune.config.load_recipe import load_recipe
from meditune.config.recipe import NEUTRAL
from meditune.config.recipe_keys import dotted, leaves
from meditune.errors import DataError
from meditune.evaluate.compare import MIN_GROUPS, claim_p, group_numbers, in_order
from meditune.evaluate.metrics import METRICS, references_of, statistics_of
from meditune.evaluate.predictions import examples_of, groups_of, read, seed_of
from meditune.files import read_text
from meditune.statistics import (
    LEVEL,
    Array,
    Estimate,
    Metric,
    Statistics,
    better,
    bootstrap,
    by_cluster,
    holm,
    is_wrong,
    standard_gap,
    two_level,
)


def over_seeds(folders: Sequence[Path], resamples: int = 10_000, seed: int = 17) -> dict[str, Any]:
    """Return `seeds`, and for every metric that all runs measured, the spread of base, tuned and their difference.

    For each metric: `base`, `tuned` and `delta`, one value per run in the order of `seeds`; the `mean` delta, its
    standard deviation over the seeds `sd`, and its `range`; `se`, `df`, `ci95`, `p` and `seed_share` of the mean, by
    `two_level`; `p_holm`, corrected by Holm's procedure over all metrics here; `items` and `groups` of all runs
    together; `better`: True or False if the interval excludes 0, and None if it doesn't or if there are fewer than
    MIN_GROUPS groups of items; `agree`: the number of runs in which the metric improved. Detector metrics have
    `references` and `difference` as in compare.compare, with means over the runs, and follow the same rule.

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
        clusters = dict(zip(ids, group_numbers(ids, groups).tolist(), strict=True))
        compared = {name: _compared(METRICS[name], runs) for name in names}
        count = len(set(clusters.values()))
        sums = [
            (side.figure, by_cluster(side.items, np.array([clusters[id] for id in side.ids]), count))
            for each in compared.values()
            for sides in (*each["change"], *each["excess"])
            for side in sides
        ]
        drawn = iter(bootstrap(sums, resamples, seed))
        for name, each in compared.items():
            estimates = {
                kind: _estimate(METRICS[name], each[kind], drawn, count, seed) for kind in ("change", "excess")
            }
            found[name] = _row(METRICS[name], each, estimates, count) | {"items": len(ids)}
    adjusted = holm({name: claim_p(row) for name, row in found.items()})
    return {"seeds": seeds, "metrics": {name: found[name] | {"p_holm": adjusted[name]} for name in shared}}


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


Pairs = list[tuple[Statistics, Statistics]]
"""For each run, what is subtracted and what it is subtracted from"""


def _compared(metric: Metric, runs: Sequence[_Run]) -> dict[str, Any]:
    """Return `change`, `of` and `excess` of the runs.

    `change` has the pairs of base and tuned, `of` is the worse model, and `excess` has the pairs of that model's
    references and the model itself. `excess` is empty unless the metric is a detector's and all runs have graded
    references.
    """
    change = [(run.base[metric.name], run.tuned[metric.name]) for run in runs]
    of = "tuned" if is_wrong(metric, float(_gaps(metric, change).mean())) else "base"
    excess = [
        (references, tuned if of == "tuned" else base)
        for run, (base, tuned) in zip(runs, change, strict=True)
        if metric.detector and (references := run.references[of].get(metric.name)) and references.ids == base.ids
    ]
    return {"change": change, "of": of, "excess": excess if len(excess) == len(runs) else []}


def _gaps(metric: Metric, pairs: Pairs) -> Array:
    return np.array([float(standard_gap(metric, second.value(), first.value())) for first, second in pairs])


def _estimate(metric: Metric, pairs: Pairs, draws: Iterator[Array], groups: int, seed: int) -> Estimate | None:
    """Return the mean difference over seeds and items; `draws` yields each side's values on the draws."""
    if not pairs:
        return None
    values = [(next(draws), next(draws)) for _ in pairs]
    gaps = np.stack([standard_gap(metric, second, first) for first, second in values], axis=1)
    return two_level(_gaps(metric, pairs), gaps, groups, seed)


def _row(
    metric: Metric, compared: Mapping[str, Any], estimates: Mapping[str, Estimate | None], groups: int
) -> dict[str, Any]:
    """Return the metric's keys of `over_seeds`, except `p_holm` and `items`."""
    deltas, found, few = _gaps(metric, compared["change"]), estimates["change"], groups < MIN_GROUPS
    assert found is not None, "there are two or more runs"
    low, high = found.ci95()
    row: dict[str, Any] = {
        "base": [first.value() for first, _ in compared["change"]],
        "tuned": [second.value() for _, second in compared["change"]],
        "delta": deltas.tolist(),
        "mean": found.mean,
        "sd": float(deltas.std(ddof=1)),
        "range": [float(deltas.min()), float(deltas.max())],
        "se": found.se,
        "df": found.df,
        "seed_share": found.seed_share,
        "ci95": [low, high],
        "p": 1.0 if few else found.p(),
        "better": None if few else better(low, high, metric.direction),
        "agree": int((deltas > 0).sum() if metric.direction == "up" else (deltas < 0).sum()),
        "groups": groups,
    }
    if metric.detector:
        row |= {"references": None, "difference": row["better"]}
        excess = estimates["excess"]
        if excess:
            p = 1.0 if few else excess.p()
            row["references"] = {
                "figure": float(np.mean([references.value() for references, _ in compared["excess"]])),
                "of": compared["of"],
                "excess": excess.mean,
                "excess_ci95": excess.ci95(),
                "p": p,
                "beyond": p < LEVEL and is_wrong(metric, excess.mean),
            }
        if not (row["references"] and row["references"]["beyond"]):
            row["better"] = None
    return row


def _refuse_other_recipes(folders: Sequence[Path]) -> None:
    first, *others = (_without_seed(folder) for folder in folders)
    for folder, other in zip(folders[1:], others, strict=True):
        differing = sorted(key for key in first.keys() | other.keys() if first.get(key) != other.get(key))
        if differing:
            raise DataError(
                f"{folder} and {folders[0]} differ in more than their seed: {', '.join(differing)}. Compare them with "
                "`meditune compare` instead."
            )


def _without_seed(folder: Path) -> dict[str, Any]:
    """Return the settings of a run's recipe that affect its result, except the seed, by dotted key."""
    path = folder / "recipe.yaml"
    read_text(path)
    neutral = {("name",), ("seed",), *NEUTRAL}
    return {dotted(key): value for key, value in leaves(load_recipe(str(path)).recipe) if key[:2] not in neutral}
