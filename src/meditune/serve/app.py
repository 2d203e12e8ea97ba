"""The FastAPI application: its routes, middleware, error handlers and OpenAPI document."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.utils import get_openapi
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware

from meditune import __version__
from meditune.errors import MedituneError
from meditune.observability import LOGGER
from meditune.prompts import LIMITS
from meditune.serve.api_errors import on_error
from meditune.serve.auth import RATE_HEADERS
from meditune.serve.middleware import Guard
from meditune.serve.routes import health, openai_api, pages, questions
from meditune.serve.service import Service, send_heartbeats

PRUNE_EVERY_S = 6 * 3600.0
OPEN = {"/healthz", "/readyz"}
"""Routes that never need a key"""
ROUTERS = (pages.router, openai_api.router, questions.router, health.router)


def app_for(service: Service) -> FastAPI:
    """Return the application that serves a service."""
    app = FastAPI(
        title="Meditune",
        version=__version__,
        description=f"A medical question-answering assistant. {LIMITS}",
        docs_url=None,
        redoc_url=None,
        lifespan=_lifespan,
        redirect_slashes=False,
    )
    app.state.service = service
    for router in ROUTERS:
        app.include_router(router)
    for error in (HTTPException, MedituneError, RequestValidationError, TimeoutError):
        app.add_exception_handler(error, on_error)
    if service.settings.origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(service.settings.origins),
            allow_methods=["GET", "POST", "DELETE"],
            # OpenAI's client for JavaScript sends many headers (x-stainless-*), which differ between its versions. They
            # are safe, because they come only from pages of the allowed sites, and the server uses no cookies.
            allow_headers=["*"],
            expose_headers=["x-request-id", "retry-after", *RATE_HEADERS],
        )
    app.add_middleware(Guard, settings=service.settings, metrics=service.metrics)
    app.openapi = lambda: _described(app)  # type: ignore[method-assign]
    return app


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    service: Service = app.state.service
    beside = [asyncio.ensure_future(work(service)) for work in (_pruned, send_heartbeats)]
    try:
        yield
    finally:
        for work in beside:
            work.cancel()
        await asyncio.gather(*beside, return_exceptions=True)
        await asyncio.to_thread(service.close)
        service.triage.close()
        await asyncio.to_thread(service.encoding.shutdown)
        await asyncio.to_thread(service.asks.shutdown)


async def _pruned(service: Service) -> None:
    """Delete old answers and feedback periodically."""
    while True:
        try:
            if gone := await service.prune():
                LOGGER.info("pruned", extra={"answers": gone})
        except MedituneError as error:
            LOGGER.error("pruning failed", extra={"why": str(error)})
        await asyncio.sleep(PRUNE_EVERY_S)


def _described(app: FastAPI) -> dict[str, Any]:
    """Return the OpenAPI document with this server's models and keys, and without 422: invalid requests get 400."""
    if app.openapi_schema is None:
        service: Service = app.state.service
        document = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
        for path, methods in document["paths"].items():
            for route in methods.values():
                route["responses"].pop("422", None)
                if service.settings.keys_needed and path not in OPEN:
                    route["security"] = [{"key": []}]
        components = document["components"]
        for unused in ("HTTPValidationError", "ValidationError"):
            components["schemas"].pop(unused, None)
        names = {"ChatBody": service.served.name, "CompletionBody": service.served.name}
        for body, name in (names | {"EmbeddingBody": service.embedding or "none"}).items():
            components["schemas"][body]["properties"]["model"]["enum"] = [name]
        if service.settings.keys_needed:
            components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        app.openapi_schema = document
    return app.openapi_schema
