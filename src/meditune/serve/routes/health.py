"""The routes for operators: `/healthz`, `/readyz`, `/metrics` and `/v1/admin/status`."""

from __future__ import annotations

import asyncio
from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Query, Request, Response
from pydantic import ConfigDict

from meditune.engines.supervised_engine import FAILED_RETRY_S
from meditune.errors import EngineUnavailableError
from meditune.serve.api_errors import ApiError, unavailable
from meditune.serve.auth import Caller, allowed
from meditune.serve.schema import ResponseBody, errors
from meditune.serve.service import Service, facts
from meditune.store.overview import overview

router = APIRouter(tags=["Operation"])


class Health(ResponseBody):
    """The confirmation that the server is alive or ready."""

    status: Literal["ok"] = "ok"


@router.get("/healthz", responses=errors(), summary="Check whether the server is alive")
async def healthz(request: Request) -> Health:
    """Return 200 while the inference engine runs or is being restarted, and 503 if it can't be restarted.

    After a 503, start the server again.
    """
    failure = _failure(request)
    if failure is not None and failure.given_up:
        raise unavailable(failure)
    return Health()


@router.get("/readyz", responses=errors(), summary="Check whether the server can take requests")
async def readyz(request: Request) -> Health:
    """Return 503 while the inference engine isn't running or the queue is full, and 200 otherwise.

    A server that is shutting down accepts no connections.
    """
    service: Service = request.app.state.service
    if (failure := _failure(request)) is not None:
        raise unavailable(failure)
    if service.admission.waiting >= service.settings.queue_size > 0:
        raise ApiError(503, "The queue is full.", "overloaded", headers={"retry-after": "1"})
    return Health()


def _failure(request: Request) -> EngineUnavailableError | None:
    """Return why the engine can't answer now; None if it can. An unsupervised engine can't be restarted."""
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


class Status(ResponseBody):
    """The state of the service; docs/how-to/operate.md explains the fields."""

    model_config = ConfigDict(extra="allow")
    hours: float
    """The period that the statistics cover, in hours."""
    time: float
    """Unix time of the report, in seconds."""


@router.get("/v1/admin/status", responses=errors(404), summary="Report the state of the service")
async def status(
    request: Request,
    _: Annotated[Caller, Depends(allowed("admin"))],
    hours: Annotated[float, Query(ge=0.1, le=24 * 366, description="Look back this many hours.")] = 24.0,
) -> Status:
    """Return statistics about answers, feedback, versions, servers, drift and updates of the index.

    The key needs the `admin` scope. `hours` is the length of the period that the statistics cover.
    """
    service: Service = request.app.state.service
    if service.answers is None:
        raise ApiError(404, "This server stores no answers, so it has no status to report.", "not_found")
    found = await asyncio.to_thread(overview, service.answers.base, hours)
    return Status(**found, this_server=facts(service) | {"cost": service.metrics.costs.by_part()})
