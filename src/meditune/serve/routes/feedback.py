"""`POST /v1/feedback`, and deleting what was kept of an answer."""

from __future__ import annotations

import asyncio
from typing import Annotated

from fastapi import APIRouter, Depends, Request

from meditune.serve.access import Caller, allowed
from meditune.serve.errors import ApiError
from meditune.serve.routes.documented import errors
from meditune.serve.schema.ask import Deleted, FeedbackBody, Thanks
from meditune.serve.service import Service
from meditune.serve.storing import stored
from meditune.store.answers import Answers, Feedback
from meditune.store.keys import Scope

router = APIRouter(tags=["Assistant"])


@router.post("/v1/feedback", responses=errors(404), summary="Say what you think of an answer")
async def feedback(
    body: FeedbackBody, request: Request, caller: Annotated[Caller, Depends(allowed("feedback"))]
) -> Thanks:
    """Keep it with the answer, and so with the versions that gave it; sent again, it takes the earlier one's place.

    It is on the disk when this returns. A key with the scope expert may judge anybody's answers, and overrides others.
    """
    service: Service = request.app.state.service
    service.access.says(request, caller)
    # Without keys everybody has all scopes, and nobody is known to be an expert.
    expert = bool(caller.key) and "expert" in caller.scopes
    answers = await _answers_of(service, body.id, caller, "expert")
    said = Feedback(
        body.id, caller.key, body.rating, body.reasons, body.comment, body.correction, body.decision or "", expert
    )
    if not await stored(answers.say, said):
        raise _unknown()
    service.metrics.feedback.labels(body.rating).inc()
    if body.correction or body.decision:
        service.metrics.corrections.labels("expert" if expert else "user").inc()
    return Thanks(id=body.id)


@router.delete("/v1/answers/{id}", responses=errors(404), summary="Delete what was kept of an answer")
async def delete(id: str, request: Request, caller: Annotated[Caller, Depends(allowed("feedback"))]) -> Deleted:
    """Take an answer and all that was said of it out of the store; for the key that asked, or one with scope admin."""
    answers = await _answers_of(request.app.state.service, id, caller, "admin")
    if not await stored(answers.delete, id):
        raise _unknown()
    return Deleted(id=id)


async def _answers_of(service: Service, id: str, caller: Caller, scope: Scope) -> Answers:
    """The store, where the answer of that id is in it and the caller's, or anybody's for that scope.

    Raises ApiError 404.
    """
    if service.answers is None:
        raise ApiError(404, "This server keeps no answers, so there is nothing to say of them.", "not_found")
    found = await asyncio.to_thread(service.answers.get, id)
    if found is None or (found.who != caller.key and not caller.scopes & {scope, "admin"}):
        raise _unknown()
    return service.answers


def _unknown() -> ApiError:
    return ApiError(
        404, "There is no such answer: it was never given, deleted, or is another key's.", "not_found", "id"
    )
