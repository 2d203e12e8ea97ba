"""Models that were measured before: their predictions and items, found by a folder's name."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from meditune.data.example import Example, read_examples
from meditune.data.leakage import FILE_NAME
from meditune.data.retrieved import FOUND
from meditune.errors import DataError
from meditune.evaluate.predictions import CONDITIONS, KINDS, Condition, Predictions, path_of, read
from meditune.files import read_json, sha256
from meditune.recipes.loading import load_recipe

SIDES = ("base", "tuned", "model")
SAID: dict[Condition, str] = {"closed": "closed book", "retrieved": "with retrieved passages"}


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
    passages: str = ""
    """With retrieved passages, the SHA-256 of the file that holds them"""

    def groups(self) -> dict[str, str]:
        """What each item belongs to: items of one group aren't independent of each other."""
        return groups_of(self.examples)


def measured(name: str) -> Measured:
    """The model that `name` means: FOLDER of `meditune evaluate` or of a run, or FOLDER:base, FOLDER:tuned.

    Of a run's folder the tuned model is taken unless the name says otherwise. FOLDER:retrieved and FOLDER:closed, or
    FOLDER:tuned+retrieved and the like, are the model with found passages, or with none, in place of the given context:
    its decisions, likelihoods and answers under that condition. Raises DataError where there are no predictions of it.
    """
    folder, side, condition = _parted(name)
    place = folder / "predictions"
    if not place.is_dir():
        raise DataError(f"{folder} holds no predictions. Give the folder of `meditune evaluate` or of a run.")
    there = [each for each in SIDES if any(path_of(place, each, kind).is_file() for kind in KINDS)]
    side = side or ("model" if "model" in there else "tuned")
    if side not in there:
        raise DataError(f"{folder} holds no predictions of {side!r}, only of {', '.join(there) or 'no model at all'}.")
    checked = folder / FILE_NAME
    known = examples_of(folder), read_json(checked) if checked.is_file() else None
    predictions = read(place, side)
    if condition is None:
        return Measured(name, predictions, *known)
    under = predictions.under(condition)
    if not (under.decision or under.answer):
        key = "evaluate.closed_book=true" if condition == "closed" else "evaluate.retrieve.index=INDEX"
        raise DataError(f"{side} wasn't measured {SAID[condition]} in {folder}. Measure it with --set {key}.")
    found = folder / FOUND
    passages = sha256(found) if condition == "retrieved" and found.is_file() else ""
    return Measured(name, under, *known, passages)


def _parted(name: str) -> tuple[Path, str, Condition | None]:
    """Folder, side and condition of a model's name; the last two are empty where it doesn't name them."""
    folder, _, rest = name.rpartition(":")
    words = rest.split("+")
    side = words.pop(0) if words[0] in SIDES else ""
    condition: Condition | None = next((each for each in CONDITIONS if words == [each]), None)
    if Path(name).exists() or not folder or (words and condition is None):
        return Path(name), "", None
    return Path(folder), side, condition


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
