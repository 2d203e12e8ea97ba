"""Runs that differ only in their seed: a two-level bootstrap over seeds and items."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from meditune import statistics as stats
from meditune.config.load_recipe import load_recipe
from meditune.config.recipe import NEUTRAL
from meditune.config.recipe_keys import dotted, leaves
from meditune.errors import DataError
from meditune.evaluate.compare import PairedStatistics, group_numbers, measured_alike, with_holm
from meditune.evaluate.metrics import METRICS
from meditune.evaluate.predictions import examples_of, groups_of, read, seed_of
from meditune.files import read_text
from meditune.statistics import Array, Estimate, Metric, Statistics


def over_seeds(folders: Sequence[Path], resamples: int = 10_000, seed: int = 17) -> dict[str, Any]:
    """Return `seeds`, and in `metrics` a row for each metric that all runs measured.

    A row has `base`, `tuned` and `delta`, with one value per run in the order of `seeds`; the `mean` delta with its
    `sd` and `range` over the seeds; the mean's `se`, `df`, `ci95`, `p` and `seed_share`, computed by `two_level`; and
    `agree`, the number of runs in which the metric improved. The other keys are as in `compare`, with means over the
    runs.

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
    runs = [
        PairedStatistics(*(read(folder / "predictions", model) for model in ("base", "tuned"))) for folder in folders
    ]
    groups = {id: group for folder in folders for id, group in groups_of(examples_of(folder)).items()}
    groups |= {id: group for run in runs for id, group in run.groups.items()}
    found: dict[str, dict[str, Any]] = {}
    for names in measured_alike(runs):
        ids = list(dict.fromkeys(id for run in runs for id in run.base[names[0]].ids))
        clusters = dict(zip(ids, group_numbers(ids, groups).tolist(), strict=True))
        compared = {name: _pairs(METRICS[name], runs) for name in names}
        count = len(set(clusters.values()))
        sums = [
            (side.figure, stats.by_cluster(side.items, np.array([clusters[id] for id in side.ids]), count))
            for each in compared.values()
            for sides in (*each["change"], *each["excess"])
            for side in sides
        ]
        drawn = iter(stats.bootstrap(sums, resamples, seed))
        for name, each in compared.items():
            estimates = {
                kind: _estimate(METRICS[name], each[kind], drawn, count, seed) for kind in ("change", "excess")
            }
            found[name] = _row(METRICS[name], each, estimates, count) | {"items": len(ids)}
    return {"seeds": seeds, "metrics": with_holm(found)}


Pairs = list[tuple[Statistics, Statistics]]
"""For each run, two sides whose difference is the second minus the first"""


def _pairs(metric: Metric, runs: Sequence[PairedStatistics]) -> dict[str, Any]:
    """Return `change` (each run's base and tuned side), `of` (the worse model's name) and `excess`.

    `excess` contains for each run the side of the worse model's references and that of the model itself. It is empty
    unless a detector computes the metric and all runs have graded references.
    """
    change = [(run.base[metric.name], run.tuned[metric.name]) for run in runs]
    of = "tuned" if stats.is_wrong(metric, float(_gaps(metric, change).mean())) else "base"
    excess = [
        (references, tuned if of == "tuned" else base)
        for run, (base, tuned) in zip(runs, change, strict=True)
        if metric.detector and (references := run.references[of].get(metric.name)) and references.ids == base.ids
    ]
    return {"change": change, "of": of, "excess": excess if len(excess) == len(runs) else []}


def _gaps(metric: Metric, pairs: Pairs) -> Array:
    return np.array([float(stats.standard_gap(metric, second.value(), first.value())) for first, second in pairs])


def _estimate(metric: Metric, pairs: Pairs, draws: Iterator[Array], groups: int, seed: int) -> Estimate | None:
    """Return the mean difference over seeds and items, or None without pairs; `draws` yields the sides' values."""
    if not pairs:
        return None
    values = [(next(draws), next(draws)) for _ in pairs]
    gaps = np.stack([stats.standard_gap(metric, second, first) for first, second in values], axis=1)
    return stats.two_level(_gaps(metric, pairs), gaps, groups, seed)


def _row(
    metric: Metric, compared: Mapping[str, Any], estimates: Mapping[str, Estimate | None], groups: int
) -> dict[str, Any]:
    """Return the metric's row of `over_seeds`, without `p_holm` and `items`."""
    deltas, found, few = _gaps(metric, compared["change"]), estimates["change"], groups < stats.MIN_GROUPS
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
        "better": None if few else stats.better(low, high, metric.direction),
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
                "beyond": p < stats.LEVEL and stats.is_wrong(metric, excess.mean),
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
    """Return dotted key -> value of the recipe's settings that affect a run's result, without the seed."""
    path = folder / "recipe.yaml"
    read_text(path)
    neutral = {("name",), ("seed",), *NEUTRAL}
    return {dotted(key): value for key, value in leaves(load_recipe(str(path)).recipe) if key not in neutral}
