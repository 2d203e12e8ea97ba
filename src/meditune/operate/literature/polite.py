"""Requests to NCBI's servers as they ask for them: who asks, how often, and what is done when they are busy.

NCBI allows 3 requests a second, 10 with a key of one's own, wants `tool` and `email` in each, and answers 429 to more
(https://www.ncbi.nlm.nih.gov/books/NBK25497/, https://support.nlm.nih.gov/kbArticle/?pn=KA-05510).
"""

from __future__ import annotations

import random
import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar
from urllib.parse import urlsplit

from meditune import __version__
from meditune.errors import DataError
from meditune.models.api.retry import PassingError, wait_asked_for

KEY_VARIABLE = "NCBI_API_KEY"
TOOL = "meditune"
INTERVAL, INTERVAL_WITH_KEY = 0.34, 0.11
"""Seconds from one request to the next: a little more than a third, and a tenth."""
SLOWEST = 5.0
"""After an answer of 429 the interval doubles, up to this."""
ATTEMPTS = 6
FIRST_WAIT, LONGEST_WAIT = 1.0, 30.0
LONGEST_ASKED_FOR = 300.0
"""Who asks for a longer pause is left alone until the user comes back."""
SAID_FROM = 5.0
CONNECT_SECONDS, READ_SECONDS = 15.0, 60.0
WHOLE_SECONDS = 900.0
"""An answer that is still coming after so long is given up, however steadily it drips."""
LARGEST = 2**28
_MAY_PASS = {408, 425, 429, 500, 502, 503, 504}
_ADDRESS = re.compile(r"[^@\s]+@[^@\s]+\.[^@\s.]+")

Result = TypeVar("Result")


def contact(email: str | None) -> str:
    """The address. Raises DataError where there is none to write to."""
    if email and _ADDRESS.fullmatch(email.strip()):
        return email.strip()
    what = f"{email!r} is no address to write to" if email else "nobody is named"
    raise DataError(
        f"NCBI asks for an address to write to before it blocks anyone, and {what}. Give yours: --email "
        "YOU@EXAMPLE.ORG, or the variable MEDITUNE_CONTACT."
    )


