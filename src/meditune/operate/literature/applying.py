"""What becomes of the library when a record comes in: an article is new, changed, retracted, replaced or deleted.

Of each article the newest record counts, by version and date of revision, in whatever order records come. What records
say of each other is kept apart from them, so a notice counts whether it comes before its article or after it.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from meditune.data.near import words
from meditune.operate.literature import gate
from meditune.operate.literature.library import Library, Row
from meditune.retrieve.passages.articles import (
    NOTICE_OF,
    REPLACED_IN,
    RETRACTED_IN,
    UPDATED_IN,
    Article,
    Link,
)
from meditune.retrieve.passages.library import OUT, RETRACTED, THERE

LEAST_WORDS = 20
"""Shorter abstracts may be the same by chance ("No abstract available.")."""
NEW, CHANGED, SAME, OLDER = "new", "changed", "as they were", "older than what is there"
GONE = "deleted by PubMed"
BACK = "no longer retracted"
_SAID_IN = frozenset(NOTICE_OF.values())


@dataclass
class Applying:
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
        article, refused = gate.passed(article, self.asked_for or (row is not None and row.state == THERE))
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
            refused = row.reason if row.reason in gate.REASONS else gate.passed(row.article, True)[1]
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
