"""What a failed request says: whether it may pass, when to come back, and what may be shown of it."""

from __future__ import annotations

import email.utils
import math
import time
from collections.abc import Iterable, Mapping

SHOWN = 300
WINDOW = 20
"""So many characters that the request has too are an echo of it."""


class PassingError(Exception):
    """A trouble that may pass."""

    def __init__(self, reason: str, wait: float | None = None, maybe_done: bool = True) -> None:
        super().__init__(reason)
        self.reason, self.wait, self.maybe_done = reason, wait, maybe_done


def wait_asked_for(headers: Mapping[str, str]) -> float | None:
    """Seconds in Retry-After, a number or a date (RFC 9110), or in OpenAI's retry-after-ms; None without either."""
    for name, divisor in (("retry-after-ms", 1000.0), ("retry-after", 1.0)):
        try:
            seconds = float(headers.get(name, "")) / divisor
        except ValueError:
            continue
        if math.isfinite(seconds):
            return max(0.0, seconds)
    date = email.utils.parsedate_tz(headers.get("retry-after", ""))
    return max(0.0, email.utils.mktime_tz(date) - time.time()) if date else None


def echoless(message: str, secrets: Iterable[str]) -> str:
    """The message's beginning, with what it repeats of the secrets masked."""
    shown = " ".join(message[:SHOWN].split())
    masked = [False] * len(shown)
    for secret in map(_plain, secrets):
        window = min(WINDOW, len(secret))
        for start in range(len(shown) - window + 1) if window else ():
            if shown[start : start + window] in secret:
                masked[start : start + window] = [True] * window
    return "".join(
        "" if hidden and masked[index - 1 : index] == [True] else "…" if hidden else character
        for index, (character, hidden) in enumerate(zip(shown, masked, strict=True))
    )


def _plain(text: str) -> str:
    return " ".join(text.split())
