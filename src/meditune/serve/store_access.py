"""Writing to the store: its threads, storing answers, and the check of the clock before old answers are deleted.

Writes have their own threads, since all of them wait while the store is locked. Reads, and everything that an emergency
needs, use the event loop's threads and don't wait.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from meditune.errors import MedituneError
from meditune.observability import LOGGER, error_location
from meditune.store.answers import Answer

if TYPE_CHECKING:
    from meditune.serve.auth import Caller
    from meditune.serve.service import Service

Result = TypeVar("Result")
Given = ParamSpec("Given")
MAX_THREADS = 16
_THREADS = ThreadPoolExecutor(MAX_THREADS, thread_name_prefix="meditune-store")


async def run_in_store_thread(call: Callable[Given, Result], *args: Given.args, **named: Given.kwargs) -> Result:
    """Return the result of the call, which runs in one of the store's threads."""
    return await asyncio.get_running_loop().run_in_executor(_THREADS, lambda: call(*args, **named))


URGENT_S, METRICS_S = 1.0, 5.0
"""The longest time that urgent help, and an answer whose text isn't stored, wait for the store"""


async def log_answer(
    service: Service, caller: Caller, id: str, route: str, texts: tuple[str, str], outcome: str, facts: dict[str, Any]
) -> None:
    """Store an answer's metrics, and its question and answer (`texts`) if the settings say so.

    The row is on disk when this returns. Raises MedituneError if a text can't be stored. Urgent help, and answers whose
    texts aren't stored, are sent even if the store fails: the log then says that the answer wasn't stored in time, and
    the write continues in the background.
    """
    service.metrics.outcomes.labels(outcome).inc()
    if service.answers is None:
        return
    served, with_text = service.served, service.settings.keep_text
    model = f"{served.name} {served.version}"
    row = Answer(id, caller.key, route, model, served.index, outcome, facts, *(texts if with_text else ()))
    limit = URGENT_S if outcome == "escalated" else None if with_text else METRICS_S
    try:
        async with asyncio.timeout(limit):
            await run_in_store_thread(service.answers.keep, row)
    except (MedituneError, OSError) as error:
        service.metrics.store_failures.inc()
        if limit is None:
            raise
        LOGGER.error("an answer wasn't stored in time", extra={"outcome": outcome} | error_location(error))


JUMP_S = 3600.0
"""How far the clock may drift from the machine's uptime between two checks; more counts as a jump"""
MAX_INACTIVITY_S = 7 * 86_400.0
"""If a store's last activity is older than this, the clock may be wrong (or nobody used the store)"""
STABLE_CLOCK_S = 86_400.0
"""How long the clock must run without a jump before it is trusted; by then, a wrong clock is probably corrected"""
# This clock also runs while the machine sleeps, so waking up isn't a jump.
_SINCE_START = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


class Clock:
    """The wall clock, compared with one that can't be set: a clock that jumped ahead would make everything look old."""

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
