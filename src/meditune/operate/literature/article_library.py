"""The library's database: articles, notices about articles, retractions, the import state, and rejected records.

For each article, the record with the highest version and latest revision date counts, in whatever order records arrive.
Links between records are stored separately, so a notice takes effect whether it arrives before or after the article
that it is about. Quality control applies some rules of `data/quality` to title and abstract. Changes that belong
together, such as a page of articles and the cursor after it, are made in one transaction, so a killed process leaves
either all of them or none. Only one process at a time can write.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from meditune.config.data_options import QUALITY_RULES, QualitySpec
from meditune.data.example import Example
from meditune.data.near_duplicates import words
from meditune.data.quality import quality_filters
from meditune.errors import DataError
from meditune.files import disk_full, exclusive_lock
from meditune.model_registry import utc_now
from meditune.retrieve.collections import CURRENT, EXCLUDED, FORMAT, RETRACTED, SCHEMA
from meditune.retrieve.collections import FILE as DATABASE_FILE
from meditune.retrieve.documents import pubmed_articles
from meditune.retrieve.documents.pubmed_articles import NOTICE_OF, RETRACTED_IN, Article, Link

LOCK = ".updating.lock"
_TABLES = """
CREATE TABLE links (             -- which notices are about which articles, according to the records
    pmid TEXT NOT NULL, kind TEXT NOT NULL, notice TEXT NOT NULL, reference TEXT NOT NULL, origin TEXT NOT NULL,
    PRIMARY KEY (pmid, kind, notice, origin)
);
CREATE INDEX links_origin ON links (origin);
CREATE INDEX links_notice ON links (notice);
CREATE TABLE retracted (pmid TEXT PRIMARY KEY, title TEXT, taken TEXT, notice TEXT, reference TEXT);
CREATE TABLE marked (pmid TEXT PRIMARY KEY, seen INTEGER NOT NULL);   -- PubMed lists them as retracted; 1: queued
CREATE TABLE again (pmid TEXT PRIMARY KEY);          -- to be fetched again, because a notice names them
CREATE TABLE files (name TEXT PRIMARY KEY, md5 TEXT, taken TEXT, counts TEXT);
CREATE TABLE cursors (name TEXT PRIMARY KEY, value TEXT);
CREATE TABLE indexed (place TEXT PRIMARY KEY, content TEXT, change INTEGER);
CREATE TABLE rejects (number INTEGER PRIMARY KEY, source TEXT, place TEXT, reason TEXT, row TEXT, taken TEXT);
"""


@dataclass(frozen=True)
class Row:
    """The library's row for one PubMed id."""

    pmid: str
    article: Article | None
    state: str
    reason: str
    text_hash: str


