"""The SQLite file: one place, opened for each call, every change on the disk before it is reported."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from meditune.errors import StoreError

FILE = "meditune.sqlite"
BUSY_S = 20.0
VERSION = 1
_TABLES = """
CREATE TABLE IF NOT EXISTS keys (
    id TEXT PRIMARY KEY, name TEXT NOT NULL, hash TEXT NOT NULL, old_hash TEXT, old_until REAL,
    scopes TEXT NOT NULL, per_minute INTEGER, daily_tokens INTEGER, created REAL NOT NULL, expires REAL, revoked REAL
);
CREATE TABLE IF NOT EXISTS usage (
    who TEXT NOT NULL, day TEXT NOT NULL, requests INTEGER NOT NULL, tokens INTEGER NOT NULL, PRIMARY KEY (who, day)
);
CREATE TABLE IF NOT EXISTS answers (
    id TEXT PRIMARY KEY, time REAL NOT NULL, who TEXT NOT NULL, route TEXT NOT NULL, model TEXT NOT NULL,
    index_content TEXT NOT NULL, outcome TEXT NOT NULL, facts TEXT NOT NULL, question TEXT, answer TEXT
);
CREATE INDEX IF NOT EXISTS answers_time ON answers (time);
CREATE TABLE IF NOT EXISTS feedback (
    answer TEXT NOT NULL REFERENCES answers (id) ON DELETE CASCADE, who TEXT NOT NULL, time REAL NOT NULL,
    rating TEXT NOT NULL, reasons TEXT NOT NULL, comment TEXT NOT NULL, correction TEXT NOT NULL,
    PRIMARY KEY (answer, who)
);
"""


def default_folder() -> Path:
    """`$MEDITUNE_STORE`, or a folder of this user's."""
    given = os.environ.get("MEDITUNE_STORE")
    return Path(given).expanduser() if given else Path.home() / ".local" / "share" / "meditune"


class Base:
    """The file in a folder. Every call opens it for itself, so any thread or process may make it."""

    def __init__(self, folder: Path) -> None:
        """Makes folder and file, for this user alone, where there are none. Raises StoreError where that can't be."""
        self.path = folder / FILE
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            self.path.touch(mode=0o600, exist_ok=True)
        except OSError as error:
            raise StoreError(
                f"{self.path} can't be made ({error.strerror}). Name another folder with --store or MEDITUNE_STORE."
            ) from error
        with self.opened() as base:
            base.execute("PRAGMA journal_mode = WAL")
            (found,) = base.execute("PRAGMA user_version").fetchone()
            if found > VERSION:
                raise StoreError(f"{self.path} was made by a later version of Meditune. Update this one.")
            base.executescript(_TABLES)
            base.execute(f"PRAGMA user_version = {VERSION}")

    @contextmanager
    def opened(self) -> Iterator[sqlite3.Connection]:
        """A connection outside any transaction; each statement is on the disk when it returns.

        Raises StoreError where the file can't be used.
        """
        try:
            with closing(sqlite3.connect(self.path, timeout=BUSY_S, isolation_level=None)) as base:
                base.row_factory = sqlite3.Row
                base.execute("PRAGMA synchronous = FULL")
                base.execute("PRAGMA foreign_keys = ON")
                # What is deleted is overwritten, not only unlinked.
                base.execute("PRAGMA secure_delete = ON")
                yield base
        except sqlite3.DatabaseError as error:
            raise StoreError(
                f"{self.path} can't be used ({error}). Check the disk's space and the file's permissions; where it is "
                "damaged, put a copy in its place."
            ) from error

    @contextmanager
    def changing(self) -> Iterator[sqlite3.Connection]:
        """A connection in a transaction, which is on the disk when the block ends well, and undone otherwise."""
        with self.opened() as base:
            base.execute("BEGIN IMMEDIATE")
            try:
                yield base
            except BaseException:
                base.execute("ROLLBACK")
                raise
            base.execute("COMMIT")
