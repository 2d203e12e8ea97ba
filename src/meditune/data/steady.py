"""A file that is read as it lies there: a regular one, of the kind that its name says, the same to the end."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from meditune.errors import DataError

_FIRST_BYTES = 4096
_UNICODE = (
    (b"\xff\xfe\x00\x00", "UTF-32"),
    (b"\x00\x00\xfe\xff", "UTF-32"),
    (b"\xff\xfe", "UTF-16"),
    (b"\xfe\xff", "UTF-16"),
)
_KINDS = (
    (b"\x1f\x8b", "a gzip file. Unpack it first"),
    (b"PK\x03\x04", "a zip file, which an Excel workbook is too. Unpack it, or save the sheet as CSV"),
    (b"PAR1", "a Parquet file. Let its name end in .parquet"),
    (b"%PDF", "a PDF file. Give the rows as a table"),
)


@contextmanager
def steady(path: Path) -> Iterator[None]:
    """Guards the reading of `path` inside the block.

    Raises DataError where it is no regular file (a pipe would never end) or may not be read, and where size, time or
    place on the disk have changed by the end: then what was read is part of one file and part of another.
    """
    before = _identity(path)
    try:
        yield
    except DataError as error:
        if _identity(path) != before:
            raise _changed(path) from error
        raise
    if _identity(path) != before:
        raise _changed(path)


def refuse_other_kinds(path: Path) -> None:
    """Raise DataError, with what to do, where a file of text is by its first bytes something else, or not UTF-8."""
    with path.open("rb") as stream:
        begin = stream.read(_FIRST_BYTES)
    for mark, name in _UNICODE:
        if begin.startswith(mark):
            raise DataError(f"{path}: {name}, not UTF-8 text. Convert it: iconv -f {name} -t UTF-8 {path.name}")
    for mark, what in _KINDS:
        if begin.startswith(mark):
            raise DataError(f"{path}: this is {what}.")
    zeros = begin.count(0)
    if zeros * 4 >= len(begin) and len(begin) > zeros > 0:
        name = "UTF-16LE" if begin[1::2].count(0) * 2 > zeros else "UTF-16BE"
        raise DataError(
            f"{path}: UTF-16, not UTF-8 text, it seems: many of its bytes are zero. Convert it: iconv -f {name} -t "
            f"UTF-8 {path.name}"
        )
    if zeros and zeros == len(begin):
        raise DataError(f"{path}: nothing but zero bytes, as a broken copy leaves them. Fetch it again.")


def _identity(path: Path) -> tuple[int, ...]:
    try:
        found = path.stat()
        if stat.S_ISREG(found.st_mode):
            path.open("rb").close()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise DataError(f"{path}: no such file.") from error
    except PermissionError as error:
        raise DataError(f"{path}: you may not read it. Change its permissions, or copy it.") from error
    except OSError as error:
        raise DataError(f"{path}: can't be opened ({error.strerror}). Give another file.") from error
    if stat.S_ISDIR(found.st_mode):
        raise DataError(f"{path}: a folder, where a file is needed. Name the file in it.")
    if not stat.S_ISREG(found.st_mode):
        raise DataError(f"{path}: a pipe or a device, not a file. Save what comes out of it as a file first.")
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def _changed(path: Path) -> DataError:
    return DataError(
        f"{path}: changed while it was read, so nothing of it was used. Wait until it is written whole, and run the "
        "same command again."
    )
