"""`GET /healthz`, `/readyz` and `/metrics`: for whoever runs the server."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Request, Response

from meditune.engines.supervised_engine import GIVEN_UP_RETRY_S
from meditune.errors import EngineUnavailableError
from meditune.serve.access import Caller, allowed
from meditune.serve.errors import ApiError, unavailable
from meditune.serve.routes.documented import errors
from meditune.serve.schema.body import Told
from meditune.serve.service import Service

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
