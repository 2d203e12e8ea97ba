"""A client for NCBI's servers: rate limits, retries, the E-utilities for PubMed, and file downloads.

NCBI allows 3 requests a second, or 10 with an API key, wants `tool` and `email` in each, and answers 429 to more
(https://www.ncbi.nlm.nih.gov/books/NBK25497/, https://support.nlm.nih.gov/kbArticle/?pn=KA-05510). The E-utilities
(https://www.ncbi.nlm.nih.gov/books/NBK25499/) return at most the first 9,999 articles of a search. The client
recognizes responses with status 200 that aren't results: an HTML page, a rate limit in JSON, an error inside XML,
truncated XML. Downloads are checked by MD5, and resume after an interruption.
"""

from __future__ import annotations

import errno
import hashlib
import re
import time
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from meditune import __version__
from meditune.errors import DataError
from meditune.files import disk_full
from meditune.http_client import RETRY_TO_RESUME, Backoff, HttpClient, TransientError, refuse_transient
from meditune.progress import Progress

KEY_VARIABLE = "NCBI_API_KEY"
TOOL = "meditune"
INTERVAL, INTERVAL_WITH_KEY = 0.34, 0.11
"""Seconds between requests: slightly more than 1/3, and 1/10"""
MAX_INTERVAL = 5.0
"""Maximum interval in seconds; the interval doubles after each 429."""
ATTEMPTS = 6
FIRST_WAIT = 1.0
MAX_REQUESTED_WAIT = 300.0
"""If a server asks for a longer pause, the update stops, and the user runs it again later."""
CONNECT_SECONDS, READ_SECONDS = 15.0, 60.0
RESPONSE_TIMEOUT_SECONDS = 900.0
"""A response that takes longer in total is abandoned, even if data keeps arriving."""
MAX_RESPONSE_BYTES = 2**28
_ADDRESS = re.compile(r"[^@\s]+@[^@\s]+\.[^@\s.]+")


def contact(email: str | None) -> str:
    """Return the email address. Raises DataError if it is missing or invalid."""
    if email and _ADDRESS.fullmatch(email.strip()):
        return email.strip()
    what = f"{email!r} is not an email address" if email else "none is given"
    raise DataError(
        f"NCBI requires an email address so that it can contact you before it blocks a client, but {what}. Give "
        "yours: --email YOU@EXAMPLE.ORG, or set MEDITUNE_CONTACT."
    )


class RateLimitedClient(HttpClient):
    """An HTTP client for one server, which limits its own request rate."""

    def __init__(self, email: str, key: str | None = None) -> None:
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
        self.today = ""
        """The server's date at the last response, in ISO 8601"""

    def content(self, url: str, parameters: dict[str, str] | None = None, post: bool = False) -> bytes:
        """Return the body of a response. Raises TransientError if a retry may succeed, otherwise DataError."""
        options: dict[str, Any] = {"data" if post else "params": parameters} if parameters else {}
        body = bytearray()
        with self.stream("POST" if post else "GET", url, **options) as response:
            self._check(response)
            for part in _in_time(response.iter_bytes()):
                body += part
                if len(body) > MAX_RESPONSE_BYTES:
                    raise DataError(
                        f"{_without_parameters(url)} sends more than {MAX_RESPONSE_BYTES // 2**20} MB. Check the "
                        "address."
                    )
        return bytes(body)

    def size(self, url: str) -> int:
        """Return the size of a remote file in bytes, or 0 if the server doesn't report it. Raises like `content`."""
        response = self.request("HEAD", url, headers={"Accept-Encoding": "identity"})
        if response.status_code in (405, 501):
            return 0
        self._check(response)
        length = response.headers.get("content-length", "")
        return int(length) if length.isdecimal() else 0

    def rest(self, url: str, start: int) -> Iterator[bytes]:
        """Yield the bytes of a remote file from `start` on, without decoding them.

        Raises StartedOverError if the server can't start at `start`; otherwise raises like `content`.
        """
        headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={start}-"} if start else {})
        with self.stream("GET", url, headers=headers) as response:
            self._check(response)
            if start and response.status_code != 206:
                raise StartedOverError
            yield from _in_time(response.iter_raw())

    def _check(self, response: Any) -> None:
        """Record the server's date, and raise if the status is not a success."""
        if date := response.headers.get("date"):
            try:
                self.today = parsedate_to_datetime(date).date().isoformat()
            except ValueError:
                self.today = self.today or ""
        status = response.status_code
        if status == 429:
            self.slow_down()
        refuse_transient(response)
        if not response.is_success and status not in (400, 416):
            advice = {403: "Check the key and the address.", 404: "Check the address."}.get(status, "")
            raise DataError(f"{_without_parameters(str(response.url))} answers {status}. {advice}".rstrip())

    def slow_down(self) -> None:
        """Double the interval between requests."""
        self.interval = min(MAX_INTERVAL, self.interval * 2)


class StartedOverError(Exception):
    """The server sends a file from its start although a range was requested."""


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
"""Maximum number of articles in a search"""
MIN_DATE, MAX_DATE = "1900/01/01", "3000/12/31"
EXPIRED_SEARCH_ERRORS = ("unable to obtain query", "unable to obtain history", "cannot retrieve history", "webenv")
"""Words in errors for a search that has expired; NCBI keeps a search for a few hours."""
MAX_GET_CHARACTERS = 500
"""Characters; longer queries are sent by POST, because URLs are limited in length."""
MAX_QUOTED_CHARACTERS = 200
_ERROR = re.compile(rb"<ERROR>(.*?)</ERROR>", re.DOTALL)


