"""Storage of an index in a folder or in object storage (s3://): small files, LanceDB's tables, and a lock.

Files are written atomically. Only one process can write at a time. In object storage, the lock is a table that only one
process can create. The environment variables AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_REGION set the access
keys and the region. AWS_ENDPOINT_URL sets the endpoint of a provider other than Amazon.
"""

from __future__ import annotations

import io
import json
import os
import socket
import sys
import threading
import time
import uuid
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import fields
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np

from meditune.errors import DamagedIndexError, DataError, ModelError, install_command
from meditune.files import exclusive_lock, write_bytes
from meditune.retrieve.documents.document import IndexedPassage

MANIFEST = "index.json"
TABLES = "tables"
REBUILD = "Build the index again with `meditune index build --replace`."


def archive(**parts: Any) -> bytes:
    """Return the named parts as a numpy archive (.npz); parts that aren't arrays are stored as JSON."""
    arrays = {
        name: part if isinstance(part, np.ndarray) else np.frombuffer(json.dumps(part).encode(), dtype=np.uint8)
        for name, part in parts.items()
    }
    stream = io.BytesIO()
    np.savez(stream, allow_pickle=False, **arrays)
    return stream.getvalue()


def read_archive(data: bytes | None, name: str, what: str) -> dict[str, Any]:
    """Return an archive's parts by name.

    Raises DataError if the archive can't be read. The message is "`name`: `what` missing or damaged", where `what` is,
    for example, "the reranker's data is".
    """
    try:
        if data is None:
            raise ValueError("the file is missing")
        with np.load(io.BytesIO(data), allow_pickle=False) as stored:
            arrays = dict(stored)
        return {part: json.loads(each.tobytes()) if each.dtype == np.uint8 else each for part, each in arrays.items()}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"{name}: {what} missing or damaged ({error}). {REBUILD}") from error


class IndexStorage(ABC):
    """The common interface of storage in a folder and in object storage."""

    name: str  # The location as shown in messages
    tables: str  # The location of LanceDB's tables
    options: dict[str, str] | None = None  # LanceDB's storage options

    def read(self, file: str) -> dict[str, Any] | None:
        """Return the JSON object in a file, or None if there is no such file. Raises DataError if it is damaged."""
        data = self.get(file)
        if data is None:
            return None
        where = f"{self.name}/{file}"
        try:
            value = json.loads(data)
        except ValueError as error:
            raise DataError(f"{where}: not valid JSON ({error}). Build the index again.") from error
        if not isinstance(value, dict):
            raise DataError(f"{where}: expected a JSON object, found {type(value).__name__}. Build the index again.")
        return value

    def write(self, file: str, value: dict[str, Any]) -> None:
        """Write a JSON object to a file atomically: readers see either the old or the new content."""
        self.put(file, json.dumps(value, indent=2, ensure_ascii=False).encode())

    @abstractmethod
    def get(self, file: str) -> bytes | None:
        """Return a file's bytes, or None if the file doesn't exist."""

    @abstractmethod
    def put(self, file: str, data: bytes) -> None:
        """Write bytes to a file atomically."""

    @abstractmethod
    def remove(self, file: str) -> None:
        """Delete a file if it exists."""

    @abstractmethod
    def files(self, start: str) -> list[str]:
        """Return the sorted names of the files that begin with `start`."""

    @abstractmethod
    def writing(self) -> AbstractContextManager[None]:
        """Lock the index for writing inside a `with` block. Raises DataError if another process holds the lock."""

    @abstractmethod
    def unlock(self) -> str:
        """Release the lock left by a killed process, and return a message about what was done."""


def index_storage(location: str | Path) -> IndexStorage:
    """Return the storage for a folder or an s3:// location. Raises DataError for any other URI."""
    if "://" in str(location):
        return _ObjectStore(str(location).rstrip("/"))
    return _Folder(Path(location).expanduser())


