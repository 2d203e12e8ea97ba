"""Where an index lies, a folder or object storage (s3://): small files that are whole, one writer at a time.

The LanceDB table of passages: its columns, its rows, and clear errors where it is damaged.

An index in object storage: small files through Arrow, one writer at a time through a table that exists only once.

The address of a store that isn't Amazon's, keys and region come from the usual variables: AWS_ENDPOINT_URL,
AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN, AWS_REGION.
"""

from __future__ import annotations

import json
import os
import socket
import time
import uuid
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import fields
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from meditune.errors import DataError, ModelError, install_command
from meditune.files import read_json, write_bytes, write_json
from meditune.retrieve.documents.document import IndexedPassage

MANIFEST = "index.json"
TABLES = "tables"


class IndexStorage(Protocol):
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


def index_storage(where: str | Path) -> IndexStorage:
    """The place of that name."""
    if "://" in str(where):
        return ObjectStorage(str(where).rstrip("/"))
    return FolderStorage(Path(where))


class FolderStorage:
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


FORMAT = 1
"""Of table and manifest; an index of another one is built anew."""
COLUMNS = tuple(field.name for field in fields(IndexedPassage))
SEARCHED, VECTOR, DIGEST = "searched", "vector", "digest"
IDS_AT_ONCE = 500
APPROXIMATE = "IVFPQ"
"""The kind of index of many vectors"""


def connect(place: IndexStorage) -> Any:
    """LanceDB's connection. Raises ModelError where LanceDB isn't installed."""
    try:
        import lancedb
    except ImportError as error:
        raise ModelError(f"An index needs LanceDB. Install it with: {install_command('retrieve')}") from error
    with readable(place):
        return lancedb.connect(place.tables, storage_options=place.options)


@contextmanager
def readable(place: IndexStorage) -> Iterator[None]:
    """Turn what LanceDB raises at missing or damaged files into a DataError."""
    try:
        yield
    except (RuntimeError, ValueError, OSError) as error:
        first = str(error).strip().splitlines()[:1] or [type(error).__name__]
        raise DataError(
            f"{place.name}: the index can't be read; a file of it is missing or damaged ({first[0][:300]}). Build it "
            "again with `meditune index build --replace`."
        ) from error


def schema(dimension: int) -> Any:
    """Columns of the table."""
    import pyarrow as pa

    texts = [pa.field(name, pa.bool_() if name == "restricted" else pa.string()) for name in COLUMNS]
    vector = pa.field(VECTOR, pa.list_(pa.float32(), dimension))
    return pa.schema([*texts, pa.field(SEARCHED, pa.string()), pa.field(DIGEST, pa.string()), vector])


def rows(passages: Sequence[IndexedPassage], vectors: np.ndarray[Any, np.dtype[np.float32]]) -> Any:
    """Passages and their vectors as an Arrow table."""
    import pyarrow as pa

    columns: list[Any] = [pa.array([getattr(passage, name) for passage in passages]) for name in COLUMNS]
    columns.append(pa.array([passage.searched for passage in passages]))
    columns.append(pa.array([passage.digest for passage in passages]))
    columns.append(pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), vectors.shape[1]))
    return pa.Table.from_arrays(columns, schema=schema(vectors.shape[1]))


def scan(table: Any, columns: Sequence[str]) -> Iterator[Any]:
    """Arrow batches of some columns of all rows."""
    yield from table.search().select(list(columns)).limit(max(table.count_rows(), 1)).to_batches(10_000)


def delete(table: Any, ids: Iterable[str]) -> None:
    """Remove the passages of these ids."""
    waiting = list(ids)
    for start in range(0, len(waiting), IDS_AT_ONCE):
        table.delete(f"id IN ({', '.join(map(quoted, waiting[start : start + IDS_AT_ONCE]))})")


def quoted(text: str) -> str:
    """As a text in a condition."""
    return "'" + text.replace("'", "''") + "'"


def make_searchable(table: Any, approximate: bool, keep: timedelta) -> None:
    """Bring the table's pieces together and index its columns; new rows join the indices that are there."""
    from lancedb.index import FTS, Bitmap, IvfPq

    there = {tuple(index.columns): _kind(index) for index in table.list_indices()}
    if (SEARCHED,) not in there:
        table.optimize()
        table.create_index(SEARCHED, config=FTS(stem=True, remove_stop_words=True))
    if ("source",) not in there:
        table.create_index("source", config=Bitmap())
    if approximate and there.get((VECTOR,)) != APPROXIMATE:
        # A quarter of LanceDB's training vectors and rounds: the full vectors put the candidates in order anyway.
        near = IvfPq(distance_type="dot", sample_rate=64, max_iterations=20)
        table.create_index(VECTOR, config=near, replace=True)
    if not approximate:
        for index in table.list_indices():
            if index.columns == [VECTOR]:
                table.drop_index(index.name)
    table.optimize(cleanup_older_than=keep)


def is_approximate(table: Any) -> bool:
    """Whether the index of the vectors may miss some of the nearest."""
    return any(_kind(index) == APPROXIMATE for index in table.list_indices())


def _kind(index: Any) -> str:
    """IVF_PQ or FTS, whatever way LanceDB spells it."""
    return str(index.index_type).replace("_", "").upper()


def verify(table: Any, passages: int) -> None:
    """Raise DataError where the table isn't fit to be searched."""
    if table.count_rows() != passages:
        raise DataError(f"The new index has {table.count_rows():,} passages instead of {passages:,}; build it again.")
    for index in table.list_indices():
        if index.num_unindexed_rows:
            raise DataError(
                f"{index.num_unindexed_rows:,} passages aren't in the index {index.name}; build it with --replace."
            )


