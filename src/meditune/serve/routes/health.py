"""`GET /healthz`, `/readyz` and `/metrics`: for whoever runs the server.

`GET /v1/models`.

`GET /admin`, the page for whoever runs the server, and `/v1/admin/status`, the figures that it shows.
"""

from __future__ import annotations

import asyncio
import time
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Query, Request, Response
from fastapi.responses import FileResponse
from pydantic import ConfigDict

from meditune.engines.supervised_engine import GIVEN_UP_RETRY_S
from meditune.errors import EngineUnavailableError
from meditune.serve.api_errors import ApiError, unavailable
from meditune.serve.auth import Caller, allowed
from meditune.serve.routes.pages import PAGES
from meditune.serve.schema import Told, errors
from meditune.serve.service import Service, facts
from meditune.store.overview import overview

router = APIRouter(tags=["Operation"])


class Health(Told):
    """That the process runs."""

    status: Literal["ok"] = "ok"


@router.get("/healthz", responses=errors(503), summary="Is the server alive?")
async def healthz(request: Request) -> Health:
    """503 where its engine is dead and can't be restarted: start the server again. While it is restarted, 200."""
    failure = _failure(request)
    if failure is not None and failure.given_up:
        raise unavailable(failure)
    return Health()


@router.get("/readyz", responses=errors(503), summary="Can it take requests?")
async def readyz(request: Request) -> Health:
    """503 while the server ends, while its engine is dead or restarted, and while its waiting room is full."""
    service: Service = request.app.state.service
    if not service.ready:
        raise ApiError(503, "The server is ending.", "not_ready", headers={"retry-after": "5"})
    if (failure := _failure(request)) is not None:
        raise unavailable(failure)
    if service.admission.waiting >= service.settings.waiting > 0:
        raise ApiError(503, "The waiting room is full.", "overloaded", headers={"retry-after": "1"})
    return Health()


def _failure(request: Request) -> EngineUnavailableError | None:
    """Why the engine answers nothing now; one that nobody restarts is given up."""
    failure = request.app.state.service.engine.failure()
    if failure is None or isinstance(failure, EngineUnavailableError):
        return failure
    return EngineUnavailableError(str(failure), GIVEN_UP_RETRY_S, given_up=True)


@router.get(
    "/metrics",
    response_class=Response,
    responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}, **errors()},
    summary="Figures for Prometheus",
)
async def metrics(request: Request, _: Annotated[Caller, Depends(allowed("metrics"))]) -> Response:
    """In Prometheus's text format; where keys are needed, with one that has the scope metrics."""
    service: Service = request.app.state.service
    return Response(service.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


models_router = APIRouter(tags=["OpenAI"])


class ServedModel(Told):
    """A model that requests may name."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "meditune"


class Models(Told):
    """All of them."""

    object: Literal["list"] = "list"
    data: list[ServedModel]


@models_router.get("/v1/models", responses=errors(), summary="Which models there are")
def models(request: Request, _: Annotated[Caller, Depends(allowed("generate"))]) -> Models:
    """The model that writes, and the one that embeds."""
    service: Service = request.app.state.service
    return Models(data=[ServedModel(id=name, created=service.served.created) for name in service.models()])


@models_router.get("/v1/models/{name:path}", responses=errors(404), summary="One of them")
def model(name: str, request: Request, _: Annotated[Caller, Depends(allowed("generate"))]) -> ServedModel:
    """A model by its name."""
    service: Service = request.app.state.service
    if name not in service.models():
        service.must_serve(name)
    return ServedModel(id=name, created=service.served.created)


FRESH_S = 5.0
"""Figures are read from the store at most so often"""
admin_router = APIRouter()


class Status(Told):
    """What is going on; docs/how-to/operate.md says what its parts are."""

    model_config = ConfigDict(extra="allow", protected_namespaces=())
    hours: float
    time: float


@admin_router.get("/admin", include_in_schema=False)
def page() -> FileResponse:
    """The page. It holds no figures: it asks for them with the key that is typed into it."""
    return FileResponse(PAGES / "admin.html", media_type="text/html")


@admin_router.get("/v1/admin/status", responses=errors(404), summary="How the service does", tags=["Operation"])
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
