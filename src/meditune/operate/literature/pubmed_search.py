"""Articles by a PubMed query: what was added or revised since the last time, page by page.

Dates come from the server, never from this machine's clock. Each page and the cursor behind it are one transaction.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Any

from meditune.data.readers.tables import Rejects
from meditune.errors import DataError
from meditune.operate.literature.article_library import Library, LibraryUpdate
from meditune.operate.literature.pubmed_client import FOR_EVER, MOST, SINCE_EVER, Eutils, Found, HistoryLostError
from meditune.progress import Progress
from meditune.retrieve.documents import pubmed_articles
from meditune.retrieve.documents.pubmed_articles import Article

PAGE = 200
"""Articles asked for at once: what a stopped update fetches again at most"""
OVERLAP = timedelta(days=2)
"""A query begins so long before the day on which it last ended: PubMed's days are those of the US East Coast."""
SHORT_PAGES, LOST_SEARCHES = 2, 3
"""How often a page with too few articles is asked for again; how often a search that was forgotten is made anew."""
RETRACTIONS = '"retracted publication"[pt]'


@dataclass
class LibrarySearch:
    """One update's dealings with the E-utilities."""

    library: Library
    eutils: Eutils
    applying: LibraryUpdate
    rejects: Rejects

    def query(self, term: str, since: str | None) -> int:
        """Take in what the query finds; how many articles that was.

        The first time that is all, or what changed from `since` on (ISO 8601); later, what changed since the last time.
        Raises DataError, after which the same call goes on.
        """
        name = f"query: {term}"
        cursor = self.library.cursor(name)
        if "windows" not in cursor:
            cursor = {"until": cursor.get("until", ""), "windows": [[_begin(cursor, since), FOR_EVER]], "read": 0}
        while cursor["windows"]:
            self._window(name, term, cursor)
        self._keep(name, {"until": cursor["today"] or cursor["until"]})
        return int(cursor["read"])

    def retractions(self, mine: set[str]) -> None:
        """Note which of these PubMed ids are listed as retracted, so that they are read again, by whatever query
        they came.
        """
        name = "retractions"
        cursor = self.library.cursor(name)
        if not mine:
            return
        first, today = _begin(cursor, None), ""
        windows = [[first, FOR_EVER]]
        while windows:
            low, high = windows.pop(0)
            found = self.eutils.search(RETRACTIONS, low, high, ids=MOST)
            today = today or self.eutils.today
            if found.count > MOST:
                windows = [*_halves(RETRACTIONS, low, high, self.eutils.today), *windows]
                continue
            with self.library.together():
                self.library.mark(found.pmids)
        with self.library.together():
            # Also of those that were listed earlier: the index may have got the article since.
            self.library.ask_for_marked(mine)
            self.library.move(name, {"until": today or cursor.get("until", "")})

    def again(self) -> int:
        """Read again the articles that notices speak of; how many."""
        waiting = self.library.to_ask()
        with Progress("Reading corrected articles again", len(waiting), "articles") as progress:
            for start in range(0, len(waiting), PAGE):
                ids = waiting[start : start + PAGE]
                found = list(self._articles(self.eutils.by_ids(ids), "efetch"))
                with self.library.together():
                    self.applying.all(found)
                    # What these in turn name is asked for the next time: a circle of notices must end.
                    self.library.asked_again(ids)
                progress.advance(len(ids))
        return len(waiting)

    def _window(self, name: str, term: str, cursor: dict[str, Any]) -> None:
        """Read one window of dates to its end, or put its halves in its place."""
        low, high = cursor["windows"][0]
        for _ in range(LOST_SEARCHES):
            if "webenv" not in cursor:
                found = self.eutils.search(term, low, high)
                _say_unknown(term, found)
                cursor["today"] = cursor.get("today") or self.eutils.today
                if found.count > MOST:
                    cursor["windows"][:1] = _halves(term, low, high, self.eutils.today)
                    self._keep(name, cursor)
                    return
                cursor |= {"webenv": found.webenv, "key": found.key, "count": found.count, "start": 0}
                self._keep(name, cursor)
            try:
                self._pages(name, cursor)
                break
            except HistoryLostError:
                del cursor["webenv"]
        else:
            raise DataError(
                f"PubMed forgot the search {term!r} {LOST_SEARCHES} times. Run the same command later; it goes on."
            )
        cursor["windows"].pop(0)
        for key in ("webenv", "key", "count", "start"):
            del cursor[key]
        self._keep(name, cursor)

    def _pages(self, name: str, cursor: dict[str, Any]) -> None:
        count = cursor["count"]
        with Progress("Fetching articles", count, "articles") as progress:
            progress.advance(cursor["start"])
            while cursor["start"] < count:
                size = min(PAGE, count - cursor["start"])
                found = self._page(cursor, size)
                with self.library.together():
                    self.applying.all(found)
                    cursor["start"] += size
                    cursor["read"] += len(found)
                    self.library.move(name, cursor)
                    self._keep_rejects()
                progress.advance(size)

    def _page(self, cursor: dict[str, Any], size: int) -> list[Article | str]:
        """The articles of one page. Fewer than there should be are asked for again, and then said."""
        given = 0
        for _ in range(1 + SHORT_PAGES):
            xml = self.eutils.page((cursor["webenv"], cursor["key"]), cursor["start"], size)
            given = sum(record.kind != pubmed_articles.DELETED for record in pubmed_articles.of_stream(io.BytesIO(xml)))
            if given >= size:
                break
        else:
            self.rejects.count_only(pubmed_articles.SOURCE, "not delivered by PubMed", size - given)
        return list(self._articles(xml, f"efetch, articles from {cursor['start'] + 1} on"))

    def _articles(self, xml: bytes, where: str) -> Iterator[Article | str]:
        for record in pubmed_articles.of_stream(io.BytesIO(xml)):
            yield from pubmed_articles.of_record(record, where, self.rejects)

    def _keep_rejects(self) -> None:
        self.library.reject(self.rejects.taken())

    def _keep(self, name: str, cursor: dict[str, Any]) -> None:
        with self.library.together():
            self.library.move(name, cursor)


def _begin(cursor: dict[str, Any], since: str | None) -> str:
    """The first day to ask for, as the E-utilities write it."""
    if cursor.get("until"):
        return (date.fromisoformat(cursor["until"]) - OVERLAP).strftime("%Y/%m/%d")
    return since.replace("-", "/") if since else SINCE_EVER


def _halves(term: str, low: str, high: str, today: str) -> list[list[str]]:
    """Two shorter windows of dates. Raises DataError where one day has too many articles."""
    first, last = (date.fromisoformat(each.replace("/", "-")) for each in (low, high))
    if high == FOR_EVER:
        # What is added while this runs belongs to the last window.
        last = max(first, date.fromisoformat(today) if today else first + timedelta(days=1))
    if first >= last:
        raise DataError(
            f"PubMed has more than {MOST:,} articles of {term!r} that changed on {low}, and gives no more of one "
            "search. Narrow the query, or take in MEDLINE's update files (--files)."
        )
    middle = first + (last - first) // 2
    return [[low, middle.strftime("%Y/%m/%d")], [(middle + timedelta(days=1)).strftime("%Y/%m/%d"), high]]


def _say_unknown(term: str, found: Found) -> None:
    if found.unknown:
        print(f"PubMed says of {term!r}: {'; '.join(found.unknown)}.", file=sys.stderr)
