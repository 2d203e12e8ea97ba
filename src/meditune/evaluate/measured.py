"""Models that were measured before: their predictions and items, found by a folder's name."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from meditune.data.example import Example, read_examples
from meditune.data.leakage import FILE_NAME
from meditune.errors import DataError
from meditune.evaluate.predictions import KINDS, Predictions, path_of, read
from meditune.files import read_json
from meditune.recipes.loading import load_recipe

SIDES = ("base", "tuned", "model")


@dataclass(frozen=True)
class Measured:
    """One model's stored predictions, with what they were made on."""

    name: str
    """As the user named it"""
    predictions: Predictions
    examples: dict[str, Example]
    """By id; empty where the folder holds no data"""
    leakage: dict[str, Any] | None = None
    """What the check for leakage found before it was measured; None where there was none"""

    def groups(self) -> dict[str, str]:
        """What each item belongs to: items of one group aren't independent of each other."""
        return groups_of(self.examples)


def measured(name: str) -> Measured:
    """The model that `name` means: FOLDER of `meditune evaluate` or of a run, or FOLDER:base, FOLDER:tuned.

    Of a run's folder the tuned model is taken unless the name says otherwise. Raises DataError where there are no
    predictions of it.
    """
    folder, side = Path(name), ""
    if not folder.exists() and name.rpartition(":")[2] in SIDES:
        folder, side = Path(name.rpartition(":")[0]), name.rpartition(":")[2]
    place = folder / "predictions"
    if not place.is_dir():
        raise DataError(f"{folder} holds no predictions. Give the folder of `meditune evaluate` or of a run.")
    there = [each for each in SIDES if any(path_of(place, each, kind).is_file() for kind in KINDS)]
    side = side or ("model" if "model" in there else "tuned")
    if side not in there:
        raise DataError(f"{folder} holds no predictions of {side!r}, only of {', '.join(there) or 'no model at all'}.")
    checked = folder / FILE_NAME
    return Measured(name, read(place, side), examples_of(folder), read_json(checked) if checked.is_file() else None)


def groups_of(examples: dict[str, Example]) -> dict[str, str]:
    """Id -> the group that the example belongs to."""
    return {id: f"{example.source}/{example.group}" for id, example in examples.items()}


def examples_of(folder: Path) -> dict[str, Example]:
    """The items that a run or an evaluation measured on, by id; empty where the folder holds no data."""
    split = "test"
    if (folder / "recipe.yaml").is_file():
        split = load_recipe(str(folder / "recipe.yaml")).recipe.evaluate.split
    path = folder / "data" / f"{split}.jsonl"
    return {example.id: example for example in read_examples(path)} if path.is_file() else {}


def seed_of(folder: Path) -> int:
    """The seed of a finished run. Raises DataError where the folder isn't one."""
    path = folder / "report.json"
    if not path.is_file():
        raise DataError(f"{folder} is no finished run: it has no report.json. Finish it with `meditune run`.")
    return int(read_json(path)["seed"])
