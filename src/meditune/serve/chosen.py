"""Which version answers a request: the service's only one, or what the registry's releases choose."""

from __future__ import annotations

from fastapi import Request

from meditune.serve.access import Caller
from meditune.serve.service import Service
from meditune.serve.trace import SCOPE_KEY, Trace


def conversation_of(caller: Caller, first: str) -> str:
    """By what a conversation is known: who asks, and its first question."""
    return f"{caller.name}\n{first}"


def chosen(request: Request, conversation: str) -> Service:
    """The service with the version that this conversation gets, held until the request has ended."""
    service: Service = request.app.state.service
    releases = service.releases
    if releases is None:
        return service
    live = releases.enter(conversation)
    trace: Trace = request.scope[SCOPE_KEY]
    trace.facts["version"] = live.service.served.version
    trace.ended.append(lambda status: releases.leave(live, None if trace.store_failed else says_failed(status)))
    return live.service


def says_failed(status: int) -> bool | None:
    """Whether the server failed a request; None where that is the client's doing, or says nothing."""
    if status >= 500:
        return True
    return False if 200 <= status < 300 else None
