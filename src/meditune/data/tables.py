"""Rows of a user's file, whatever its format, each with the place it came from."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from meditune.data.rejects import Rejects
from meditune.errors import DataError
from meditune.files import numbered_jsonl, read_json

Row = tuple[str, dict[str, Any]]
FORMATS = (".jsonl", ".json", ".csv", ".tsv", ".parquet")
_FIELD_LIMIT = 2**27


def rows(path: Path, source: str, rejects: Rejects) -> Iterator[Row]:
    """Place ("file:line" or "file, row n") and columns of each row of a JSON Lines, JSON, CSV, TSV or Parquet file.

    CSV rows with too few or too many fields go to `rejects`, as of `source`. Raises DataError where the file is
    missing, damaged, or of another kind.
    """
    kind = path.suffix.lower()
    if not path.is_file():
        raise DataError(f"{path}: no such file. Give a file that ends in {', '.join(FORMATS)}.")
    if kind in {".csv", ".tsv"}:
        return _csv_rows(path, "\t" if kind == ".tsv" else ",", source, rejects)
    if kind == ".parquet":
        return parquet_rows(path)
    if kind == ".json":
        return _json_rows(path)
    if kind == ".jsonl":
        return ((f"{path}:{number}", row) for number, row in numbered_jsonl(path))
    raise DataError(f"{path}: {kind or 'no ending'!r} isn't a known format. Use {', '.join(FORMATS)}.")


def parquet_rows(path: Path) -> Iterator[Row]:
    """ "file, row n" (from 1) and the columns of each row. Raises DataError where it isn't a whole Parquet file."""
    import pyarrow
    import pyarrow.parquet

    number = 0
    try:
        with pyarrow.parquet.ParquetFile(path) as table:
            for batch in table.iter_batches(batch_size=1000):
                for row in batch.to_pylist():
                    number += 1
                    yield f"{path}, row {number}", row
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(
            f"{path}, after row {number}: not a readable Parquet file ({error}). Fetch it again."
        ) from error


def _csv_rows(path: Path, delimiter: str, source: str, rejects: Rejects) -> Iterator[Row]:
    csv.field_size_limit(max(csv.field_size_limit(), _FIELD_LIMIT))
    line = 0
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.reader(stream, delimiter=delimiter, strict=True)
            header = next(reader, [])
            if len(set(header)) != len(header):
                raise DataError(f"{path}, line 1: a column name comes twice in {', '.join(header)}. Rename one.")
            line = reader.line_num + 1
            for record in reader:
                if len(record) == len(header):
                    yield f"{path}:{line}", dict(zip(header, record, strict=True))
                elif record:
                    reason = f"{len(record)} fields where the header has {len(header)}"
                    rejects.add(source, f"{path}:{line}", reason, delimiter.join(record))
                line = reader.line_num + 1
    except csv.Error as error:
        raise DataError(f"{path}, line {line}: {error}. Check the quotes around this row.") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}, near line {line + 1}: not UTF-8 text. Convert it to UTF-8.") from error


def _json_rows(path: Path) -> Iterator[Row]:
    value = read_json(path)
    if not isinstance(value, list):
        raise DataError(f"{path}: expected a list of objects, found {type(value).__name__}.")
    for number, row in enumerate(value, start=1):
        if not isinstance(row, dict):
            raise DataError(f"{path}, item {number}: expected an object, found {type(row).__name__}.")
        yield f"{path}, item {number}", row
