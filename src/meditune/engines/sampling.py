"""The choice of each token: constraints (JSON that follows a schema, or one of the given texts), and sampling.

llguidance computes which tokens a JSON schema allows (github.com/guidance-ai/llguidance, docs/json_schema.md). White
space is allowed only in the separators that `json.dumps` writes; otherwise, a small model might write only white space.
Torch is imported only where tokens are sampled, because engines with their own sampling don't need it.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from meditune.config.data_options import PromptFormat
from meditune.engines.engine import GenerationRequest, TokenLogprob
from meditune.engines.exported_model import import_package
from meditune.errors import ModelError
from meditune.prompts import Encoder

if TYPE_CHECKING:
    import torch

FORMATTING = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}


class ConstraintCompiler:
    """Compiles the constraints of requests for one tokenizer."""

    def __init__(self, tokenizer: Any, ends: Sequence[int], folder: Path | None = None) -> None:
        """`ends` are the end tokens. `folder`, which contains tokenizer.json, is required for a PlainTokenizer."""
        self._tokenizer, self._ends, self._folder = tokenizer, list(ends), folder

    def compile(self, request: GenerationRequest) -> JsonConstraint | ChoiceConstraint | None:
        """Return the constraint for an answer, or None if the request has none.

        Raises ModelError if the constraint is invalid or llguidance is missing.
        """
        if request.choices:
            return ChoiceConstraint(self._tokenizer, request.choices, min(self._ends))
        if request.json_schema is None:
            return None
        guidance = _package()
        try:
            grammar = guidance.LLMatcher.grammar_from_json_schema(dict(request.json_schema), overrides=FORMATTING)
        except ValueError as error:
            raise ModelError(f"The JSON schema is invalid: {error}") from error
        matcher = guidance.LLMatcher(self._tokens, grammar, log_level=0)
        if matcher.is_error():
            raise ModelError(f"This JSON schema can't be enforced: {_first_line(matcher.get_error())}")
        return JsonConstraint(matcher, self._tokens.vocab_size)

    @cached_property
    def _tokens(self) -> Any:
        guidance = _package()
        if self._folder:
            return guidance.LLTokenizer(str(self._folder / "tokenizer.json"), eos_token=self._ends)
        from llguidance.hf import from_tokenizer

        return from_tokenizer(self._tokenizer, eos_token=self._ends)


class JsonConstraint:
    """The progress of one answer through its JSON schema."""

    def __init__(self, matcher: Any, vocabulary: int) -> None:
        self._matcher = matcher
        self._mask = np.zeros((vocabulary + 31) // 32, dtype=np.uint32)

    def allowed(self) -> NDArray[np.int64]:
        """Return the tokens that may come next, including end tokens if the answer may end."""
        self._matcher.unsafe_compute_mask_ptr(self._mask.ctypes.data, self._mask.nbytes)
        return np.flatnonzero(np.unpackbits(self._mask.view(np.uint8), bitorder="little"))

    def take(self, token: int) -> None:
        """Continue the answer with an allowed token. Raises ModelError if llguidance's limits are exceeded."""
        if not self._matcher.consume_token(token):
            reason = _first_line(self._matcher.get_error())
            raise ModelError(f"This JSON schema is too complex to be enforced. Simplify it. ({reason})")

    @property
    def complete(self) -> bool:
        """Return whether the answer is complete, so that only an end token may follow."""
        return bool(self._matcher.is_stopped())


def _package() -> Any:
    return import_package("serve", "llguidance", "To restrict answers to a JSON schema, this engine")


def _first_line(message: str) -> str:
    return next(iter(message.splitlines()), "no reason was given")


