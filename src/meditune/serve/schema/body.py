"""What all requests have in common: nothing is ignored, and text is text."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field, model_validator

MOST_CHARACTERS = 200_000
_HALF_PAIR = re.compile("[\ud800-\udfff]")


class Body(BaseModel):
    """A request's JSON object. An unknown parameter is an error, unless it asks for nothing.

    A parameter that is null counts as absent, as OpenAI's clients mean it.
    """

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, protected_namespaces=())
    asks_nothing: ClassVar[Mapping[str, tuple[Any, ...]]] = {}
    """Parameters that aren't supported, with the values that change nothing"""

    @model_validator(mode="before")
    @classmethod
    def _without_what_asks_nothing(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        _refuse_broken_text(given)
        return {
            name: value
            for name, value in given.items()
            if value is not None and not any(value == nothing for nothing in cls.asks_nothing.get(name, ()))
        }


class Told(BaseModel):
    """A response's JSON object."""

    model_config = ConfigDict(protected_namespaces=())


class ErrorDetail(Told):
    """What is wrong, and with which parameter."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class Error(Told):
    """OpenAI's error object."""

    error: ErrorDetail


class Usage(Told):
    """Tokens."""

    prompt_tokens: int
    completion_tokens: int = 0
    total_tokens: int


Model = Field(min_length=1, max_length=200, description="The served model's name, as GET /v1/models has it.")


def or_one(schema: dict[str, Any]) -> None:
    """Say in a list's JSON schema that one text alone is taken, too."""
    inner = {name: schema.pop(name) for name in ("type", "items", "minItems", "maxItems") if name in schema}
    schema["anyOf"] = [inner.get("items", {"type": "string"}), inner]


def _refuse_broken_text(value: Any) -> None:
    """Halves of UTF-16 pairs, which JSON can spell and no encoding can write."""
    if isinstance(value, str):
        if not value.isascii() and _HALF_PAIR.search(value):
            raise ValueError("text holds half of a surrogate pair, which is no character")
    elif isinstance(value, dict):
        for name, inner in value.items():
            _refuse_broken_text(name)
            _refuse_broken_text(inner)
    elif isinstance(value, list):
        for inner in value:
            _refuse_broken_text(inner)
