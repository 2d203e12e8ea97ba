"""`/v1/ask` and what people say of its answers."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, field_validator

from meditune.serve.schema.body import Body, Told

LONGEST_TURN = 20_000
LONGEST_COMMENT = 20_000


class Past(Body):
    """An earlier question with its answer."""

    question: str = Field(min_length=1, max_length=LONGEST_TURN)
    answer: str = Field(max_length=LONGEST_TURN)


class AskBody(Body):
    """A question about health."""

    # Its length is limited by the server's settings, after triage: a refusal must not stand before urgent help.
    question: str = Field(min_length=1, pattern=r"\S")
    style: Literal["plain", "expert"] = Field("plain", description="For whom the answer is written.")
    k: int | None = Field(None, ge=1, le=50, description="So many passages are looked for.")
    sources: list[Annotated[str, Field(min_length=1, max_length=100)]] | None = Field(
        None, max_length=20, description="Only these sources of the index."
    )
    history: list[Past] = Field([], max_length=20, description="The conversation so far, oldest first.")
    max_new_tokens: int | None = Field(None, ge=1, le=4096)
    stream: bool = Field(False, description="Server-sent events: sources, text, sentence, notice, answer.")


class Asked(Told):
    """The answer; /docs says what its parts are."""

    model_config = ConfigDict(extra="allow", protected_namespaces=())
    id: str
    question: str


class FeedbackBody(Body):
    """What someone thinks of an answer."""

    id: str = Field(min_length=1, max_length=100, description="The answer's id.")
    rating: Literal["up", "down"]
    reasons: list[Annotated[str, Field(min_length=1, max_length=100)]] = Field([], max_length=10)
    comment: str = Field("", max_length=LONGEST_COMMENT)
    correction: str = Field("", max_length=LONGEST_COMMENT, description="The answer that should have been given.")
    decision: Literal["yes", "no", "maybe"] | None = Field(None, description="What it should have decided.")

    @field_validator("reasons")
    @classmethod
    def _once_each(cls, given: list[str]) -> list[str]:
        return list(dict.fromkeys(given))


class Thanks(Told):
    """That it was kept."""

    id: str
    stored: Literal[True] = True


class Deleted(Told):
    """What was deleted."""

    id: str
    deleted: Literal[True] = True


Facts = dict[str, Any]