class ChoiceConstraint:
    """The texts from which an answer is chosen, as token sequences, and the answer's progress through them."""

    def __init__(self, tokenizer: Any, texts: Sequence[str], end: int) -> None:
        """Tokenize the texts. Raises ModelError if a text has no tokens."""
        encoder = Encoder(tokenizer, PromptFormat())
        self.end = end
        self.texts = [encoder.tokenize(text) for text in texts]
        """The token ids of each text"""
        self._left = self.texts
        if not all(self._left):
            raise ModelError("One of the texts to choose from is empty.")

    def allowed(self) -> list[int]:
        """Return the tokens that may come next, including the end token if the answer is one of the texts."""
        return list(dict.fromkeys(left[0] if left else self.end for left in self._left))

    def take(self, token: int) -> None:
        """Continue the answer with an allowed token."""
        self._left = [left[1:] for left in self._left if left and left[0] == token]

    @property
    def complete(self) -> bool:
        """Return whether the answer is complete, so that only an end token may follow."""
        return not any(self._left)


def choose(scored: Sequence[Sequence[TokenLogprob]], request: GenerationRequest) -> list[TokenLogprob]:
    """Return one of several scored texts, chosen as if an engine could generate only these texts.

    At each position, one of the texts' next tokens is chosen: the most likely token if the request's temperature is 0,
    and a sampled token otherwise. Each scored text includes its end token, but the returned text doesn't.
    """
    left, generator = list(scored), random.Random(request.seed)
    written: list[TokenLogprob] = []
    while True:
        position = len(written)
        different = {logprobs[position].token: logprobs[position] for logprobs in left}.values()
        tokens = sorted(different, key=lambda token: token.logprob, reverse=True)
        chosen = tokens[0]
        if request.temperature and len(tokens) > 1:
            weights = [math.exp((token.logprob - chosen.logprob) / request.temperature) for token in tokens]
            likelier = accumulate(weights, initial=0.0)
            nucleus = [
                weight if sum(weights) * request.top_p > before else 0.0
                for weight, before in zip(weights, likelier, strict=False)
            ]
            chosen = generator.choices(tokens, nucleus)[0]
        left = [logprobs for logprobs in left if logprobs[position].token == chosen.token]
        if len(left[0]) == position + 1:
            return written
        written.append(chosen)


class TokenSampler:
    """Chooses the tokens of one answer, within the answer's constraint."""

    def __init__(self, request: GenerationRequest, constraint: ChoiceConstraint | JsonConstraint | None) -> None:
        import torch

        self.request, self.constraint = request, constraint
        self._generator: torch.Generator | None = None
        if request.temperature:
            self._generator = torch.Generator()
            if request.seed is None:
                self._generator.seed()
            else:
                self._generator.manual_seed(request.seed % 2**63)

    def next_token(self, logits: torch.Tensor, best: int) -> int:
        """Return the next token, chosen by (vocabulary,) logits; `best` is the token with the highest logit."""
        import torch

        if self.constraint is None:
            return best if self._generator is None else self._sample(logits.float())
        allowed = torch.as_tensor(self.constraint.allowed(), device=logits.device)
        logits = logits.float()[allowed]
        return int(allowed[int(logits.argmax()) if self._generator is None else self._sample(logits)])

    def _sample(self, logits: torch.Tensor) -> int:
        """Return a token sampled from the smallest set whose probability reaches `top_p` (Holtzman et al. 2020)."""
        import torch

        probabilities = (logits.cpu() / max(self.request.temperature, 1e-4)).softmax(dim=-1)
        if self.request.top_p >= 1:
            return int(torch.multinomial(probabilities, 1, generator=self._generator))
        ordered, tokens = probabilities.sort(descending=True)
        # A token is kept if the total probability of all more likely tokens is less than top_p.
        nucleus = ordered.cumsum(dim=0) - ordered < self.request.top_p
        return int(tokens[int(torch.multinomial(ordered * nucleus, 1, generator=self._generator))])


def top_logprobs(row: torch.Tensor, token: int, count: int) -> TokenLogprob:
    """Return a token's log-probability from (vocabulary,) logits, with those of the `count` most likely tokens."""
    logprobs = row.float().log_softmax(dim=-1)
    values, tokens = logprobs.topk(min(count, len(logprobs)))
    return TokenLogprob(token, float(logprobs[token]), dict(zip(tokens.tolist(), values.tolist(), strict=True)))
