"""Bounded queues that are fair between callers: one for the engine, and one for triage before it."""

from __future__ import annotations

import asyncio
import itertools
import math
import time
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from contextvars import copy_context
from dataclasses import dataclass, field
from typing import TypeVar

from meditune.serve.api_errors import ApiError, too_many_requests

MAX_RETRY_S = 300


class Admission:
    """A queue in which at most `concurrency` requests run and at most `queue_size` wait, none longer than `wait_s`.

    A request that would have to wait longer, judged by the duration of recent requests, is refused at once. Callers
    take turns, so a caller with many requests delays only itself. If the queue is full, a request of a caller with few
    waiting requests displaces the newest request of the caller with the most.
    """

    def __init__(self, concurrency: int, queue_size: int, wait_s: float) -> None:
        self.concurrency, self.queue_size, self.wait_s = concurrency, queue_size, wait_s
        self.active = 0
        self._queues: OrderedDict[str, deque[asyncio.Future[None]]] = OrderedDict()
        self._mean_s = 1.0

    @property
    def waiting(self) -> int:
        """Return the number of waiting requests."""
        return sum(map(self._waits, self._queues))

    def expected_s(self) -> float:
        """Return the seconds until a new request would have its turn, estimated from the duration of recent ones."""
        return self._mean_s * (self.waiting + 1) / self.concurrency

    def retry_s(self) -> int:
        """Return `expected_s` in whole seconds, at least 1 and at most 300, for the Retry-After header."""
        return min(MAX_RETRY_S, max(1, math.ceil(self.expected_s())))

    @asynccontextmanager
    async def place(self, caller: str) -> AsyncIterator[float]:
        """Wait for a place, hold it for the block, and yield the seconds that the request waited.

        Raises ApiError 429 if the queue is full, or if there is no turn in time.
        """
        asked = time.monotonic()
        await self._enter(caller)
        begun = time.monotonic()
        try:
            yield begun - asked
        finally:
            self._mean_s += 0.2 * (time.monotonic() - begun - self._mean_s)
            self.active -= 1
            self._next()

    @contextmanager
    def reserve_free(self, count: int) -> Iterator[int]:
        """Hold up to `count` further places for the block and yield their number: those free while nobody waits."""
        taken = 0 if self._queues else max(0, min(count, self.concurrency - self.active))
        self.active += taken
        try:
            yield taken
        finally:
            self.active -= taken
            self._next()

    async def _enter(self, caller: str) -> None:
        if self.active < self.concurrency and not self._queues:
            self.active += 1
            return
        full = self.waiting >= self.queue_size or (self._queues and self.expected_s() > self.wait_s)
        if full and not self._displaced(caller):
            raise self._full()
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._queues.setdefault(caller, deque()).append(turn)
        try:
            async with asyncio.timeout(self.wait_s):
                await turn
        except TimeoutError:
            self._left(caller, turn)
            raise self._full() from None
        except BaseException:
            self._left(caller, turn)
            raise

    def _full(self) -> ApiError:
        return too_many_requests("The server is at capacity. Try again later.", self.retry_s(), "overloaded")

    def _left(self, caller: str, turn: asyncio.Future[None]) -> None:
        """Remove a request that no longer waits, or pass on the place that it has just been given."""
        if turn.done() and not turn.cancelled() and turn.exception() is None:
            self.active -= 1
            self._next()
            return
        queue = self._queues.get(caller)
        if queue and turn in queue:
            queue.remove(turn)
        if queue is not None and not queue:
            del self._queues[caller]

    def _displaced(self, caller: str) -> bool:
        if not self._queues:
            return False
        most = max(self._queues, key=self._waits)
        if self._waits(most) <= self._waits(caller) + 1:
            return False
        youngest = next(turn for turn in reversed(self._queues[most]) if not turn.done())
        self._queues[most].remove(youngest)
        youngest.set_exception(self._full())
        return True

    def _waits(self, caller: str) -> int:
        """Return the number of a caller's waiting requests; those just cancelled may still be in the queue."""
        return sum(not turn.done() for turn in self._queues.get(caller, ()))

    def _next(self) -> None:
        """Give a free place to the caller whose turn it is."""
        while self._queues and self.active < self.concurrency:
            who, queue = next(iter(self._queues.items()))
            turn = queue.popleft()
            del self._queues[who]
            if queue:
                self._queues[who] = queue
            if not turn.done():
                self.active += 1
                turn.set_result(None)


