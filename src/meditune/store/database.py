"""The database of a store: its tables, the base class of both kinds of database, and the SQLite file.

Statements are written in SQL that both SQLite and PostgreSQL (`postgresql.py`) understand, with `?` as the placeholder
for values. The table `versions` records the version of the tables.
"""

from __future__ import annotations

import logging
import sqlite3
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager
from pathlib import Path
from typing import Any, ClassVar, Protocol

from meditune import __version__
from meditune.errors import StoreError

Row = Any
"""A row with access by column name"""
Cursor = Any
"""The result of a statement: `rowcount`, `fetchone()`, `fetchall()`, and iteration over its rows"""
LATEST = 2
"""The current version of the tables"""
TABLES = """
CREATE TABLE versions (version BIGINT PRIMARY KEY, time DOUBLE PRECISION NOT NULL, made_by TEXT NOT NULL);
CREATE TABLE keys (
    id TEXT PRIMARY KEY, name TEXT NOT NULL, hash TEXT NOT NULL, old_hash TEXT, old_until DOUBLE PRECISION,
    scopes TEXT NOT NULL, per_minute BIGINT, daily_tokens BIGINT, created DOUBLE PRECISION NOT NULL,
    expires DOUBLE PRECISION, revoked DOUBLE PRECISION
);
CREATE TABLE usage (
    who TEXT NOT NULL, day TEXT NOT NULL, requests BIGINT NOT NULL, tokens BIGINT NOT NULL, PRIMARY KEY (who, day)
);
CREATE TABLE answers (
    place AUTOMATIC, id TEXT NOT NULL UNIQUE, time DOUBLE PRECISION NOT NULL, who TEXT NOT NULL,
    route TEXT NOT NULL, model TEXT NOT NULL, index_content TEXT NOT NULL, outcome TEXT NOT NULL, facts TEXT NOT NULL,
    question TEXT, answer TEXT
);
CREATE INDEX answers_time ON answers (time);
CREATE INDEX answers_who ON answers (who);
CREATE TABLE feedback (
    answer TEXT NOT NULL REFERENCES answers (id) ON DELETE CASCADE, who TEXT NOT NULL, time DOUBLE PRECISION NOT NULL,
    rating TEXT NOT NULL, reasons TEXT NOT NULL, comment TEXT NOT NULL, correction TEXT NOT NULL,
    decision TEXT NOT NULL DEFAULT '', expert BIGINT NOT NULL DEFAULT 0, PRIMARY KEY (answer, who)
);
CREATE TABLE notes (name TEXT PRIMARY KEY, time DOUBLE PRECISION NOT NULL, facts TEXT NOT NULL)
"""


class Connection(Protocol):
    """A connection for one call."""

    def execute(self, statement: str, values: Sequence[Any] = (), /) -> Cursor:
        """Execute one statement."""


class Database(ABC):
    """The database of a store. Each call has its own connection, so calls may come from any thread or process."""

    place: str
    """The location for display, without a password"""
    _find_versions: ClassVar[str]
    """A statement that returns a row only if the table `versions` exists"""
    _automatic: ClassVar[str]
    """The column type of a primary key whose numbers increase and are never reused"""

    @abstractmethod
    def opened(self) -> AbstractContextManager[Connection]:
        """Yield a connection outside any transaction; each statement is on the disk when it returns.

        Raises StoreError if the database can't be used.
        """

    @abstractmethod
    def changing(self) -> AbstractContextManager[Connection]:
        """Yield a connection in a transaction, which is committed if the block succeeds and rolled back otherwise."""

    @abstractmethod
    def forget(self) -> None:
        """Remove the remains of deleted rows from the disk as far as possible."""

    @abstractmethod
    def serialize_writers(self, connection: Connection) -> None:
        """Make transactions that add answers end in the order in which they began, so that readers miss no answer."""

    def rows(self, statement: str, *values: Any) -> list[Row]:
        """Return the rows that a statement selects."""
        with self.opened() as connection:
            found: list[Row] = connection.execute(statement, values).fetchall()
            return found

    def change(self, statement: str, *values: Any) -> int:
        """Execute a statement; return the number of changed rows. The changes are on the disk when this returns."""
        with self.opened() as connection:
            return int(connection.execute(statement, values).rowcount)

    def _has_tables(self, connection: Connection) -> bool:
        """Return whether the tables exist. Raises StoreError if a later version of Meditune created them."""
        if connection.execute(self._find_versions).fetchone() is None:
            return False
        version = connection.execute("SELECT max(version) AS found FROM versions").fetchone()["found"]
        if version > LATEST:
            raise StoreError(f"{self.place} was created by a later version of Meditune. Update Meditune here.")
        return True

    def _create_tables(self, connection: Connection) -> None:
        """Create the tables if they don't exist. The connection must lock out other programs that create them."""
        if self._has_tables(connection):
            return
        for statement in TABLES.replace("AUTOMATIC", self._automatic).split(";"):
            connection.execute(statement)
        connection.execute("INSERT INTO versions VALUES (?, ?, ?)", (LATEST, time.time(), __version__))


