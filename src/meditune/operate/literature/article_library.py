"""The library's database: articles, notices, what was taken in from where, and one writer at a time.

Whatever belongs together (a page of articles and the cursor behind it) is one transaction, so a killed process leaves
either both or neither.

Answers that rest on what was retracted since.

What becomes of the library when a record comes in: an article is new, changed, retracted, replaced or deleted.

Of each article the newest record counts, by version and date of revision, in whatever order records come. What records
say of each other is kept apart from them, so a notice counts whether it comes before its article or after it.

Quality control of an article before it can be found: some of data/quality's rules, on title and abstract.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from meditune.config.data_options import QualityRules, QualitySpec
from meditune.data.example import Example
from meditune.data.near_duplicates import words
from meditune.data.quality import rules
from meditune.data.readers import pubmedqa
from meditune.errors import DataError
from meditune.files import disk_full, numbered_jsonl
from meditune.retrieve.collections import FILE as DATABASE_FILE
from meditune.retrieve.collections import FORMAT, OUT, RETRACTED, SCHEMA, THERE
from meditune.retrieve.documents.pubmed_articles import (
    NOTICE_OF,
    REPLACED_IN,
    RETRACTED_IN,
    SOURCE,
    UPDATED_IN,
    Article,
    Link,
    from_dict,
)
from meditune.store.answers import Answers
from meditune.store.open_store import Place, exists, open_store

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
                raise disk_full(self.folder / DATABASE_FILE) from error
            raise DataError(
                f"{self.folder / DATABASE_FILE}: can't be written ({error}). Run the same command again."
            ) from error

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
        with closing(_base(folder / DATABASE_FILE)) as base:
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


FILE = "retracted.jsonl"
FLAGGED = "flagged.jsonl"


@dataclass(frozen=True)
class Flag:
    """An answer that cited a retracted article."""

    answer: str
    """Its id"""
    passage: str
    """The id of the passage that it cited, as it was stored"""
    pmid: str
    when: str
    """When the library learnt of the retraction"""
    notice: str
    """The notice's PubMed id, or empty"""

    @property
    def sentence(self) -> str:
        """For whoever looks after the answers."""
        by = f" (notice: PMID {self.notice})" if self.notice else ""
        return f"Answer {self.answer} cites PMID {self.pmid}, which is known as retracted since {self.when}{by}."


def flag(answers: Iterable[tuple[str, Sequence[str]]], retracted: Mapping[str, Mapping[str, str]]) -> Iterator[Flag]:
    """Each citation of a retracted article in stored answers, in their order.

    `answers` are pairs of an answer's id and the ids of the passages that it cited ("pubmed:PMID#NUMBER"); `retracted`
    is that of `read`. The same article among PubMedQA's contexts counts too.
    """
    for answer, passages in answers:
        for passage in dict.fromkeys(passages):
            source, _, place = passage.partition(":")
            found = retracted.get(place.partition("#")[0]) if source in (SOURCE, pubmedqa.SOURCE) else None
            if found is not None:
                yield Flag(answer, passage, found["pmid"], found["when"], found["notice"])


def of_store(store: Place) -> Iterator[tuple[str, Sequence[str]]]:
    """The answers that a server keeps, with the passages that they were given; none where it has kept none yet.

    Raises DataError where the store can't be used.
    """
    if not exists(store):
        return
    for row in Answers(open_store(store)).exported():
        yield str(row["id"]), row["facts"].get("passages") or []


def read(library: Path) -> dict[str, dict[str, str]]:
    """PubMed id -> its line in a library's retracted.jsonl. Raises DataError where there is none."""
    return {str(row["pmid"]): row for _, row in numbered_jsonl(library / FILE)}


LEAST_WORDS = 20
"""Fewer words are no abstract ("Editorial.")."""
_OFF = dict.fromkeys(rules.ALL, "off")
_SPECS = {
    asked_for: QualitySpec(
        rules=QualityRules.model_validate(
            _OFF | {"language": "drop", "too_short": "drop", "not_medical": "off" if asked_for else "drop"}
        ),
        min_answer_words=LEAST_WORDS,
    )
    for asked_for in (True, False)
}
_MEANING = {
    "language": "abstract not in English",
    "too_short": f"abstract of fewer than {LEAST_WORDS} words",
    "not_medical": "without words of health and medicine, or hardly any",
}
REASONS = frozenset(_MEANING.values())


