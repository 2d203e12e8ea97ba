"""Writing to the store: the threads for it, storing answers, and checking the clock before old answers are deleted.

Writes have their own threads, since all writes wait while the store is locked. Reads, and everything that an emergency
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
"""The maximum wait for the store, in seconds: of urgent help, and of an answer whose text isn't stored"""


async def log_answer(
    service: Service, caller: Caller, id: str, route: str, texts: tuple[str, str], outcome: str, facts: dict[str, Any]
) -> None:
    """Store an answer's metrics and, if `keep_text` is set, the question and the answer (`texts`).

    Normally, the row is on disk when this returns. Raises MedituneError if a text can't be stored. Urgent help, and
    answers whose texts aren't stored, are sent even if the store fails or is slow. The log then reports that the answer
    wasn't stored in time; a slow write continues in the background.
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
