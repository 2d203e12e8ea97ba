"""A store in a PostgreSQL database, for several servers that share it, with the same tables as in the SQLite file.

The password may be in the URL, or better in `PGPASSWORD` or a password file, as for every program that uses libpq
(https://www.postgresql.org/docs/current/libpq-envars.html).
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from meditune.errors import StoreError, install_command
from meditune.store.database import LATEST, Connection, Cursor, migrate, refuse_newer

if TYPE_CHECKING:
    import psycopg

SCHEMES = ("postgresql://", "postgres://")
WAIT_S = 5.0
"""The longest wait for a connection"""
RECONNECT_S = 0.5
LOCK_S = 20.0
"""The longest wait for another program's lock, as in SQLite"""
MAX_CONNECTIONS = 8
"""The most connections of one process"""
MIGRATING, WRITING = 7_104_001, 7_104_002
"""Advisory locks, held while tables are changed and while an answer is added"""


class Postgres:
    """A PostgreSQL database, given by its URL (`database.Database`)."""

    def __init__(self, url: str) -> None:
        """Connect, and migrate the tables to the latest version. Raises StoreError if that fails."""
        self.place = without_password(url)
        try:
            import psycopg
            from psycopg_pool import ConnectionPool
        except ImportError as error:
            raise StoreError(f"PostgreSQL needs psycopg. Install it with: {install_command('postgres')}") from error
        named: dict[str, Any] = {
            "autocommit": True,
            "row_factory": _named_rows,
            "connect_timeout": round(WAIT_S),
            "options": f"-c lock_timeout={round(LOCK_S * 1000)} -c synchronous_commit=on",
            "tcp_user_timeout": round(LOCK_S * 1000),
            "application_name": "meditune",
        }
        with self._errors(), psycopg.connect(url, **named) as connection:
            self._migrate(_Link(connection))
        # Connections are checked before use, so that they survive a restart of the database.
        self._pool = ConnectionPool(
            url,
            kwargs=named,
            min_size=0,
            max_size=MAX_CONNECTIONS,
            timeout=WAIT_S,
            # The pool waits longer after each failure, and all requests wait with it; after it gives up, the next
            # request tries at once.
            reconnect_timeout=RECONNECT_S,
            check=ConnectionPool.check_connection,
            open=True,
        )
        weakref.finalize(self, self._pool.close)

    @contextmanager
    def opened(self) -> Iterator[Connection]:
        """Yield a connection outside any transaction; each statement is on the disk when it returns.

        Raises StoreError if the database can't be used.
        """
        with self._errors(), self._pool.connection() as connection:
            yield _Link(connection)

    @contextmanager
    def changing(self) -> Iterator[Connection]:
        """Yield a connection in a transaction, which is committed if the block succeeds and rolled back otherwise."""
        with self._errors(), self._pool.connection() as connection, connection.transaction():
            yield _Link(connection)

    def serialize_writers(self, connection: Connection) -> None:
        """Lock out other writers until the transaction ends, so that places become visible in order."""
        connection.execute(f"SELECT pg_advisory_xact_lock({WRITING})")

    def forget(self) -> None:
        """Free the space of deleted rows. Their bytes are overwritten when new rows need the space."""
        with self.opened() as connection:
            for table in ("answers", "feedback"):
                connection.execute(f"VACUUM (SKIP_LOCKED) {table}")

    def _migrate(self, connection: _Link) -> None:
        if self._version(connection) == LATEST:
            return
        with connection.raw.transaction():
            connection.execute(f"SELECT pg_advisory_xact_lock({MIGRATING})")
            migrate(connection, 0, self.place, postgres=True)

    def _version(self, connection: Connection) -> int:
        (table,) = connection.execute("SELECT to_regclass('versions')").fetchone()
        if table is None:
            return 0
        (found,) = connection.execute("SELECT max(version) FROM versions").fetchone()
        refuse_newer(found or 0, self.place)
        return int(found or 0)

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """Raise StoreError, whose message contains no value of a row, for an error of the database."""
        import psycopg

        try:
            yield
        except psycopg.Error as error:
            reason = error.diag.message_primary or (str(error).splitlines() or [type(error).__name__])[0]
            raise StoreError(
                f"{self.place} can't be used ({reason}). Check that the database is running, that its disk isn't full, "
                "and that this user may connect."
            ) from error


class _Link:
    """A connection that accepts `?` as the placeholder for values."""

    def __init__(self, raw: psycopg.Connection[Any]) -> None:
        self.raw = raw

    def execute(self, statement: str, values: Sequence[Any] = (), /) -> Cursor:
        """Execute one statement."""
        # PostgreSQL's text can't contain NUL.
        given = [value.replace("\0", "\ufffd") if isinstance(value, str) else value for value in values]
        return self.raw.execute(statement.replace("?", "%s").encode(), given or None)


class _Row(tuple[Any, ...]):
    """A row with access by position and by column name."""

    names: Sequence[str] = ()

    def __getitem__(self, key: Any) -> Any:
        return super().__getitem__(self.names.index(key) if isinstance(key, str) else key)


def _named_rows(cursor: psycopg.Cursor[Any]) -> Any:
    kind = type("Row", (_Row,), {"names": [column.name for column in cursor.description or ()]})
    return kind


def without_password(url: str) -> str:
    """Return the URL without its password, safe to display. Raises StoreError if the URL is invalid."""
    try:
        parts = urlsplit(url)
        user = f"{parts.username}@" if parts.username else ""
        port = f":{parts.port}" if parts.port else ""
    except ValueError as error:
        raise StoreError(
            "The store's URL is invalid. Write postgresql://USER:PASSWORD@HOST:PORT/DATABASE, with characters such as "
            "@ : / # in the password written as %40 %3A %2F %23."
        ) from error
    return f"postgresql://{user}{parts.hostname or ''}{port}{parts.path}"
