"""Bounded queues that are fair between callers: one for the engine, and one for triage before it."""

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
    """The virtual time of its arrival"""
    number: int
    turn: asyncio.Future[None] = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class FairQueue:
    """A queue in which at most `places` requests run and at most `queue_size` wait, none longer than `wait_s`.

    Self-clocked fair queueing (Golestani, INFOCOM 1994) gives every caller an equal share of the costs, and serves
    cheap requests before expensive ones. If the queue is full, the request whose turn would come last is refused, so a
    caller with many requests delays only itself. If there are several places, one is reserved for requests that cost at
    most `cheap`, since a request that has begun can't be interrupted.
    """

    def __init__(self, places: int, queue_size: int, wait_s: float, cheap: float = math.inf) -> None:
        self.places, self.queue_size, self.wait_s, self._cheap = places, queue_size, wait_s, cheap
        self.active = self._expensive = 0
        self._waiting: list[_Entry] = []
        self._time = 0.0
        """The virtual time: the finish tag of the request that began last"""
        self._served: dict[str, float] = {}
        """The finish tag of the last served request of each caller that still has waiting requests"""
        self._numbers = itertools.count()

    @property
    def waiting(self) -> int:
        """Return the number of waiting requests, without those that were just cancelled."""
        return sum(not entry.turn.done() for entry in self._waiting)

    async def enter(self, caller: str, cost: int = 1) -> None:
        """Wait for a place. Raises ApiError 429 if the queue is full, or if the turn doesn't come in time."""
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
        """Free a place."""
        self.active -= 1
        self._expensive -= cost > self._cheap
        self._next()

    def _is_full(self) -> bool:
        return self.waiting > self.queue_size

    def _refusal(self) -> ApiError:
        """Return the error for a request that can't wait."""
        raise NotImplementedError

    def _order(self, entry: _Entry, begins: float = 0.0) -> tuple[float, int]:
        """Return a request's finish tag and number; the smallest pair is next. `begins` is its earliest start."""
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
        """Start the requests whose turn it is, while places are free."""
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
    """The engine's queue. A request that would wait too long, judged by the duration of recent ones, is refused."""

    _mean_s = 1.0

    def retry_s(self) -> int:
        """Return the estimated seconds until a new request would have its turn, at least 1 and at most 300."""
        return min(MAX_RETRY_S, max(1, math.ceil(self._mean_s * (self.waiting + 1) / self.places)))

    @asynccontextmanager
    async def place(self, caller: str) -> AsyncIterator[float]:
        """Wait for a place, hold it for the block, and yield the seconds that the request waited.

        Raises ApiError 429 if the queue is full, or if the turn doesn't come in time.
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
        """Hold up to `count` free places for the block, and yield their number; it is 0 while requests wait."""
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
"""The maximum length of a message that may use the thread reserved for short messages, in characters"""
BASE_COST = 200
"""The fixed cost of a message, added to its length, in characters"""
RETRY_S = 5
OVERLOADED = (
    "The server has too many messages at the moment. If this is an emergency, call your emergency number now. "
    "Otherwise try again later."
)


class TriageQueue(FairQueue):
    """The queue for triage, whose cost grows with a message's length.

    An emergency must not wait for the model, so triage comes before the engine's queue, and messages that take long to
    judge must not delay it.
    """

    def __init__(self, threads: int, queue_size: int, wait_s: float) -> None:
        super().__init__(threads, queue_size, wait_s, cheap=BASE_COST + SHORT)
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="meditune-triage")

    async def run(self, caller: str, characters: int, judge: Callable[[], Result]) -> Result:
        """Return the result of `judge`, which runs in the pool when it is this message's turn.

        Raises ApiError 429 if the queue is full, or if the turn doesn't come in time.
        """
        cost = BASE_COST + characters
        await self.enter(caller, cost)
        work = asyncio.get_running_loop().run_in_executor(self._pool, copy_context().run, judge)
        # Even if the caller is gone, the thread is busy until the work has really ended.
        work.add_done_callback(lambda _: self.leave(cost))
        return await asyncio.shield(work)

    def close(self) -> None:
        """Shut down the threads."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _refusal(self) -> ApiError:
        return too_many_requests(OVERLOADED, RETRY_S, "overloaded")