class Library:
    """An article library, opened for writing."""

    def __init__(self, folder: Path, base: sqlite3.Connection) -> None:
        self.folder, self._base = folder, base

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Run the block in one transaction: commit all changes, or none if the block raises."""
        try:
            with self._base:
                self._base.execute("BEGIN IMMEDIATE")
                yield
        except sqlite3.OperationalError as error:
            if "full" in str(error):
                raise disk_full(self.folder / DATABASE_FILE) from error
            place = self.folder / DATABASE_FILE
            raise DataError(f"{place}: cannot be written ({error}). Run the same command again.") from error

    # Articles

    def row(self, pmid: str) -> Row | None:
        """Return the row for a PubMed id, or None if there is none."""
        found = self._one("SELECT record, state, reason, said FROM articles WHERE pmid = ?", pmid)
        if found is None:
            return None
        record, *others = found
        return Row(pmid, pubmed_articles.ARTICLE.validate_json(record) if record else None, *others)

    def put(self, row: Row, change: int | None) -> None:
        """Store a row. A new number as `change` makes indexes read the row again; with None, the old number stays."""
        record = json.dumps(asdict(row.article), ensure_ascii=False) if row.article else None
        self._base.execute(
            "INSERT INTO articles VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (pmid) DO UPDATE SET record = excluded.record, "
            "state = excluded.state, reason = excluded.reason, said = excluded.said, "
            "change = CASE WHEN ? THEN excluded.change ELSE change END",
            (row.pmid, record, row.state, row.reason, row.text_hash, change or 0, change is not None),
        )

    def change(self) -> int:
        """Return the highest change number; 0 if there are no articles."""
        return int(self._one("SELECT coalesce(max(change), 0) FROM articles")[0])

    def same(self, text_hash: str, pmid: str) -> str:
        """Return the PubMed id of another current article with the same text, or "" if there is none."""
        query = "SELECT pmid FROM articles WHERE said = ? AND pmid <> ? AND state = ? ORDER BY pmid"
        return next(iter(self._column(query, text_hash, pmid, CURRENT)), "")

    def waiting_on(self, text_hash: str, pmid: str) -> list[str]:
        """Return the PubMed ids of articles that this article may exclude, as duplicates or as older versions of it."""
        return self._column(
            "SELECT pmid FROM articles WHERE said = ? AND said <> '' AND pmid <> ? AND state = ? "
            "UNION SELECT pmid FROM links WHERE notice = ? AND kind = 'UpdateIn'",
            *(text_hash, pmid, EXCLUDED, pmid),
        )

    def current_articles(self) -> Iterator[Article]:
        """Yield the current articles, sorted by PubMed id."""
        query = "SELECT record FROM articles WHERE state = ? ORDER BY pmid"
        with closing(self._base.execute(query, (CURRENT,))) as rows:
            for (record,) in rows:
                yield pubmed_articles.ARTICLE.validate_json(record)

    def counts(self) -> dict[str, int]:
        """Return the number of articles in each state."""
        found = dict(self._base.execute("SELECT state, count(*) FROM articles GROUP BY state"))
        return {state: found.get(state, 0) for state in (CURRENT, RETRACTED, EXCLUDED)}

    def known(self, pmids: Iterable[str]) -> set[str]:
        """Return those of the given PubMed ids that belong to current articles in the library."""
        return {pmid for pmid in pmids if self._one("SELECT 1 FROM articles WHERE pmid=? AND state=?", pmid, CURRENT)}

    def pmids(self) -> set[str]:
        """Return the PubMed ids of the current articles."""
        return set(self._column("SELECT pmid FROM articles WHERE state = ?", CURRENT))

    # Links and retractions

    def relink(self, origin: str, links: Iterable[tuple[str, Link]]) -> set[str]:
        """Replace the links from the record of the article `origin`.

        Return the PubMed ids of the articles that the old and the new links are about.
        """
        before = set(self._column("SELECT pmid FROM links WHERE origin = ?", origin))
        self._base.execute("DELETE FROM links WHERE origin = ?", (origin,))
        given = list(links)
        self._base.executemany(
            "INSERT OR IGNORE INTO links VALUES (?, ?, ?, ?, ?)",
            [(pmid, link.kind, link.pmid, link.reference, origin) for pmid, link in given],
        )
        return before | {pmid for pmid, _ in given}

    def links(self, pmid: str) -> list[Link]:
        """Return the links about an article from all records; links with the PubMed id of a notice come first."""
        rows = self._base.execute(
            "SELECT DISTINCT kind, notice, reference FROM links WHERE pmid = ? ORDER BY notice = '', notice", (pmid,)
        )
        return [Link(*row) for row in rows]

    def retract(self, pmid: str, title: str, link: Link) -> None:
        """Add an article to the list of retractions. If it is listed without a notice, fill in the notice instead."""
        self._base.execute(
            "INSERT INTO retracted VALUES (?, ?, ?, ?, ?) ON CONFLICT (pmid) DO UPDATE SET "
            "title = CASE WHEN title = '' THEN excluded.title ELSE title END, "
            "notice = excluded.notice, reference = excluded.reference WHERE notice = ''",
            (pmid, title, utc_now(), link.pmid, link.reference),
        )

    def reinstate(self, pmid: str) -> None:
        """Remove an article from the list of retractions."""
        self._base.execute("DELETE FROM retracted WHERE pmid = ?", (pmid,))

    def retracted(self) -> list[dict[str, str]]:
        """Return the retracted articles, in the order in which they were added to the list.

        Each row has `pmid`, `title`, `when` (the time when the article was added), `notice` and `reference`.
        """
        rows = self._base.execute("SELECT pmid, title, taken, notice, reference FROM retracted ORDER BY rowid")
        return [dict(zip(("pmid", "title", "when", "notice", "reference"), row, strict=True)) for row in rows]

    # Import state

    def cursor(self, name: str) -> dict[str, Any]:
        """Return the position at which the import from a source stopped; empty before the first import."""
        found = self._one("SELECT value FROM cursors WHERE name = ?", name)
        value: dict[str, Any] = json.loads(found[0]) if found else {}
        return value

    def move(self, name: str, value: dict[str, Any]) -> None:
        """Save the position at which the import from a source stopped."""
        self._base.execute("INSERT OR REPLACE INTO cursors VALUES (?, ?)", (name, json.dumps(value)))

    def files(self) -> dict[str, str]:
        """Return the MD5 of each applied update file, by file name."""
        return dict(self._base.execute("SELECT name, md5 FROM files"))

    def sources(self) -> list[str]:
        """Return a description of each imported source."""
        files = self._column("SELECT name FROM files ORDER BY name")
        queries = self._column("SELECT substr(name, 8) FROM cursors WHERE name LIKE 'query: %' ORDER BY name")
        return [
            *(f"PubMed, by the query: {query}" for query in queries),
            *([f"{len(files):,} MEDLINE update files, {files[0]} to {files[-1]}"] if files else []),
        ]

    def applied(self, name: str, md5: str, counts: dict[str, int]) -> None:
        """Record that an update file was applied."""
        self._base.execute(
            "INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?)",
            (name, md5, utc_now(), json.dumps(counts, sort_keys=True)),
        )

    def ask_again(self, pmids: Iterable[str]) -> None:
        """Queue articles, given by PubMed id, to be fetched again."""
        self._base.executemany("INSERT OR IGNORE INTO again VALUES (?)", [(pmid,) for pmid in pmids])

    def asked_again(self, pmids: Iterable[str]) -> None:
        """Remove articles, given by PubMed id, from the queue of articles to be fetched again."""
        self._base.executemany("DELETE FROM again WHERE pmid = ?", [(pmid,) for pmid in pmids])

    def pmids_to_fetch(self) -> list[str]:
        """Return the PubMed ids in the queue of articles to be fetched again."""
        return self._column("SELECT pmid FROM again ORDER BY pmid")

    def mark(self, pmids: Iterable[str]) -> None:
        """Record articles that PubMed lists as retracted, and mark them as not yet queued."""
        self._base.executemany("INSERT OR REPLACE INTO marked VALUES (?, 0)", [(pmid,) for pmid in pmids])

    def request_marked(self, among: set[str]) -> None:
        """Queue those of the given articles that `mark` recorded and that weren't queued since then."""
        found = among.intersection(self._column("SELECT pmid FROM marked WHERE seen = 0"))
        self.ask_again(sorted(found))
        self._base.executemany("UPDATE marked SET seen = 1 WHERE pmid = ?", [(pmid,) for pmid in found])

    def reject(self, rows: Iterable[dict[str, str]]) -> None:
        """Store rejected records."""
        self._base.executemany(
            "INSERT INTO rejects (source, place, reason, row, taken) VALUES (?, ?, ?, ?, ?)",
            [(row["source"], row["where"], row["reason"], row["row"], utc_now()) for row in rows],
        )

    def rejects(self) -> Iterator[dict[str, str]]:
        """Yield the rejected records, oldest first, as dicts with `source`, `where`, `reason`, `row` and `when`."""
        for row in self._base.execute("SELECT source, place, reason, row, taken FROM rejects ORDER BY number"):
            yield dict(zip(("source", "where", "reason", "row", "when"), row, strict=True))

    # Indexes

    def indexed(self, place: str, content: str) -> int:
        """Return the number of the last library change that the index at `place` contains.

        Return 0 if the index has a content hash other than `content`.
        """
        found = self._one("SELECT content, change FROM indexed WHERE place = ?", place)
        return int(found[1]) if found and found[0] == content else 0

    def is_indexed(self, place: str, content: str, change: int) -> None:
        """Record the content hash of the index at `place`, and the number of the last library change in it."""
        with self.transaction():
            self._base.execute("INSERT OR REPLACE INTO indexed VALUES (?, ?, ?)", (place, content, change))

    def _one(self, query: str, *values: Any) -> Any:
        return self._base.execute(query, values).fetchone()

    def _column(self, query: str, *values: Any) -> list[str]:
        return [str(row[0]) for row in self._base.execute(query, values)]