def checked_article(article: Article, asked_for: bool) -> tuple[Article, str]:
    """The article with what was decoded wrongly put right, and why it may not be found, or "".

    Whether it is about medicine isn't judged where a query `asked_for` it.
    """
    mended = replace(
        article,
        title=rules.fix_encoding(article.title),
        parts=tuple(replace(part, text=rules.fix_encoding(part.text)) for part in article.parts),
    )
    if not mended.parts:
        return mended, ""
    example = Example(
        id=article.id, source="pubmed", question=mended.title or article.id, answer=mended.text, group=article.pmid
    )
    kept, entries = rules.apply_rules(example, _SPECS[asked_for])
    return mended, "" if kept else _MEANING[entries[-1].rule]


NEW, CHANGED, SAME, OLDER = "new", "changed", "as they were", "older than what is there"
GONE = "deleted by PubMed"
BACK = "no longer retracted"
_SAID_IN = frozenset(NOTICE_OF.values())


@dataclass
class LibraryUpdate:
    """Records being applied, with what they did so far."""

    library: Library
    asked_for: bool
    """Whether they came by a query; whole files bring much that isn't medicine"""
    counts: Counter[str] = field(default_factory=Counter)
    left_out: Counter[str] = field(default_factory=Counter)
    """By reason"""
    retracted: list[str] = field(default_factory=list)
    _change: int = 0

    def all(self, found: Iterable[Article | str]) -> None:
        """Apply articles, and PubMed ids of those that are withdrawn, in order; inside `Library.together`."""
        self._change = self.library.change() + 1
        for each in found:
            if isinstance(each, Article):
                self._article(each)
            else:
                self._delete(each)

    def _article(self, article: Article) -> None:
        row = self.library.row(article.pmid)
        if row and row.article and _is_older(article, row.article):
            self.counts[OLDER] += 1
            return
        about = self.library.relink(article.pmid, _links(article))
        self._ask_for_others(article)
        article, refused = checked_article(article, self.asked_for or (row is not None and row.state == THERE))
        self._settle(article, row, refused)
        for pmid in sorted(about - {article.pmid}):
            self._look_again(pmid)

    def _ask_for_others(self, article: Article) -> None:
        """A notice about an article that stands: its own record may say more by now."""
        named = [link.pmid for link in article.links if link.kind in NOTICE_OF and link.pmid]
        self.library.ask_again(self.library.known(named))

    def _settle(self, article: Article, row: Row | None, refused: str = "") -> None:
        """Keep a record with the state that follows from all that is known."""
        said = _said(article)
        state, reason = self._state(article, said, refused)
        now = Row(article.pmid, article, state, reason, said)
        stays = row is not None and row.state == state and (state != THERE or _shows(row.article) == _shows(article))
        self.library.put(now, None if stays else self._change)
        self._count(now, row, stays)
        before = row.said if row is not None and row.state == THERE else ""
        if before != (said if state == THERE else ""):
            waiting = {pmid for text in {before, said} for pmid in self.library.waiting_on(text, article.pmid)}
            for pmid in sorted(waiting):
                self._look_again(pmid)

    def _look_again(self, pmid: str) -> None:
        """Of an article that something else is now known about."""
        row = self.library.row(pmid)
        if row and row.article:
            refused = row.reason if row.reason in REASONS else checked_article(row.article, True)[1]
            if self._state(row.article, row.said, refused) != (row.state, row.reason):
                self._settle(row.article, row, refused)
            return
        link = _first(self.library.links(pmid), RETRACTED_IN)
        if link and (row is None or row.state != RETRACTED):
            # Its own record isn't here, but an index may hold it from elsewhere.
            self.library.put(Row(pmid, None, RETRACTED, _by("retracted", link), ""), self._change)
            self.library.retract(pmid, "", link)
            self.retracted.append(pmid)
            self.counts[RETRACTED] += 1

    def _state(self, article: Article, said: str, refused: str) -> tuple[str, str]:
        """State and reason."""
        links = self.library.links(article.pmid)
        marked = _first(links, RETRACTED_IN) or article.retraction
        if marked:
            return RETRACTED, _by("retracted", marked)
        if article.is_notice:
            return OUT, "a notice about another article"
        if replaced := _first(links, REPLACED_IN):
            return OUT, _by("corrected and published again", replaced)
        if not article.parts:
            return OUT, "no abstract"
        if refused:
            return OUT, refused
        for link in links:
            if link.kind == UPDATED_IN and self.library.known([link.pmid]):
                return OUT, _by("updated", link)
        same = self.library.same(said, article.pmid) if said else ""
        return (OUT, f"says the same as PMID {same}") if same else (THERE, "")

    def _delete(self, pmid: str) -> None:
        row = self.library.row(pmid)
        about = self.library.relink(pmid, [])
        if row is None or (row.state == OUT and row.reason == GONE):
            self.counts[SAME] += row is not None
            self.library.put(Row(pmid, None, OUT, GONE, ""), self._change if row is None else None)
            return
        if row.state == RETRACTED:
            return
        self.library.put(Row(pmid, None, OUT, GONE, ""), self._change)
        self.counts[GONE] += 1
        for other in sorted(about.union(self.library.waiting_on(row.said, pmid)) - {pmid}):
            self._look_again(other)

    def _count(self, row: Row, before: Row | None, stays: bool) -> None:
        article = row.article
        assert article is not None, "only rows with a record are counted"
        was = before.state if before else ""
        if row.state == RETRACTED:
            link = _first(self.library.links(row.pmid), RETRACTED_IN) or article.retraction
            assert link is not None, "a retracted article has a notice or says so itself"
            self.library.retract(row.pmid, article.title, link)
            if was != RETRACTED:
                self.retracted.append(row.pmid)
        elif was == RETRACTED:
            self.library.reinstate(row.pmid)
            self.counts[BACK] += 1
        if stays:
            self.counts[SAME] += 1
        elif row.state == OUT:
            self.counts[OUT] += 1
            self.left_out[_kind(row.reason)] += 1
        elif row.state == RETRACTED:
            self.counts[RETRACTED] += 1
        else:
            self.counts[CHANGED if was == THERE else NEW] += 1


