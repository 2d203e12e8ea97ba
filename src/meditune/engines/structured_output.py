"""Constraints for engines that choose each token themselves: JSON that follows a schema, or one of the given texts.

llguidance computes the tokens that a JSON schema allows. Separators are those of `json.dumps`: with free white space, a
small model may write nothing else. Source: github.com/guidance-ai/llguidance, docs/json_schema.md.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from meditune.config.data_options import PromptFormat
from meditune.engines.engine import GenerationRequest, TokenLogprob
from meditune.errors import ModelError, install_command
from meditune.prompts import Encoder

FORMATTING = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}


class ConstraintCompiler:
    """A compiler of requests' constraints for one tokenizer."""

    def __init__(self, tokenizer: Any, ends: Sequence[int], folder: Path | None = None) -> None:
        """The tokens `ends` end an answer. Give the folder with tokenizer.json if `tokenizer` isn't transformers'."""
        self._tokenizer, self._ends, self._folder = tokenizer, list(ends), folder

    def compile(self, request: GenerationRequest) -> JsonConstraint | ChoiceConstraint | None:
        """Return the constraint for a new answer, None if the request has none.

        Raises ModelError if llguidance is missing, or if the constraint is invalid.
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
    """The position of one answer in its JSON schema."""

    def __init__(self, matcher: Any, vocabulary: int) -> None:
        self._matcher = matcher
        self._mask = np.zeros((vocabulary + 31) // 32, dtype=np.uint32)

    def allowed(self) -> NDArray[np.int64]:
        """Return the tokens that may come next, including end tokens if the answer may end."""
        self._matcher.unsafe_compute_mask_ptr(self._mask.ctypes.data, self._mask.nbytes)
        return np.flatnonzero(np.unpackbits(self._mask.view(np.uint8), bitorder="little"))

    def take(self, token: int) -> None:
        """Continue the answer with an allowed token. Raises ModelError for any other token."""
        if not self._matcher.consume_token(token):
            raise ModelError(f"The answer doesn't follow its JSON schema: {_first_line(self._matcher.get_error())}")

    @property
    def complete(self) -> bool:
        """Return whether only the end can follow."""
        return bool(self._matcher.is_stopped())


def _package() -> Any:
    try:
        import llguidance
    except ImportError as error:
        raise ModelError(
            f"To restrict answers to a JSON schema, this engine needs llguidance ({error}). Install it: "
            f"{install_command('serve')}"
        ) from error
    return llguidance


def _first_line(message: str) -> str:
    return next(iter(message.splitlines()), "no reason was given")


class ChoiceConstraint:
    """The allowed texts of an answer as token sequences that continue a prompt, and the answer's position in them."""

    def __init__(self, tokenizer: Any, texts: Sequence[str], end: int) -> None:
        """Tokenize the texts. Raises ModelError if a text has no tokens."""
        encoder = Encoder(tokenizer, PromptFormat())
        self.end = end
        self.texts = [encoder.tokenize(text) for text in texts]
        """Each text's tokens"""
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
        """Return whether only the end can follow."""
        return not any(self._left)


def choose(scored: Sequence[Sequence[TokenLogprob]], temperature: float, seed: int | None) -> list[TokenLogprob]:
    """Return one of several scored texts, chosen as if an engine had generated it and could generate only these.

    In each position, the most likely of the texts' next tokens is chosen, or one is sampled by the temperature. Each
    text is scored with its end token and returned without it.
    """
    left, generator = list(scored), random.Random(seed)
    written: list[TokenLogprob] = []
    while True:
        position = len(written)
        tokens = list({logprobs[position].token: logprobs[position] for logprobs in left}.values())
        highest = max(tokens, key=lambda token: token.logprob)
        if temperature == 0 or len(tokens) == 1:
            chosen = highest
        else:
            weights = [math.exp((token.logprob - highest.logprob) / temperature) for token in tokens]
            chosen = generator.choices(tokens, weights)[0]
        left = [logprobs for logprobs in left if logprobs[position].token == chosen.token]
        if len(left[0]) == position + 1:
            return written
        written.append(chosen)
