"""What stands around the model: one triage for each request, the limits of messages, and what is said in its place.

A chat is for any client, so there are no sources and no events: what triage doesn't let pass to the model is the whole
answer. Callers with the scope `raw` may send what programs send, a choice among given words, a JSON schema or a prompt
in the model's own format, and get the model's words alone; from anybody else such a chat is judged like any other.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from fastapi import Request

from meditune.assistant.message_clauses import LAST_CHARACTERS, MOST_CHARACTERS
from meditune.assistant.triage import Triage
from meditune.prompts import LIMITS_LINE
from meditune.serve.api_errors import SCOPE_KEY, ApiError, Trace
from meditune.serve.auth import Caller
from meditune.serve.schema import ChatBody
from meditune.serve.service import AnswersQuestions, Service
from meditune.serve.streaming import cancel_on_disconnect

ENDING = f"\n\n{LIMITS_LINE}"
"""What is said after every answer to a person"""
OUTCOMES = {"urgent": "escalated", "decline": "declined", "bound": "declined"}
BEFORE = 4
"""Earlier messages that triage gets to see, the last ones"""


@dataclass(frozen=True)
class StandardReply:
    """An answer that no model wrote."""

    text: str
    outcome: str
    """As answers are counted"""


@dataclass(frozen=True)
class ChatQuestion:
    """What a person says, and the lengths of what stands around it."""

    message: str
    before: Sequence[str]
    """Earlier messages of the same person, oldest first"""
    param: str
    """The parameter that holds the message"""
    context: int = 0
    """Characters of system messages"""
    history: int = 0
    """Characters of earlier turns"""


async def triage_request(
    request: Request, service: Service, assistant: AnswersQuestions, caller: Caller, asked: ChatQuestion
) -> Triage:
    """Return what is to be done with a message, judged once and in its turn; the request counts for rate and quota.

    Raises ApiError: 429 where rate, quota or triage's queue are used up, and 400 where a text is too long. Urgent help
    is given beyond rate and quota, and the refusal of a long message carries it where the message's beginning and end
    call for it. Raises ClientGone where the client leaves.
    """
    trace: Trace = request.scope[SCOPE_KEY]
    refusal = await service.access.pays_or_is_heard(request, caller)
    begun = time.monotonic()
    message, before = _read(asked.message), [_read(each) for each in asked.before[-BEFORE:]]
    judge = partial(assistant.judge, message, before)
    found = await cancel_on_disconnect(request, service.triage.run(caller.name, len(message), judge))
    service.metrics.triage.observe(time.monotonic() - begun)
    if refusal and found.action != "urgent":
        raise refusal
    trace.facts.pop("refused", None)
    if len(asked.message) > service.settings.message_characters:
        raise _too_long(service, trace, asked, found)
    if found.action != "urgent":
        _refuse_long(asked.context, service.settings.context_characters, "The system messages have", asked.param)
        _refuse_long(asked.history, service.settings.history_characters, "The earlier turns have", asked.param)
    return found


def is_program(service: Service, body: ChatBody) -> bool:
    """Whether a chat asks for what programs ask for."""
    structured = body.guided_choice or body.json_schema
    return bool(structured or service.prompts.in_format(body.messages[-1].turn().text))


def is_raw(service: Service, body: ChatBody, caller: Caller) -> bool:
    """Whether a chat gets the model's words alone, without triage and limits."""
    bare = service.settings.bare_chat or service.assistant is None
    return bare or ("raw" in caller.scopes and is_program(service, body))


def ending(body: ChatBody, raw: bool) -> str:
    """What is said after the model's words; nothing where they are to be one of given texts, or JSON."""
    return "" if raw or body.guided_choice or body.json_schema else ENDING


def question_in(body: ChatBody) -> ChatQuestion | None:
    """What the person says in a chat; None where there is no message of theirs, so it is no chat."""
    turns = [message.turn() for message in body.messages]
    said = [turn.text for turn in turns if turn.role == "user"]
    if not said:
        return None  # what makes a prompt of the chat says what is wrong with it
    context = sum(len(turn.text) for turn in turns if turn.role == "system")
    history = sum(len(turn.text) for turn in turns if turn.role != "system") - len(said[-1])
    return ChatQuestion(said[-1], said[:-1], "messages", context, history)


def reply_instead(found: Triage) -> StandardReply | None:
    """What is said in the model's place: urgent help, a refusal, a bounded answer; None where the model may answer."""
    if found.action not in OUTCOMES:
        return None
    return StandardReply(f"{found.text}{ENDING}", OUTCOMES[found.action])


def _read(message: str) -> str:
    """As much of a message as triage reads: all of it, or its beginning and its end."""
    if len(message) <= MOST_CHARACTERS + LAST_CHARACTERS:
        return message
    return f"{message[:MOST_CHARACTERS]}\n{message[-LAST_CHARACTERS:]}"


def _too_long(service: Service, trace: Trace, asked: ChatQuestion, found: Triage) -> ApiError:
    limit, length = service.settings.message_characters, len(asked.message)
    said = f"The message has {length:,} characters; this server takes at most {limit:,}."
    if found.action == "urgent":
        trace.facts["outcome"] = OUTCOMES["urgent"]
        service.metrics.outcomes.labels(OUTCOMES["urgent"]).inc()
        text = f"{found.text}\n\n{said} Only its beginning and its end were read, and they sound like an emergency."
        return ApiError(400, text, "emergency_in_long_message", asked.param)
    more = " Background can go into a system message." if asked.param == "messages" else ""
    return ApiError(400, f"{said} Shorten it and ask again.{more}", "message_too_long", asked.param)


def _refuse_long(length: int, limit: int, whose: str, param: str) -> None:
    if length > limit:
        raise ApiError(
            400,
            f"{whose} {length:,} characters together; this server takes at most {limit:,}. Leave some out.",
            "context_too_long",
            "history" if param == "question" else param,
        )
