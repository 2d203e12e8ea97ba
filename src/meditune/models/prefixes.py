"""Beginnings of texts that were read before: a system prompt, a source that many questions are about, a conversation.

What a model makes of a text's beginning doesn't depend on what follows, so its keys and values are kept, and a text
that begins likewise is read from where it differs. The least recently used are forgotten first.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from meditune.models.slots import Pairs

BYTES = 256_000_000
"""Keys and values that are kept at most"""
WORTH = 16
"""Tokens in common under which reading anew is as fast"""


class Prefixes:
    """Keys and values of texts, at most `room` bytes."""

    def __init__(self, room: int = BYTES) -> None:
        self.room, self.held = room, 0
        self._texts: dict[tuple[int, ...], tuple[np.ndarray, Pairs]] = {}
        """The least recently used first"""

    def longest(self, text: Sequence[int]) -> tuple[int, Pairs]:
        """How many of the first tokens are known, and their keys and values; 0 and nothing where that isn't worth it.

        At least the last token isn't among them: it must be read for the model to say what follows.
        """
        wanted = np.asarray(text[:-1])
        best, found = 0, None
        for tokens, (ids, _) in self._texts.items():
            common = shared(wanted, ids)
            if common > best:
                best, found = common, tokens
        if found is None or best < WORTH:
            return 0, []
        entry = self._texts.pop(found)
        self._texts[found] = entry
        return best, [(keys[:, :best], values[:, :best]) for keys, values in entry[1]]

    def has(self, text: Sequence[int]) -> bool:
        """Whether all of this text is known."""
        wanted = np.asarray(text)
        return any(shared(wanted, ids) == len(wanted) for ids, _ in self._texts.values())

    def keep(self, text: Sequence[int], pairs: Pairs) -> None:
        """Keep a text's keys and values, in place of those of its own beginnings, unless they have no room."""
        ids = np.asarray(text)
        size = _bytes(pairs)
        if size > self.room:
            return
        for tokens, (others, _) in list(self._texts.items()):
            if shared(ids, others) == len(others):
                self._forget(tokens)
        while self.held + size > self.room:
            self._forget(next(iter(self._texts)))
        self._texts[tuple(text)] = (ids, pairs)
        self.held += size

    def _forget(self, tokens: tuple[int, ...]) -> None:
        self.held -= _bytes(self._texts.pop(tokens)[1])


def shared(first: np.ndarray, second: np.ndarray) -> int:
    """How many tokens two texts begin with alike."""
    length = min(len(first), len(second))
    differ = np.flatnonzero(first[:length] != second[:length])
    return int(differ[0]) if len(differ) else length


def _bytes(pairs: Pairs) -> int:
    return sum(part.nbytes for pair in pairs for part in pair)
