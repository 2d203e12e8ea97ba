"""Files that are whole or not there: written to a temporary name beside their place, then renamed."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from meditune.errors import DataError, DiskFullError, MedituneError

LINE_CHARACTERS = 2**26


@contextmanager
def replace_file(path: Path, private: bool = False) -> Iterator[TextIO]:
    """A text file open for writing that takes `path`'s place when the block ends well, and vanishes otherwise.

    A private file is readable for its owner alone, from its first byte on. Raises MedituneError, naming the disk, where
    there is no space left.
    """
    with _partial(path, private) as partial, partial.open("w", encoding="utf-8", newline="\n") as stream:
        yield stream
        stream.flush()
        os.fsync(stream.fileno())


@contextmanager
def _partial(path: Path, private: bool) -> Iterator[Path]:
    """A name to write to, whose file takes `path`'s place when the block ends well, and vanishes otherwise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        if private:
            partial.unlink(missing_ok=True)
            partial.touch(mode=0o600, exist_ok=False)
        yield partial
        partial.replace(path)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise disk_full(path) from error
        raise
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def replace_folder(path: Path) -> Iterator[Path]:
    """An empty folder to fill, which takes `path`'s place when the block ends well, and vanishes otherwise.

    Where it can't take the place, what was there stays.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    old = path.with_name(f".{path.name}.{os.getpid()}.old")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        yield partial
        if path.exists():
            path.rename(old)
        try:
            partial.rename(path)
        except BaseException:
            if old.exists():
                old.rename(path)
            raise
    except DiskFullError as error:
        # The folder that was to be, not a file in its temporary one.
        raise disk_full(path) from error
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise disk_full(path) from error
        raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


@contextmanager
def full_disk_message(path: Path) -> Iterator[None]:
    """Give the usual error for a full disk where writers in Rust (safetensors, tokenizers) raise ones of their own."""
    try:
        yield
    except Exception as error:
        if f"os error {errno.ENOSPC}" in str(error):
            raise disk_full(path) from error
        raise


def is_result_of(folder: Path, mark: str, made_from: dict[str, Any]) -> bool:
    """Whether `folder` holds a finished result that was made from just that, as its file `mark` says.

    Raises MedituneError where anything else is in the way; nothing and an empty folder aren't.
    """
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return False
    said = read_json(folder / mark) if (folder / mark).is_file() else None
    if isinstance(said, dict) and said.get("made_from") == made_from:
        return True
    raise MedituneError(f"{folder} is there already and holds something else. Choose another --output, or remove it.")


def disk_full(path: Path) -> MedituneError:
    """The error for a full disk, with the space that is left where `path` should go."""
    place = path if path.exists() else path.parent
    free = shutil.disk_usage(place).free / 1e6
    return DiskFullError(
        f"The disk is full: {path} could not be written ({free:.0f} MB free). Make room and run the same command "
        "again; finished stages are kept."
    )


def write_bytes(path: Path, data: bytes | memoryview, private: bool = False) -> None:
    """Write `data`, whole or not at all; a private file is for its owner alone."""
    with _partial(path, private) as partial, partial.open("wb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())


def write_json(path: Path, value: Any, private: bool = False) -> None:
    """Write `value` as indented JSON, whole or not at all; a private file is for its owner alone."""
    with replace_file(path, private) as stream:
        json.dump(value, stream, indent=2, ensure_ascii=False)
        stream.write("\n")


def read_json(path: Path) -> Any:
    """The JSON value in `path`. Raises DataError with the file and the line where it breaks."""
    return parse_json(read_text(path), path)


def parse_json(text: str, path: Path, pairs: Callable[[list[tuple[str, Any]]], Any] | None = None) -> Any:
    """The JSON value in the text of `path`; `pairs`, where given, makes each object of its keys and values.

    Raises DataError with the file and the line where it breaks.
    """
    try:
        return json.loads(text, object_pairs_hook=pairs)
    except json.JSONDecodeError as error:
        raise DataError(
            f"{path}, line {error.lineno}, column {error.colno}: not valid JSON ({error.msg}). The file may be cut "
            "off; fetch it again."
        ) from error
    except (RecursionError, ValueError) as error:
        raise DataError(f"{path}: {_unreadable(error)}. Fetch it again.") from error


def _unreadable(error: Exception) -> str:
    """What Python's JSON reader can't do although it may be JSON: endless nesting, and endless whole numbers."""
    return "lists and objects too deep to read" if isinstance(error, RecursionError) else "a number of too many digits"


def read_text(path: Path) -> str:
    """The text of a UTF-8 file. Raises DataError where there is none."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except (FileNotFoundError, IsADirectoryError) as error:
        raise DataError(f"{path}: no such file.") from error
    except UnicodeDecodeError as error:
        raise not_utf8(path, error) from error


