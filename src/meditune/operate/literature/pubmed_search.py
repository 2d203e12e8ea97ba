"""Import, page by page, of the articles that match a PubMed query and were added or revised since the last update.

NCBI allows 3 requests a second, or 10 with an API key, and answers further requests with 429. Each request must contain
`tool` and `email` (https://www.ncbi.nlm.nih.gov/books/NBK25497/, https://support.nlm.nih.gov/kbArticle/?pn=KA-05510).
The E-utilities (https://www.ncbi.nlm.nih.gov/books/NBK25499/) return at most the first 9,999 articles of a search. The
client recognizes responses with status 200 that aren't results: an HTML page, a rate-limit message in JSON, an error
message in XML, or truncated XML. Dates come from the server, not from this machine's clock. Each page is saved in one
transaction with the cursor after it.
"""

from __future__ import annotations

import re
import sys
import time
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import date, timedelta
from email.utils import parsedate_to_datetime
from functools import partial
from typing import Any
from urllib.parse import urlsplit

from meditune import __version__
from meditune.data.readers.tables import Rejects
from meditune.errors import DataError
from meditune.http_client import RETRY_TO_RESUME, Backoff, HttpClient, TransientError, refuse_transient
from meditune.operate.literature.article_library import Library, LibraryUpdate
from meditune.progress import Progress
from meditune.retrieve.documents import pubmed_articles
from meditune.retrieve.documents.pubmed_articles import Article, Record

KEY_VARIABLE = "NCBI_API_KEY"
TOOL = "meditune"
INTERVAL, INTERVAL_WITH_KEY = 0.34, 0.11
"""Seconds between requests, without and with an API key: slightly more than 1/3 and 1/10"""
MAX_INTERVAL = 5.0
"""Maximum interval in seconds; the interval doubles after each 429."""
ATTEMPTS = 6
FIRST_WAIT = 1.0
MAX_REQUESTED_WAIT = 300.0
"""If a server asks for a longer pause (in seconds), the update stops, and the user must run it again later."""
CONNECT_SECONDS, READ_SECONDS = 15.0, 60.0
RESPONSE_TIMEOUT_SECONDS = 900.0
"""A response that takes longer than this is abandoned, even if data keeps arriving."""
MAX_RESPONSE_BYTES = 2**28
_ADDRESS = re.compile(r"[^@\s]+@[^@\s]+\.[^@\s.]+")


def contact(email: str | None) -> str:
    """Return the email address, stripped. Raises DataError if it is missing or invalid."""
    if email and _ADDRESS.fullmatch(email.strip()):
        return email.strip()
    what = f"{email!r} is not an email address" if email else "none is given"
    raise DataError(
        f"NCBI requires an email address so that it can contact you before it blocks a client, but {what}. Use "
        "--email YOU@EXAMPLE.ORG, or set MEDITUNE_CONTACT."
    )


class StartedOverError(Exception):
    """Raised if a server sends a file from the beginning although a range was requested."""


def _in_time(parts: Iterator[bytes]) -> Iterator[bytes]:
    end = time.monotonic() + RESPONSE_TIMEOUT_SECONDS
    for part in parts:
        yield part
        if time.monotonic() > end:
            raise TransientError(f"needs more than {RESPONSE_TIMEOUT_SECONDS / 60:.0f} minutes for one response")