ENDPOINT = "AWS_ENDPOINT_URL"
LOCK = "writing"
SETTLING_SECONDS = 1.0


class ObjectStorage:
    """A place under s3://BUCKET/."""

    def __init__(self, uri: str) -> None:
        if not uri.startswith("s3://") or not uri.removeprefix("s3://").strip("/"):
            raise DataError(f"{uri}: an index lies in a folder or under s3://BUCKET/PLACE.")
        self.name = uri
        self.tables = f"{uri}/{TABLES}"
        self._path = uri.removeprefix("s3://")
        endpoint = os.environ.get(ENDPOINT, "")
        self.options: dict[str, str] = {"aws_region": _region()}
        if endpoint:
            self.options |= {"aws_endpoint": endpoint, "allow_http": str(endpoint.startswith("http://")).lower()}

    def read(self, file: str) -> dict[str, Any] | None:
        """The JSON object in a file; None where there is none. Raises DataError where it is damaged."""
        data = self.get(file)
        return None if data is None else parsed(data.decode("utf-8", errors="replace"), f"{self.name}/{file}")

    def write(self, file: str, value: dict[str, Any]) -> None:
        """Put a JSON object into a file; object storage shows an object when it is whole."""
        self.put(file, json.dumps(value, indent=2, ensure_ascii=False).encode())

    def get(self, file: str) -> bytes | None:
        """An object's bytes; None where there is none."""
        try:
            with _reached(self.name), self._files().open_input_stream(f"{self._path}/{file}") as stream:
                data: bytes = stream.read()
        except FileNotFoundError:
            return None
        return data

    def put(self, file: str, data: bytes) -> None:
        """Put bytes into an object."""
        with _reached(self.name), self._files().open_output_stream(f"{self._path}/{file}") as stream:
            stream.write(data)

    def remove(self, file: str) -> None:
        """Remove an object, if it is there."""
        if file in self.files(file):
            with _reached(self.name):
                self._files().delete_file(f"{self._path}/{file}")

    def files(self, start: str) -> list[str]:
        """Names of objects that begin so."""
        from pyarrow.fs import FileSelector

        with _reached(self.name):
            there = self._files().get_file_info(FileSelector(self._path, allow_not_found=True))
        return sorted(each.base_name for each in there if each.base_name.startswith(start))

    @contextmanager
    def writing(self) -> Iterator[None]:
        """The right to change the index during a block.

        Raises DataError where another process has it; one that was killed leaves it taken.
        """
        with _reached(self.name):
            self._check_bucket()
            database = connect(self)
            mine = self._take(database)
        try:
            yield
        finally:
            # Another's, if somebody freed the index meanwhile, stays.
            if LOCK in database.list_tables().tables and _mark(database) == mine:
                database.drop_table(LOCK)

    def unlock(self) -> str:
        """Free the index; says whose it was."""
        database = connect(self)
        with _reached(self.name):
            if LOCK not in database.list_tables().tables:
                return f"{self.name} isn't locked."
            who = _who(database)
            database.drop_table(LOCK)
        return f"{self.name} is free again. It was locked by {who}."

    def _check_bucket(self) -> None:
        from pyarrow.fs import FileType

        bucket = self._path.partition("/")[0]
        if self._files().get_file_info(bucket).type == FileType.NotFound:
            raise DataError(
                f"{self.name}: there is no bucket {bucket!r}, or these keys don't open it. Create it first."
            )

    def _take(self, database: Any) -> str:
        import pyarrow as pa

        me = f"process {os.getpid()} on {socket.gethostname()} since {datetime.now(UTC).isoformat(timespec='seconds')}"
        mine = f"{uuid.uuid4()} {me}"
        try:
            database.create_table(LOCK, pa.table({"who": [mine]}))
        except (ValueError, RuntimeError, OSError) as error:
            if LOCK not in database.list_tables().tables:
                raise
            raise self._taken(_who(database)) from error
        # Stores without conditional writes let two create it in the same moment; the last one's mark stays.
        time.sleep(SETTLING_SECONDS)
        there = _mark(database)
        if there != mine:
            raise self._taken(there.partition(" ")[2])
        return mine

    def _taken(self, who: str) -> DataError:
        return DataError(
            f"{self.name}: {who} is changing this index. Wait for it to end; if it was killed, free the index with "
            f"`meditune index unlock {self.name}`."
        )

    def _files(self) -> Any:
        from pyarrow.fs import S3FileSystem

        scheme, _, host = os.environ.get(ENDPOINT, "").rpartition("://")
        # Delayed opening puts a small file by one request instead of an upload in parts.
        return S3FileSystem(
            region=_region(), endpoint_override=host or None, scheme=scheme or "https", allow_delayed_open=True
        )


@contextmanager
def _reached(name: str) -> Iterator[None]:
    """Raise DataError where the storage refuses or can't be reached."""
    try:
        yield
    except FileNotFoundError:
        raise
    except (OSError, RuntimeError, ValueError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise DataError(
            f"{name} can't be reached ({first[:300]}). Check the address, {ENDPOINT}, AWS_REGION and the keys."
        ) from error


def _region() -> str:
    return os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or "us-east-1"


def _who(database: Any) -> str:
    return _mark(database).partition(" ")[2]


def _mark(database: Any) -> str:
    rows = database.open_table(LOCK).search().limit(1).to_list()
    return str(rows[0]["who"]) if rows else "- another process"