class Polite:
    """One server. Close it when done."""

    def __init__(self, email: str, key: str | None = None) -> None:
        import httpx2

        self._http = httpx2.Client(
            headers={"User-Agent": f"{TOOL}/{__version__} (mailto:{email})"},
            timeout=httpx2.Timeout(READ_SECONDS, connect=CONNECT_SECONDS),
            follow_redirects=True,
        )
        self.parameters = {"tool": TOOL, "email": email} | ({"api_key": key} if key else {})
        """What the E-utilities want in each request"""
        self._interval = INTERVAL_WITH_KEY if key else INTERVAL
        self._last = float("-inf")
        self.today = ""
        """The date of the last answer by the server's clock, in ISO 8601"""

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def until_it_works(self, once: Callable[[], Result], what: str) -> Result:
        """What `once` gives, tried again where it raises PassingError. Raises DataError after the last attempt."""
        reason = ""
        for attempt in range(ATTEMPTS):
            try:
                return once()
            except PassingError as passing:
                reason = passing.reason
                backoff = min(LONGEST_WAIT, FIRST_WAIT * 2**attempt) * random.uniform(0.75, 1.0)
                wait = backoff if passing.wait is None else passing.wait
                if wait > LONGEST_ASKED_FOR:
                    raise DataError(
                        f"{what} {reason} and asks to come back in {wait:.0f} seconds. Run the same command then; it "
                        "goes on from here."
                    ) from passing
                if attempt + 1 < ATTEMPTS:
                    if wait >= SAID_FROM:
                        print(f"{what} {reason}; trying again in {wait:.0f} s.", file=sys.stderr)
                    time.sleep(wait)
        raise DataError(
            f"{what} {reason}; {ATTEMPTS} attempts were made. Run the same command later; it goes on from here."
        )

    def content(self, url: str, parameters: dict[str, str] | None = None, post: bool = False) -> bytes:
        """The bytes of one answer. Raises PassingError where another request may work, else DataError."""
        found = bytearray()
        with self._answer(url, parameters, post) as pieces:
            for piece in pieces:
                found += piece
                if len(found) > LARGEST:
                    raise DataError(f"{_shown(url)} sends more than {LARGEST // 2**20} MB. Is the address right?")
        return bytes(found)

    def size(self, url: str) -> int:
        """The bytes of a file there; 0 where the server doesn't say. Raises as `content`."""
        import httpx2

        self._wait_for_turn()
        with _told(httpx2):
            answer = self._http.head(url, headers={"Accept-Encoding": "identity"})
        if answer.status_code in (405, 501):
            return 0
        self._note(answer)
        length = answer.headers.get("content-length", "")
        return int(length) if length.isdecimal() else 0

    def rest(self, url: str, start: int) -> Iterator[bytes]:
        """The bytes of a file there from `start` on, as they are stored and as they come.

        Raises StartedOverError where the server can't begin there; otherwise as `content`.
        """
        import httpx2

        self._wait_for_turn()
        headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={start}-"} if start else {})
        with _told(httpx2), self._http.stream("GET", url, headers=headers) as answer:
            self._note(answer)
            if start and answer.status_code != 206:
                raise StartedOverError
            yield from _in_time(answer.iter_raw())

    @contextmanager
    def _answer(self, url: str, parameters: dict[str, str] | None, post: bool) -> Iterator[Iterator[bytes]]:
        """The pieces of one answer as they come."""
        import httpx2

        self._wait_for_turn()
        options: dict[str, Any] = {"data" if post else "params": parameters} if parameters else {}
        with _told(httpx2), self._http.stream("POST" if post else "GET", url, **options) as answer:
            self._note(answer)
            yield _in_time(answer.iter_bytes())

    def _wait_for_turn(self) -> None:
        time.sleep(max(0.0, self._last + self._interval - time.monotonic()))
        self._last = time.monotonic()

    def _note(self, answer: Any) -> None:
        """Learn the date, and raise where the status is no success."""
        if date := answer.headers.get("date"):
            try:
                self.today = parsedate_to_datetime(date).date().isoformat()
            except ValueError:
                self.today = self.today or ""
        status = answer.status_code
        if status == 429:
            self.slow_down()
        if status in _MAY_PASS:
            raise PassingError(f"answers {status}", wait_asked_for(answer.headers))
        if not answer.is_success and status not in (400, 416):
            advice = {403: "Check the key and the address.", 404: "Check the address."}.get(status, "")
            raise DataError(f"{_shown(str(answer.url))} answers {status}. {advice}".rstrip())

    def slow_down(self) -> None:
        """Ask half as often from now on."""
        self._interval = min(SLOWEST, self._interval * 2)


class StartedOverError(Exception):
    """The server sends a file from its beginning although its rest was asked for."""


@contextmanager
def _told(httpx2: Any) -> Iterator[None]:
    """Turn what a connection raises into PassingError."""
    try:
        yield
    except (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.PoolTimeout) as error:
        raise PassingError("can't be reached") from error
    except httpx2.TimeoutException as error:
        raise PassingError("didn't answer in time") from error
    except httpx2.InvalidURL as error:
        raise DataError(f"{error}: no address to ask. Write it as https://...") from error
    except httpx2.UnsupportedProtocol as error:
        raise DataError(f"{error} Give an address that begins with https:// or http://.") from error
    except httpx2.RequestError as error:
        raise PassingError(f"broke the connection off ({type(error).__name__})") from error


def _in_time(pieces: Iterator[bytes]) -> Iterator[bytes]:
    end = time.monotonic() + WHOLE_SECONDS
    for piece in pieces:
        yield piece
        if time.monotonic() > end:
            raise PassingError(f"needs more than {WHOLE_SECONDS / 60:.0f} minutes for one answer")


def _shown(url: str) -> str:
    """An address without its parameters, among which a key may be."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}{parts.path}"
