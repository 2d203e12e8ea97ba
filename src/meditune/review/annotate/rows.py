"""The rows that can be checked: a recipe's prepared data, a run's, or those of a user's own file."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from meditune.data import own
from meditune.data.example import Example
from meditune.data.prepare import Prepared, prepare, stored
from meditune.data.rejects import Rejects
from meditune.errors import DataError
from meditune.files import sha256
from meditune.recipes.loading import load_recipe

TABLES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet")
TRAINED = ("train", "dev")
LEDGER, NOTED = "ledger.parquet", ("id", "rule", "action", "detail")


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
    noted: tuple[Mapping[str, Any], ...] = ()
    """What quality control wrote about rows into the data's ledger"""


def candidates(source: str, overrides: Sequence[str], test: bool) -> Candidates:
    """The rows of `source`: a run's folder, a table, or else a recipe, which `overrides` are put over.

    Without `test` only those of train and dev; a table has no splits, so all of its rows are taken. Raises DataError
    where nothing is there to be checked.
    """
    path = Path(source)
    if path.suffix.lower() in TABLES:
        rejects = Rejects()
        return _new(source, list(own.read(path, rejects)), sha256(path), len(rejects))
    splits = (*TRAINED, "test") if test else TRAINED
    if path.is_dir():
        data = _data_of(path)
        return _of_splits(source, stored(data), splits, data)
    recipe = load_recipe(source, overrides).recipe
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data"
        return _of_splits(source, prepare(recipe, data), splits, data)


def _of_splits(source: str, prepared: Prepared, splits: Sequence[str], folder: Path) -> Candidates:
    named = prepared.splits.named()
    return _new(source, [row for name in splits for row in named[name]], prepared.sha256, 0, _ledger(folder))


def _new(
    source: str, rows: Sequence[Example], digest: str, rejected: int, noted: Iterable[Mapping[str, Any]] = ()
) -> Candidates:
    new = [row for row in rows if "validated" not in row.meta]
    if not new:
        raise DataError(f"{source}: no rows that weren't checked already.")
    return Candidates(new, digest, len(rows) - len(new), rejected, tuple(noted))


def _ledger(folder: Path) -> list[dict[str, Any]]:
    """The rows of the ledger that quality control left beside the data; none where there is no ledger."""
    path = folder / LEDGER
    if not path.is_file():
        return []
    import pyarrow.parquet

    rows: list[dict[str, Any]] = pyarrow.parquet.read_table(path, columns=list(NOTED)).to_pylist()
    return rows


def _data_of(folder: Path) -> Path:
    for place in (folder / "data", folder):
        if (place / "quality.json").is_file():
            return place
    raise DataError(f"{folder} holds no prepared data. Give a folder of `meditune run` or `meditune data prepare`.")
