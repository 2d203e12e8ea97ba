"""Rows of a user's file, whatever its format, each with the place it came from."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from meditune.data.rejects import Rejects
from meditune.data.steady import refuse_other_kinds, steady
from meditune.errors import DataError
from meditune.files import bounded_lines, not_utf8, numbered_jsonl, read_json

Row = tuple[str, dict[str, Any]]
FORMATS = (".jsonl", ".json", ".csv", ".tsv", ".parquet")
FIELD_CHARACTERS = 2**24
"""Longest field of a CSV file: one quote that isn't closed must not fill the memory."""
_BATCH = 100


def rows(path: Path, source: str, rejects: Rejects) -> Iterator[Row]:
    """Place ("file:line" or "file, row n") and columns of each row of a JSON Lines, JSON, CSV, TSV or Parquet file.

    CSV rows with too few or too many fields go to `rejects`, as of `source`. Raises DataError where the file is
    missing, damaged, of another kind, or changed by the time it is read.
    """
    kind = path.suffix.lower()
    with steady(path):
        if kind not in FORMATS:
            raise DataError(f"{path}: {kind or 'no ending'!r} isn't a known format. Use {', '.join(FORMATS)}.")
        if kind != ".parquet":
            refuse_other_kinds(path)
        if kind in {".csv", ".tsv"}:
            yield from _csv_rows(path, "\t" if kind == ".tsv" else ",", source, rejects)
        elif kind == ".parquet":
            yield from parquet_rows(path)
        elif kind == ".json":
            yield from _json_rows(path)
        else:
            yield from ((f"{path}:{number}", row) for number, row in numbered_jsonl(path))


def parquet_rows(path: Path) -> Iterator[Row]:
    """ "file, row n" (from 1) and the columns of each row. Raises DataError where it isn't a whole Parquet file."""
    import pyarrow
    import pyarrow.parquet

    number = 0
    try:
        with pyarrow.parquet.ParquetFile(path) as table:
            for batch in table.iter_batches(batch_size=_BATCH):
                try:
                    found = batch.to_pylist()
                except UnicodeDecodeError as error:
                    raise DataError(
                        f"{path}, rows {number + 1} to {number + len(batch)}: a text that isn't UTF-8. Write the file "
                        "anew from its source."
                    ) from error
                for row in found:
                    number += 1
                    yield f"{path}, row {number}", row
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(
            f"{path}, after row {number}: not a readable Parquet file ({error}). Fetch it again."
        ) from error


def text_bytes(path: Path) -> int:
    """About how many bytes of text a file holds; of a Parquet file, which is packed, as its footer says."""
    import pyarrow
    import pyarrow.parquet

    if path.suffix.lower() == ".parquet":
        try:
            meta = pyarrow.parquet.read_metadata(path)
        except (pyarrow.ArrowException, OSError):
            return 0  # reading it will tell
        return sum(meta.row_group(group).total_byte_size for group in range(meta.num_row_groups))
    return path.stat().st_size


def _csv_rows(path: Path, delimiter: str, source: str, rejects: Rejects) -> Iterator[Row]:
    csv.field_size_limit(FIELD_CHARACTERS)
    line = 0
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.reader(bounded_lines(stream, path, FIELD_CHARACTERS), delimiter=delimiter, strict=True)
            header = next((record for record in reader if record), [])
            if len(header) == 1 and ";" in header[0]:
                raise DataError(
                    f"{path}, line {reader.line_num}: semicolons between the fields, where commas are needed. Save it "
                    "as CSV with commas, or with tabs as .tsv."
                )
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
        raise not_utf8(path, error, line) from error


def _json_rows(path: Path) -> Iterator[Row]:
    value = read_json(path)
    if not isinstance(value, list):
        raise DataError(f"{path}: expected a list of objects, found {type(value).__name__}.")
    for number, row in enumerate(value, start=1):
        if not isinstance(row, dict):
            raise DataError(f"{path}, item {number}: expected an object, found {type(row).__name__}.")
        yield f"{path}, item {number}", row