class _Folder(IndexStorage):
    """A folder on this machine. The operating system releases the lock when the process that holds it ends."""

    def __init__(self, path: Path) -> None:
        self.path, self.name, self.tables = path, str(path), str(path / TABLES)

    def get(self, file: str) -> bytes | None:
        path = self.path / file
        try:
            return path.read_bytes() if path.is_file() else None
        except OSError as error:
            raise DataError(
                f"{path}: cannot be read ({error.strerror}). Check its permissions and the disk."
            ) from error

    def put(self, file: str, data: bytes) -> None:
        write_bytes(self.path / file, data)

    def remove(self, file: str) -> None:
        (self.path / file).unlink(missing_ok=True)

    def files(self, start: str) -> list[str]:
        return sorted(path.name for path in self.path.glob(f"{start}*"))

    @contextmanager
    def writing(self) -> Iterator[None]:
        if self.path.is_file():
            raise DataError(f"{self.path} is a file. Specify a folder for the index.")
        self.path.mkdir(parents=True, exist_ok=True)
        busy = DataError(
            f"{self.path}: another process is changing this index. Wait until it has finished; searches still work."
        )
        with exclusive_lock(self.path / ".writing.lock", busy):
            for left in self.path.glob(".*.partial"):  # must be from a killed process, because this one holds the lock
                left.unlink()
            yield

    def unlock(self) -> str:
        return "An index in a folder needs no unlocking: the lock is released as soon as its process ends."


FORMAT = 1  # Format of the table and the manifest; an index in another format must be rebuilt
COLUMNS = tuple(field.name for field in fields(IndexedPassage))
SEARCHED, VECTOR, DIGEST = "searched", "vector", "digest"
IDS_PER_QUERY = 500
FOREVER = timedelta(days=36_500)  # By default, LanceDB deletes versions that are more than seven days old
MARGIN = timedelta(hours=1)  # LanceDB measures a version's age later than we do, so a kept version must be younger
APPROXIMATE = "IVFPQ"  # LanceDB's type of index for approximate search in many vectors


def connect(store: IndexStorage) -> Any:
    """Return a LanceDB connection to the index's tables. Raises ModelError if LanceDB isn't installed."""
    try:
        import lancedb
    except ImportError as error:
        raise ModelError(f"An index needs LanceDB. Install it with: {install_command('retrieve')}") from error
    with readable(store):
        return lancedb.connect(store.tables, storage_options=store.options)


def import_lancedb_without_pandas() -> None:
    """Import LanceDB so that it and pyarrow work without pandas, which takes 33 MB and 0.2 s and which no search needs.

    If pandas is installed, pyarrow imports it while LanceDB is imported. Call this function before `connect`, in a
    process that has no other use for pandas. If LanceDB isn't installed, `connect` reports it.
    """
    finder: Any = _NoPandas()
    sys.meta_path.insert(0, finder)
    try:
        with suppress(ImportError):
            import lancedb  # noqa: F401
    finally:
        sys.meta_path.remove(finder)


class _NoPandas:
    """A finder of modules for which pandas isn't installed in the thread that created it.

    With None in `sys.modules` instead, pyarrow would raise AttributeError.
    """

    def __init__(self) -> None:
        self._thread = threading.get_ident()

    def find_spec(self, name: str, *_: Any) -> None:
        if name == "pandas" and threading.get_ident() == self._thread:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


@contextmanager
def readable(store: IndexStorage) -> Iterator[None]:
    """Convert LanceDB's errors about missing or damaged files in a `with` block to DamagedIndexError."""
    problem = f"{store.name}: cannot read the index; one of its files is missing or damaged"
    with _data_error(problem, REBUILD, kind=DamagedIndexError):
        yield


@contextmanager
def _data_error(
    problem: str, advice: str, passed: tuple[type[Exception], ...] = (), kind: type[DataError] = DataError
) -> Iterator[None]:
    """Convert errors in a `with` block to a DataError of this `kind`.

    Errors of the types in `passed` are re-raised unchanged. The message consists of `problem`, the first line of the
    original error, and `advice`.
    """
    try:
        yield
    except passed:
        raise
    except (OSError, RuntimeError, ValueError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise kind(f"{problem} ({first[:300]}). {advice}") from error


def schema(dimension: int) -> Any:
    """Return the table's Arrow schema, for vectors with `dimension` numbers."""
    import pyarrow as pa

    texts = [pa.field(name, pa.bool_() if name == "restricted" else pa.string()) for name in COLUMNS]
    vector = pa.field(VECTOR, pa.list_(pa.float32(), dimension))
    return pa.schema([*texts, pa.field(SEARCHED, pa.string()), pa.field(DIGEST, pa.string()), vector])


def rows(passages: Sequence[IndexedPassage], vectors: np.ndarray[Any, np.dtype[np.float32]]) -> Any:
    """Return passages and their vectors (n, dimension) as an Arrow table."""
    import pyarrow as pa

    columns: list[Any] = [pa.array([getattr(passage, name) for passage in passages]) for name in COLUMNS]
    columns.append(pa.array([passage.searched for passage in passages]))
    columns.append(pa.array([passage.digest for passage in passages]))
    columns.append(pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), vectors.shape[1]))
    return pa.Table.from_arrays(columns, schema=schema(vectors.shape[1]))


