"""The recipe of a retraining: that of the version it goes on from, more gently, on the new data."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from meditune.data.splits import Splits
from meditune.folder import RECIPE, versions
from meditune.recipe import MixSpec, Recipe, plain
from meditune.recipes.loading import load_recipe
from meditune.recipes.writing import save

GENTLER = 0.5
"""The learning rate beside that of the version before: the weights are near a good place already"""
OWN, SAMPLE = "own", "sample"


def derived(parent: Path, old: Splits, new: Splits, files: Sequence[Path], synthetic: bool) -> Recipe:
    """The recipe that goes on from the version in the folder `parent`, whose splits were `old`, with `files` of rows.

    As large a share of the measured items is answered as before. `synthetic` is whether the old rows are the sample's.
    """
    before = load_recipe(str(parent / RECIPE)).recipe
    said = plain(before)
    said["model"] |= {"base": str((parent / "model").resolve()), "prune": {"method": "none"}}
    sources = [source for source in said["data"]["sources"] if source["name"] != OWN]
    # New rows are for those whom all of the old ones were for.
    style = "plain" if all(source.style == "plain" for source in before.data.sources) else "expert"
    sources = [{"name": SAMPLE, "style": style}] if synthetic else sources
    said["data"] |= {
        "sources": [*sources, *({"name": OWN, "path": str(path), "style": style} for path in files)],
        "decisions": None,
        "fold": None,
        "balance": {},
        "fallback_to_sample": False,
    }
    said["train"]["learning_rate"] *= GENTLER
    if before.train.mix.weights or before.train.mix.quota:
        # They name sources, of which there are others now.
        said["train"]["mix"] = MixSpec().model_dump(mode="json")
    if before.evaluate.answers is not None and old.test:
        said["evaluate"]["answers"] = math.ceil(before.evaluate.answers * len(new.test) / len(old.test))
    return Recipe.model_validate(said)


def with_settings(recipe: Recipe, place: Path, settings: Sequence[str]) -> Recipe:
    """The recipe with `--set` options, kept at `place`. Raises RecipeError that lists all that is wrong."""
    save(recipe, place, versions(recipe))
    changed: Any = load_recipe(str(place), list(settings))
    made: Recipe = changed.recipe
    save(made, place, versions(made))
    return made
