"""The route `POST /v1/embeddings`."""

from __future__ import annotations

import asyncio
import base64
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request

from meditune.serve.api_errors import SCOPE_KEY, ApiError
from meditune.serve.auth import Caller, allowed
from meditune.serve.schema import EmbeddingBody, Embeddings, EmbeddingUsage, Vector, errors
from meditune.serve.service import Service
from meditune.serve.streaming import wait_for_turn

router = APIRouter(tags=["OpenAI"])


@router.post("/v1/embeddings", response_model=Embeddings, responses=errors(404), summary="Embed texts")
async def embed(
    body: EmbeddingBody, request: Request, caller: Annotated[Caller, Depends(allowed("embed", charged=True))]
) -> Any:
    """Return a vector of length 1 for each text. Texts with similar meanings have similar vectors."""
    service: Service = request.app.state.service
    if service.embeds is None:
        raise ApiError(404, "This server has no embedding model.", "model_not_found", "model")
    service.require_model(body.model, embedding=True)
    model = await asyncio.to_thread(service.embeds)
    if body.dimensions not in {None, model.size}:
        raise ApiError(400, f"dimensions must be {model.size} for {body.model}.", "invalid_value", "dimensions")
    loop = asyncio.get_running_loop()
    counts = await loop.run_in_executor(service.encoding, _counted, model.tokenizer, body.input)
    async with wait_for_turn(service, caller, request.scope[SCOPE_KEY], needs_engine=False) as count:
        count.prompt_tokens = sum(counts)
        vectors = await loop.run_in_executor(service.asks, model.encode, body.input)
    as_text = body.encoding_format == "base64"
    return Embeddings(
        data=[
            Vector(
                index=n, embedding=base64.b64encode(row.astype("<f4").tobytes()).decode() if as_text else row.tolist()
            )
            for n, row in enumerate(vectors)
        ],
        model=body.model,
        usage=EmbeddingUsage(prompt_tokens=sum(counts), total_tokens=sum(counts)),
    )


def _counted(tokenizer: Any, texts: list[str]) -> list[int]:
    """Return the number of tokens of each text. Raises ApiError if a text is too long for the model."""
    counts = []
    for number, row in enumerate(tokenizer.encode_batch(texts)):
        most = len(row.ids)
        excess = sum(len(each.ids) - 2 for each in row.overflowing)
        if excess > 0:
            raise ApiError(
                400,
                f"input.{number} is {excess:,} token{'s' if excess != 1 else ''} too long: the model reads at most "
                f"{most} tokens.",
                "context_length_exceeded",
                "input",
            )
        counts.append(most)
    return counts
