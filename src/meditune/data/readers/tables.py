"""The files of a source, their rows in any supported format, checks of a file, and a collection of rejected rows."""

from __future__ import annotations

import csv
import json
import re
import stat
import tempfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeVar

from meditune.data.example import problem_in_text
from meditune.errors import DataError
from meditune.files import (
    LINE_CHARACTERS,
    bounded_lines,
    not_utf8,
    numbered_jsonl,
    package_table,
    read_json,
    write_jsonl,
)
from meditune.text import counted

if TYPE_CHECKING:
    import pyarrow

_FIRST_BYTES = 4096
_UNICODE = {"UTF-32": (b"\xff\xfe\x00\x00", b"\x00\x00\xfe\xff"), "UTF-16": (b"\xff\xfe", b"\xfe\xff")}
_KINDS = (
    (b"\x1f\x8b", "a gzip file. Unpack it first"),
    (b"PK\x03\x04", "a zip file (Excel workbooks are zip files too). Unpack it, or save the sheet as CSV"),
    (b"PAR1", "a Parquet file. Rename it so that it ends in .parquet"),
    (b"%PDF", "a PDF file. Provide the rows as a table"),
)


@contextmanager
def open_unchanging(path: Path) -> Iterator[None]:
    """Raise DataError if `path` isn't a readable regular file, or changes while the block reads it."""
    before = _identity(path)
    problem: Exception | None = None
    try:
        yield
    except (DataError, csv.Error, EOFError, OSError, ValueError, zlib.error) as error:
        problem = error
    if _identity(path) != before:
        raise DataError(
            f"{path}: changed while it was being read, so none of it was used. Wait until the file is complete, then "
            "run the same command again."
        ) from problem
    if problem:
        raise problem


def refuse_other_kinds(path: Path) -> None:
    """Raise DataError if the first bytes of a text file show that it isn't UTF-8 text."""
    with path.open("rb") as stream:
        begin = stream.read(_FIRST_BYTES)
    for name, marks in _UNICODE.items():
        if begin.startswith(marks):
            raise DataError(f"{path}: {name}, not UTF-8 text. Convert it: iconv -f {name} -t UTF-8 {path.name}")
    for mark, what in _KINDS:
        if begin.startswith(mark):
            raise DataError(f"{path}: this is {what}.")
    zeros = begin.count(0)
    if zeros and zeros == len(begin):
        raise DataError(f"{path}: the file has only zero bytes, as after a broken copy. Copy or download it again.")
    if zeros * 4 >= len(begin) > 0:
        name = "UTF-16LE" if begin[1::2].count(0) * 2 > zeros else "UTF-16BE"
        raise DataError(
            f"{path}: probably UTF-16, not UTF-8 text, because many bytes are zero. Convert it: iconv -f {name} -t "
            f"UTF-8 {path.name}"
        )


def _identity(path: Path) -> tuple[int, ...]:
    try:
        found = path.stat()
        if stat.S_ISREG(found.st_mode):
            path.open("rb").close()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise DataError(f"{path}: no such file.") from error
    except OSError as error:
        raise DataError(f"{path}: can't be opened ({error.strerror}). Change its permissions, or copy it.") from error
    if stat.S_ISDIR(found.st_mode):
        raise DataError(f"{path}: this is a folder, but a file is needed. Specify the file in the folder.")
    if not stat.S_ISREG(found.st_mode):
        raise DataError(f"{path}: a pipe or a device, not a file. Save its output to a file first.")
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


ROW_CHARACTERS = 500
MEMORY_BYTES = 1_000_000


