"""Writing to the store, in threads of its own: while it is locked they all wait, and nothing else may wait with them.

Reading goes on meanwhile, and the event loop's own threads are left to that and to whatever an emergency needs.

Whether the clock can be trusted to delete by: one that jumped ahead would make everything look old.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

Result = TypeVar("Result")
Given = ParamSpec("Given")
AT_ONCE = 16
_THREADS = ThreadPoolExecutor(AT_ONCE, thread_name_prefix="meditune-store")


async def run_in_store_thread(call: Callable[Given, Result], *args: Given.args, **named: Given.kwargs) -> Result:
    """What the call returns."""
    return await asyncio.get_running_loop().run_in_executor(_THREADS, lambda: call(*args, **named))


JUMP_S = 3600.0
"""The clock and the time since the machine's start may differ by so much more than before"""
AWAY_S = 7 * 86_400.0
"""A store whose last sign of life is older: nobody used it, or the clock is wrong"""
STEADY_S = 86_400.0
"""So long the clock must have gone right after that; wrong ones are put right by then"""
# It goes on while the machine sleeps, so that waking up is no jump.
_SINCE_START = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


class Clock:
    """The wall clock held against one that can't be set."""

    def __init__(self, last_sign: float = 0.0) -> None:
        """`last_sign`: the latest time that the store knows of, in seconds since 1970; 0 where it knows none."""
        self._wall, self._steady = time.time(), _steady()
        # Until then it isn't trusted.
        self._until = self._steady + STEADY_S if last_sign and self._wall - last_sign > AWAY_S else 0.0

    def trusted(self) -> bool:
        """Whether it has gone right for long enough. Ask more often than every few hours."""
        wall, steady = time.time(), _steady()
        if abs((wall - self._wall) - (steady - self._steady)) > JUMP_S:
            self._until = steady + STEADY_S
        self._wall, self._steady = wall, steady
        return steady >= self._until


def _steady() -> float:
    return time.clock_gettime(_SINCE_START)