def scan(table: Any, columns: Sequence[str]) -> Iterator[Any]:
    """Yield all rows in Arrow batches that contain only these columns."""
    yield from table.search().select(list(columns)).limit(max(table.count_rows(), 1)).to_batches(10_000)


def delete(table: Any, ids: Iterable[str]) -> None:
    """Delete the passages with these ids from the table."""
    waiting = list(ids)
    for start in range(0, len(waiting), IDS_PER_QUERY):
        table.delete(f"id IN ({', '.join(map(quoted, waiting[start : start + IDS_PER_QUERY]))})")


def quoted(text: str) -> str:
    """Return the text as a quoted string for an SQL condition."""
    return "'" + text.replace("'", "''") + "'"


def make_searchable(table: Any, approximate: bool) -> None:
    """Compact the table, create missing column indices, and add new rows to existing ones.

    If `approximate` is True, the vectors get an approximate index; otherwise, an existing index of the vectors is
    dropped. All versions of the table are kept.
    """
    from lancedb.index import FTS, Bitmap, IvfPq

    indices = {tuple(index.columns): _kind(index) for index in table.list_indices()}
    if (SEARCHED,) not in indices:
        table.optimize(cleanup_older_than=FOREVER)
        table.create_index(SEARCHED, config=FTS(stem=True, remove_stop_words=True))
    if ("source",) not in indices:
        table.create_index("source", config=Bitmap())
    if approximate and indices.get((VECTOR,)) != APPROXIMATE:
        # Fewer training vectors and iterations than LanceDB's defaults are enough: full vectors rank the candidates.
        near = IvfPq(distance_type="dot", sample_rate=64, max_iterations=20)
        table.create_index(VECTOR, config=near, replace=True)
    if not approximate:
        for index in table.list_indices():
            if index.columns == [VECTOR]:
                table.drop_index(index.name)
    table.optimize(cleanup_older_than=FOREVER)


def remove_versions(table: Any, before: int) -> None:
    """Delete the table's versions from before this version; those from the last `MARGIN` before it may stay."""
    created = next(each["timestamp"] for each in table.list_versions() if each["version"] == before)
    # The age is negative if the clock was set back; LanceDB would then delete every version that readers still use.
    age = max(0.0, time.time() - created.timestamp())
    table.optimize(cleanup_older_than=timedelta(seconds=age) + MARGIN)


def is_approximate(table: Any) -> bool:
    """Return whether the vectors have an approximate index, with which searches may miss some near vectors."""
    return any(_kind(index) == APPROXIMATE for index in table.list_indices())


def _kind(index: Any) -> str:
    """Return the type of an index, such as IVFPQ or FTS, in uppercase and without underscores."""
    return str(index.index_type).replace("_", "").upper()


def verify(table: Any, passages: int) -> None:
    """Raise DataError if the table has another number of passages, or if a column index lacks some of them."""
    if table.count_rows() != passages:
        raise DataError(f"The index has {table.count_rows():,} passages instead of {passages:,}; build it again.")
    for index in table.list_indices():
        if index.num_unindexed_rows:
            raise DataError(
                f"{index.num_unindexed_rows:,} passages are missing from the column index {index.name}; build the "
                "index again with --replace."
            )


ENDPOINT = "AWS_ENDPOINT_URL"
LOCK = "writing"
SETTLING_SECONDS = 1.0


