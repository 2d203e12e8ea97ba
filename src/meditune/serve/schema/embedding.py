"""`/v1/embeddings`. https://platform.openai.com/docs/api-reference/embeddings."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from meditune.serve.schema.body import MOST_CHARACTERS, Body, Model, Told, or_one

MOST_TEXTS = 256


class EmbeddingBody(Body):
    """Texts to embed."""

    model: str = Model
    input: list[Annotated[str, Field(min_length=1, max_length=MOST_CHARACTERS)]] = Field(
        min_length=1, max_length=MOST_TEXTS, description="A text, or up to 256 texts.", json_schema_extra=or_one
    )
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = Field(None, ge=1, description="Only the model's own size.")
    user: str = Field("", max_length=200, description="Taken and forgotten.")

    @field_validator("input", mode="before")
    @classmethod
    def _listed(cls, given: Any) -> Any:
        if isinstance(given, list) and given and not isinstance(given[0], str):
            raise ValueError("token ids can't be embedded here, because they are another model's; send texts")
        return [given] if isinstance(given, str) else given


class Vector(Told):
    """One text's vector, as numbers or as base64 of little-endian FP32."""

    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str


class EmbeddingUsage(Told):
    """Tokens read."""

    prompt_tokens: int
    total_tokens: int


class Embeddings(Told):
    """The response."""

    object: Literal["list"] = "list"
    data: list[Vector]
    model: str
    usage: EmbeddingUsage
