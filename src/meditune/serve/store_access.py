"""Writing to the store: the threads for it, and the check of the clock before old answers are deleted.

Writes have their own threads, since all writes wait while the store is locked. Reads, and everything that an emergency
needs, use the event loop's threads and don't wait.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

Result = TypeVar("Result")
Given = ParamSpec("Given")
MAX_THREADS = 16
_THREADS = ThreadPoolExecutor(MAX_THREADS, thread_name_prefix="meditune-store")


async def run_in_store_thread(call: Callable[Given, Result], *args: Given.args, **named: Given.kwargs) -> Result:
    """Return the result of the call, which runs in one of the store's threads."""
    return await asyncio.get_running_loop().run_in_executor(_THREADS, lambda: call(*args, **named))


JUMP_S = 3600.0
"""How far the clock may drift from the machine's uptime between two checks; more counts as a jump"""
MAX_INACTIVITY_S = 7 * 86_400.0
"""If a store's last activity is older than this, the clock may be wrong (or nobody used the store)"""
STABLE_CLOCK_S = 86_400.0
"""How long the clock must run without jumps to be trusted; a wrong clock has probably been corrected by then"""
# This clock also runs while the machine sleeps, so waking up isn't a jump.
_SINCE_START = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


class Clock:
    """The wall clock, compared with a clock that can't be set. A jump ahead would make all answers look old."""

    def __init__(self, last_sign: float = 0.0) -> None:
        """Start watching. `last_sign` is the store's latest timestamp, in seconds since 1970; 0 if it has none."""
        self._wall, self._steady = time.time(), _time_since_boot()
        # The wall clock isn't trusted before this time.
        self._until = self._steady + STABLE_CLOCK_S if last_sign and self._wall - last_sign > MAX_INACTIVITY_S else 0.0

    def trusted(self) -> bool:
        """Return whether the clock has run without a jump for long enough. Call this at least every few hours."""
        wall, steady = time.time(), _time_since_boot()
        if abs((wall - self._wall) - (steady - self._steady)) > JUMP_S:
            self._until = steady + STABLE_CLOCK_S
        self._wall, self._steady = wall, steady
        return steady >= self._until


def _time_since_boot() -> float:
    return time.clock_gettime(_SINCE_START)
