"""Safety around the model: triage of each request, length limits, and standard replies that replace the model's answer.

The chat API returns neither sources nor notices, so a standard reply is the complete answer. Callers with the scope
`raw` can send structured requests (a choice among given texts, a JSON schema, or a prompt in the model's own format)
and get the model's output without triage and notes. From other callers, such requests go through triage like any other.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from fastapi import Request

from meditune.assistant.message_clauses import readable_part
from meditune.assistant.triage import Triage, reads_earlier
from meditune.prompts import LIMITS_LINE
from meditune.serve.admission import SHORT
from meditune.serve.api_errors import SCOPE_KEY, ApiError, Trace
from meditune.serve.auth import Caller
from meditune.serve.schema import ChatBody
from meditune.serve.service import Service
from meditune.serve.streaming import cancel_on_disconnect

if TYPE_CHECKING:
    from meditune.assistant.assistant import Assistant

ENDING = f"\n\n{LIMITS_LINE}"
"""The note at the end of every answer that is meant for a person"""
OUTCOMES = {"urgent": "escalated", "decline": "declined", "bound": "declined"}
"""Action of triage that replaces the model's answer to a chat -> outcome in the metrics and the store"""
BEFORE = 4
"""The maximum number of earlier messages that triage reads, counted back from the latest"""


@dataclass(frozen=True)
class ChatQuestion:
    """A user's message, with the user's earlier messages and the length of the rest of the conversation."""

    message: str
    earlier: Sequence[str]
    """Earlier messages of the same user, oldest first"""
    param: str
    """The name of the request's parameter that contains the message"""
    context: int = 0
    """The number of characters in system messages"""
    history: int = 0
    """The number of characters in earlier turns"""


async def triage_request(
    request: Request, service: Service, assistant: Assistant, caller: Caller, question: ChatQuestion
) -> Triage:
    """Count the request, wait for its turn in triage's queue, and return how to handle the message.

    Raises ApiError 429 if the rate limit or the quota is exhausted or triage's queue is full, and 400 if a text is too
    long. Urgent help is given even beyond the rate limit and the quota. If a message is too long, but its beginning and
    end call for urgent help, the error contains that help. Raises ClientDisconnected if the client disconnects.
    """
    trace: Trace = request.scope[SCOPE_KEY]
    refusal = await service.access.try_charge(request, caller)
    begun = time.monotonic()
    found = await cancel_on_disconnect(request.receive, _judge(service, assistant, caller, question))
    service.metrics.triage.observe(time.monotonic() - begun)
    if refusal and found.action != "urgent":
        raise refusal
    trace.facts.pop("refused", None)
    if len(question.message) > service.settings.message_characters:
        raise _too_long(service, trace, question, found)
    if found.action != "urgent":
        _refuse_long(question.context, service.settings.context_characters, "The system messages have", question.param)
        _refuse_long(question.history, service.settings.history_characters, "The earlier turns have", question.param)
    return found


async def _judge(service: Service, assistant: Assistant, caller: Caller, question: ChatQuestion) -> Triage:
    """Return the result of triage. With long earlier messages, the message is first judged without them.

    So a short emergency message needs only the time of a short message, however long the conversation is.
    """
    message, before = readable_part(question.message), [readable_part(each) for each in question.earlier[-BEFORE:]]

    def judge_alone() -> Triage | None:
        found = assistant.judge(message)
        return None if found.action != "urgent" and reads_earlier(message) else found

    characters = len(message) + sum(map(len, before))
    if before and characters > SHORT:
        found = await service.triage.run(caller.name, len(message), judge_alone)
        if found is not None:
            return found
    return await service.triage.run(caller.name, characters, partial(assistant.judge, message, before))


def is_raw(service: Service, body: ChatBody, caller: Caller) -> bool:
    """Return whether a chat gets the model's output alone, without triage or the note on limits."""
    if service.settings.bare_chat or service.assistant is None:
        return True
    is_program = body.guided_choice or body.json_schema or service.prompts.in_format(body.messages[-1].turn().text)
    return "raw" in caller.scopes and bool(is_program)


def ending(body: ChatBody, raw: bool) -> str:
    """Return the note to add to the model's answer; empty if the answer is raw, one of given texts, or JSON."""
    return "" if raw or body.guided_choice or body.json_schema else ENDING


def question_in(body: ChatBody) -> ChatQuestion | None:
    """Return the user's last message in a chat, with its context; None if the chat contains no user message."""
    turns = [message.turn() for message in body.messages]
    asked = [turn.text for turn in turns if turn.role == "user"]
    if not asked:
        return None  # building the prompt reports the error
    context = sum(len(turn.text) for turn in turns if turn.role == "system")
    history = sum(len(turn.text) for turn in turns if turn.role != "system") - len(asked[-1])
    return ChatQuestion(asked[-1], asked[:-1], "messages", context, history)


def _too_long(service: Service, trace: Trace, question: ChatQuestion, triage: Triage) -> ApiError:
    limit, length = service.settings.message_characters, len(question.message)
    reason = f"The message has {length:,} characters; this server takes at most {limit:,}."
    if triage.action == "urgent":
        trace.facts["outcome"] = OUTCOMES["urgent"]
        service.metrics.outcomes.labels(OUTCOMES["urgent"]).inc()
        text = f"{triage.text}\n\n{reason} Only its beginning and end were read, and they sound like an emergency."
        return ApiError(400, text, "emergency_in_long_message", question.param)
    more = " You can put background information into a system message." if question.param == "messages" else ""
    return ApiError(400, f"{reason} Shorten it and ask again.{more}", "message_too_long", question.param)


def refuse_many(items: Sequence[object], limit: int, param: str) -> None:
    """Raise ApiError 400 if a conversation has too many messages."""
    if len(items) > limit:
        message = f"{param} has more than {limit} items. Leave out the oldest ones."
        raise ApiError(400, message, "invalid_value", param)


def _refuse_long(length: int, limit: int, whose: str, param: str) -> None:
    if length > limit:
        raise ApiError(
            400,
            f"{whose} {length:,} characters in total; this server takes at most {limit:,}. Shorten them.",
            "context_too_long",
            "history" if param == "question" else param,
        )
