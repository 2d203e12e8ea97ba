"""Where an index lies, a folder or object storage (s3://): small files that are whole, one writer at a time."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, Protocol

from meditune.errors import DataError
from meditune.files import read_json, write_bytes, write_json

MANIFEST = "index.json"
TABLES = "tables"


class Place(Protocol):
    """What both kinds do."""

    @property
    def name(self) -> str:
        """As the user gave it."""

    @property
    def tables(self) -> str:
        """Where LanceDB's tables are."""

    @property
    def options(self) -> dict[str, str] | None:
        """LanceDB's storage options."""

    def read(self, file: str) -> dict[str, Any] | None:
        """The JSON object in a file; None where there is none. Raises DataError where it is damaged."""

    def write(self, file: str, value: dict[str, Any]) -> None:
        """Put a JSON object into a file at once: readers see the old one or the new one."""

    def get(self, file: str) -> bytes | None:
        """A file's bytes; None where there is none."""

    def put(self, file: str, data: bytes) -> None:
        """Put bytes into a file at once."""

    def remove(self, file: str) -> None:
        """Remove a file, if it is there."""

    def files(self, start: str) -> list[str]:
        """Names of files that begin so."""

    def writing(self) -> AbstractContextManager[None]:
        """The right to change the index during a block. Raises DataError where another process has it."""

    def unlock(self) -> str:
        """Free what a killed process left locked; says what was done."""


def place(where: str | Path) -> Place:
    """The place of that name."""
    if "://" in str(where):
        from meditune.retrieve.object_storage import ObjectStorage

        return ObjectStorage(str(where).rstrip("/"))
    return Folder(Path(where))


class Folder:
    """A folder of this machine."""

    options = None

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def name(self) -> str:
        """As the user gave it."""
        return str(self.path)

    @property
    def tables(self) -> str:
        """Where LanceDB's tables are."""
        return str(self.path / TABLES)

    def read(self, file: str) -> dict[str, Any] | None:
        """The JSON object in a file; None where there is none. Raises DataError where it is damaged."""
        path = self.path / file
        return checked(read_json(path), str(path)) if path.is_file() else None

    def write(self, file: str, value: dict[str, Any]) -> None:
        """Put a JSON object into a file at once."""
        write_json(self.path / file, value)

    def get(self, file: str) -> bytes | None:
        """A file's bytes; None where there is none."""
        path = self.path / file
        return path.read_bytes() if path.is_file() else None

    def put(self, file: str, data: bytes) -> None:
        """Put bytes into a file at once."""
        write_bytes(self.path / file, data)

    def remove(self, file: str) -> None:
        """Remove a file, if it is there."""
        (self.path / file).unlink(missing_ok=True)

    def files(self, start: str) -> list[str]:
        """Names of files that begin so."""
        return sorted(path.name for path in self.path.glob(f"{start}*"))

    @contextmanager
    def writing(self) -> Iterator[None]:
        """The right to change the index during a block; the system takes it back when the process ends."""
        from filelock import FileLock, Timeout

        if self.path.is_file():
            raise DataError(f"{self.path} is a file. Name a folder for the index.")
        self.path.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.path / ".writing.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout as error:
            raise DataError(
                f"{self.path}: another process is changing this index. Wait for it to end; searches go on meanwhile."
            ) from error
        try:
            for left in self.path.glob(".*.partial"):  # by a killed process: this one has the lock
                left.unlink()
            yield
        finally:
            lock.release()

    def unlock(self) -> str:
        """Nothing: the system frees a folder by itself."""
        return "An index in a folder is free as soon as the process that changed it has ended."


def checked(value: Any, where: str) -> dict[str, Any]:
    """The value, which must be an object. Raises DataError."""
    if not isinstance(value, dict):
        raise DataError(f"{where}: expected a JSON object, found {type(value).__name__}. Build the index again.")
    return value


def parsed(text: str, where: str) -> dict[str, Any]:
    """The JSON object in a text. Raises DataError."""
    try:
        return checked(json.loads(text), where)
    except json.JSONDecodeError as error:
        raise DataError(f"{where}: not valid JSON ({error.msg}). Build the index again.") from error
