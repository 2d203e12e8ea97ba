"""A PostgreSQL database, for several servers that share a store: the same tables and statements as in SQLite's file.

The password may stand in the URL, or better in `PGPASSWORD` or a password file, as for every program that uses libpq
(https://www.postgresql.org/docs/current/libpq-envars.html).
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from meditune.errors import StoreError, install_command
from meditune.store.database import LATEST, Connection, Cursor, migrate, refuse_later

if TYPE_CHECKING:
    import psycopg

SCHEMES = ("postgresql://", "postgres://")
WAIT_S = 5.0
"""For a connection"""
AGAIN_S = 0.5
LOCK_S = 20.0
"""For another program's lock, as long as in SQLite"""
MOST = 8
"""Connections of one process"""
MIGRATING, WRITING = 7_104_001, 7_104_002
"""Advisory locks: of whoever changes the tables, and of whoever adds an answer"""


class Postgres:
    """A database by its URL (`database.Database`)."""

    def __init__(self, url: str) -> None:
        """Connects, and brings the tables up to date. Raises StoreError where that can't be."""
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
        with self._said(), psycopg.connect(url, **named) as connection:
            self._bring_up(_Link(connection))
        # Connections are looked at before use, so that a database that was started anew is found again.
        self._pool = ConnectionPool(
            url,
            kwargs=named,
            min_size=0,
            max_size=MOST,
            timeout=WAIT_S,
            # The pool waits longer after each failure, and all requests with it; given up, the next one tries at once.
            reconnect_timeout=AGAIN_S,
            check=ConnectionPool.check_connection,
            open=True,
        )
        weakref.finalize(self, self._pool.close)

    @contextmanager
    def opened(self) -> Iterator[Connection]:
        """A connection outside any transaction; each statement is on the disk when it returns.

        Raises StoreError where the database can't be used.
        """
        with self._said(), self._pool.connection() as connection:
            yield _Link(connection)

    @contextmanager
    def changing(self) -> Iterator[Connection]:
        """A connection in a transaction, which is on the disk when the block ends well, and undone otherwise."""
        with self._said(), self._pool.connection() as connection, connection.transaction():
            yield _Link(connection)

    def in_turn(self, connection: Connection) -> None:
        """Take turns until the transaction's end: a place that is seen has all earlier ones before it then."""
        connection.execute(f"SELECT pg_advisory_xact_lock({WRITING})")

    def forget(self) -> None:
        """Free what deleted rows took. Its bytes are overwritten when new rows need the room."""
        with self.opened() as connection:
            for table in ("answers", "feedback"):
                connection.execute(f"VACUUM (SKIP_LOCKED) {table}")

    def _bring_up(self, connection: _Link) -> None:
        if self._version(connection) == LATEST:
            return
        with connection.raw.transaction():
            connection.execute(f"SELECT pg_advisory_xact_lock({MIGRATING})")
            migrate(connection, 0, self.place, postgres=True)

    def _version(self, connection: Connection) -> int:
        (there,) = connection.execute("SELECT to_regclass('versions')").fetchone()
        if there is None:
            return 0
        (found,) = connection.execute("SELECT max(version) FROM versions").fetchone()
        refuse_later(found or 0, self.place)
        return int(found or 0)

    @contextmanager
    def _said(self) -> Iterator[None]:
        """Errors of the database's as a sentence, which holds no value of a row."""
        import psycopg

        try:
            yield
        except psycopg.Error as error:
            told = error.diag.message_primary or (str(error).splitlines() or [type(error).__name__])[0]
            raise StoreError(
                f"{self.place} can't be used ({told}). Check that the database runs, has room, and lets this user in."
            ) from error


class _Link:
    """A connection that takes `?` for values."""

    def __init__(self, raw: psycopg.Connection[Any]) -> None:
        self.raw = raw

    def execute(self, statement: str, values: Sequence[Any] = (), /) -> Cursor:
        """Carry out one statement."""
        # PostgreSQL's texts can't hold the sign NUL.
        given = [value.replace("\0", "\ufffd") if isinstance(value, str) else value for value in values]
        return self.raw.execute(statement.replace("?", "%s").encode(), given or None)


class _Row(tuple[Any, ...]):
    """A row by place and by name."""

    names: Sequence[str] = ()

    def __getitem__(self, key: Any) -> Any:
        return super().__getitem__(self.names.index(key) if isinstance(key, str) else key)


def _named_rows(cursor: psycopg.Cursor[Any]) -> Any:
    kind = type("Row", (_Row,), {"names": [column.name for column in cursor.description or ()]})
    return kind


def without_password(url: str) -> str:
    """The URL as people may see it. Raises StoreError where it is none."""
    try:
        parts = urlsplit(url)
        user = f"{parts.username}@" if parts.username else ""
        port = f":{parts.port}" if parts.port else ""
    except ValueError as error:
        raise StoreError(
            "The store's URL can't be read. It is postgresql://USER:PASSWORD@HOST:PORT/DATABASE, with signs such as "
            "@ : / # in the password written as %40 %3A %2F %23."
        ) from error
    return f"postgresql://{user}{parts.hostname or ''}{port}{parts.path}"
