"""`GET /admin`, the page for whoever runs the server, and `/v1/admin/status`, the figures that it shows."""

from __future__ import annotations

import asyncio
import time
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import FileResponse
from pydantic import ConfigDict

from meditune.serve.access import Caller, allowed
from meditune.serve.errors import ApiError
from meditune.serve.heartbeat import facts
from meditune.serve.routes.documented import errors
from meditune.serve.routes.page import PAGES
from meditune.serve.schema.body import Told
from meditune.serve.service import Service
from meditune.store.overview import overview

FRESH_S = 5.0
"""Figures are read from the store at most so often"""
router = APIRouter()


class Status(Told):
    """What is going on; docs/operate.md says what its parts are."""

    model_config = ConfigDict(extra="allow", protected_namespaces=())
    hours: float
    time: float


@router.get("/admin", include_in_schema=False)
def page() -> FileResponse:
    """The page. It holds no figures: it asks for them with the key that is typed into it."""
    return FileResponse(PAGES / "admin.html", media_type="text/html")


@router.get("/v1/admin/status", responses=errors(404), summary="How the service does", tags=["Operation"])
async def status(
    request: Request,
    _: Annotated[Caller, Depends(allowed("admin"))],
    hours: Annotated[float, Query(ge=0.1, le=24 * 366, description="Of the last so many hours.")] = 24.0,
) -> Status:
    """Answers, times, outcomes, feedback, versions, servers, drift and updates, with a key that has the scope admin."""
    service: Service = request.app.state.service
    if service.answers is None:
        raise ApiError(404, "This server keeps no answers, so there is nothing to tell of them.", "not_found")
    found: dict[str, Any] = await _recent(request.app.state, service, hours)
    return Status(**found, this_server=facts(service) | {"cost": service.metrics.costs.by_part()})


async def _recent(state: Any, service: Service, hours: float) -> dict[str, Any]:
    """The store's figures; several pages that look at once share one reading."""
    assert service.answers is not None
    known: dict[float, tuple[float, dict[str, Any]]] = state.__dict__.setdefault("overviews", {})
    lock: asyncio.Lock = state.__dict__.setdefault("overview_lock", asyncio.Lock())
    async with lock:
        read, found = known.get(hours, (0.0, {}))
        if not found or time.monotonic() - read > FRESH_S:
            found = await asyncio.to_thread(overview, service.answers.base, hours)
            known.clear()
            known[hours] = time.monotonic(), found
        return found
