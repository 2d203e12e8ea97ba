"""The library's database: articles, notices, what was taken in from where, and one writer at a time.

Whatever belongs together (a page of articles and the cursor behind it) is one transaction, so a killed process leaves
either both or neither.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from meditune.errors import DataError
from meditune.files import disk_full
from meditune.retrieve.passages.articles import Article, Link, from_dict
from meditune.retrieve.passages.library import FILE, FORMAT, OUT, RETRACTED, SCHEMA, THERE

LOCK = ".updating.lock"
_TABLES = """
CREATE TABLE links (             -- what records say of how publications correct each other
    pmid TEXT NOT NULL, kind TEXT NOT NULL, notice TEXT NOT NULL, reference TEXT NOT NULL, origin TEXT NOT NULL,
    PRIMARY KEY (pmid, kind, notice, origin)
);
CREATE INDEX links_origin ON links (origin);
CREATE INDEX links_notice ON links (notice);
CREATE TABLE retracted (pmid TEXT PRIMARY KEY, title TEXT, taken TEXT, notice TEXT, reference TEXT);
CREATE TABLE marked (pmid TEXT PRIMARY KEY, seen INTEGER NOT NULL);   -- what PubMed lists as retracted; 1: was read
CREATE TABLE again (pmid TEXT PRIMARY KEY);          -- to be read again, because a notice speaks of them
CREATE TABLE files (name TEXT PRIMARY KEY, md5 TEXT, taken TEXT, counts TEXT);
CREATE TABLE cursors (name TEXT PRIMARY KEY, value TEXT);
CREATE TABLE indexed (place TEXT PRIMARY KEY, content TEXT, change INTEGER);
CREATE TABLE rejects (number INTEGER PRIMARY KEY, source TEXT, place TEXT, reason TEXT, row TEXT, taken TEXT);
"""


@dataclass(frozen=True)
class Row:
    """What the library holds of a PubMed id."""

    pmid: str
    article: Article | None
    state: str
    reason: str
    said: str


class Library:
    """A library that this process may change."""

    def __init__(self, folder: Path, base: sqlite3.Connection) -> None:
        self.folder, self._base = folder, base

    @contextmanager
    def together(self) -> Iterator[None]:
        """A block whose changes are kept all or, where it doesn't end well, none."""
        try:
            with self._base:
                self._base.execute("BEGIN IMMEDIATE")
                yield
        except sqlite3.OperationalError as error:
            if "full" in str(error):
                raise disk_full(self.folder / FILE) from error
            raise DataError(f"{self.folder / FILE}: can't be written ({error}). Run the same command again.") from error

    # Articles

    def row(self, pmid: str) -> Row | None:
        """What is known of an id."""
        found = self._one("SELECT record, state, reason, said FROM articles WHERE pmid = ?", pmid)
        return Row(pmid, from_dict(json.loads(found[0])) if found[0] else None, *found[1:]) if found else None

    def put(self, row: Row, change: int | None) -> None:
        """Keep a row; `change` is the number of the change that indexes are to see, None where they needn't."""
        record = json.dumps(row.article.as_dict(), ensure_ascii=False) if row.article else None
        self._base.execute(
            "INSERT INTO articles VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (pmid) DO UPDATE SET record = excluded.record, "
            "state = excluded.state, reason = excluded.reason, said = excluded.said, "
            "change = CASE WHEN ? THEN excluded.change ELSE change END",
            (row.pmid, record, row.state, row.reason, row.said, change or 0, change is not None),
        )

    def change(self) -> int:
        """The number of the newest change."""
        return int(self._one("SELECT coalesce(max(change), 0) FROM articles")[0])

    def same(self, said: str, pmid: str) -> str:
        """Another article that stands and says the same, or ""."""
        found = self._one(
            "SELECT pmid FROM articles WHERE said = ? AND pmid <> ? AND state = ? ORDER BY pmid", said, pmid, THERE
        )
        return str(found[0]) if found else ""

    def waiting_on(self, said: str, pmid: str) -> list[str]:
        """Articles that an article keeps out: because they say the same, or because it is their newer version."""
        return self._column(
            "SELECT pmid FROM articles WHERE said = ? AND said <> '' AND pmid <> ? AND state = ? "
            "UNION SELECT pmid FROM links WHERE notice = ? AND kind = 'UpdateIn'",
            *(said, pmid, OUT, pmid),
        )

    def standing(self) -> Iterator[Article]:
        """The articles that stand, in order of id."""
        with closing(self._base.execute("SELECT record FROM articles WHERE state = ? ORDER BY pmid", (THERE,))) as rows:
            for (record,) in rows:
                yield from_dict(json.loads(record))

    def counts(self) -> dict[str, int]:
        """How many articles are in each state."""
        found = dict(self._base.execute("SELECT state, count(*) FROM articles GROUP BY state"))
        return {state: found.get(state, 0) for state in (THERE, RETRACTED, OUT)}

    def known(self, pmids: Iterable[str]) -> set[str]:
        """Those of the ids that stand in the library."""
        return {pmid for pmid in pmids if self._one("SELECT 1 FROM articles WHERE pmid=? AND state=?", pmid, THERE)}

    def pmids(self) -> set[str]:
        """The ids of the articles that stand."""
        return set(self._column("SELECT pmid FROM articles WHERE state = ?", THERE))

    # Links and retractions

    def relink(self, origin: str, links: Iterable[tuple[str, Link]]) -> set[str]:
        """Put what a record says (of which id, and how) in place of what it said before; the ids it is about."""
        before = set(self._column("SELECT pmid FROM links WHERE origin = ?", origin))
        self._base.execute("DELETE FROM links WHERE origin = ?", (origin,))
        given = list(links)
        self._base.executemany(
            "INSERT OR IGNORE INTO links VALUES (?, ?, ?, ?, ?)",
            [(pmid, link.kind, link.pmid, link.reference, origin) for pmid, link in given],
        )
        return before | {pmid for pmid, _ in given}

    def links(self, pmid: str) -> list[Link]:
        """What all records say of an article, those with an id first."""
        rows = self._base.execute(
            "SELECT DISTINCT kind, notice, reference FROM links WHERE pmid = ? ORDER BY notice = '', notice", (pmid,)
        )
        return [Link(*row) for row in rows]

    def retract(self, pmid: str, title: str, link: Link) -> None:
        """List an article as retracted, once; a notice that becomes known later is filled in."""
        self._base.execute(
            "INSERT INTO retracted VALUES (?, ?, ?, ?, ?) ON CONFLICT (pmid) DO UPDATE SET "
            "title = CASE WHEN title = '' THEN excluded.title ELSE title END, "
            "notice = excluded.notice, reference = excluded.reference WHERE notice = ''",
            (pmid, title, now(), link.pmid, link.reference),
        )

    def reinstate(self, pmid: str) -> None:
        """Take an article off that list."""
        self._base.execute("DELETE FROM retracted WHERE pmid = ?", (pmid,))

    def retracted(self) -> list[dict[str, str]]:
        """The list, in the order in which it grew.

        Of each: `pmid`, `title`, `when` it was learnt, `notice` (its PubMed id, or ""), `reference`.
        """
        rows = self._base.execute("SELECT pmid, title, taken, notice, reference FROM retracted ORDER BY rowid")
        return [dict(zip(("pmid", "title", "when", "notice", "reference"), row, strict=True)) for row in rows]

    # What was taken in from where

    def cursor(self, name: str) -> dict[str, Any]:
        """Where reading from a source stopped; empty at its beginning."""
        found = self._one("SELECT value FROM cursors WHERE name = ?", name)
        value: dict[str, Any] = json.loads(found[0]) if found else {}
        return value

    def move(self, name: str, value: dict[str, Any]) -> None:
        """Note where reading from a source stopped."""
        self._base.execute("INSERT OR REPLACE INTO cursors VALUES (?, ?)", (name, json.dumps(value)))

    def files(self) -> dict[str, str]:
        """The update files that were applied, with their MD5."""
        return dict(self._base.execute("SELECT name, md5 FROM files"))

    def sources(self) -> list[str]:
        """What was taken in, in words."""
        files = self._column("SELECT name FROM files ORDER BY name")
        queries = self._column("SELECT substr(name, 8) FROM cursors WHERE name LIKE 'query: %' ORDER BY name")
        return [
            *(f"PubMed, by the query: {query}" for query in queries),
            *([f"{len(files):,} update files of MEDLINE, {files[0]} to {files[-1]}"] if files else []),
        ]

    def applied(self, name: str, md5: str, counts: dict[str, int]) -> None:
        """Note that an update file was applied."""
        self._base.execute(
            "INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?)", (name, md5, now(), json.dumps(counts, sort_keys=True))
        )

    def ask_again(self, pmids: Iterable[str]) -> None:
        """Note articles that are to be fetched by their ids."""
        self._base.executemany("INSERT OR IGNORE INTO again VALUES (?)", [(pmid,) for pmid in pmids])

    def asked_again(self, pmids: Iterable[str]) -> None:
        """Note that these were fetched."""
        self._base.executemany("DELETE FROM again WHERE pmid = ?", [(pmid,) for pmid in pmids])

    def to_ask(self) -> list[str]:
        """Those that are still to be fetched."""
        return self._column("SELECT pmid FROM again ORDER BY pmid")

    def mark(self, pmids: Iterable[str]) -> None:
        """Note what PubMed lists as retracted, newly or again."""
        self._base.executemany("INSERT OR REPLACE INTO marked VALUES (?, 0)", [(pmid,) for pmid in pmids])

    def ask_for_marked(self, among: set[str]) -> None:
        """Of those, ask for the ones among these that weren't asked for since they were noted."""
        found = among.intersection(self._column("SELECT pmid FROM marked WHERE seen = 0"))
        self.ask_again(sorted(found))
        self._base.executemany("UPDATE marked SET seen = 1 WHERE pmid = ?", [(pmid,) for pmid in found])

    def reject(self, rows: Iterable[dict[str, str]]) -> None:
        """Keep records that were set aside."""
        self._base.executemany(
            "INSERT INTO rejects (source, place, reason, row, taken) VALUES (?, ?, ?, ?, ?)",
            [(row["source"], row["where"], row["reason"], row["row"], now()) for row in rows],
        )

    def rejects(self) -> Iterator[dict[str, str]]:
        """All records that were set aside: `source`, `where`, `reason`, `row`, `when`."""
        for row in self._base.execute("SELECT source, place, reason, row, taken FROM rejects ORDER BY number"):
            yield dict(zip(("source", "where", "reason", "row", "when"), row, strict=True))

    # Indexes

    def indexed(self, place: str, content: str) -> int:
        """The change up to which the index at a place holds the library; 0 where it holds something else by now."""
        found = self._one("SELECT content, change FROM indexed WHERE place = ?", place)
        return int(found[1]) if found and found[0] == content else 0

    def is_indexed(self, place: str, content: str, change: int) -> None:
        """Note that the index at a place, with that content, holds the library up to a change."""
        with self.together():
            self._base.execute("INSERT OR REPLACE INTO indexed VALUES (?, ?, ?)", (place, content, change))

    def _one(self, query: str, *values: Any) -> Any:
        return self._base.execute(query, values).fetchone()

    def _column(self, query: str, *values: Any) -> list[str]:
        return [str(row[0]) for row in self._base.execute(query, values)]