class _ObjectStore(IndexStorage):
    """Object storage in a bucket, or under a prefix in a bucket (s3://BUCKET/PREFIX)."""

    def __init__(self, uri: str) -> None:
        if not uri.startswith("s3://") or not uri.removeprefix("s3://").strip("/"):
            raise DataError(f"{uri} is not a valid location for an index. Specify a folder or s3://BUCKET/PREFIX.")
        self.name = uri
        self.tables = f"{uri}/{TABLES}"
        self._path = uri.removeprefix("s3://")
        endpoint = os.environ.get(ENDPOINT, "")
        self.options = {"aws_region": _region()}
        if endpoint:
            self.options |= {"aws_endpoint": endpoint, "allow_http": str(endpoint.startswith("http://")).lower()}

    def get(self, file: str) -> bytes | None:
        try:
            with _storage_errors(self.name), self._files().open_input_stream(f"{self._path}/{file}") as stream:
                data: bytes = stream.read()
        except FileNotFoundError:
            return None
        return data

    def put(self, file: str, data: bytes) -> None:
        # In object storage, an object becomes visible only when its upload is complete.
        with _storage_errors(self.name), self._files().open_output_stream(f"{self._path}/{file}") as stream:
            stream.write(data)

    def remove(self, file: str) -> None:
        if file in self.files(file):
            with _storage_errors(self.name):
                self._files().delete_file(f"{self._path}/{file}")

    def files(self, start: str) -> list[str]:
        from pyarrow.fs import FileSelector

        with _storage_errors(self.name):
            entries = self._files().get_file_info(FileSelector(self._path, allow_not_found=True))
        return sorted(each.base_name for each in entries if each.base_name.startswith(start))

    @contextmanager
    def writing(self) -> Iterator[None]:
        # If the process is killed, the index stays locked.
        with _storage_errors(self.name):
            from pyarrow.fs import FileType

            bucket = self._path.partition("/")[0]
            if self._files().get_file_info(bucket).type == FileType.NotFound:
                raise DataError(
                    f"{self.name}: the bucket {bucket!r} doesn't exist, or your keys can't access it. Create it first."
                )
            database = connect(self)
            own_mark = self._take(database)
        try:
            yield
        finally:
            # If `unlock` has released this process's lock, another process may hold the lock now.
            if LOCK in database.list_tables().tables and _mark(database) == own_mark:
                database.drop_table(LOCK)

    def unlock(self) -> str:
        database = connect(self)
        with _storage_errors(self.name):
            if LOCK not in database.list_tables().tables:
                return f"{self.name} is not locked."
            mark = _mark(database)
            database.drop_table(LOCK)
        return f"{self.name} is unlocked. It was locked by {mark.partition(' ')[2]}."

    def _take(self, database: Any) -> str:
        import pyarrow as pa

        me = f"process {os.getpid()} on {socket.gethostname()} since {datetime.now(UTC).isoformat(timespec='seconds')}"
        own_mark = f"{uuid.uuid4()} {me}"
        try:
            database.create_table(LOCK, pa.table({"who": [own_mark]}))
        except (ValueError, RuntimeError, OSError) as error:
            if LOCK not in database.list_tables().tables:
                raise
            raise self._locked_error(_mark(database)) from error
        # Without conditional writes, two processes can create the lock at the same moment; the later write remains.
        time.sleep(SETTLING_SECONDS)
        stored_mark = _mark(database)
        if stored_mark != own_mark:
            raise self._locked_error(stored_mark)
        return own_mark

    def _locked_error(self, mark: str) -> DataError:
        return DataError(
            f"{self.name}: {mark.partition(' ')[2]} is changing this index. Wait until it ends; if it was killed, "
            f"unlock the index with `meditune index unlock {self.name}`."
        )

    def _files(self) -> Any:
        from pyarrow.fs import S3FileSystem

        scheme, _, host = os.environ.get(ENDPOINT, "").rpartition("://")
        # With delayed opening, a small file is written in one request instead of a multipart upload.
        return S3FileSystem(
            region=_region(), endpoint_override=host or None, scheme=scheme or "https", allow_delayed_open=True
        )


@contextmanager
def _storage_errors(name: str) -> Iterator[None]:
    advice = f"Check the address, {ENDPOINT}, AWS_REGION and the keys."
    with _data_error(f"{name} is unreachable", advice, (FileNotFoundError, DataError)):
        yield


def _region() -> str:
    return os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or "us-east-1"


def _mark(database: Any) -> str:
    """Return the entry of the process that holds the lock: a unique id, a space and a description."""
    rows = database.open_table(LOCK).search().limit(1).to_list()
    return str(rows[0]["who"]) if rows else "- another process"
