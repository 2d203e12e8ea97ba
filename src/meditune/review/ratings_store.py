"""The store of ratings: an SQLite file that several raters can use at once.

Each rating is written immediately, so none is lost if the server is killed.
"""

from __future__ import annotations

import os
import secrets
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from meditune.errors import MedituneError

STORE = "ratings.sqlite"
RATING, ADJUDICATION = 1, 2
BUSY_S = 20.0
_RATER = "id, name, number, place"
_TABLES = """
CREATE TABLE IF NOT EXISTS raters (
    id TEXT PRIMARY KEY, name TEXT NOT NULL, key TEXT NOT NULL UNIQUE, number INTEGER NOT NULL, place INTEGER
);
CREATE TABLE IF NOT EXISTS ratings (
    rater TEXT NOT NULL REFERENCES raters (id), round INTEGER NOT NULL, item TEXT NOT NULL, axis TEXT NOT NULL,
    option INTEGER, seconds REAL NOT NULL, time TEXT NOT NULL, PRIMARY KEY (rater, round, item, axis)
);
CREATE TABLE IF NOT EXISTS notes (
    rater TEXT NOT NULL REFERENCES raters (id), round INTEGER NOT NULL, item TEXT NOT NULL,
    comment TEXT NOT NULL, better TEXT NOT NULL, time TEXT NOT NULL, PRIMARY KEY (rater, round, item)
);
"""


@dataclass(frozen=True)
class Rater:
    """A rater."""

    id: str
    """A random id, used in requests instead of the name"""
    name: str
    number: int
    place: int | None
    """Number (0-based) among the raters of the first round; None for raters who only adjudicate"""

    @property
    def code(self) -> str:
        """Return the rater's code in reports, such as R1."""
        return f"R{self.number}"


@dataclass(frozen=True)
class Rating:
    """One rater's rating of one item on one axis."""

    rater: str
    item: str
    axis: str
    option: int | None
    """1-based; None for "can't judge"."""
    seconds: float
    time: str = ""
    """UTC, ISO 8601; empty for the current time"""
    round: int = RATING


@dataclass(frozen=True)
class Note:
    """A rater's texts about an item."""

    rater: str
    item: str
    comment: str
    better: str
    """The answer that should have been given; empty if the rater wrote none"""
    time: str = ""
    round: int = RATING


class Store:
    """The ratings of one set. Every call opens its own connection, so any thread or process can call it."""

    def __init__(self, folder: Path) -> None:
        """Create the file, readable by this user alone, if it is missing. Raises MedituneError if it can't be used."""
        self.path = folder / STORE
        if not self.path.exists() and os.access(folder, os.W_OK):
            self.path.touch(mode=0o600)
        with self._opened() as base:
            base.execute("PRAGMA journal_mode = WAL")
            base.executescript(_TABLES)

    def rater(self, name: str, takes_share: bool = True) -> Rater:
        """Return or create the rater of that name, ignoring case and spacing.

        With `takes_share`, the rater also gets a `place`, that is, a share of the first round's work.
        """
        shown = " ".join(name.split())
        key = shown.casefold()
        with self._opened() as base:
            base.execute("BEGIN IMMEDIATE")
            base.execute(
                "INSERT INTO raters VALUES (?, ?, ?, (SELECT COUNT(*) + 1 FROM raters), NULL) ON CONFLICT DO NOTHING",
                (secrets.token_hex(8), shown, key),
            )
            if takes_share:
                base.execute(
                    "UPDATE raters SET place = (SELECT COUNT(place) FROM raters) WHERE key = ? AND place IS NULL",
                    (key,),
                )
            found = Rater(*base.execute(f"SELECT {_RATER} FROM raters WHERE key = ?", (key,)).fetchone())
            base.execute("COMMIT")
            return found

    def raters(self) -> dict[str, Rater]:
        """Return all raters by id."""
        with self._opened() as base:
            rows = base.execute(f"SELECT {_RATER} FROM raters ORDER BY number").fetchall()
        return {row[0]: Rater(*row) for row in rows}

    def save(self, ratings: Iterable[Rating], notes: Iterable[Note] = ()) -> None:
        """Store all ratings and notes, or none. They replace what the same rater stored earlier for the same item."""
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        with self._opened() as base:
            base.execute("BEGIN IMMEDIATE")
            base.executemany(
                "INSERT OR REPLACE INTO ratings VALUES (?, ?, ?, ?, ?, ?, ?)",
                [(r.rater, r.round, r.item, r.axis, r.option, r.seconds, r.time or now) for r in ratings],
            )
            for note in notes:
                place = note.rater, note.round, note.item
                base.execute("DELETE FROM notes WHERE rater = ? AND round = ? AND item = ?", place)
                if note.comment.strip() or note.better.strip():
                    row = *place, note.comment, note.better, note.time or now
                    base.execute("INSERT INTO notes VALUES (?, ?, ?, ?, ?, ?)", row)
            base.execute("COMMIT")

    def remove(self, rater: str, item: str, axis: str, round: int = RATING) -> None:
        """Delete a rating if it exists."""
        statement = "DELETE FROM ratings WHERE rater = ? AND round = ? AND item = ? AND axis = ?"
        with self._opened() as base:
            base.execute(statement, (rater, round, item, axis))

    def ratings(self, rater: str | None = None, item: str | None = None) -> list[Rating]:
        """Return the ratings of all rounds, optionally of one rater or item, ordered by rater."""
        columns = "rater, item, axis, option, seconds, time, round"
        return [Rating(*row) for row in self._rows(columns, "ratings", "round, item, axis", rater, item)]

    def notes(self, rater: str | None = None, item: str | None = None) -> list[Note]:
        """Return the comments and better answers of all rounds, optionally of one rater or item."""
        columns = "rater, item, comment, better, time, round"
        return [Note(*row) for row in self._rows(columns, "notes", "round, item", rater, item)]

    def _rows(self, columns: str, table: str, order: str, rater: str | None, item: str | None) -> list[tuple[Any, ...]]:
        query = (
            f"SELECT {columns} FROM {table} JOIN raters ON rater = id "
            f"WHERE (?1 IS NULL OR rater = ?1) AND (?2 IS NULL OR item = ?2) ORDER BY number, {order}"
        )
        with self._opened() as base:
            return base.execute(query, (rater, item)).fetchall()

    @contextmanager
    def _opened(self) -> Iterator[sqlite3.Connection]:
        """Yield a connection in autocommit mode; each statement is on disk when it returns."""
        try:
            with closing(sqlite3.connect(self.path, timeout=BUSY_S, isolation_level=None)) as base:
                base.execute("PRAGMA synchronous = FULL")
                base.execute("PRAGMA foreign_keys = ON")
                yield base
        except sqlite3.DatabaseError as error:
            raise MedituneError(
                f"{self.path} cannot be used ({error}). Check the free disk space and the file's permissions; if the "
                "file is damaged, replace it with a backup."
            ) from error