def _without_parameters(url: str) -> str:
    """Return a URL without its parameters, which may contain a key."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}{parts.path}"


URL = "https://eutils.ncbi.nlm.nih.gov/entrez/eutils"
MAX_ARTICLES = 9_999
MIN_DATE, MAX_DATE = "1900/01/01", "3000/12/31"
EXPIRED_SEARCH_ERRORS = ("unable to obtain query", "unable to obtain history", "cannot retrieve history", "webenv")
"""Phrases in error messages about an expired search; NCBI stores search results for a few hours."""
MAX_GET_CHARACTERS = 500
"""Longer queries are sent by POST, because the length of URLs is limited."""
MAX_QUOTED_CHARACTERS = 200
_ERROR = re.compile(rb"<ERROR>(.*?)</ERROR>", re.DOTALL)


class HistoryLostError(Exception):
    """Raised if the server no longer has the results of a search."""


@dataclass(frozen=True)
class SearchResult:
    """The result of a search: the number of articles, the keys to fetch them with, and the first PubMed ids."""

    count: int
    webenv: str
    key: str
    pmids: tuple[str, ...]
    unknown: tuple[str, ...]
    """Phrases and fields that PubMed doesn't know, and other warnings"""


class Eutils(HttpClient):
    """A client for PubMed's E-utilities, and for other files of NCBI, that limits its own request rate."""

    def __init__(self, email: str, key: str | None = None, url: str = URL) -> None:
        import httpx2

        super().__init__(
            Backoff(ATTEMPTS, FIRST_WAIT, longest_requested=MAX_REQUESTED_WAIT),
            interval=INTERVAL_WITH_KEY if key else INTERVAL,
            advice=RETRY_TO_RESUME,
            headers={"User-Agent": f"{TOOL}/{__version__} (mailto:{email})"},
            timeout=httpx2.Timeout(READ_SECONDS, connect=CONNECT_SECONDS),
            follow_redirects=True,
        )
        self.parameters = {"tool": TOOL, "email": email} | ({"api_key": key} if key else {})
        """Parameters that the E-utilities require in each request"""
        self.url = url.rstrip("/")
        self.today = ""
        """The date in the server's last response (ISO 8601); empty if unknown"""

    def search(self, term: str, start: str, end: str, ids: int = 0) -> SearchResult:
        """Search for articles that were added or revised between two dates (YYYY/MM/DD).

        The result contains up to `ids` PubMed ids. Raises DataError.
        """
        query = {"term": term, "usehistory": "y", "retmax": str(ids), "retmode": "xml", "sort": "pub_date"}
        query |= {"datetype": "mdat", "mindate": start, "maxdate": end}
        root = ET.fromstring(self._get("esearch.fcgi", query, "eSearchResult", post=len(term) > MAX_GET_CHARACTERS))
        count = root.findtext("Count") or ""
        if not count.isdecimal():
            raise DataError(
                f"{self.url}: the search result has no count. Check that this is the address of the E-utilities."
            )
        lists = [*root.iterfind("ErrorList/*"), *root.iterfind("WarningList/*")]
        return SearchResult(
            count=int(count),
            webenv=root.findtext("WebEnv") or "",
            key=root.findtext("QueryKey") or "",
            pmids=tuple(each.text or "" for each in root.iterfind("IdList/Id")),
            unknown=tuple(each.text for each in lists if each.text and each.text.strip()),
        )

    def page(self, search: tuple[str, str], start: int, size: int) -> bytes:
        """Return the XML of up to `size` articles from a search (webenv, key), starting at position `start` (0-based).

        Raises HistoryLostError if the search has expired, and DataError if the request fails.
        """
        webenv, key = search
        query = {"WebEnv": webenv, "query_key": key, "retstart": str(start), "retmax": str(size), "retmode": "xml"}
        return self._get("efetch.fcgi", query, "PubmedArticleSet")

    def by_ids(self, pmids: list[str]) -> bytes:
        """Return the XML of the articles with these PubMed ids, at most a few hundred. Raises DataError."""
        return self._get("efetch.fcgi", {"id": ",".join(pmids), "retmode": "xml"}, "PubmedArticleSet", post=True)

    def _get(self, tool: str, query: dict[str, str], root: str, post: bool = False) -> bytes:
        parameters = {"db": "pubmed"} | query | self.parameters
        url = f"{self.url}/{tool}"
        return self.retry(lambda: self._once(url, parameters, root, post), url)

    def _once(self, url: str, parameters: dict[str, str], root: str, post: bool) -> bytes:
        body = self.content(url, parameters, post)
        if error := _ERROR.search(body):
            raise self._refusal(error[1].decode(errors="replace"))
        beginning = body[:2000]
        if b"api key invalid" in beginning.lower():
            raise DataError(f"{url} rejects the API key. Correct {KEY_VARIABLE}, or unset it.")
        if b"rate limit exceeded" in beginning.lower():
            self.slow_down()
            raise TransientError("reports too many requests")
        if f"<{root}".encode() not in beginning:
            what = "an HTML page" if b"<html" in beginning.lower() else "an unknown format"
            raise TransientError(f"answers with {what}")
        if not body.rstrip().endswith(f"</{root}>".encode()):
            raise TransientError("sent an incomplete response")
        if root == "eSearchResult":
            try:
                ET.fromstring(body)
            except ET.ParseError as error:
                raise TransientError(f"answers with malformed XML ({error})") from error
        return body

    def _refusal(self, message: str) -> Exception:
        quoted = " ".join(message.split())[:MAX_QUOTED_CHARACTERS]
        for name, value in self.parameters.items():
            quoted = quoted.replace(value, f"({name})")
        if any(each in message.casefold() for each in EXPIRED_SEARCH_ERRORS):
            return HistoryLostError(quoted)
        # "Search Backend failed" means that the server is busy, which a retry may solve, or that the query is invalid.
        return TransientError(f'answers with an error: "{quoted}"')

    def content(self, url: str, parameters: dict[str, str] | None = None, post: bool = False) -> bytes:
        """Return the body of a response. Raises TransientError if a retry may succeed, otherwise DataError."""
        options: dict[str, Any] = {"data" if post else "params": parameters} if parameters else {}
        body = bytearray()
        with self.stream("POST" if post else "GET", url, **options) as response:
            self._check(response)
            for part in _in_time(response.iter_bytes()):
                body += part
                if len(body) > MAX_RESPONSE_BYTES:
                    limit = f"{MAX_RESPONSE_BYTES // 2**20} MB"
                    raise DataError(f"{_without_parameters(url)} sends more than {limit}. Check the address.")
        return bytes(body)

    @contextmanager
    def download(self, url: str, start: int) -> Iterator[tuple[int, Iterator[bytes]]]:
        """Yield the size of a file in bytes (0 if unknown) and its content from byte `start` on.

        Raises StartedOverError if the server sends the file from the beginning instead.
        """
        headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={start}-"} if start else {})
        with self.stream("GET", url, headers=headers) as response:
            self._check(response)
            if start and response.status_code != 206:
                raise StartedOverError
            length = response.headers.get("content-length", "")
            yield start + int(length) if length.isdecimal() else 0, _in_time(response.iter_raw())

    def _check(self, response: Any) -> None:
        """Record the server's date, and raise if the request failed; the callers handle 400 and 416 themselves."""
        with suppress(TypeError, ValueError):
            self.today = parsedate_to_datetime(response.headers.get("date")).date().isoformat()
        status = response.status_code
        if status == 429:
            self.slow_down()
        refuse_transient(response)
        if not response.is_success and status not in (400, 416):
            advice = {403: "Check the key and the address.", 404: "Check the address."}.get(status, "")
            raise DataError(f"{_without_parameters(str(response.url))} answers {status}. {advice}".rstrip())

    def slow_down(self) -> None:
        """Double the interval between requests, up to MAX_INTERVAL."""
        self.interval = min(MAX_INTERVAL, self.interval * 2)


