"""HTTP requests with exponential back-off, Retry-After, a minimum interval, and network errors as sentences.

`httpx2.HTTPTransport(retries=...)` isn't used, because it retries only failed connections, and ignores status codes and
Retry-After.
"""

from __future__ import annotations

import email.utils
import math
import os
import random
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from meditune.errors import DataError, MedituneError
from meditune.text import counted

TRANSIENT_STATUS = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 520, 522, 524, 529})
PRINTED_FROM = 5.0
"""Waits of at least this many seconds are printed."""
RETRY_LATER, RETRY_TO_RESUME = "Try again later.", "Run the same command later to resume."
"""Last sentences of messages about a failed request; the second is for commands that can resume."""

Result = TypeVar("Result")


def switched_on(*variables: str) -> str:
    """Return the first environment variable whose value is 1, true, yes or on; empty if there is none."""
    on = {"1", "true", "yes", "on"}
    return next((name for name in variables if os.environ.get(name, "").strip().lower() in on), "")


class TransientError(Exception):
    """A failure after which a request may be retried. The message continues a sentence about the server."""

    def __init__(self, reason: str, wait: float | None = None, maybe_processed: bool = True) -> None:
        """`wait` is the pause in seconds that the server asks for; `maybe_processed` is False if the server rejected
        the request before processing it.
        """
        super().__init__(reason)
        self.wait, self.maybe_processed = wait, maybe_processed


@dataclass(frozen=True)
class Backoff:
    """The number of attempts at a request, and the pauses between them in seconds."""

    attempts: int
    first_wait: float = 1.0
    """The pause doubles with each attempt, and up to a quarter of it is subtracted at random."""
    max_wait_s: float = 30.0
    longest_requested: float = 120.0
    """If a server asks for a longer pause, the request fails at once."""


def retry(
    send: Callable[[], Result],
    backoff: Backoff,
    subject: str,
    error: type[MedituneError] = DataError,
    pause: Callable[[float], object] = time.sleep,
    find: Callable[[], Result | None] = lambda: None,
    advice: str = RETRY_LATER,
) -> Result:
    """Return the result of `send`, which is called again after a TransientError.

    Messages begin with `subject`, the server, and end with `advice`. `pause` receives the seconds to wait: the computed
    pause, or the pause that the server asks for if that is longer. If `pause` returns True, no further request is sent.
    If the server may have processed a request, `find` is called before the next attempt and before giving up; its
    result, if not None, is returned. Raises `error` after the last attempt.
    """
    for attempt in range(1, backoff.attempts + 1):
        try:
            return send()
        except TransientError as failure:
            requested = failure.wait or 0.0
            if requested > backoff.longest_requested:
                pause_text = f"asks for a pause of {requested:.0f} seconds"
                raise error(f"{subject} {failure} and {pause_text}. {advice}") from failure
            gave_up = error(f"{subject} {failure}; gave up after {counted(attempt, 'attempt')}. {advice}")
            last = attempt == backoff.attempts
            if not last:
                doubled = backoff.first_wait * 2 ** (attempt - 1)
                wait = max(requested, min(backoff.max_wait_s, doubled) * random.uniform(0.75, 1.0))
                if wait >= PRINTED_FROM:
                    print(f"{subject} {failure}; trying again in {wait:.0f} s.", file=sys.stderr)
                if pause(wait) is True:
                    raise gave_up from failure
            found = find() if failure.maybe_processed else None
            if found is not None:
                return found
            if last:
                raise gave_up from failure
    raise AssertionError("a back-off has at least one attempt")


@contextmanager
def network_errors() -> Iterator[None]:
    """Translate httpx2's errors to TransientError, but errors about an invalid URL to DataError."""
    import httpx2

    try:
        yield
    except (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.PoolTimeout) as error:
        raise TransientError("can't be reached", maybe_processed=False) from error
    except httpx2.TimeoutException as error:
        raise TransientError("didn't answer in time") from error
    except (httpx2.InvalidURL, httpx2.UnsupportedProtocol) as error:
        raise DataError(f"Not a valid URL ({error}). Write it as https://...") from error
    except httpx2.RequestError as error:
        raise TransientError(f"closed the connection ({type(error).__name__})") from error


def refuse_transient(response: Any) -> None:
    """Raise TransientError if a response's status means that a retry may succeed."""
    if response.status_code in TRANSIENT_STATUS:
        # A server checks rate limits before it processes a request; other errors may occur later.
        status = response.status_code
        raise TransientError(f"answers {status}", retry_after(response.headers), maybe_processed=status != 429)


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Return the pause in seconds from OpenAI's retry-after-ms or from Retry-After (RFC 9110); None without either."""
    for name, divisor in (("retry-after-ms", 1000.0), ("retry-after", 1.0)):
        try:
            seconds = float(headers.get(name, "")) / divisor
        except ValueError:
            continue
        if math.isfinite(seconds):
            return max(0.0, seconds)
    date = email.utils.parsedate_tz(headers.get("retry-after", ""))
    return max(0.0, email.utils.mktime_tz(date) - time.time()) if date else None


class HttpClient:
    """A thread-safe HTTP client that translates network errors and retries requests. Close it after use."""

    def __init__(
        self,
        backoff: Backoff,
        error: type[MedituneError] = DataError,
        interval: float = 0.0,
        advice: str = RETRY_LATER,
        **options: Any,
    ) -> None:
        """`interval` is the minimum time in seconds between requests. The messages of `retry` end with `advice`.
        `options` are passed to `httpx2.Client`.
        """
        import httpx2

        self._http = httpx2.Client(**options)
        self._backoff, self._error, self._advice = backoff, error, advice
        self.interval = interval
        self._turn = threading.Lock()
        self._last = float("-inf")
        self.stopped = threading.Event()
        """Set to end retries in all threads"""

    def close(self) -> None:
        """Close the connections, and end retries in all threads."""
        self.stopped.set()
        self._http.close()

    def request(self, method: str, url: str, **options: Any) -> Any:
        """Return the response to one request. Raises TransientError if the network fails, DataError for a bad URL."""
        self._wait_for_turn()
        with network_errors():
            return self._http.request(method, url, **options)

    @contextmanager
    def stream(self, method: str, url: str, **options: Any) -> Iterator[Any]:
        """Yield the response to one request before its body is read. Reading the body raises the same errors."""
        self._wait_for_turn()
        with network_errors(), self._http.stream(method, url, **options) as response:
            yield response

    def retry(
        self, send: Callable[[], Result], subject: str, find: Callable[[], Result | None] = lambda: None
    ) -> Result:
        """Return the result of `send`, with retries by the function `retry`."""
        return retry(send, self._backoff, subject, self._error, self.stopped.wait, find, self._advice)

    def _wait_for_turn(self) -> None:
        if self.interval:
            with self._turn:
                time.sleep(max(0.0, self._last + self.interval - time.monotonic()))
                self._last = time.monotonic()
