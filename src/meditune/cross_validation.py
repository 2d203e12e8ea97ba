"""Cross-validation over PubMedQA's published folds: one run per fold, then a summary of all folds.

Each run trains on nine folds and is evaluated on the tenth. The official test set is not used.
"""

from __future__ import annotations

import re
import statistics
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import meditune
from meditune.config.load_recipe import load_recipe
from meditune.config.recipe import Recipe, what_counts
from meditune.errors import MedituneError
from meditune.files import read_json, write_json
from meditune.hosted_pipeline import Approve, refuse
from meditune.pipeline import run
from meditune.run_folder import RECIPE, announce

RESULT = "crossval.json"
SETTINGS = "evaluate.split=dev"
MODELS = ("base", "tuned")


def settings(fold: int) -> list[str]:
    """Return the `--set` arguments that turn a recipe into the recipe of one fold."""
    return [f"data.fold={fold}", SETTINGS]


def crossval(
    recipes: Mapping[int, Recipe], folder: Path, commands: Mapping[int, str], approve: Approve = refuse
) -> dict[str, Any]:
    """Run or resume each fold in `folder/fold-N`, and return the content of crossval.json.

    Raises MedituneError if the folder contains anything else, except for hidden files.
    """
    _refuse_foreign(folder)
    for fold, recipe in recipes.items():
        place = folder / f"fold-{fold}"
        if not _finished(place, recipe):
            announce(f"fold {fold}")
            run(recipe, place, commands[fold], approve)
    first = next(iter(recipes.values()))
    result = {
        "meditune": meditune.__version__,
        "recipe": first.name,
        "base_model": first.model.base,
        "seed": first.seed,
        "folds": sorted(recipes),
    }
    places = [folder / f"fold-{fold}" for fold in sorted(recipes)]
    result |= pooled_results(places, first.evaluate.resamples, first.seed)
    write_json(folder / RESULT, result)
    return result


def pooled_results(runs: list[Path], resamples: int, seed: int) -> dict[str, Any]:
    """Return the metrics of all folds: `items`, `figures`, `accuracy_ci95` and `worse` (docs/reference/report.md).

    A pooled value is computed over the items of all folds; each item is predicted by the model that wasn't trained on
    it. The pooled value is None for a metric that isn't measured on the folds' items, such as the perplexity of general
    text. The interval of a pooled difference comes from a paired bootstrap over items. It is somewhat too narrow,
    because the folds' models share most of their training items and the bootstrap ignores this; no unbiased estimate
    of the variance exists (Bengio and Grandvalet 2004).
    """
    from meditune.evaluate.compare import compare, got_worse
    from meditune.evaluate.metrics import METRICS, summarize
    from meditune.evaluate.predictions import KINDS
    from meditune.statistics import wilson

    reports = [read_json(place / "report.json") for place in runs]
    models = {model: pooled(runs, model) for model in MODELS}
    comparison = compare(models["base"], models["tuned"], resamples, seed)
    sums = {model: summarize(predictions) for model, predictions in models.items()}
    figures: dict[str, Any] = {}
    for metric in METRICS:
        if not all(metric in report[model] for report in reports for model in MODELS):
            continue
        figures[metric] = {
            model: _spread([report[model][metric] for report in reports]) | {"pooled": sums[model].get(metric)}
            for model in MODELS
        }
        deltas = _spread([report["comparison"][metric]["delta"] for report in reports])
        figures[metric]["difference"] = deltas | {"pooled": comparison.get(metric)}
    return {
        "items": {kind: len(rows) for kind in KINDS if (rows := getattr(models["base"], kind))},
        "figures": figures,
        "accuracy_ci95": {
            model: wilson(sum(row["reference"] == row["prediction"] for row in each.decision), len(each.decision))
            for model, each in models.items()
            if each.decision
        },
        "worse": got_worse(
            {
                name: comparison.get(name, {"delta": row["difference"]["mean"], "better": None})
                for name, row in figures.items()
            }
        ),
    }


def pooled(runs: list[Path], model: str) -> Any:
    """Return the predictions of all folds combined, leaving out the items that occur in several folds."""
    from meditune.evaluate.predictions import KINDS, Predictions, ids_of, read

    every = [read(place / "predictions", model) for place in runs]
    found = {kind: [row for each in every for row in getattr(each, kind)] for kind in KINDS}
    counts = {kind: Counter(ids_of(rows)) for kind, rows in found.items()}
    return Predictions(**{kind: [row for row in rows if counts[kind][row["id"]] == 1] for kind, rows in found.items()})


def _spread(values: list[float]) -> dict[str, Any]:
    deviation = statistics.stdev(values) if len(values) > 1 else None
    return {"folds": values, "mean": statistics.fmean(values), "sd": deviation}


def _finished(place: Path, recipe: Recipe) -> bool:
    """Return whether a fold's run is finished with this recipe's settings; if they differ, `run` reports an error."""
    done = (place / RECIPE).is_file() and (place / "report.html").is_file()
    return done and what_counts(load_recipe(str(place / RECIPE)).recipe) == what_counts(recipe)


def _refuse_foreign(folder: Path) -> None:
    if not folder.exists():
        return
    # Hidden files are leftovers of an interrupted write, or come from a file manager.
    if not folder.is_dir() or any(
        item.name != RESULT and not re.fullmatch(r"fold-\d|\..*", item.name) for item in folder.iterdir()
    ):
        raise MedituneError(f"{folder} already exists, but isn't a cross-validation's folder. Choose another --output.")