@contextmanager
def opened(folder: Path) -> Iterator[Library]:
    """Open or create the library in a folder, and lock it for this process.

    Raises DataError if the library is in use or damaged.
    """
    if folder.exists() and not folder.is_dir():
        raise DataError(f"{folder} is a file. Name a folder for the articles.")
    folder.mkdir(parents=True, exist_ok=True)
    busy = DataError(
        f"{folder}: another process is updating this literature folder. Wait until it finishes, then run the same "
        "command again."
    )
    with exclusive_lock(folder / LOCK, busy):
        for left in folder.glob(".*.partial"):  # left by a killed process, because this process holds the lock
            left.unlink()
        with closing(_base(folder / DATABASE_FILE)) as base:
            yield Library(folder, base)


def _base(file: Path) -> sqlite3.Connection:
    try:
        base = sqlite3.connect(file, timeout=30, isolation_level=None)
        version = base.execute("PRAGMA user_version").fetchone()[0]
        if version == 0:
            base.executescript(f"BEGIN; {SCHEMA} {_TABLES} PRAGMA user_version = {FORMAT}; COMMIT;")
        elif version != FORMAT:
            raise DataError(
                f"{file}: this file has format {version}, but this version of Meditune reads format {FORMAT}."
            )
    except sqlite3.DatabaseError as error:
        if "full" in str(error):
            raise disk_full(file) from error
        raise DataError(
            f"{file}: not a readable database of articles ({error}). Restore it from a backup, or start a new "
            "literature folder."
        ) from error
    return base


