"""Import of the articles of a PubMed query that were added or revised since the last update, page by page.

Dates come from the server, not from this machine's clock. Each page is saved with its cursor in one transaction.
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
from meditune.operate.literature.pubmed_client import MAX_ARTICLES, MAX_DATE, MIN_DATE, Eutils, HistoryLostError
from meditune.progress import Progress
from meditune.retrieve.documents import pubmed_articles
from meditune.retrieve.documents.pubmed_articles import Article

PAGE = 200
"""Articles per request: the most that an interrupted update fetches again"""
OVERLAP = timedelta(days=2)
"""Overlap with the last update, because PubMed's dates are those of the US East Coast"""
SHORT_PAGES, LOST_SEARCHES = 2, 3
"""Retries of a page with too few articles, and of a search that has expired"""
RETRACTIONS = '"retracted publication"[pt]'


@dataclass
class LibrarySearch:
    """The import of articles by search into a library."""

    library: Library
    eutils: Eutils
    applying: LibraryUpdate
    rejects: Rejects

    def query(self, term: str, since: str | None) -> int:
        """Import the articles that the query finds; return how many.

        The first update reads all, or those changed since `since` (ISO 8601); later ones read what changed since the
        last. Raises DataError, after which the same call resumes.
        """
        name = f"query: {term}"
        cursor = self.library.cursor(name)
        if "windows" not in cursor:
            cursor = {"until": cursor.get("until", ""), "windows": [[_first_day(cursor, since), MAX_DATE]], "read": 0}
        while cursor["windows"]:
            self._window(name, term, cursor)
        self._save_cursor(name, {"until": cursor["today"] or cursor["until"]})
        return int(cursor["read"])

    def retractions(self, pmids: set[str]) -> None:
        """Queue those of the given PubMed ids that PubMed lists as retracted, to be fetched again."""
        name = "retractions"
        cursor = self.library.cursor(name)
        if not pmids:
            return
        first, today = _first_day(cursor, None), ""
        windows = [[first, MAX_DATE]]
        while windows:
            low, high = windows.pop(0)
            found = self.eutils.search(RETRACTIONS, low, high, ids=MAX_ARTICLES)
            today = today or self.eutils.today
            if found.count > MAX_ARTICLES:
                windows = [*_halves(RETRACTIONS, low, high, self.eutils.today), *windows]
                continue
            with self.library.transaction():
                self.library.mark(found.pmids)
        with self.library.transaction():
            # Earlier retractions too, because the article may have been added to the index since.
            self.library.request_marked(pmids)
            self.library.move(name, {"until": today or cursor.get("until", "")})

    def again(self) -> int:
        """Fetch the queued articles again; return how many."""
        waiting = self.library.pmids_to_fetch()
        with Progress("Fetching corrected articles again", len(waiting), "articles") as progress:
            for start in range(0, len(waiting), PAGE):
                ids = waiting[start : start + PAGE]
                found = list(self._articles(self.eutils.by_ids(ids), "efetch"))
                with self.library.transaction():
                    self.applying.all(found)
                    # Articles that these name are fetched in the next update, so that circular notices end.
                    self.library.asked_again(ids)
                progress.advance(len(ids))
        return len(waiting)

    def _window(self, name: str, term: str, cursor: dict[str, Any]) -> None:
        """Read one range of dates to its end, or split it in two."""
        low, high = cursor["windows"][0]
        for _ in range(LOST_SEARCHES):
            if "webenv" not in cursor:
                found = self.eutils.search(term, low, high)
                if found.unknown:
                    print(f"PubMed reports for {term!r}: {'; '.join(found.unknown)}.", file=sys.stderr)
                cursor["today"] = cursor.get("today") or self.eutils.today
                if found.count > MAX_ARTICLES:
                    cursor["windows"][:1] = _halves(term, low, high, self.eutils.today)
                    self._save_cursor(name, cursor)
                    return
                cursor |= {"webenv": found.webenv, "key": found.key, "count": found.count, "start": 0}
                self._save_cursor(name, cursor)
            try:
                self._pages(name, cursor)
                break
            except HistoryLostError:
                del cursor["webenv"]
        else:
            raise DataError(
                f"PubMed lost the search {term!r} {LOST_SEARCHES} times. Run the same command later to resume."
            )
        cursor["windows"].pop(0)
        for key in ("webenv", "key", "count", "start"):
            del cursor[key]
        self._save_cursor(name, cursor)

    def _pages(self, name: str, cursor: dict[str, Any]) -> None:
        count = cursor["count"]
        with Progress("Fetching articles", count, "articles") as progress:
            progress.advance(cursor["start"])
            while cursor["start"] < count:
                size = min(PAGE, count - cursor["start"])
                found = self._page(cursor, size)
                with self.library.transaction():
                    self.applying.all(found)
                    cursor["start"] += size
                    cursor["read"] += len(found)
                    self.library.move(name, cursor)
                    self.library.reject(self.rejects.taken())
                progress.advance(size)

    def _page(self, cursor: dict[str, Any], size: int) -> list[Article | str]:
        """Return the articles of one page. A page with too few articles is fetched again, and then reported."""
        given = 0
        for _ in range(1 + SHORT_PAGES):
            xml = self.eutils.page((cursor["webenv"], cursor["key"]), cursor["start"], size)
            given = sum(record.kind != pubmed_articles.DELETED for record in pubmed_articles.of_stream(io.BytesIO(xml)))
            if given >= size:
                break
        else:
            self.rejects.count_only(pubmed_articles.SOURCE, "not delivered by PubMed", size - given)
        return list(self._articles(xml, f"efetch, articles from {cursor['start'] + 1} on"))

    def _articles(self, xml: bytes, source: str) -> Iterator[Article | str]:
        for record in pubmed_articles.of_stream(io.BytesIO(xml)):
            yield from pubmed_articles.of_record(record, source, self.rejects)

    def _save_cursor(self, name: str, cursor: dict[str, Any]) -> None:
        with self.library.transaction():
            self.library.move(name, cursor)


def _first_day(cursor: dict[str, Any], since: str | None) -> str:
    """Return the first day to search, in the format of the E-utilities."""
    if cursor.get("until"):
        return (date.fromisoformat(cursor["until"]) - OVERLAP).strftime("%Y/%m/%d")
    return since.replace("-", "/") if since else MIN_DATE


def _halves(term: str, low: str, high: str, today: str) -> list[list[str]]:
    """Return two shorter ranges of dates. Raises DataError if a single day has too many articles."""
    first, last = (date.fromisoformat(each.replace("/", "-")) for each in (low, high))
    if high == MAX_DATE:
        # Articles added during the run belong to the last range.
        last = max(first, date.fromisoformat(today) if today else first + timedelta(days=1))
    if first >= last:
        raise DataError(
            f"PubMed has more than {MAX_ARTICLES:,} articles for {term!r} that changed on {low}, and returns no more "
            "for one search. Narrow the query, or import MEDLINE's update files (--update-files)."
        )
    middle = first + (last - first) // 2
    return [[low, middle.strftime("%Y/%m/%d")], [(middle + timedelta(days=1)).strftime("%Y/%m/%d"), high]]
