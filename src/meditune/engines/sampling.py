"""Choosing the next token from a model's logits, greedily or by sampling, with its log-probability."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch

from meditune.engines.engine import GenerationRequest, TokenLogprob
from meditune.engines.scheduler import ScheduledRequest
from meditune.engines.structured_output import ChoiceConstraint, JsonConstraint
from meditune.errors import ModelError


class TokenSampler:
    """The choice of one answer's tokens, within its constraint."""

    def __init__(self, request: GenerationRequest, constraint: ChoiceConstraint | JsonConstraint | None) -> None:
        self.request, self.constraint = request, constraint
        self._generator: torch.Generator | None = None
        if request.temperature:
            self._generator = torch.Generator()
            if request.seed is None:
                self._generator.seed()
            else:
                self._generator.manual_seed(request.seed % 2**63)

    def next_token(self, logits: torch.Tensor, best: int) -> int:
        """Return a token chosen by the (vocabulary,) logits; `best` is the token with the highest one."""
        if self.constraint is None:
            return best if self._generator is None else self._sample(logits.float())
        allowed = torch.as_tensor(self.constraint.allowed(), device=logits.device)
        logits = logits.float()[allowed]
        return int(allowed[int(logits.argmax()) if self._generator is None else self._sample(logits)])

    def _sample(self, logits: torch.Tensor) -> int:
        """Return one of the most likely tokens that together have at least `top_p` (Holtzman et al. 2020)."""
        probabilities = (logits.cpu() / max(self.request.temperature, 1e-4)).softmax(dim=-1)
        if self.request.top_p >= 1:
            return int(torch.multinomial(probabilities, 1, generator=self._generator))
        ordered, tokens = probabilities.sort(descending=True)
        # A token stays while those before it have less than top_p.
        nucleus = ordered.cumsum(dim=0) - ordered < self.request.top_p
        return int(tokens[int(torch.multinomial(ordered * nucleus, 1, generator=self._generator))])


def add_tokens(logits: torch.Tensor, answers: Sequence[ScheduledRequest], ends: Collection[int]) -> None:
    """Add the next token to each answer, from (N, vocabulary) logits; tokens in `ends` end an answer.

    An answer whose logits aren't finite ends with an error.
    """
    highest, best = logits.max(dim=-1)
    for row, is_finite, first, answer in zip(logits, highest.isfinite().tolist(), best.tolist(), answers, strict=True):
        if not is_finite:
            answer.fail(ModelError("The model gives logits that aren't finite for this prompt."))
            continue
        token = answer.sampler.next_token(row, first)
        if token in ends:
            answer.end()
            continue
        count = answer.request.logprobs
        answer.take(token, top_logprobs(row, token, count) if count else None)
        if constraint := answer.sampler.constraint:
            constraint.take(token)
            if constraint.complete:
                answer.end()


def top_logprobs(row: torch.Tensor, token: int, count: int) -> TokenLogprob:
    """Return a token's log-probability from (vocabulary,) logits, with those of the `count` most likely tokens."""
    logprobs = row.float().log_softmax(dim=-1)
    values, tokens = logprobs.topk(min(count, len(logprobs)))
    return TokenLogprob(token, float(logprobs[token]), dict(zip(tokens.tolist(), values.tolist(), strict=True)))
