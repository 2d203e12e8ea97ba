"""`GET /v1/models`."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Request

from meditune.serve.access import Caller, allowed
from meditune.serve.routes.documented import errors
from meditune.serve.schema.body import Told
from meditune.serve.service import Service

router = APIRouter(tags=["OpenAI"])


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


@router.get("/v1/models", responses=errors(), summary="Which models there are")
def models(request: Request, _: Annotated[Caller, Depends(allowed("generate"))]) -> Models:
    """The model that writes, and the one that embeds."""
    service: Service = request.app.state.service
    return Models(data=[ServedModel(id=name, created=service.served.created) for name in service.models()])


@router.get("/v1/models/{name:path}", responses=errors(404), summary="One of them")
def model(name: str, request: Request, _: Annotated[Caller, Depends(allowed("generate"))]) -> ServedModel:
    """A model by its name."""
    service: Service = request.app.state.service
    if name not in service.models():
        service.must_serve(name)
    return ServedModel(id=name, created=service.served.created)
