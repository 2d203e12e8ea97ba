"""Choosing the next token from a model's logits, greedily or by sampling, with its log-probability."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from meditune.engines.engine import GenerationRequest, TokenLogprob


@dataclass(frozen=True)
class SamplingParams:
    """The parameters for choosing one text's next token."""

    job: GenerationRequest
    generator: torch.Generator | None
    """Random generator, used if the job's temperature isn't 0"""
    allowed: Sequence[int] | NDArray[np.int64] | None = None
    """The only allowed tokens; None: any token"""


def random_generator(job: GenerationRequest) -> torch.Generator | None:
    """Return a random generator with the job's seed, or a random one; None if the temperature is 0."""
    if job.temperature == 0:
        return None
    generator = torch.Generator()
    if job.seed is None:
        generator.seed()
    else:
        generator.manual_seed(job.seed % 2**63)
    return generator


def sample_next_tokens(
    logits: torch.Tensor, wishes: Sequence[SamplingParams]
) -> list[tuple[int, TokenLogprob | None] | None]:
    """Return the next token for each row of (N, vocabulary) logits, with its log-probability if requested.

    The result is None for rows whose logits aren't finite.
    """
    highest, best = logits.max(dim=-1)
    found: list[tuple[int, TokenLogprob | None] | None] = []
    rows = zip(logits, highest.isfinite().tolist(), best.tolist(), wishes, strict=True)
    for row, sound, first, wish in rows:
        if not sound:
            found.append(None)
            continue
        token = first if wish.generator is None and wish.allowed is None else _chosen(row.float(), wish)
        found.append((token, top_logprobs(row, token, wish.job.logprobs) if wish.job.logprobs else None))
    return found


def top_logprobs(row: torch.Tensor, token: int, others: int) -> TokenLogprob:
    """Return a token's log-probability from (vocabulary,) logits, with those of the most likely tokens."""
    logprobs = row.float().log_softmax(dim=-1)
    values, tokens = logprobs.topk(min(others, len(logprobs)))
    return TokenLogprob(token, float(logprobs[token]), dict(zip(tokens.tolist(), values.tolist(), strict=True)))


def _chosen(row: torch.Tensor, wish: SamplingParams) -> int:
    """Return a token chosen from (vocabulary,) FP32 logits."""
    ids = None
    if wish.allowed is not None:
        ids = torch.as_tensor(wish.allowed, device=row.device)
        row = row[ids]
    if wish.generator is None:
        place = int(row.argmax())
    else:
        place = _sampled(row.cpu(), wish.job.temperature, wish.job.top_p, wish.generator)
    return place if ids is None else int(ids[place])


def _sampled(row: torch.Tensor, temperature: float, top_p: float, generator: torch.Generator) -> int:
    """Return a token sampled from the most likely ones that together have at least `top_p` (Holtzman et al. 2020)."""
    probabilities = (row / max(temperature, 1e-4)).softmax(dim=-1)
    if top_p >= 1:
        return int(torch.multinomial(probabilities, 1, generator=generator))
    ordered, tokens = probabilities.sort(descending=True)
    # A token stays while those before it have less than top_p.
    kept = ordered.cumsum(dim=0) - ordered < top_p
    place = int(torch.multinomial(ordered * kept, 1, generator=generator))
    return int(tokens[place])
