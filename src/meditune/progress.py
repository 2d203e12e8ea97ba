"""Progress of long tasks: a bar with speed and time left in a terminal, plain lines elsewhere.

Nothing is shown for tasks that end within two seconds.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Iterable, Iterator, Sized
from typing import TypeVar

Item = TypeVar("Item")

QUIET_SECONDS = 2.0
LINE_SECONDS = 15.0
BAR = 24


class Progress:
    """A counter of units of work up to `total` (None if unknown), shown on stderr.

    Use it as a context manager and call `advance`. `note` is shown after the numbers ("loss 2.31").
    """

    def __init__(self, label: str, total: float | None, unit: str = "items") -> None:
        self.label, self.total, self.unit = label, total, unit
        self.done = 0.0
        self.note = ""
        self._started = time.monotonic()
        self._last = self._started
        self._last_length = 0
        self._shown = -1.0
        self._terminal = sys.stderr.isatty()

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, kind: object, value: object, trace: object) -> None:
        printed = not self._terminal and self._shown == self.done
        if time.monotonic() - self._started >= QUIET_SECONDS and not printed:
            self._show(end="\n")

    def advance(self, amount: float = 1.0, note: str | None = None) -> None:
        """Add `amount` units of finished work."""
        self.done += amount
        if note is not None:
            self.note = note
        now = time.monotonic()
        if now - self._started < QUIET_SECONDS:
            return
        if now - self._last >= (0.2 if self._terminal else LINE_SECONDS):
            self._last = now
            self._show(end="" if self._terminal else "\n")

    def line(self) -> str:
        """Return the current line: label, bar or count, speed, time left, note; cut to the terminal's width."""
        seconds = max(time.monotonic() - self._started, 1e-9)
        speed = self.done / seconds
        parts = [self.label]
        if self.total:
            share = min(self.done / self.total, 1.0)
            parts.append(f"{share:4.0%}  {self.done:,.0f}/{self.total:,.0f} {self.unit}")
            left = (self.total - self.done) / speed if speed else float("inf")
            timing = f"{clock(left)} left" if 0 < left < float("inf") else clock(seconds)
        else:
            parts.append(f"{self.done:,.0f} {self.unit}")
            timing = clock(seconds)
        parts += [f"{speed:,.3g} {self.unit}/s" if speed < 1000 else f"{speed:,.0f} {self.unit}/s", timing]
        if self.note:
            parts.append(self.note)
        if not self._terminal:
            return "  ".join(parts)
        # A wrapped line can't be overwritten; the bar is shortened first.
        columns = _columns() - 1
        width = min(BAR, columns - len("  ".join(parts)) - 2)
        if self.total and width > 0:
            filled = round(width * share)
            parts.insert(1, "━" * filled + "╌" * (width - filled))
        return "  ".join(parts)[:columns]

    def _show(self, end: str) -> None:
        text = self.line()
        self._shown = self.done
        if self._terminal:
            padding = " " * max(0, self._last_length - len(text))
            sys.stderr.write(f"\r{text}{padding}{end}")
            self._last_length = len(text)
        else:
            sys.stderr.write(f"{text}\n")
        sys.stderr.flush()


def track(items: Iterable[Item], label: str, total: int | None = None, unit: str = "items") -> Iterator[Item]:
    """Yield the items and show the progress."""
    if total is None and isinstance(items, Sized):
        total = len(items)
    with Progress(label, total, unit) as progress:
        for item in items:
            yield item
            progress.advance()


def _columns() -> int:
    """Return the width of stderr's terminal in characters."""
    try:
        return os.get_terminal_size(sys.stderr.fileno()).columns or 80
    except OSError:
        return shutil.get_terminal_size().columns


def clock(seconds: float) -> str:
    """Return seconds as minutes and hours: `75` as `1:15`, `3725` as `1:02:05`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