@contextmanager
def opened(folder: Path) -> Iterator[Library]:
    """The library in a folder, begun where there is none, for this process alone.

    Raises DataError where another process has it, or what is there can't be read.
    """
    from filelock import FileLock, Timeout

    if folder.exists() and not folder.is_dir():
        raise DataError(f"{folder} is a file. Name a folder for the library.")
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise DataError(
            f"{folder}: another update of this library is at work. Wait for it to end; the same command then goes on."
        ) from error
    try:
        for left in folder.glob(".*.partial"):  # by a killed process: this one has the lock
            left.unlink()
        with closing(_base(folder / FILE)) as base:
            yield Library(folder, base)
    finally:
        lock.release()


def _base(file: Path) -> sqlite3.Connection:
    try:
        base = sqlite3.connect(file, timeout=30, isolation_level=None)
        made = base.execute("PRAGMA user_version").fetchone()[0]
        if made == 0:
            base.executescript(f"BEGIN; {SCHEMA} {_TABLES} PRAGMA user_version = {FORMAT}; COMMIT;")
        elif made != FORMAT:
            raise DataError(f"{file}: a library in format {made}, and this version of Meditune reads {FORMAT}.")
    except sqlite3.DatabaseError as error:
        if "full" in str(error):
            raise disk_full(file) from error
        raise DataError(f"{file}: not a readable library ({error}). Restore it, or begin another one.") from error
    return base


def now() -> str:
    """The time by this machine's clock; it is only shown, nothing is decided by it."""
    return datetime.now(UTC).isoformat(timespec="seconds")
