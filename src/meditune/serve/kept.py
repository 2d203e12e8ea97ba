"""Writing answers down, before a client is told of them."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from meditune.serve.access import Caller
from meditune.serve.service import Service
from meditune.store.answers import Answer


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
    """Keep an answer's figures, and its texts where the server was told to; on the disk when this returns."""
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
    await asyncio.to_thread(service.answers.keep, row)
