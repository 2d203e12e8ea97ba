"""`POST /v1/embeddings`."""

from __future__ import annotations

import asyncio
import base64
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request

from meditune.serve.access import Caller, allowed
from meditune.serve.errors import ApiError
from meditune.serve.routes.documented import errors
from meditune.serve.schema.embedding import EmbeddingBody, Embeddings, EmbeddingUsage, Vector
from meditune.serve.service import Service
from meditune.serve.trace import SCOPE_KEY
from meditune.serve.writing import turn

router = APIRouter(tags=["OpenAI"])


@router.post("/v1/embeddings", response_model=Embeddings, responses=errors(404), summary="Vectors of texts")
async def embed(
    body: EmbeddingBody, request: Request, caller: Annotated[Caller, Depends(allowed("embed", paying=True))]
) -> Any:
    """A vector of length 1 for each text; near texts have near vectors."""
    service: Service = request.app.state.service
    if service.embeds is None:
        raise ApiError(404, "This server has no embedding model.", "model_not_found", "model")
    service.must_serve(body.model, embedding=True)
    model = await asyncio.to_thread(service.embeds)
    if body.dimensions not in {None, model.size}:
        raise ApiError(400, f"dimensions: {body.model} has {model.size}, and no others.", "invalid_value", "dimensions")
    loop = asyncio.get_running_loop()
    counts = await loop.run_in_executor(service.encoding, _counted, model.tokenizer, body.input)
    async with turn(service, caller, request.scope[SCOPE_KEY], needs_engine=False) as count:
        count.prompt_tokens = sum(counts)
        made = await loop.run_in_executor(service.asks, model.embed, body.input)
    as_text = body.encoding_format == "base64"
    return Embeddings(
        data=[
            Vector(
                index=n, embedding=base64.b64encode(row.astype("<f4").tobytes()).decode() if as_text else row.tolist()
            )
            for n, row in enumerate(made)
        ],
        model=body.model,
        usage=EmbeddingUsage(prompt_tokens=sum(counts), total_tokens=sum(counts)),
    )


def _counted(tokenizer: Any, texts: list[str]) -> list[int]:
    """Tokens of each text. Raises ApiError at one that the model wouldn't read to its end."""
    counts = []
    for number, row in enumerate(tokenizer.encode_batch(texts)):
        most = len(row.ids)
        excess = sum(len(each.ids) - 2 for each in row.overflowing)
        if excess > 0:
            raise ApiError(
                400,
                f"input.{number} is {excess:,} token{'s' if excess != 1 else ''} too long: the model reads {most}.",
                "context_length_exceeded",
                "input",
            )
        counts.append(most)
    return counts