log = logging.getLogger(__name__)
FILE = "meditune.sqlite"
BUSY_S = 20.0


class SQLiteDatabase(Database):
    """An SQLite file in a folder. Every call opens its own connection."""

    _find_versions = "SELECT 1 FROM sqlite_master WHERE name = 'versions'"
    _automatic = "INTEGER PRIMARY KEY AUTOINCREMENT"

    def __init__(self, folder: Path) -> None:
        """Create the folder, the file and the tables if they don't exist, readable only by this user.

        Raises StoreError if that fails.
        """
        self.path = folder / FILE
        self.place = str(self.path)
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            self.path.touch(mode=0o600, exist_ok=True)
        except OSError as error:
            raise StoreError(
                f"{self.path} can't be created ({error.strerror}). Set another folder with --store or MEDITUNE_STORE."
            ) from error
        with self.opened() as base:
            _use_wal(base)
            complete = self._has_tables(base)
        if not complete:
            with self.changing() as base:
                self._create_tables(base)

    @contextmanager
    def opened(self) -> Iterator[sqlite3.Connection]:
        """See Database."""
        try:
            with closing(sqlite3.connect(self.path, timeout=BUSY_S, isolation_level=None)) as base:
                base.row_factory = sqlite3.Row
                base.execute("PRAGMA synchronous = FULL")
                base.execute("PRAGMA foreign_keys = ON")
                # Overwrite deleted content instead of only unlinking it.
                base.execute("PRAGMA secure_delete = ON")
                yield base
        except sqlite3.DatabaseError as error:
            raise StoreError(
                f"{self.path} can't be used ({error}). Check the free disk space and the file's permissions; if the "
                "file is damaged, restore a backup."
            ) from error

    @contextmanager
    def changing(self) -> Iterator[sqlite3.Connection]:
        """See Database."""
        with self.opened() as base:
            base.execute("BEGIN IMMEDIATE")
            try:
                yield base
            except BaseException:
                # When the disk is full, SQLite rolls back by itself.
                if base.in_transaction:
                    base.execute("ROLLBACK")
                raise
            base.execute("COMMIT")

    def serialize_writers(self, connection: Connection) -> None:
        """Do nothing: SQLite has one writer at a time."""

    def forget(self) -> None:
        """Remove deleted rows from the write-ahead log, and log a warning if a reader still needs them."""
        with self.opened() as base:
            # Like every statement, this waits up to BUSY_S seconds for readers.
            busy = base.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()["busy"]
        if busy:
            log.warning(
                "Deleted data is still in %s-wal because another program is reading the store. The next deletion or "
                "pruning clears it: end that program and run meditune answers prune --days N.",
                self.path,
            )


def _use_wal(base: sqlite3.Connection) -> None:
    """Use a write-ahead log. SQLite fails if several programs do so at the same time, so retry for BUSY_S."""
    deadline = time.monotonic() + BUSY_S
    while True:
        try:
            base.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > deadline:
                raise
            time.sleep(0.02)
