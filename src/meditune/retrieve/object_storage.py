"""An index in object storage: small files through Arrow, one writer at a time through a table that exists only once.

The address of a store that isn't Amazon's, keys and region come from the usual variables: AWS_ENDPOINT_URL,
AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN, AWS_REGION.
"""

from __future__ import annotations

import json
import os
import socket
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

from meditune.errors import DataError
from meditune.retrieve import tables
from meditune.retrieve.place import TABLES, parsed

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
            database = tables.connect(self)
            mine = self._take(database)
        try:
            yield
        finally:
            # Another's, if somebody freed the index meanwhile, stays.
            if LOCK in database.list_tables().tables and _mark(database) == mine:
                database.drop_table(LOCK)

    def unlock(self) -> str:
        """Free the index; says whose it was."""
        database = tables.connect(self)
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
