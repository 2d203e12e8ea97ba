"""The SQLite file: one place, opened for each call, every change on the disk before it is reported."""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from meditune.errors import StoreError
from meditune.store.database import Connection
from meditune.store.migrations import LATEST, bring_up, refuse_later

log = logging.getLogger(__name__)
FILE = "meditune.sqlite"
BUSY_S = 20.0


class Base:
    """The file in a folder (`database.Database`). Every call opens it for itself."""

    def __init__(self, folder: Path) -> None:
        """Makes folder and file, for this user alone, where there are none, and brings tables up to date.

        Raises StoreError where that can't be.
        """
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
            found = self._version(base)
        refuse_later(found, self.place)
        if found < LATEST:
            self._bring_up()

    @property
    def place(self) -> str:
        """The file."""
        return str(self.path)

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
        with self.opened() as base, _transaction(base):
            yield base

    def in_turn(self, connection: Connection) -> None:
        """Nothing: SQLite has one writer at a time."""

    def forget(self) -> None:
        """Let nothing of a deleted row stay in the write-ahead log, or say that it does: a reader's view needs it."""
        with self.opened() as base:
            # This waits for readers as long as any statement does.
            (busy, _, _) = base.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        if busy:
            log.warning(
                "What was deleted is still in %s-wal, as another program reads the store. The next deletion or pruning "
                "clears it: end that program and run meditune answers prune --days N.",
                self.path,
            )

    def _bring_up(self) -> None:
        with self.opened() as base:
            # A table that is made anew must not take the rows that refer to it along.
            base.execute("PRAGMA foreign_keys = OFF")
            with _transaction(base):
                (old,) = base.execute("PRAGMA user_version").fetchone()
                bring_up(base, old, self.place, postgres=False)
                # Versions of Meditune that know no table of versions look here.
                base.execute(f"PRAGMA user_version = {LATEST}")

    @staticmethod
    def _version(base: sqlite3.Connection) -> int:
        (found,) = base.execute("PRAGMA user_version").fetchone()
        return int(found)


@contextmanager
def _transaction(base: sqlite3.Connection) -> Iterator[None]:
    base.execute("BEGIN IMMEDIATE")
    try:
        yield
    except BaseException:
        # A full disk has SQLite undo it by itself.
        if base.in_transaction:
            base.execute("ROLLBACK")
        raise
    base.execute("COMMIT")
