"""The routes for operators, `/healthz`, `/readyz`, `/metrics`, `/admin` and `/v1/admin/status`, and `/v1/models`."""

from __future__ import annotations

import asyncio
import time
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Query, Request, Response
from fastapi.responses import FileResponse
from pydantic import ConfigDict

from meditune.engines.supervised_engine import FAILED_RETRY_S
from meditune.errors import EngineUnavailableError
from meditune.serve.api_errors import ApiError, unavailable
from meditune.serve.auth import Caller, allowed
from meditune.serve.routes.pages import PAGES
from meditune.serve.schema import ResponseBody, errors
from meditune.serve.service import Service, facts
from meditune.store.overview import overview

router = APIRouter(tags=["Operation"])


class Health(ResponseBody):
    """The confirmation that the server is alive or ready."""

    status: Literal["ok"] = "ok"


@router.get("/healthz", responses=errors(503), summary="Check whether the server is alive")
async def healthz(request: Request) -> Health:
    """Return 200 while the engine is alive or being restarted, and 503 if it can't be restarted.

    After a 503, start the server again.
    """
    failure = _failure(request)
    if failure is not None and failure.given_up:
        raise unavailable(failure)
    return Health()


@router.get("/readyz", responses=errors(503), summary="Check whether the server can take requests")
async def readyz(request: Request) -> Health:
    """Return 503 while the server shuts down, while its engine is dead or restarting, and while its queue is full."""
    service: Service = request.app.state.service
    if not service.ready:
        raise ApiError(503, "The server is shutting down.", "not_ready", headers={"retry-after": "5"})
    if (failure := _failure(request)) is not None:
        raise unavailable(failure)
    if service.admission.waiting >= service.settings.queue_size > 0:
        raise ApiError(503, "The queue is full.", "overloaded", headers={"retry-after": "1"})
    return Health()


def _failure(request: Request) -> EngineUnavailableError | None:
    """Return why the engine can't answer now; None if it can. An engine that isn't supervised can't be restarted."""
    failure = request.app.state.service.engine.failure()
    if failure is None or isinstance(failure, EngineUnavailableError):
        return failure
    return EngineUnavailableError(str(failure), FAILED_RETRY_S, given_up=True)


@router.get(
    "/metrics",
    response_class=Response,
    responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}, **errors()},
    summary="Metrics for Prometheus",
)
async def metrics(request: Request, _: Annotated[Caller, Depends(allowed("metrics"))]) -> Response:
    """Return the metrics in Prometheus's text format. If keys are required, the key needs the `metrics` scope."""
    service: Service = request.app.state.service
    return Response(service.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


models_router = APIRouter(tags=["OpenAI"])


class ServedModel(ResponseBody):
    """A model that requests may name."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "meditune"


class Models(ResponseBody):
    """The list of models."""

    object: Literal["list"] = "list"
    data: list[ServedModel]


@models_router.get("/v1/models", responses=errors(), summary="List the models")
def models(request: Request, _: Annotated[Caller, Depends(allowed("generate"))]) -> Models:
    """Return the model that generates text and, if there is one, the model for embeddings."""
    service: Service = request.app.state.service
    return Models(data=[ServedModel(id=name, created=service.served.created) for name in service.models()])


@models_router.get("/v1/models/{name:path}", responses=errors(404), summary="Describe one model")
def model(name: str, request: Request, _: Annotated[Caller, Depends(allowed("generate"))]) -> ServedModel:
    """Return the model of this name."""
    service: Service = request.app.state.service
    if name not in service.models():
        service.require_model(name)
    return ServedModel(id=name, created=service.served.created)


FRESH_S = 5.0
"""The minimum number of seconds between two reads of the store"""
admin_router = APIRouter()


class Status(ResponseBody):
    """The state of the service; docs/how-to/operate.md explains the fields."""

    model_config = ConfigDict(extra="allow", protected_namespaces=())
    hours: float
    time: float


@admin_router.get("/admin", include_in_schema=False)
def page() -> FileResponse:
    """Return the operator's page. It contains no metrics; it requests them with the key that the user enters."""
    return FileResponse(PAGES / "admin.html", media_type="text/html")


@admin_router.get(
    "/v1/admin/status", responses=errors(404), summary="Report the state of the service", tags=["Operation"]
)
async def status(
    request: Request,
    _: Annotated[Caller, Depends(allowed("admin"))],
    hours: Annotated[float, Query(ge=0.1, le=24 * 366, description="Look back this many hours.")] = 24.0,
) -> Status:
    """Return metrics of answers and feedback, versions, servers, drift and updates. The key needs the `admin` scope."""
    service: Service = request.app.state.service
    if service.answers is None:
        raise ApiError(404, "This server stores no answers, so it has no status to report.", "not_found")
    found: dict[str, Any] = await _recent(request.app.state, service, hours)
    return Status(**found, this_server=facts(service) | {"cost": service.metrics.costs.by_part()})


async def _recent(state: Any, service: Service, hours: float) -> dict[str, Any]:
    """Return the store's metrics. Requests within a few seconds share one read of the store."""
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
