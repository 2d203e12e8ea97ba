"""What the seed does: base against tuned in runs of one recipe that differ in their seeds, as a distribution."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from meditune.errors import DataError
from meditune.evaluate.measured import seed_of
from meditune.evaluate.metrics import METRICS
from meditune.files import read_json, read_text
from meditune.recipe import Recipe, what_counts
from meditune.recipes.loading import load_recipe


def over_seeds(folders: Sequence[Path]) -> dict[str, Any]:
    """`seeds`, and for every metric that all runs compared, how base, tuned and their difference spread over them.

    Of each metric: `base`, `tuned` and `delta`, one figure for each run in the order of `seeds`; the `mean` delta, its
    standard deviation `sd`, `range`, and `ci95`, Student's t interval of the mean over seeds (None for a single run);
    `better`: True or False where that interval excludes 0; `agree`: how many runs moved the right way.

    Raises DataError where the runs differ in more than their seed.
    """
    if len(folders) < 2:
        raise DataError("One run says nothing about seeds. Give the folders of two or more runs.")
    seeds = [seed_of(folder) for folder in folders]
    if len(set(seeds)) < len(seeds):
        raise DataError(f"Two of these runs have the same seed: {', '.join(map(str, seeds))}. Give each its own.")
    _refuse_other_recipes(folders)
    reports = [read_json(folder / "report.json") for folder in folders]
    shared = [name for name in METRICS if all(name in report["comparison"] for report in reports)]
    return {"seeds": seeds, "metrics": {name: _spread(name, reports) for name in shared}}


def _spread(name: str, reports: Sequence[dict[str, Any]]) -> dict[str, Any]:
    from scipy.stats import t

    deltas = np.array([report["comparison"][name]["delta"] for report in reports])
    mean, sd, count = float(deltas.mean()), float(deltas.std(ddof=1)), len(deltas)
    reach = float(t.ppf(0.975, count - 1)) * sd / count**0.5
    upward = METRICS[name].direction == "up"
    good_low, good_high = (mean - reach, mean + reach) if upward else (-mean - reach, -mean + reach)
    return {
        "base": [report["base"][name] for report in reports],
        "tuned": [report["tuned"][name] for report in reports],
        "delta": deltas.tolist(),
        "mean": mean,
        "sd": sd,
        "range": [float(deltas.min()), float(deltas.max())],
        "ci95": [mean - reach, mean + reach],
        "better": True if good_low > 0 else False if good_high < 0 else None,
        "agree": int((deltas > 0).sum() if upward else (deltas < 0).sum()),
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
