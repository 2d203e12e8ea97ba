"""Answers that are one of given texts: which tokens may come next."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from meditune.errors import ModelError
from meditune.prompts import Encoder
from meditune.recipe import PromptFormat


class Choices:
    """Texts as token sequences, each as it continues a prompt, and how far an answer has gone along them."""

    def __init__(self, tokenizer: Any, texts: Sequence[str], end: int) -> None:
        """Raises ModelError where a text has no tokens."""
        encoder = Encoder(tokenizer, PromptFormat())
        self.end = end
        self._left = [encoder.tokenize(text) for text in texts]
        if not all(self._left):
            raise ModelError("One of the texts that an answer may be is empty.")

    def allowed(self) -> list[int]:
        """Tokens that may come next; the end token where the answer is one of the texts already."""
        return list(dict.fromkeys(left[0] if left else self.end for left in self._left))

    def take(self, token: int) -> None:
        """The answer goes on with one of the tokens that are allowed."""
        self._left = [left[1:] for left in self._left if left and left[0] == token]

    @property
    def complete(self) -> bool:
        """Whether nothing but the end can follow."""
        return not any(self._left)