def _is_older(article: Article, than: Article) -> bool:
    """By version, then by date of revision where both have one."""
    if article.version != than.version:
        return article.version < than.version
    return bool(article.revised and than.revised) and article.revised < than.revised


def _links(article: Article) -> list[tuple[str, Link]]:
    """Which publications correct which, as a record says, from the corrected one's point of view."""
    mine = [(article.pmid, link) for link in article.links if link.kind in _SAID_IN]
    theirs = [
        (link.pmid, Link(NOTICE_OF[link.kind], article.pmid, _cited(article)))
        for link in article.links
        if link.kind in NOTICE_OF and link.pmid
    ]
    return mine + theirs


def _cited(article: Article) -> str:
    return ". ".join(part for part in (article.journal, article.date) if part)


def _said(article: Article) -> str:
    """A hash of the abstract's words; empty where they are few."""
    found = words(article.text)
    return hashlib.blake2b(" ".join(found).encode(), digest_size=16).hexdigest() if len(found) >= LEAST_WORDS else ""


def _shows(article: Article | None) -> object:
    """What an index or a training pair shows of an article."""
    return article and (article.document(), [link for link in article.links if link.kind in _SAID_IN])


def _first(links: Iterable[Link], kinds: Iterable[str]) -> Link | None:
    return next((link for link in links if link.kind in kinds), None)


def _by(what: str, link: Link) -> str:
    return f"{what} (PMID {link.pmid})" if link.pmid else f"{what} ({link.reference})" if link.reference else what


def _kind(reason: str) -> str:
    """A reason without the ids in it."""
    return reason.partition(" (")[0].partition(" PMID ")[0]
