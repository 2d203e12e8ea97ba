"""Who is answered now, who waits, and who is refused: a bounded queue that is fair between callers."""

from __future__ import annotations

import asyncio
import math
import time
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

from meditune.serve.errors import ApiError, busy

LONGEST_RETRY_S = 300


class Admission:
    """At most `at_once` requests inside, at most `waiting` before the door, none of them longer than `wait_s`.

    Who would have to wait longer is refused at once, by how long requests took lately, and not after waiting in vain.
    Callers take turns, so one with many requests delays itself, not the others. Where the room is full, a newcomer with
    fewer requests there takes the place of the youngest request of whoever has most.
    """

    def __init__(self, at_once: int, waiting: int, wait_s: float) -> None:
        self.at_once, self.room, self.wait_s = at_once, waiting, wait_s
        self.inside = 0
        self._queues: OrderedDict[str, deque[asyncio.Future[None]]] = OrderedDict()
        self._mean_s = 1.0

    @property
    def waiting(self) -> int:
        """Requests before the door."""
        return sum(map(self._waits, self._queues))

    def expected_s(self) -> float:
        """Seconds until a new request would have its turn, by how long the last ones took."""
        return self._mean_s * (self.waiting + 1) / self.at_once

    def retry_s(self) -> int:
        """The same in whole seconds, at least one, for a refusal."""
        return min(LONGEST_RETRY_S, max(1, math.ceil(self.expected_s())))

    @asynccontextmanager
    async def place(self, who: str) -> AsyncIterator[float]:
        """A place inside for the block; the seconds that were waited for it.

        Raises ApiError 429 where there is no room, or no turn in time.
        """
        asked = time.monotonic()
        await self._enter(who)
        begun = time.monotonic()
        try:
            yield begun - asked
        finally:
            self._mean_s += 0.2 * (time.monotonic() - begun - self._mean_s)
            self.inside -= 1
            self._next()

    @contextmanager
    def spare(self, wanted: int) -> Iterator[int]:
        """Up to so many further places inside for the block, as many as are free and nobody waits for."""
        taken = 0 if self._queues else max(0, min(wanted, self.at_once - self.inside))
        self.inside += taken
        try:
            yield taken
        finally:
            self.inside -= taken
            self._next()

    async def _enter(self, who: str) -> None:
        if self.inside < self.at_once and not self._queues:
            self.inside += 1
            return
        full = self.waiting >= self.room or (self._queues and self.expected_s() > self.wait_s)
        if full and not self._displaced(who):
            raise self._full()
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._queues.setdefault(who, deque()).append(turn)
        try:
            async with asyncio.timeout(self.wait_s):
                await turn
        except TimeoutError:
            self._left(who, turn)
            raise self._full() from None
        except BaseException:
            self._left(who, turn)
            raise

    def _full(self) -> ApiError:
        return busy("The server is at its capacity. Try again later.", self.retry_s(), "overloaded")

    def _left(self, who: str, turn: asyncio.Future[None]) -> None:
        """Take a request out that no longer waits, or hand on the place that it has just been given."""
        if turn.done() and not turn.cancelled() and turn.exception() is None:
            self.inside -= 1
            self._next()
            return
        queue = self._queues.get(who)
        if queue and turn in queue:
            queue.remove(turn)
        if queue is not None and not queue:
            del self._queues[who]

    def _displaced(self, who: str) -> bool:
        if not self._queues:
            return False
        most = max(self._queues, key=self._waits)
        if self._waits(most) <= self._waits(who) + 1:
            return False
        youngest = next(turn for turn in reversed(self._queues[most]) if not turn.done())
        self._queues[most].remove(youngest)
        youngest.set_exception(self._full())
        return True

    def _waits(self, who: str) -> int:
        """How many of a caller's requests wait; who has just left may still stand in the queue."""
        return sum(not turn.done() for turn in self._queues.get(who, ()))

    def _next(self) -> None:
        """Give a free place to the caller whose turn it is."""
        while self._queues and self.inside < self.at_once:
            who, queue = next(iter(self._queues.items()))
            turn = queue.popleft()
            del self._queues[who]
            if queue:
                self._queues[who] = queue
            if not turn.done():
                self.inside += 1
                turn.set_result(None)