PAGE = 200
"""Articles per request; an interrupted update fetches at most this number again"""
OVERLAP = timedelta(days=2)
"""Overlap with the last update, because PubMed's dates are in US Eastern Time"""
SHORT_PAGES, LOST_SEARCHES = 2, 3
"""Number of retries of a response with too few articles, and of attempts at a search that expires"""
RETRACTIONS = '"retracted publication"[pt]'


@dataclass
class LibrarySearch:
    """An importer of PubMed search results into a library."""

    library: Library
    eutils: Eutils
    applying: LibraryUpdate
    rejects: Rejects

    def query(self, term: str, since: str | None) -> int:
        """Import the articles that match a query and changed since its last import; return the number of articles.

        The first import takes the articles that changed since `since` (ISO 8601), or all articles if it is None.
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
        """Queue those of the given articles that PubMed lists as retracted, so that they are fetched again."""
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
            # Earlier retractions count, too, because the article may have been added to the index since.
            self.library.request_marked(pmids)
            self.library.move(name, {"until": today or cursor.get("until", "")})

    def again(self) -> int:
        """Fetch the queued articles again, and return the number of articles."""
        waiting = self.library.pmids_to_fetch()
        with Progress("Fetching corrected articles again", len(waiting), "articles") as progress:
            for start in range(0, len(waiting), PAGE):
                ids = waiting[start : start + PAGE]
                records = self._complete(partial(self.eutils.by_ids, ids), len(ids))
                found = list(self._articles(records, "efetch"))
                # Articles that PubMed didn't deliver stay in the queue, because they may be retracted.
                delivered = {record.pmid for record in records}
                with self.library.transaction():
                    self.applying.all(found)
                    # Articles named by the fetched articles wait for the next update, because notices can be circular.
                    self.library.asked_again(delivered.intersection(ids))
                progress.advance(len(ids))
        return len(waiting)

    def _window(self, name: str, term: str, cursor: dict[str, Any]) -> None:
        """Import all articles of the first date range, or split the range if it has too many articles."""
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
        """Return the articles of one page."""
        search = cursor["webenv"], cursor["key"]
        records = self._complete(lambda: self.eutils.page(search, cursor["start"], size), size)
        return list(self._articles(records, f"efetch, articles from {cursor['start'] + 1} on"))

    def _complete(self, fetch: Callable[[], bytes], size: int) -> list[Record]:
        """Return the records of `size` articles. If some are missing, fetch again, then count them as rejects."""
        for _ in range(1 + SHORT_PAGES):
            records = list(pubmed_articles.records(fetch()))
            missing = size - sum(record.kind != pubmed_articles.DELETED for record in records)
            if missing <= 0:
                break
        else:
            self.rejects.count_only(pubmed_articles.SOURCE, "not delivered by PubMed", missing)
        return records

    def _articles(self, records: Iterable[Record], source: str) -> Iterator[Article | str]:
        for record in records:
            yield from pubmed_articles.of_record(record, source, self.rejects)

    def _save_cursor(self, name: str, cursor: dict[str, Any]) -> None:
        with self.library.transaction():
            self.library.move(name, cursor)


def _first_day(cursor: dict[str, Any], since: str | None) -> str:
    """Return the first day to search (YYYY/MM/DD)."""
    if cursor.get("until"):
        return (date.fromisoformat(cursor["until"]) - OVERLAP).strftime("%Y/%m/%d")
    return since.replace("-", "/") if since else MIN_DATE


def _halves(term: str, low: str, high: str, today: str) -> list[list[str]]:
    """Return the two halves of a date range. Raises DataError if a single day has too many articles."""
    first, last = (date.fromisoformat(each.replace("/", "-")) for each in (low, high))
    if high == MAX_DATE:
        # The second half stays open-ended, so that it includes articles added during the run.
        last = max(first, date.fromisoformat(today) if today else first + timedelta(days=1))
    if first >= last:
        raise DataError(
            f"PubMed has more than {MAX_ARTICLES:,} articles for {term!r} that changed on {low}, and returns no more "
            "for one search. Narrow the query, or import MEDLINE's update files (--update-files)."
        )
    middle = first + (last - first) // 2
    return [[low, middle.strftime("%Y/%m/%d")], [(middle + timedelta(days=1)).strftime("%Y/%m/%d"), high]]
