"""What stands around a chat's answer: triage before the model, and the limits after it.

A chat is for any client, so there are no sources and no events: what triage doesn't let pass to the model is the whole
answer. Requests that ask for one of given words, for JSON, or in the prompt format are programs', and get the model's
words alone.
"""

from __future__ import annotations

from dataclasses import dataclass

from meditune.limits import LIMITS_LINE
from meditune.serve.errors import ApiError
from meditune.serve.safety.reading import MOST_CHARACTERS
from meditune.serve.schema.chat import ChatBody
from meditune.serve.service import Service

ENDING = f"\n\n{LIMITS_LINE}"
"""What is said after every answer"""
OUTCOMES = {"urgent": "escalated", "decline": "declined", "bound": "declined"}


@dataclass(frozen=True)
class Instead:
    """An answer that no model wrote."""

    text: str
    outcome: str
    """As answers are counted"""


def minded(service: Service, body: ChatBody) -> bool:
    """Whether safety applies to this chat."""
    return not (
        service.settings.bare_chat
        or service.assistant is None
        or body.guided_choice
        or body.json_schema
        or service.prompts.in_format(body.messages[-1].turn().text)
    )


def instead(service: Service, body: ChatBody) -> Instead | None:
    """What is said in the model's place: urgent help, a refusal, a bounded answer; None where the model may answer.

    Raises ApiError 400 where the last message is too long to be judged whole.
    """
    asked = _asked(body)
    if service.assistant is None or not asked:
        return None  # without a question it is no chat: what makes a prompt of it says why
    found = service.assistant.judge(asked[-1], asked[:-1])
    if found.action != "urgent" and len(asked[-1]) > MOST_CHARACTERS:
        raise ApiError(
            400,
            f"The last message has {len(asked[-1]):,} characters; a question may have {MOST_CHARACTERS:,}, so that it "
            "can be judged whole. Programs that send more need a server with --bare-chat.",
            "invalid_value",
            "messages",
        )
    if found.action not in OUTCOMES:
        return None
    return Instead(f"{found.text}{ENDING}", OUTCOMES[found.action])


def urgent(service: Service, body: ChatBody) -> bool:
    """Whether the last message tells of an emergency."""
    asked = _asked(body)
    if service.assistant is None or not asked:
        return False
    return service.assistant.judge(asked[-1], asked[:-1]).action == "urgent"


def _asked(body: ChatBody) -> list[str]:
    """What the person has said, oldest first."""
    return [turn.text for turn in (message.turn() for message in body.messages) if turn.role == "user"]
