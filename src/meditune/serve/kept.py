"""Writing answers down, before a client is told of them."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from meditune.errors import MedituneError
from meditune.serve.access import Caller
from meditune.serve.logs import LOGGER, where
from meditune.serve.service import Service
from meditune.serve.storing import stored
from meditune.store.answers import Answer

URGENT_S = 1.0
"""So long urgent help waits for the store at most"""


async def keep(
    service: Service,
    caller: Caller,
    id: str,
    route: str,
    question: str,
    answer: str,
    outcome: str,
    facts: Mapping[str, Any],
) -> None:
    """Keep an answer's figures, and its texts where the server was told to; on the disk when this returns.

    Raises MedituneError where that can't be, but for escalated answers: urgent help is told whether it was kept or not.
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
    if outcome != "escalated":
        try:
            await stored(service.answers.keep, row)
        except MedituneError:
            service.metrics.store_failures.inc()
            raise
        return
    try:
        async with asyncio.timeout(URGENT_S):
            await stored(service.answers.keep, row)
    except (MedituneError, OSError) as error:
        service.metrics.store_failures.inc()
        LOGGER.error("an escalated answer wasn't kept in time", extra=where(error))
