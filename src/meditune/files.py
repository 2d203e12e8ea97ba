"""Reading and writing files. Writes are atomic: a temporary file in the same folder is written, then renamed."""

from __future__ import annotations

import atexit
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

# Temporary files and folders that this process is writing.
_unfinished: set[Path] = set()


@atexit.register
def _remove_unfinished() -> None:
    """Remove what a signal left behind: a signal that arrives inside `finally` interrupts the cleanup there."""
    for path in list(_unfinished):
        if f".{os.getpid()}." in path.name:  # skip what a forked process has inherited
            _remove(path)


def _remove(*paths: Path) -> None:
    for path in paths:
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


@contextmanager
def replace_file(path: Path, private: bool = False) -> Iterator[TextIO]:
    """Yield a text file that replaces `path` if the block succeeds; a private file is readable only by its owner."""
    with _partial(path, private) as partial, partial.open("w", encoding="utf-8", newline="\n") as stream:
        yield stream
        stream.flush()
        os.fsync(stream.fileno())


@contextmanager
def _partial(path: Path, private: bool) -> Iterator[Path]:
    """Yield the path of a temporary file, which replaces `path` if the block succeeds and is deleted otherwise."""
    _refuse_device(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    _unfinished.add(partial)
    try:
        if private:
            partial.unlink(missing_ok=True)
            partial.touch(mode=0o600, exist_ok=False)
        yield partial
        partial.replace(path)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise disk_full(path) from error
        if error.filename == str(partial):
            error.filename = str(path)
        raise
    finally:
        _remove(partial)
        _unfinished.discard(partial)


def _refuse_device(path: Path) -> None:
    """Raise MedituneError for /dev/stdout, /dev/null, other devices and pipes: the written file would replace them."""
    if path.parent.resolve() == Path("/dev") or (path.exists() and not path.is_file() and not path.is_dir()):
        raise MedituneError(f"{path} isn't a regular file. Choose another path.")


def _sync(path: Path) -> None:
    """Write the file's content to the disk now, so that a power failure can't leave a file that is cut off."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def replace_folder(path: Path) -> Iterator[Path]:
    """Yield an empty folder to fill, which replaces `path` if the block succeeds and is deleted otherwise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    old = path.with_name(f".{path.name}.{os.getpid()}.old")
    _unfinished.add(partial)
    try:
        _remove(partial)
        partial.mkdir()
        yield partial
        for file in partial.rglob("*"):
            if file.is_file() and not file.is_symlink():
                _sync(file)
        if path.exists():
            path.rename(old)
        partial.rename(path)
    except (DiskFullError, OSError) as error:
        # Name the target folder, not a file in the temporary folder.
        if isinstance(error, DiskFullError) or _is_disk_full(error):
            raise disk_full(path) from error
        raise
    finally:
        if old.exists() and not path.exists():
            old.rename(path)
        _remove(partial, old)
        _unfinished.discard(partial)


def _is_disk_full(error: OSError) -> bool:
    # shutil.copytree continues after an error; its own error has no errno and contains the messages of all errors.
    copying = isinstance(error, shutil.Error) and f"[Errno {errno.ENOSPC}]" in str(error)
    return copying or error.errno == errno.ENOSPC


@contextmanager
def full_disk_message(path: Path) -> Iterator[None]:
    """Raise the usual error for a full disk if a library in Rust (safetensors, tokenizers) raises another error."""
    try:
        yield
    except Exception as error:
        if f"os error {errno.ENOSPC}" in str(error):
            raise disk_full(path) from error
        raise


def follow_umask(folder: Path) -> None:
    """Give weight files the permissions of any new file: safetensors makes them readable only by their owner."""
    new = folder / f".{os.getpid()}.new"
    new.touch()
    mode = new.stat().st_mode & 0o777
    new.unlink()
    for path in folder.glob("*.safetensors"):
        path.chmod(mode)


def is_result_of(folder: Path, mark: str, inputs: dict[str, Any]) -> bool:
    """Return whether `folder` contains the result of exactly `inputs`; raise MedituneError for other content.

    The result's file `mark` records its inputs under `made_from`.
    """
    record = read_json(folder / mark) if (folder / mark).is_file() else None
    if isinstance(record, dict) and record.get("made_from") == inputs:
        return True
    refuse_content(folder)
    return False


def refuse_content(folder: Path) -> None:
    """Raise MedituneError unless `folder` is new or empty."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    raise MedituneError(f"{folder} already exists and contains something else. Choose another --output, or remove it.")


def disk_full(path: Path) -> MedituneError:
    """Return the error for a full disk, with the free space where `path` was to be written."""
    place = path if path.exists() else path.parent
    free = shutil.disk_usage(place).free / 1e6
    return DiskFullError(
        f"The disk is full: {path} could not be written ({free:.0f} MB free). Free some space and run the same "
        "command again; finished stages are kept."
    )


def write_bytes(path: Path, data: bytes | memoryview, private: bool = False) -> None:
    """Write `data` atomically; a private file is readable only by its owner."""
    with _partial(path, private) as partial, partial.open("wb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())


def write_json(path: Path, value: Any, private: bool = False) -> None:
    """Write `value` as indented JSON, atomically; a private file is readable only by its owner."""
    with replace_file(path, private) as stream:
        json.dump(value, stream, indent=2, ensure_ascii=False)
        stream.write("\n")


def read_json(path: Path) -> Any:
    """Return the JSON value in `path`. Raises DataError with the file and line of the first error."""
    return parse_json(read_text(path), path)


def package_lines(path: Path) -> list[str]:
    """Return the lines of a text file that belongs to the package, without comments, which begin with "#"."""
    return [line for line in path.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]


def package_table(path: Path) -> Any:
    """Return the content of a YAML file that belongs to the package."""
    import yaml

    with path.open(encoding="utf-8") as stream:
        return yaml.load(stream, getattr(yaml, "CSafeLoader", yaml.SafeLoader))


def parse_json(text: str, path: Path, pairs: Callable[[list[tuple[str, Any]]], Any] | None = None) -> Any:
    """Return the JSON value in `text`, the content of `path`; `pairs`, if given, builds each object from its items."""
    try:
        return json.loads(text, object_pairs_hook=pairs)
    except json.JSONDecodeError as error:
        raise DataError(
            f"{path}, line {error.lineno}, column {error.colno}: not valid JSON ({error.msg}). The file may be cut "
            "off; copy or download it again."
        ) from error
    except (RecursionError, ValueError) as error:
        raise DataError(f"{path}: {_unreadable(error)}. Copy or download the file again.") from error


def _unreadable(error: Exception) -> str:
    """Return why Python can't read text that may be valid JSON: excessive nesting, or an excessively long integer."""
    return "values nested too deeply" if isinstance(error, RecursionError) else "a number with too many digits"


def read_text(path: Path, newline: str | None = None) -> str:
    """Return the text of a UTF-8 file. Raises DataError if the file doesn't exist or isn't UTF-8.

    `newline` is that of `open`: by default, every kind of line end becomes a line feed.
    """
    try:
        with path.open(encoding="utf-8-sig", newline=newline) as stream:
            return stream.read()
    except (FileNotFoundError, IsADirectoryError) as error:
        raise DataError(f"{path}: no such file.") from error
    except UnicodeDecodeError as error:
        raise not_utf8(path, error) from error


def not_utf8(path: Path, error: UnicodeDecodeError, line: int | None = None) -> DataError:
    """Return the error for text in another encoding; `line` is the last line that could be read, if known."""
    place = f" at byte {error.start}" if line is None else f" after line {line}"
    return DataError(
        f"{path}: not UTF-8 text{place} (invalid byte 0x{error.object[error.start]:02x}). Convert the file to "
        f"UTF-8; if it comes from Excel or an older Windows program: iconv -f WINDOWS-1252 -t UTF-8 {path.name}"
    )


def write_jsonl(path: Path, rows: Iterable[dict[str, Any]], private: bool = False) -> int:
    """Write one JSON object per line, atomically, and return the number of lines."""
    count = 0
    with replace_file(path, private) as stream:
        for row in rows:
            stream.write(json.dumps(row, ensure_ascii=False) + "\n")
            count += 1
    return count


def append_jsonl(path: Path, row: dict[str, Any]) -> None:
    """Append a row as one complete line. Raises DiskFullError if no space is left."""
    line = (json.dumps(row, ensure_ascii=False) + "\n").encode()
    try:
        # Without a buffer, a line is a single write, so readers of the growing file never see half a line.
        with path.open("ab", buffering=0) as stream:
            written = stream.write(line)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise disk_full(path) from error
        raise
    if written < len(line):
        raise disk_full(path)


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """Return all objects of a JSON Lines file. Raises DataError with the file and number of the first invalid line."""
    return [row for _, row in numbered_jsonl(path)]


def numbered_jsonl(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the number (1-based) and the object of each non-blank line. Raises DataError at the first invalid line."""
    number = 0
    try:
        with path.open(encoding="utf-8-sig") as stream:
            for number, line in enumerate(bounded_lines(stream, path), start=1):
                if not line.strip():
                    continue
                try:
                    row = json.loads(line)
                except json.JSONDecodeError as error:
                    cut = " The last line is incomplete: the file may be cut off." if line[-1] != "\n" else ""
                    raise DataError(
                        f"{path}, line {number}: not valid JSON ({error.msg}).{cut} Correct or remove this line."
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
    """Yield the lines of `stream`, the content of `path`. Raises DataError at a line of more than `characters`."""
    number = 0
    while line := stream.readline(characters + 1):
        number += 1
        if len(line) > characters:
            raise DataError(
                f"{path}, line {number}: more than {characters:,} characters without a line break. Check whether the "
                "file is damaged or written on a single line."
            )
        yield line


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def cache_folder(kind: str) -> Path:
    """Return the cache folder for `kind`, such as "models" or "data", in `$MEDITUNE_CACHE` or `~/.cache/meditune`."""
    root = os.environ.get("MEDITUNE_CACHE")
    return (Path(root).expanduser() if root else Path.home() / ".cache" / "meditune") / kind


@contextmanager
def exclusive_lock(path: Path, busy: MedituneError, timeout_s: float = 0) -> Iterator[None]:
    """Hold a file lock during the block. Raises `busy` if another process still holds it after `timeout_s` seconds."""
    from filelock import FileLock, Timeout

    lock = FileLock(path)
    try:
        lock.acquire(timeout=timeout_s)
    except Timeout as error:
        raise busy from error
    try:
        yield
    finally:
        lock.release()
