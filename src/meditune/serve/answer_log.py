"""Storing answers before the client gets them."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from meditune.errors import MedituneError
from meditune.observability import LOGGER, error_location
from meditune.serve.auth import Caller
from meditune.serve.service import Service
from meditune.serve.store_access import run_in_store_thread
from meditune.store.answers import Answer

URGENT_S, METRICS_S = 1.0, 5.0
"""How long urgent help, and an answer whose text isn't stored, wait for the store at most"""


async def log_answer(
    service: Service,
    caller: Caller,
    id: str,
    route: str,
    question: str,
    answer: str,
    outcome: str,
    facts: Mapping[str, Any],
) -> None:
    """Store an answer's metrics, and its texts if the settings say so. The row is on disk when this returns.

    Raises MedituneError if a text can't be stored. Urgent help, and an answer without stored texts, is sent even if the
    store fails: the log then says that the answer wasn't stored in time, and the write continues in the background.
    """
    service.metrics.outcomes.labels(outcome).inc()
    if service.answers is None:
        return
    served, with_text = service.served, service.settings.keep_text
    row = Answer(
        id,
        caller.key,
        route,
        f"{served.name} {served.version}",
        served.index,
        outcome,
        facts,
        question if with_text else None,
        answer if with_text else None,
    )
    if with_text and outcome != "escalated":
        try:
            await run_in_store_thread(service.answers.keep, row)
        except MedituneError:
            service.metrics.store_failures.inc()
            raise
        return
    try:
        async with asyncio.timeout(URGENT_S if outcome == "escalated" else METRICS_S):
            await run_in_store_thread(service.answers.keep, row)
    except (MedituneError, OSError) as error:
        service.metrics.store_failures.inc()
        LOGGER.error("an answer wasn't stored in time", extra={"outcome": outcome} | error_location(error))
