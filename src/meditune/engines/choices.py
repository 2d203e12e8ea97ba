"""Answers that are one of given texts: which tokens may come next."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import Any

from meditune.engines.engine import Job, Likely
from meditune.errors import ModelError
from meditune.prompts import Encoder
from meditune.recipe import PromptFormat


class Choices:
    """Texts as token sequences, each as it continues a prompt, and how far an answer has gone along them."""

    def __init__(self, tokenizer: Any, texts: Sequence[str], end: int) -> None:
        """Raises ModelError where a text has no tokens."""
        encoder = Encoder(tokenizer, PromptFormat())
        self.end = end
        self.texts = [encoder.tokenize(text) for text in texts]
        """Each text's tokens"""
        self._left = self.texts
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


def chosen_by(scored: Sequence[Sequence[Likely]], job: Job) -> list[Likely]:
    """One of some texts whose likelihoods are known token by token, as an engine writes it that may write no other.

    Of the tokens with which a text may go on the likeliest is taken, or one by chance where the job says so. Each text
    is scored with the end token after it, and told without.
    """
    left, chance = list(scored), random.Random(job.seed)
    written: list[Likely] = []
    while True:
        place = len(written)
        ways = {likely[place].token: likely[place] for likely in left}
        chosen = _one(list(ways.values()), job.temperature, chance)
        left = [likely for likely in left if likely[place].token == chosen.token]
        if len(left[0]) == place + 1:
            return written
        written.append(chosen)


def _one(ways: list[Likely], temperature: float, chance: random.Random) -> Likely:
    if temperature == 0 or len(ways) == 1:
        return max(ways, key=lambda way: way.logprob)
    highest = max(way.logprob for way in ways)
    weights = [math.exp((way.logprob - highest) / temperature) for way in ways]
    return chance.choices(ways, weights)[0]
