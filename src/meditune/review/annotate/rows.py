"""The rows that can be checked: a recipe's prepared data, a run's, or those of a user's own file."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from meditune.data import own
from meditune.data.example import Example
from meditune.data.prepare import Prepared, prepare, stored
from meditune.data.rejects import Rejects
from meditune.errors import DataError
from meditune.files import sha256
from meditune.recipes.loading import load_recipe

TABLES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet")
TRAINED = ("train", "dev")


@dataclass(frozen=True)
class Candidates:
    """Rows to choose from."""

    rows: list[Example]
    sha256: str
    """Of what they were read from"""
    decided: int = 0
    """Rows that people had checked before, which aren't among them"""
    rejected: int = 0
    """Rows of a file that couldn't be read"""


def candidates(source: str, overrides: Sequence[str], test: bool) -> Candidates:
    """The rows of `source`: a run's folder, a table, or else a recipe, which `overrides` are put over.

    Without `test` only those of train and dev; a table has no splits, so all of its rows are taken. Raises DataError
    where nothing is there to be checked.
    """
    path = Path(source)
    splits = (*TRAINED, "test") if test else TRAINED
    if path.suffix.lower() in TABLES:
        rejects = Rejects()
        rows, digest, rejected = list(own.read(path, rejects)), sha256(path), len(rejects)
    elif path.is_dir():
        rows, digest, rejected = *_of_splits(stored(_data_of(path)), splits), 0
    else:
        recipe = load_recipe(source, overrides).recipe
        with tempfile.TemporaryDirectory() as folder:
            rows, digest, rejected = *_of_splits(prepare(recipe, Path(folder) / "data"), splits), 0
    new = [row for row in rows if "validated" not in row.meta]
    if not new:
        raise DataError(f"{source}: no rows that weren't checked already.")
    return Candidates(new, digest, len(rows) - len(new), rejected)


def _of_splits(prepared: Prepared, splits: Sequence[str]) -> tuple[list[Example], str]:
    named = prepared.splits.named()
    return [row for name in splits for row in named[name]], prepared.sha256


def _data_of(folder: Path) -> Path:
    for place in (folder / "data", folder):
        if (place / "quality.json").is_file():
            return place
    raise DataError(f"{folder} holds no prepared data. Give a folder of `meditune run` or `meditune data prepare`.")