MIN_ABSTRACT_WORDS = 20
"""Minimum number of words in an abstract; shorter texts, such as "Editorial.", don't count as abstracts."""
_OFF = dict.fromkeys(QUALITY_RULES, "off")
_SPECS = {
    asked_for: QualitySpec(rules=_OFF | {"language": "drop", "not_medical": "off" if asked_for else "drop"})
    for asked_for in (True, False)
}
_REASON_TEXTS = {
    "language": "abstract not in English",
    "too_short": f"abstract of fewer than {MIN_ABSTRACT_WORDS} words",
    "not_medical": "without words of health and medicine, or hardly any",
}
REASONS = frozenset(_REASON_TEXTS.values())


def checked_article(article: Article, is_requested: bool) -> tuple[Article, str]:
    """Return the article with encoding errors fixed, and the reason to exclude the article, or "" if there is none.

    Articles that a query found (`is_requested`) may be about other subjects than medicine.
    """
    mended = replace(
        article,
        title=quality_filters.fix_encoding(article.title),
        parts=tuple(replace(part, text=quality_filters.fix_encoding(part.text)) for part in article.parts),
    )
    if not mended.parts:
        return mended, ""
    example = Example(
        id=article.id, source="pubmed", question=mended.title or article.id, answer=mended.text, group=article.pmid
    )
    accepted, entries = quality_filters.apply_rules(example, _SPECS[is_requested])
    if accepted and 0 < len(example.answer.split()) < MIN_ABSTRACT_WORDS:
        return mended, _REASON_TEXTS["too_short"]
    return mended, "" if accepted else _REASON_TEXTS[entries[-1].rule]


NEW, CHANGED, SAME, OLDER = "new", "changed", "as they were", "older than what is there"
DELETED = "deleted by PubMed"
NO_LONGER_RETRACTED = "no longer retracted"
_NOTICE_KINDS = frozenset(NOTICE_OF.values())