class Rejects:
    """A collection of rejected rows. Above one megabyte, the rows are moved to a temporary file to save memory."""

    def __init__(self, clean: Callable[[Mapping[str, Any] | str], Mapping[str, Any] | str] = lambda row: row) -> None:
        """`clean` returns a row without the parts that may not be stored, at least in its first 500 characters."""
        self._clean = clean
        self._counts: Counter[tuple[str, str]] = Counter()
        self._spool = tempfile.SpooledTemporaryFile(MEMORY_BYTES, "w+", encoding="utf-8")  # noqa: SIM115

    def __len__(self) -> int:
        return self._counts.total()

    def add(self, source: str, where: str, reason: str, row: Mapping[str, Any] | str) -> None:
        """Record a rejected row; `where` is "file:line" or "file, item id".

        If the text of the row is restricted, pass only an identifier as `row`.
        """
        try:
            row = self._clean(row)
            text = row if isinstance(row, str) else json.dumps(row, ensure_ascii=False, default=str)
        except RecursionError:
            text = "(nested too deep to show)"
        self._counts[source, reason] += 1
        line = {"source": source, "where": where, "reason": reason, "row": text[:ROW_CHARACTERS]}
        line = {key: value.encode(errors="backslashreplace").decode() for key, value in line.items()}
        self._spool.seek(0, 2)
        self._spool.write(json.dumps(line) + "\n")

    def count_only(self, source: str, reason: str, count: int = 1) -> None:
        """Count rows without storing them; they are expected to be left out, such as rows without an answer."""
        if count:
            self._counts[source, reason] += count

    def counts(self) -> dict[str, dict[str, int]]:
        """Return source -> reason -> number of rows left out, the most frequent reasons first."""
        result: dict[str, dict[str, int]] = {}
        for (source, reason), number in self._counts.most_common():
            result.setdefault(source, {})[reason] = number
        return result

    def rows(self) -> Iterator[dict[str, str]]:
        """Yield the rows passed to `add`, in order: `source`, `where`, `reason`, `row`."""
        self._spool.seek(0)
        for line in self._spool:
            yield json.loads(line)

    def places(self, most: int = 3) -> dict[tuple[str, str], list[str]]:
        """Return (source, reason) -> locations of the first `most` rows rejected for that reason."""
        found: dict[tuple[str, str], list[str]] = {}
        for row in self.rows():
            some = found.setdefault((row["source"], row["reason"]), [])
            if len(some) < most and row["where"] not in some:
                some.append(row["where"])
        return found

    def taken(self) -> list[dict[str, str]]:
        """Return and remove the rows added since the last call; the caller stores them."""
        rows = list(self.rows())
        self._spool.seek(0)
        self._spool.truncate()
        return rows

    def write(self, path: Path) -> int:
        """Write the rows as JSON Lines, without those that were only counted, and return the number of lines."""
        return write_jsonl(path, self.rows())


class Record(Protocol):
    """A record made from a row."""

    @property
    def id(self) -> str:
        """Return the id, which is unique in its file."""


Row = tuple[str, dict[str, Any]]
Made = TypeVar("Made", bound=Record)


def accepted(
    source: str, found: Iterable[Row], make: Callable[[dict[str, Any]], Iterable[Made] | str], rejects: Rejects
) -> Iterator[Made]:
    """Yield the records that `make` returns for each row.

    Rows for which `make` returns a reason for rejection, and rows with a repeated id, go to `rejects`.
    """
    seen: set[str] = set()
    for where, row in found:
        made = problem_in_text(row) or make(row)
        if isinstance(made, str):
            rejects.add(source, where, made, row)
            continue
        for record in made:
            if record.id in seen:
                rejects.add(source, where, "duplicate id", row)
            else:
                seen.add(record.id)
                yield record


class Layout(NamedTuple):
    """Possible column names by field (`guesses`), and groups of fields of which one must have a column (`needed`)."""

    guesses: Mapping[str, Sequence[str]]
    needed: Sequence[Sequence[str]]


NAMES = package_table(Path(__file__).with_name("column_names.yaml"))
LAYOUTS = {name: Layout(**layout) for name, layout in NAMES["layouts"].items()}
FORMATS = (".jsonl", ".json", ".csv", ".tsv", ".parquet")
FIELD_CHARACTERS = 2**24
"""Maximum length of a field in a CSV file, so that an unclosed quote doesn't fill the memory"""
_BATCH = 100


LEVELS = ("", "*/", "*/*/")
"""Prefixes for file patterns: subfolders are searched, too, because publishers use folders such as `data`"""