class HistoryLostError(Exception):
    """The server no longer has a search."""


@dataclass(frozen=True)
class SearchResult:
    """The result of a search."""

    count: int
    webenv: str
    key: str
    pmids: tuple[str, ...]
    """Up to the requested number of ids"""
    unknown: tuple[str, ...]
    """Phrases and fields that PubMed doesn't know, and other warnings"""


class Eutils:
    """A client for PubMed's E-utilities."""

    def __init__(self, http: RateLimitedClient, url: str = URL) -> None:
        self._http, self._url = http, url.rstrip("/")

    @property
    def today(self) -> str:
        """The server's date at its last response, in ISO 8601; empty if unknown."""
        return self._http.today

    def search(self, term: str, start: str, end: str, ids: int = 0) -> SearchResult:
        """Search for articles added or revised between two dates (YYYY/MM/DD). Raises DataError."""
        query = {"term": term, "usehistory": "y", "retmax": str(ids), "retmode": "xml", "sort": "pub_date"}
        query |= {"datetype": "mdat", "mindate": start, "maxdate": end}
        root = ET.fromstring(self._get("esearch.fcgi", query, "eSearchResult", post=len(term) > MAX_GET_CHARACTERS))
        count = root.findtext("Count") or ""
        if not count.isdecimal():
            raise DataError(
                f"{self._url}: the search result has no count. Check that this is the address of the E-utilities."
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
        """Return the XML of a search's (webenv, key) articles from `start` on. Raises HistoryLostError, DataError."""
        webenv, key = search
        query = {"WebEnv": webenv, "query_key": key, "retstart": str(start), "retmax": str(size), "retmode": "xml"}
        return self._get("efetch.fcgi", query, "PubmedArticleSet")

    def by_ids(self, pmids: list[str]) -> bytes:
        """Return the XML of these articles, at most a few hundred. Raises DataError."""
        return self._get("efetch.fcgi", {"id": ",".join(pmids), "retmode": "xml"}, "PubmedArticleSet", post=True)

    def _get(self, tool: str, query: dict[str, str], root: str, post: bool = False) -> bytes:
        parameters = {"db": "pubmed"} | query | self._http.parameters
        url = f"{self._url}/{tool}"
        return self._http.retry(lambda: self._once(url, parameters, root, post), url)

    def _once(self, url: str, parameters: dict[str, str], root: str, post: bool) -> bytes:
        body = self._http.content(url, parameters, post)
        if error := _ERROR.search(body):
            raise self._refusal(error[1].decode(errors="replace"))
        beginning = body[:2000]
        if b"rate limit exceeded" in beginning.lower():
            self._http.slow_down()
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
        for name, value in self._http.parameters.items():
            quoted = quoted.replace(value, f"({name})")
        if any(each in message.casefold() for each in EXPIRED_SEARCH_ERRORS):
            return HistoryLostError(quoted)
        # "Search Backend failed" occurs if the server is busy or if the query is invalid; a retry helps only the first.
        return TransientError(f'answers with an error: "{quoted}"')


MAX_MD5_MISMATCHES = 3
"""Maximum number of downloads of a file whose MD5 differs from the published one"""


def download(http: RateLimitedClient, url: str, path: Path, md5: str) -> Path:
    """Download `url` to `path`, and return the path. Raises DataError if it is unavailable or its MD5 differs three
    times.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_file() and _md5(path) == md5:
        return path
    partial = path.with_name(f"{path.name}.part")
    actual = ""
    for _ in range(MAX_MD5_MISMATCHES):
        http.retry(lambda: _resume(http, url, partial), url)
        actual = _md5(partial)
        if actual == md5:
            partial.replace(path)
            return path
        partial.unlink()
    raise DataError(
        f"{url}: downloaded {MAX_MD5_MISMATCHES} times with the MD5 {actual}, but the published one is {md5}. Run the "
        "same command later; if it fails again, tell NLM (info@ncbi.nlm.nih.gov)."
    )


def _resume(http: RateLimitedClient, url: str, partial: Path) -> None:
    """Download the missing part of a file. Raises TransientError if the download is interrupted."""
    size = http.size(url)
    present = partial.stat().st_size if partial.is_file() else 0
    if size and present > size:
        partial.unlink()
        present = 0
    if size and present == size:
        return
    try:
        _fetch(http, url, partial, present, size)
    except StartedOverError:
        _fetch(http, url, partial, 0, size)
    present = partial.stat().st_size
    if size and present != size:
        raise TransientError(f"stopped after {present:,} of {size:,} bytes")


def _fetch(http: RateLimitedClient, url: str, partial: Path, start: int, size: int) -> None:
    name = url.rpartition("/")[2]
    parts = http.rest(url, start)
    try:
        with Progress(f"Fetching {name}", size / 1e6 or None, "MB") as progress:
            progress.advance(start / 1e6)
            first = next(parts, b"")
            with partial.open("ab" if start else "wb") as stream:
                stream.write(first)
                for part in parts:
                    stream.write(part)
                    progress.advance(len(part) / 1e6)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise disk_full(partial) from error
        raise


def _md5(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "md5").hexdigest()
