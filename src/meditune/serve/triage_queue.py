"""The queue before triage: a bounded pool of threads, fair between callers, in which short messages never wait long.

An emergency must not wait for the model, so triage comes before every other queue, and messages that take long to
judge must not hold it up. The cost of triage grows with a message's length. Self-clocked fair queueing (Golestani,
INFOCOM 1994) with characters as the cost gives every caller an equal share, and serves a short message before long
ones. One thread is left to short messages, since a judgement that has begun can't be interrupted.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from dataclasses import dataclass, field
from typing import TypeVar

from meditune.serve.errors import ApiError, busy

Result = TypeVar("Result")
SHORT = 1_000
"""Characters of a message that may use the thread that is kept free of long ones"""
BASE_COST = 200
"""What a message costs beside its characters, in characters"""
RETRY_S = 5
OVERLOADED = (
    "The server has more messages to look at than it can at the moment. If this is an emergency, call your emergency "
    "number now. Otherwise try again later."
)


@dataclass(eq=False)
class _Entry:
    """A message that waits."""

    caller: str
    characters: int
    arrived: float
    """The virtual time then"""
    number: int
    turn: asyncio.Future[None] = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class TriageQueue:
    """At most `threads` messages are judged at once, at most `room` wait, none of them longer than `wait_s`."""

    def __init__(self, threads: int, room: int, wait_s: float) -> None:
        self.threads, self.room, self.wait_s = threads, room, wait_s
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="meditune-triage")
        self._waiting: list[_Entry] = []
        self._running = self._long = 0
        self._time = 0.0
        """Virtual: the finish tag of what was begun last"""
        self._served: dict[str, float] = {}
        """The finish tag of the last message of each caller that still waits with others"""
        self._numbers = itertools.count()

    async def run(self, caller: str, characters: int, judge: Callable[[], Result]) -> Result:
        """Return what `judge` returns; it runs in the pool when it is this message's turn.

        Raises ApiError 429 where there is no room, or no turn in time.
        """
        await self._enter(_Entry(caller, characters, self._time, next(self._numbers)))
        work = asyncio.get_running_loop().run_in_executor(self._pool, copy_context().run, judge)
        # The thread is free when the work has really ended, whether or not the caller is still there.
        work.add_done_callback(lambda _: self._leave(characters))
        return await asyncio.shield(work)

    @property
    def waiting(self) -> int:
        """Messages that wait for their turn."""
        return len(self._waiting)

    def close(self) -> None:
        """End the threads."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    async def _enter(self, entry: _Entry) -> None:
        self._waiting.append(entry)
        self._next()
        if len(self._waiting) > self.room:
            last = self._last()
            self._remove(last)
            if not last.turn.done():
                last.turn.set_exception(_overloaded())
        try:
            async with asyncio.timeout(self.wait_s):
                await entry.turn
        except TimeoutError:
            self._given_up(entry)
            raise _overloaded() from None
        except BaseException:
            self._given_up(entry)
            raise

    def _given_up(self, entry: _Entry) -> None:
        """Take out a message whose caller no longer waits, or hand on the turn that it has just been given."""
        if entry in self._waiting:
            self._remove(entry)
        elif entry.turn.done() and not entry.turn.cancelled() and entry.turn.exception() is None:
            self._leave(entry.characters)

    def _order(self, entry: _Entry) -> tuple[float, int]:
        """Its finish tag; the smallest is next."""
        begins = max(entry.arrived, self._served.get(entry.caller, 0.0))
        return begins + BASE_COST + entry.characters, entry.number

    def _last(self) -> _Entry:
        """The message whose turn would come last: a caller's messages follow one another, the shortest first."""
        tags: dict[str, float] = {}
        ranked = sorted(self._waiting, key=lambda entry: (entry.characters, entry.number))
        for entry in ranked:
            begins = max(entry.arrived, self._served.get(entry.caller, 0.0), tags.get(entry.caller, 0.0))
            tags[entry.caller] = begins + BASE_COST + entry.characters
        most = max(tags, key=lambda caller: tags[caller])
        return next(entry for entry in reversed(ranked) if entry.caller == most)

    def _next(self) -> None:
        """Begin whatever may begin."""
        while self._running < self.threads:
            free_of_long = self.threads > 1 and self._long >= self.threads - 1
            able = [entry for entry in self._waiting if not (free_of_long and entry.characters > SHORT)]
            if not able:
                return
            entry = min(able, key=self._order)
            if entry.turn.done():  # its caller has just left
                self._remove(entry)
                continue
            finish, _ = self._order(entry)
            self._time = max(self._time, finish)
            self._served[entry.caller] = finish
            self._remove(entry)
            self._running += 1
            self._long += entry.characters > SHORT
            entry.turn.set_result(None)

    def _remove(self, entry: _Entry) -> None:
        self._waiting.remove(entry)
        if not any(other.caller == entry.caller for other in self._waiting):
            self._served.pop(entry.caller, None)

    def _leave(self, characters: int) -> None:
        self._running -= 1
        self._long -= characters > SHORT
        self._next()


def _overloaded() -> ApiError:
    return busy(OVERLOADED, RETRY_S, "overloaded")