def find_files(path: Path, names: Iterable[str], what: str) -> list[Path]:
    """Return the files that match the first name or pattern with a match, in a folder or up to two levels below it.

    `path` can also be the file itself. Raises DataError, with the advice `what`, if no file matches.
    """
    if path.is_file():
        return [path]
    for name in names:
        for level in LEVELS:
            if found := sorted(path.glob(level + name)):
                return found
    raise DataError(f"{path}: found no {' or '.join(names)}. {what}")


def rows(path: Path, source: str, rejects: Rejects) -> Iterator[Row]:
    """Yield the location ("file:line" or "file, row n") and columns of each row of a file in one of FORMATS.

    A .json file can contain a list or JSON Lines. CSV rows with too few or too many fields go to `rejects` under the
    name `source`. Raises DataError if the file can't be read.
    """
    kind = path.suffix.lower()
    with open_unchanging(path):
        if kind not in FORMATS:
            raise DataError(f"{path}: {kind or 'no extension'!r} isn't a supported format. Use {', '.join(FORMATS)}.")
        if kind != ".parquet":
            refuse_other_kinds(path)
        if kind in {".csv", ".tsv"}:
            yield from _csv_rows(path, "\t" if kind == ".tsv" else ",", source, rejects)
        elif kind == ".parquet":
            yield from parquet_rows(path)
        elif kind == ".json" and not _is_json_lines(path):
            value = read_json(path)
            if not isinstance(value, list):
                raise DataError(f"{path}: expected a list of objects, found {type(value).__name__}.")
            for number, row in enumerate(value, start=1):
                if not isinstance(row, dict):
                    raise DataError(f"{path}, item {number}: expected an object, found {type(row).__name__}.")
                yield with_clean_names(f"{path}, item {number}", row)
        else:
            yield from (with_clean_names(f"{path}:{number}", row) for number, row in numbered_jsonl(path))


def _is_json_lines(path: Path) -> bool:
    """Return True if the first line of a file is an object and more lines follow, as in JSON Lines."""
    try:
        with path.open(encoding="utf-8-sig") as stream:
            first = stream.readline(LINE_CHARACTERS) if stream.read(1) == "{" else ""
            return bool(first) and isinstance(json.loads("{" + first), dict) and bool(stream.read(_FIRST_BYTES).strip())
    except (ValueError, RecursionError):
        return False


EDGES = "".join(filter(str.isspace, map(chr, range(0x3001)))) + "\xad\u200b\u200c\u200d\u200e\u200f\u2060\ufeff"
"""Spaces and invisible characters that spreadsheets leave around column names"""


def clean_names(names: Iterable[str], place: str) -> list[str]:
    """Return column names without EDGES around them; names that would become equal are returned as they are.

    Raises DataError, whose message starts with `place`, if two names are exactly equal.
    """
    found = list(names)
    counts = Counter(name.strip(EDGES) for name in found)
    found = [short if counts[short := name.strip(EDGES)] == 1 else name for name in found]
    if len(set(found)) != len(found):
        raise DataError(f"{place}: a column name occurs twice in {', '.join(found)}. Rename one of them.")
    return found


def with_clean_names(place: str, row: Mapping[str, Any]) -> Row:
    """Return the location and the columns of a row under their `clean_names`."""
    return place, dict(zip(clean_names(row, place), row.values(), strict=True))


def parquet_rows(path: Path) -> Iterator[Row]:
    """Yield "file, row n" (1-based) and the columns of each row. Raises DataError for an invalid Parquet file."""
    import pyarrow.parquet

    number = 0
    try:
        with pyarrow.parquet.ParquetFile(path) as table:
            names = clean_names(table.schema_arrow.names, str(path))
            for batch in table.iter_batches(batch_size=_BATCH):
                try:
                    found = _shortest(batch).to_pylist()
                except UnicodeDecodeError as error:
                    raise DataError(
                        f"{path}, rows {number + 1} to {number + len(batch)}: a text isn't UTF-8. Write the file "
                        "again from its source."
                    ) from error
                except (OverflowError, KeyError, ValueError) as error:
                    raise DataError(
                        f"{path}, rows {number + 1} to {number + len(batch)}: {_unreadable_column(batch)}a date or "
                        f"time is out of range or in an unknown time zone ({error}). Correct it, or write it as text."
                    ) from error
                for row in found:
                    number += 1
                    yield f"{path}, row {number}", dict(zip(names, row.values(), strict=True))
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(
            f"{path}, after row {number}: not a readable Parquet file ({error}). Copy or download it again."
        ) from error


