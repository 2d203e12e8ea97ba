"""Writing answers down, before a client is told of them."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from meditune.errors import MedituneError
from meditune.observability import LOGGER, where
from meditune.serve.auth import Caller
from meditune.serve.service import Service
from meditune.serve.store_access import run_in_store_thread
from meditune.store.answers import Answer

URGENT_S, METRICS_S = 1.0, 5.0
"""How long urgent help, and an answer of which no text is kept, waits for the store at most"""


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
    """Keep an answer's metrics, and its texts where the server was told to; on the disk when this returns.

    Raises MedituneError where a text can't be kept. Urgent help, and an answer of which only metrics are kept, is given
    although the store fails: the log says that it wasn't kept in time, and the writing goes on until the store refuses.
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
        LOGGER.error("an answer wasn't kept in time", extra={"outcome": outcome} | where(error))