@dataclass
class LibraryUpdate:
    """A library update in progress, with its counts so far."""

    library: Library
    is_requested: bool
    """True for articles found by a query; False for update files, which contain many articles outside medicine"""
    counts: Counter[str] = field(default_factory=Counter)
    left_out: Counter[str] = field(default_factory=Counter)
    retracted: list[str] = field(default_factory=list)
    _change: int = 0

    def all(self, articles: Iterable[Article | str]) -> None:
        """Apply new or revised articles, and PubMed ids of deleted articles, in order, inside `Library.transaction`."""
        self._change = self.library.change() + 1
        for each in articles:
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
        # If this is a notice, the articles that it is about are fetched again, because their records may have changed.
        named = [link.pmid for link in article.links if link.kind in NOTICE_OF and link.pmid]
        self.library.ask_again(self.library.known(named))
        article, refused = checked_article(article, self.is_requested or (row is not None and row.state == CURRENT))
        self._settle(article, row, refused)
        for pmid in sorted(about - {article.pmid}):
            self._refresh_state(pmid)

    def _settle(self, article: Article, row: Row | None, refused: str) -> None:
        text_hash = _text_hash(article)
        state, reason = self._state(article, text_hash, refused)
        now = Row(article.pmid, article, state, reason, text_hash)
        stays = row is not None and row.state == state and (state != CURRENT or _shows(row.article) == _shows(article))
        self.library.put(now, None if stays else self._change)
        self._count(now, row, stays)
        before = row.text_hash if row is not None and row.state == CURRENT else ""
        if before != (text_hash if state == CURRENT else ""):
            waiting = {pmid for text in {before, text_hash} for pmid in self.library.waiting_on(text, article.pmid)}
            for pmid in sorted(waiting):
                self._refresh_state(pmid)

    def _refresh_state(self, pmid: str) -> None:
        """Determine an article's state again, after a change to its links or to another article."""
        row = self.library.row(pmid)
        if row and row.article:
            refused = row.reason if row.reason in REASONS else checked_article(row.article, True)[1]
            if self._state(row.article, row.text_hash, refused) != (row.state, row.reason):
                self._settle(row.article, row, refused)
            return
        link = _first(self.library.links(pmid), RETRACTED_IN)
        if link and (row is None or row.state != RETRACTED):
            # The library has no record of this article, but an index may contain it from another source.
            self.library.put(Row(pmid, None, RETRACTED, _by("retracted", link), ""), self._change)
            self.library.retract(pmid, "", link)
            self.retracted.append(pmid)
            self.counts[RETRACTED] += 1

    def _state(self, article: Article, text_hash: str, refused: str) -> tuple[str, str]:
        links = self.library.links(article.pmid)
        if marked := _first(links, RETRACTED_IN) or article.retraction:
            return RETRACTED, _by("retracted", marked)
        if article.is_notice:
            return EXCLUDED, "a notice about another article"
        if replaced := _first(links, pubmed_articles.REPLACED_IN):
            return EXCLUDED, _by("corrected and published again", replaced)
        if refused or not article.parts:
            return EXCLUDED, refused if article.parts else "no abstract"
        for link in links:
            if link.kind == pubmed_articles.UPDATED_IN and self.library.known([link.pmid]):
                return EXCLUDED, _by("updated", link)
        same = self.library.same(text_hash, article.pmid) if text_hash else ""
        return (EXCLUDED, f"says the same as PMID {same}") if same else (CURRENT, "")

    def _delete(self, pmid: str) -> None:
        row = self.library.row(pmid)
        about = self.library.relink(pmid, [])
        deleted = Row(pmid, None, EXCLUDED, DELETED, "")
        if row is None or (row.state == EXCLUDED and row.reason == DELETED):
            self.counts[SAME] += row is not None
            self.library.put(deleted, self._change if row is None else None)
        elif row.state != RETRACTED:
            self.library.put(deleted, self._change)
            self.counts[DELETED] += 1
            for other in sorted(about.union(self.library.waiting_on(row.text_hash, pmid)) - {pmid}):
                self._refresh_state(other)

    def _count(self, row: Row, before: Row | None, stays: bool) -> None:
        article, was = row.article, before.state if before else ""
        assert article is not None, "only rows with a record are counted"
        if row.state == RETRACTED:
            link = _first(self.library.links(row.pmid), RETRACTED_IN) or article.retraction
            assert link is not None, "a retracted article has a notice, or its record states the retraction"
            self.library.retract(row.pmid, article.title, link)
            if was != RETRACTED:
                self.retracted.append(row.pmid)
        elif was == RETRACTED:
            self.library.reinstate(row.pmid)
            self.counts[NO_LONGER_RETRACTED] += 1
        if stays:
            self.counts[SAME] += 1
        elif row.state == CURRENT:
            self.counts[CHANGED if was == CURRENT else NEW] += 1
        else:
            self.counts[row.state] += 1
        if row.state == EXCLUDED and not stays:
            # The reason without the PubMed ids in it
            self.left_out[row.reason.partition(" (")[0].partition(" PMID ")[0]] += 1


def _is_older(article: Article, than: Article) -> bool:
    """Return whether `article` is older than `than`: by version, then by revision date if both records have one."""
    if article.version != than.version:
        return article.version < than.version
    return bool(article.revised and than.revised) and article.revised < than.revised


def _links(article: Article) -> list[tuple[str, Link]]:
    """Return the links in a record, each with the PubMed id of the article that the link is about."""
    own = [(article.pmid, link) for link in article.links if link.kind in _NOTICE_KINDS]
    others = [
        (link.pmid, Link(NOTICE_OF[link.kind], article.pmid, ". ".join(filter(None, (article.journal, article.date)))))
        for link in article.links
        if link.kind in NOTICE_OF and link.pmid
    ]
    return own + others


def _text_hash(article: Article) -> str:
    """Return a hash of the abstract's words, or "" if there are fewer than MIN_ABSTRACT_WORDS."""
    found = words(article.text)
    if len(found) < MIN_ABSTRACT_WORDS:
        return ""
    return hashlib.blake2b(" ".join(found).encode(), digest_size=16).hexdigest()


def _shows(article: Article | None) -> object:
    return article and (article.document(), [link for link in article.links if link.kind in _NOTICE_KINDS])


def _first(links: Iterable[Link], kinds: Iterable[str]) -> Link | None:
    return next((link for link in links if link.kind in kinds), None)


def _by(text: str, link: Link) -> str:
    return f"{text} (PMID {link.pmid})" if link.pmid else f"{text} ({link.reference})" if link.reference else text