def _unreadable_column(batch: pyarrow.RecordBatch) -> str:
    """Return the first column whose values Python can't represent, for an error message."""
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        try:
            column.to_pylist()
        except (OverflowError, KeyError, ValueError):
            return f"column {name!r}: "
    return ""


def _shortest(batch: pyarrow.RecordBatch) -> pyarrow.RecordBatch:
    """Return the batch with numbers of 32 bits as the shortest decimals: 0.1 instead of 0.10000000149011612."""
    import pyarrow

    for at, field in enumerate(batch.schema):
        if field.type == pyarrow.float32():
            column = batch.column(at).cast(pyarrow.string()).cast(pyarrow.float64())
            batch = batch.set_column(at, field.name, column)
    return batch


def text_bytes(path: Path) -> int:
    """Return the approximate number of bytes of text in a file; for Parquet, the uncompressed size in its footer."""
    import pyarrow.parquet

    if path.suffix.lower() != ".parquet":
        return path.stat().st_size
    try:
        meta = pyarrow.parquet.read_metadata(path)
    except (pyarrow.ArrowException, OSError):
        return 0  # reading the file reports the error
    return sum(meta.row_group(group).total_byte_size for group in range(meta.num_row_groups))


_OTHER_DELIMITERS = {";": "semicolons", "\t": "tabs"}
_STATED_DELIMITER = re.compile(r"sep=([,;|\t])\s*", re.IGNORECASE)
"""The first line of some CSV files, which tells Excel the delimiter"""


def _csv_rows(path: Path, delimiter: str, source: str, rejects: Rejects) -> Iterator[Row]:
    csv.field_size_limit(FIELD_CHARACTERS)
    line = 0
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            lines = bounded_lines(stream, path, FIELD_CHARACTERS)
            first = next(lines, "")
            stated = _STATED_DELIMITER.fullmatch(first)
            used = next((name for mark, name in _OTHER_DELIMITERS.items() if mark in first), "")
            if used and delimiter not in first and not stated:
                raise DataError(
                    f"{path}, line 1: the fields are separated by {used}. Save the file as CSV with commas, or as .tsv "
                    "with tabs."
                )
            # An empty line takes the place of the stated delimiter, so that the numbers of the lines are right.
            lines = chain(["\n" if stated else first], lines)
            delimiter = stated[1] if stated else delimiter
            # In a table written by hand, quotation marks after "comma, space" aren't part of the text.
            reader = csv.reader(lines, delimiter=delimiter, skipinitialspace=f"{delimiter} " in first, strict=True)
            header = [name.strip(EDGES) for name in next((record for record in reader if record), [])]
            clean_names(filter(None, header), f"{path}, line {reader.line_num}")
            unnamed = [at for at, name in enumerate(header) if not name]
            line = reader.line_num + 1
            for record in reader:
                if len(record) == len(header):
                    filled = [at for at in unnamed if record[at].strip()]
                    if filled and len(unnamed) > 1:
                        raise DataError(
                            f"{path}, line {line}: column {filled[0] + 1} contains a value but has no name in the "
                            "header, like another column. Name these columns, or remove them."
                        )
                    row = dict(zip(header, record, strict=True))
                    if len(unnamed) > 1:
                        del row[""]
                    yield f"{path}:{line}", row
                elif record:
                    reason = f"{counted(len(record), 'field')}, but the header has {len(header)}"
                    more = {"(more fields)": record[len(header) :]} if len(record) > len(header) else {}
                    rejects.add(source, f"{path}:{line}", reason, dict(zip(header, record, strict=False)) | more)
                line = reader.line_num + 1
    except csv.Error as error:
        raise DataError(f"{path}, line {line}: {error}. Check the quotation marks around this row.") from error
    except UnicodeDecodeError as error:
        raise not_utf8(path, error, line) from error