Result = TypeVar("Result")
SHORT = 1_000
"""The maximum length of a message that may use the thread reserved for short messages, in characters"""
BASE_COST = 200
"""The fixed cost of a message, added to its length, in characters"""
RETRY_S = 5
OVERLOADED = (
    "The server has too many messages at the moment. If this is an emergency, call your emergency number now. "
    "Otherwise try again later."
)


@dataclass(eq=False)
class _Entry:
    """A waiting message."""

    caller: str
    characters: int
    arrived: float
    """The virtual time of its arrival"""
    number: int
    turn: asyncio.Future[None] = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class TriageQueue:
    """A queue for triage: at most `threads` messages are judged at once, at most `room` wait, none over `wait_s`.

    An emergency must not wait for the model, so triage comes before the engine's queue, and messages that take long to
    judge must not delay it. The cost of triage grows with a message's length. Self-clocked fair queueing (Golestani,
    INFOCOM 1994) with characters as the cost gives every caller an equal share, and serves short messages before long
    ones. One thread is reserved for short messages, since a judgement that has begun can't be interrupted.
    """

    def __init__(self, threads: int, queue_size: int, wait_s: float) -> None:
        self.threads, self.queue_size, self.wait_s = threads, queue_size, wait_s
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="meditune-triage")
        self._waiting: list[_Entry] = []
        self._running = self._long = 0
        self._time = 0.0
        """The virtual time: the finish tag of the message that began last"""
        self._served: dict[str, float] = {}
        """The finish tag of the last served message of each caller that still has waiting messages"""
        self._numbers = itertools.count()

    async def run(self, caller: str, characters: int, judge: Callable[[], Result]) -> Result:
        """Return the result of `judge`, which runs in the pool when it is this message's turn.

        Raises ApiError 429 if the queue is full, or if there is no turn in time.
        """
        await self._enter(_Entry(caller, characters, self._time, next(self._numbers)))
        work = asyncio.get_running_loop().run_in_executor(self._pool, copy_context().run, judge)
        # The thread is free only when the work has really ended, even if the caller is gone.
        work.add_done_callback(lambda _: self._leave(characters))
        return await asyncio.shield(work)

    @property
    def waiting(self) -> int:
        """Return the number of waiting messages."""
        return len(self._waiting)

    def close(self) -> None:
        """Shut down the threads."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    async def _enter(self, entry: _Entry) -> None:
        self._waiting.append(entry)
        self._next()
        if len(self._waiting) > self.queue_size:
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
        """Remove a message whose caller no longer waits, or pass on the turn that it has just been given."""
        if entry in self._waiting:
            self._remove(entry)
        elif entry.turn.done() and not entry.turn.cancelled() and entry.turn.exception() is None:
            self._leave(entry.characters)

    def _order(self, entry: _Entry) -> tuple[float, int]:
        """Return a message's finish tag; the message with the smallest is next."""
        begins = max(entry.arrived, self._served.get(entry.caller, 0.0))
        return begins + BASE_COST + entry.characters, entry.number

    def _last(self) -> _Entry:
        """Return the message whose turn would come last. A caller's messages are served shortest first."""
        tags: dict[str, float] = {}
        ranked = sorted(self._waiting, key=lambda entry: (entry.characters, entry.number))
        for entry in ranked:
            begins = max(entry.arrived, self._served.get(entry.caller, 0.0), tags.get(entry.caller, 0.0))
            tags[entry.caller] = begins + BASE_COST + entry.characters
        most = max(tags, key=lambda caller: tags[caller])
        return next(entry for entry in reversed(ranked) if entry.caller == most)

    def _next(self) -> None:
        """Start the messages whose turn it is, while threads are free."""
        while self._running < self.threads:
            free_of_long = self.threads > 1 and self._long >= self.threads - 1
            able = [entry for entry in self._waiting if not (free_of_long and entry.characters > SHORT)]
            if not able:
                return
            entry = min(able, key=self._order)
            if entry.turn.done():  # the caller has just disconnected
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
    return too_many_requests(OVERLOADED, RETRY_S, "overloaded")
