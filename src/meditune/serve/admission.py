"""Bounded queues that share capacity fairly among callers: one for triage, then one for the engine."""

from __future__ import annotations

import asyncio
import itertools
import math
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from contextvars import copy_context
from dataclasses import dataclass, field
from typing import TypeVar

from meditune.serve.api_errors import ApiError, too_many_requests

Result = TypeVar("Result")


@dataclass(eq=False)
class _Entry:
    """A waiting request."""

    caller: str
    cost: int
    arrived: float
    """The virtual time at which the request arrived"""
    number: int
    turn: asyncio.Future[None] = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class FairQueue:
    """A queue in which at most `places` requests run and at most `queue_size` wait, each for at most `wait_s`
    seconds.

    Self-clocked fair queueing (Golestani, INFOCOM 1994) gives every caller an equal share of the capacity, and serves
    cheap requests before expensive requests. If the queue is full, the request whose turn would come last is refused,
    so a caller with many requests delays only itself. If there are several places, one place is reserved for requests
    that cost at most `cheap`, because a running request can't be interrupted.
    """

    def __init__(self, places: int, queue_size: int, wait_s: float, cheap: float = math.inf) -> None:
        self.places, self.queue_size, self.wait_s, self._cheap = places, queue_size, wait_s, cheap
        self.active = self._expensive = 0
        self._waiting: list[_Entry] = []
        self._time = 0.0
        """The virtual time: the largest finish tag of the requests that have begun"""
        self._served: dict[str, float] = {}
        """Caller with waiting requests -> the finish tag of the caller's latest request that has begun"""
        self._numbers = itertools.count()

    @property
    def waiting(self) -> int:
        """Return the number of waiting requests, not counting requests that have just been cancelled."""
        return sum(not entry.turn.done() for entry in self._waiting)

    async def enter(self, caller: str, cost: int = 1) -> None:
        """Wait for a place. Raises ApiError 429 if the queue is full, or if no place becomes free in time."""
        entry = _Entry(caller, cost, self._time, next(self._numbers))
        self._waiting.append(entry)
        self._next()
        if self._is_full():
            last = self._last()
            self._remove(last)
            last.turn.set_exception(self._refusal())
        try:
            async with asyncio.timeout(self.wait_s):
                await entry.turn
        except BaseException as error:
            if entry in self._waiting:
                self._remove(entry)
            elif entry.turn.done() and not entry.turn.cancelled() and entry.turn.exception() is None:
                self.leave(cost)  # the turn came while the caller was leaving
            if isinstance(error, TimeoutError):
                raise self._refusal() from None
            raise

    def leave(self, cost: int = 1) -> None:
        """Free the place of a request with this cost, and start the next request."""
        self.active -= 1
        self._expensive -= cost > self._cheap
        self._next()

    def _is_full(self) -> bool:
        return self.waiting > self.queue_size

    def _refusal(self) -> ApiError:
        """Return the error for a request that the queue refuses."""
        raise NotImplementedError

    def _order(self, entry: _Entry, begins: float = 0.0) -> tuple[float, int]:
        """Return a request's finish tag and number. The smallest pair is next; `begins` is the earliest start."""
        return max(entry.arrived, self._served.get(entry.caller, 0.0), begins) + entry.cost, entry.number

    def _last(self) -> _Entry:
        """Return the request whose turn would come last. A caller's requests are served cheapest first."""
        last: dict[str, tuple[float, int, _Entry]] = {}
        alive = (entry for entry in self._waiting if not entry.turn.done())
        for entry in sorted(alive, key=lambda entry: (entry.cost, entry.number)):
            before = last[entry.caller][0] if entry.caller in last else 0.0
            last[entry.caller] = *self._order(entry, before), entry
        return max(last.values())[-1]

    def _next(self) -> None:
        """Start waiting requests in order of their turns while places are free."""
        while self.active < self.places:
            only_cheap = self.places > 1 and self._expensive >= self.places - 1
            able = [entry for entry in self._waiting if not (only_cheap and entry.cost > self._cheap)]
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
            self.active += 1
            self._expensive += entry.cost > self._cheap
            entry.turn.set_result(None)

    def _remove(self, entry: _Entry) -> None:
        self._waiting.remove(entry)
        if not any(other.caller == entry.caller for other in self._waiting):
            self._served.pop(entry.caller, None)


MAX_RETRY_S = 300


class Admission(FairQueue):
    """The engine's queue. It refuses requests that would wait too long, judging by the durations of recent requests."""

    _mean_s = 1.0

    def retry_s(self) -> int:
        """Return the estimated seconds until a new request would get its turn, between 1 and 300."""
        return min(MAX_RETRY_S, max(1, math.ceil(self._mean_s * (self.waiting + 1) / self.places)))

    @asynccontextmanager
    async def place(self, caller: str) -> AsyncIterator[float]:
        """Wait for a place, hold it during the block, and yield the number of seconds that the request waited.

        Raises ApiError 429 if the queue is full, or if no place becomes free in time.
        """
        asked = time.monotonic()
        await self.enter(caller)
        begun = time.monotonic()
        try:
            yield begun - asked
        finally:
            self._mean_s += 0.2 * (time.monotonic() - begun - self._mean_s)
            self.leave()

    @contextmanager
    def reserve_free(self, count: int) -> Iterator[int]:
        """Hold up to `count` free places during the block, and yield the number held (0 if requests wait)."""
        taken = 0 if self._waiting else max(0, min(count, self.places - self.active))
        self.active += taken
        try:
            yield taken
        finally:
            self.active -= taken
            self._next()

    def _is_full(self) -> bool:
        waiting = self.waiting
        return waiting > self.queue_size or (waiting > 1 and self._mean_s * waiting / self.places > self.wait_s)

    def _refusal(self) -> ApiError:
        return too_many_requests("The server is at capacity. Try again later.", self.retry_s(), "overloaded")


SHORT = 1_000
"""The maximum number of characters that are read on the thread reserved for short messages"""
BASE_COST = 200
"""The fixed cost of a message, added to the number of characters that are read"""
RETRY_S = 5
OVERLOADED = (
    "The server has too many messages at the moment. If this is an emergency, call your emergency number now. "
    "Otherwise try again later."
)


class TriageQueue(FairQueue):
    """The queue for triage. The cost of a message grows with the characters that are read, earlier messages included.

    An emergency must wait neither for the model nor for messages that take long to judge. So triage comes before the
    engine's queue, and one thread is reserved for short messages.
    """

    def __init__(self, threads: int, queue_size: int, wait_s: float) -> None:
        super().__init__(threads, queue_size, wait_s, cheap=BASE_COST + SHORT)
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="meditune-triage")

    async def run(self, caller: str, characters: int, judge: Callable[[], Result]) -> Result:
        """Return the result of `judge`, which reads this number of characters, in the pool when it is its turn.

        Raises ApiError 429 if the queue is full, or if the turn doesn't come in time.
        """
        cost = BASE_COST + characters
        await self.enter(caller, cost)
        work = asyncio.get_running_loop().run_in_executor(self._pool, copy_context().run, judge)
        # The thread stays busy until the work has ended, even if the caller is gone. Only then is its place freed.
        work.add_done_callback(lambda _: self.leave(cost))
        return await asyncio.shield(work)

    def close(self) -> None:
        """Shut down the threads."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _refusal(self) -> ApiError:
        return too_many_requests(OVERLOADED, RETRY_S, "overloaded")
