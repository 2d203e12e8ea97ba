"""The ledger of rows that were dropped, changed or flagged, with reasons. Dropped or changed rows can be restored."""

from __future__ import annotations

import difflib
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from meditune.data.example import Example
from meditune.errors import DataError
from meditune.files import read_jsonl, write_jsonl

FILE_NAME = "ledger.parquet"
COLUMNS = ("id", "rule", "action", "before", "after", "source", "detail")
BATCH_ENTRIES = 1000
NEAR = 5


@dataclass(frozen=True)
class Entry:
    """A rule's action on a row."""

    rule: str
    action: str
    """drop, mend, flag, group or merge; for reviewers' decisions, also replace, validate or leave"""
    before: Example
    after: Example | None
    detail: str

    def row(self) -> dict[str, str | None]:
        """Return the entry as a row of the ledger; `before` and `after` are None if the example is unchanged."""
        changed = self.after is not self.before
        return {
            "id": self.before.id,
            "rule": self.rule,
            "action": self.action,
            "before": self.before.model_dump_json() if changed else None,
            "after": self.after.model_dump_json() if changed and self.after else None,
            "source": self.before.source,
            "detail": self.detail,
        }


class Ledger:
    """A collection of entries, stored in an unnamed temporary file in batches to save memory."""

    def __init__(self, folder: Path | None = None) -> None:
        """Create the file in `folder`, by default in the system's folder for temporary files."""
        self.counts: Counter[tuple[str, str]] = Counter()
        self._waiting: list[dict[str, str | None]] = []
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 (lives as long as this object)
        self._writer: Any = None

    def add_row(self, row: dict[str, str | None]) -> None:
        """Add an entry in the form that `Entry.row` returns."""
        self.counts[str(row["rule"]), str(row["action"])] += 1
        self._waiting.append(row)
        if len(self._waiting) >= BATCH_ENTRIES:
            self._flush()

    def write(self, path: Path) -> None:
        """Write all entries as Parquet, in order. No entries can be added afterwards."""
        self._flush()
        self._writer.close()
        self._file.seek(0)
        with path.open("wb") as stream:
            shutil.copyfileobj(self._file, stream)
        self._file.close()

    def _flush(self) -> None:
        import pyarrow
        import pyarrow.parquet

        schema = pyarrow.schema([(name, pyarrow.string()) for name in COLUMNS])
        if self._writer is None:
            self._writer = pyarrow.parquet.ParquetWriter(self._file, schema, compression="zstd")
        if self._waiting:
            self._writer.write_table(pyarrow.Table.from_pylist(self._waiting, schema=schema))
            self._waiting = []


def entries(folder: Path) -> Iterator[dict[str, Any]]:
    """Yield the rows of the ledger in `folder` or `folder/data`, in order. Raises DataError if there is no ledger."""
    import pyarrow.parquet

    found = [place for place in (folder / FILE_NAME, folder / "data" / FILE_NAME) if place.is_file()]
    if not found:
        raise DataError(
            f"{folder}: no {FILE_NAME} in this folder or its data/. Specify the folder of a run or of "
            "`meditune data audit`."
        )
    try:
        with pyarrow.parquet.ParquetFile(found[0]) as table:
            for batch in table.iter_batches(batch_size=BATCH_ENTRIES):
                yield from batch.to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{found[0]}: not a readable Parquet file ({error}). Prepare the data again.") from error


def restore(folder: Path, identifier: str) -> tuple[Example, list[dict[str, Any]]]:
    """Return a row as it was before any change, and its ledger entries.

    Raises DataError if the row was only flagged, or if the ledger has no entry for it (and suggests similar ids).
    """
    known, matching = [], []
    for row in entries(folder):
        if identifier in (row["id"], row["id"].partition(":")[2]):
            matching.append(row)
        elif row["before"]:
            known.append(row["id"])
    first = next((row["before"] for row in matching if row["before"]), None)
    if first is not None:
        return Example.model_validate_json(first), matching
    if matching:
        raise DataError(
            f"{identifier}: the row was only flagged, not dropped or changed. The splits contain it as it was read."
        )
    near = difflib.get_close_matches(identifier, known, n=NEAR, cutoff=0.6)
    raise DataError(
        f"{identifier}: according to {FILE_NAME} in {folder}, no row with this id was dropped or changed."
        + (f" Did you mean {' or '.join(near)}?" if near else "")
    )


def append_row(example: Example, path: Path) -> bool:
    """Add an example to a JSON Lines file atomically; return False if the file already contains the example's id."""
    rows = read_jsonl(path) if path.is_file() else []
    if any(row.get("id") == example.id for row in rows):
        return False
    write_jsonl(path, [*rows, example.model_dump(mode="json")])
    return True
