"""What a store needs of a database: SQLite's file (`base.py`) and PostgreSQL (`postgres.py`) both give it.

Statements are SQL that both understand, with `?` for values.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol


class Row(Protocol):
    """A row, by place and by name."""

    def __getitem__(self, key: Any, /) -> Any:
        """A value by its place or its column's name."""

    def __iter__(self) -> Iterator[Any]:
        """Its values."""


class Cursor(Protocol):
    """What a statement gave."""

    @property
    def rowcount(self) -> int:
        """How many rows it changed"""

    def fetchone(self) -> Any:
        """The next row, or None."""

    def fetchall(self) -> list[Any]:
        """All that are left."""

    def __iter__(self) -> Iterator[Any]:
        """The rows."""


class Connection(Protocol):
    """A connection for one call."""

    def execute(self, statement: str, values: Sequence[Any] = (), /) -> Cursor:
        """Carry out one statement."""


class Database(Protocol):
    """Where a store lies. Every call has a connection of its own, so any thread or process may make it."""

    @property
    def place(self) -> str:
        """Where it is, as people may see it: never with a password"""

    def opened(self) -> AbstractContextManager[Connection]:
        """A connection outside any transaction; each statement is on the disk when it returns.

        Raises StoreError where the database can't be used.
        """

    def changing(self) -> AbstractContextManager[Connection]:
        """A connection in a transaction, which is on the disk when the block ends well, and undone otherwise."""

    def in_turn(self, connection: Connection) -> None:
        """Let transactions that add answers end in the order in which they began, so that a reader misses none."""

    def forget(self) -> None:
        """Let nothing of what was deleted stay where that can be helped, and say where it can't."""
