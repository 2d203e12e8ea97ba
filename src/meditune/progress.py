"""Progress of long tasks: a bar with speed and time left in a terminal, plain lines elsewhere.

Nothing is shown for tasks that end within two seconds. With `report_to`, a program that uses Meditune as a library
receives the progress, and all other text for stderr, through a function.
"""

from __future__ import annotations

import os
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, TypeVar

Item = TypeVar("Item")

QUIET_SECONDS = 2.0
LINE_SECONDS = 15.0
BAR_SECONDS = 0.2
BAR = 24


@dataclass(frozen=True)
class ProgressUpdate:
    """A line that the command line would show: a message, or the progress of a task."""

    text: str
    label: str = ""  # the name of the task; empty for a message
    done: float = 0.0
    total: float | None = None  # the number of units of work; None if it is unknown
    unit: str = ""

    def __str__(self) -> str:
        return self.text


class _Listener:
    """Passes progress updates to a function, and text for stderr line by line."""

    def __init__(self, receive: Callable[[ProgressUpdate], object]) -> None:
        self._receive, self._text, self._lock = receive, "", threading.Lock()

    def write(self, text: str) -> None:
        with self._lock:
            *lines, self._text = (self._text + text).split("\n")
        for line in lines:
            self.send(ProgressUpdate(line.rstrip("\r").rpartition("\r")[2].strip()))

    def send(self, update: ProgressUpdate) -> None:
        # The function itself may write to stderr, for example a progress bar of its own.
        token = _LISTENER.set(None)
        try:
            if update.text:
                self._receive(update)
        finally:
            _LISTENER.reset(token)


_LISTENER: ContextVar[_Listener | None] = ContextVar("meditune_progress", default=None)


class _StderrOfContext:
    """Replaces sys.stderr: text from a context with a listener goes to this listener, other text to the stream."""

    installed, lock = 0, threading.Lock()

    def __init__(self, stream: Any) -> None:
        self.stream = stream

    def write(self, text: str) -> int:
        listener = _LISTENER.get()
        if listener is None:
            return int(self.stream.write(text))
        listener.write(text)
        return len(text)

    def isatty(self) -> bool:
        return _LISTENER.get() is None and bool(self.stream.isatty())

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


@contextmanager
def report_to(receive: Callable[[ProgressUpdate], object]) -> Iterator[None]:
    """Inside the block, call `receive` with progress and messages instead of showing them on stderr.

    This applies only to the current context (contextvars). Each thread can therefore have its own receiver, and threads
    without a receiver still write to stderr. An exception that `receive` raises stops the task.
    """
    with _StderrOfContext.lock:
        if not isinstance(sys.stderr, _StderrOfContext):
            sys.stderr = _StderrOfContext(sys.stderr)
        _StderrOfContext.installed += 1
    listener = _Listener(receive)
    token = _LISTENER.set(listener)
    try:
        yield
        listener.write("\n")
    finally:
        _LISTENER.reset(token)
        with _StderrOfContext.lock:
            _StderrOfContext.installed -= 1
            if not _StderrOfContext.installed and isinstance(sys.stderr, _StderrOfContext):
                sys.stderr = sys.stderr.stream


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
        self._listener = _LISTENER.get()

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, kind: object, value: object, trace: object) -> None:
        if self._listener:
            if kind is None:
                self._send()
            return
        printed = not self._terminal and self._shown == self.done
        if time.monotonic() - self._started >= QUIET_SECONDS and not printed:
            self._show(end="\n")

    def advance(self, amount: float = 1.0, note: str | None = None) -> None:
        """Add `amount` units of finished work."""
        self.done += amount
        if note is not None:
            self.note = note
        now = time.monotonic()
        if self._listener:
            if now - self._last >= BAR_SECONDS:
                self._last = now
                self._send()
        elif now - self._started >= QUIET_SECONDS and now - self._last >= (
            BAR_SECONDS if self._terminal else LINE_SECONDS
        ):
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
        # A line that wraps can't be overwritten, so shorten the bar first, then cut the line.
        columns = _columns() - 1
        width = min(BAR, columns - len("  ".join(parts)) - 2)
        if self.total and width > 0:
            filled = round(width * share)
            parts.insert(1, "━" * filled + "╌" * (width - filled))
        return "  ".join(parts)[:columns]

    def _send(self) -> None:
        if self._listener:
            self._listener.send(ProgressUpdate(self.line(), self.label, self.done, self.total, self.unit))

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
    """Yield the items, and show the progress."""
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
    """Return a duration in seconds as text with minutes and hours: 75 as "1:15", 3725 as "1:02:05"."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