def not_utf8(path: Path, error: UnicodeDecodeError, line: int | None = None) -> DataError:
    """The error for text in another encoding; `line` is the last one that was whole, where it is known."""
    place = f" at byte {error.start}" if line is None else f" after line {line}"
    return DataError(
        f"{path}: not UTF-8 text{place} (it holds the byte 0x{error.object[error.start]:02x} there). Convert it to "
        f"UTF-8; if it comes from Excel or an older Windows program: iconv -f WINDOWS-1252 -t UTF-8 {path.name}"
    )


def write_jsonl(path: Path, rows: Iterable[dict[str, Any]], private: bool = False) -> int:
    """Write one JSON object a line, whole or not at all; returns the number of lines.

    A private file is for its owner alone.
    """
    count = 0
    with replace_file(path, private) as stream:
        for row in rows:
            stream.write(json.dumps(row, ensure_ascii=False) + "\n")
            count += 1
    return count


@contextmanager
def growing_jsonl(path: Path, rows: Iterable[dict[str, Any]]) -> Iterator[Callable[[dict[str, Any]], None]]:
    """`path` with these rows in place of what it held, and a function that adds one more as a whole line at once.

    Raises MedituneError, naming the disk, where there is no space left.
    """
    write_jsonl(path, rows)
    # Without a buffer a line is one write: whoever follows the file never sees half of it.
    with path.open("ab", buffering=0) as stream:

        def add(row: dict[str, Any]) -> None:
            line = (json.dumps(row, ensure_ascii=False) + "\n").encode()
            try:
                written = stream.write(line)
            except OSError as error:
                if error.errno == errno.ENOSPC:
                    raise disk_full(path) from error
                raise
            if written < len(line):
                raise disk_full(path)

        yield add


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """All objects of a JSON Lines file. Raises DataError with the file and line of the first bad one."""
    return [row for _, row in numbered_jsonl(path)]


def numbered_jsonl(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line number (from 1) and object of each line that isn't blank. Raises DataError at the first bad one."""
    number = 0
    try:
        with path.open(encoding="utf-8-sig") as stream:
            for number, line in enumerate(bounded_lines(stream, path), start=1):
                if not line.strip():
                    continue
                try:
                    row = json.loads(line)
                except json.JSONDecodeError as error:
                    cut = " It is the last line and has no end: the file may be cut off." if line[-1] != "\n" else ""
                    raise DataError(
                        f"{path}, line {number}: not valid JSON ({error.msg}).{cut} Mend or remove this line."
                    ) from error
                except (RecursionError, ValueError) as error:
                    raise DataError(f"{path}, line {number}: {_unreadable(error)}. Remove this line.") from error
                if not isinstance(row, dict):
                    raise DataError(f"{path}, line {number}: expected a JSON object, found {type(row).__name__}.")
                yield number, row
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file.") from error
    except UnicodeDecodeError as error:
        raise not_utf8(path, error, number) from error


def bounded_lines(stream: TextIO, path: Path, characters: int = LINE_CHARACTERS) -> Iterator[str]:
    """The lines of `stream`. Raises DataError, naming `path`, at one that is longer: it could fill the memory."""
    number = 0
    while line := stream.readline(characters + 1):
        number += 1
        if len(line) > characters:
            raise DataError(
                f"{path}, line {number}: over {characters:,} characters without a line's end. Check whether the file "
                "is damaged, or all in one line."
            )
        yield line


def sha256(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def cache_folder(kind: str) -> Path:
    """Where fetched things of a kind ("models", "data") are kept: `$MEDITUNE_CACHE` or `~/.cache/meditune`."""
    root = os.environ.get("MEDITUNE_CACHE")
    return (Path(root).expanduser() if root else Path.home() / ".cache" / "meditune") / kind
