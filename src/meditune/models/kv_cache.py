"""A key-value cache whose memory is taken once: one slot for each text that is being continued.

transformers' cache is copied whole for every token that is added. Here a token is written into its place, and a text
that has ended gives its slot to another one. Slots are as long as the longest text in them needs, rounded up, and are
given to attention whole, because a product with a part of them would copy that part.

Beginnings of texts that were read before: a system prompt, a source that many questions are about, a conversation.

What a model makes of a text's beginning doesn't depend on what follows, so its keys and values are kept, and a text
that begins likewise is read from where it differs. The least recently used are forgotten first.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from meditune.models import forward

STEP = 32
"""Tokens by which slots grow"""
Pairs = list[tuple[torch.Tensor, torch.Tensor]]
"""Keys and values of each layer, (texts, key heads, tokens, size)"""


class KVCache:
    """Keys and values of `count` texts, or of more, where room is made for them.

    The slots in use are the first ones. Layers that slide a window keep everything, because masks say what they see.
    """

    def __init__(self, count: int) -> None:
        self.count, self.length = count, 0
        self.kept: Pairs = []

    def reading(self, slots: Sequence[int], before: Pairs) -> Any:
        """A cache for a forward pass over whole texts, which go into these slots, after the tokens `before` them."""

        def update(keys: torch.Tensor, values: torch.Tensor, layer: int, *_: Any, **__: Any) -> Any:
            if before:
                keys = torch.cat([before[layer][0], keys], dim=2)
                values = torch.cat([before[layer][1], values], dim=2)
            self.grow(keys.shape[2])
            self._layer(layer, keys)
            for kept, new in zip(self.kept[layer], (keys, values), strict=True):
                for slot, row in zip(slots, new, strict=True):
                    kept[slot, :, : row.shape[1]] = row
            return keys, values

        return _cache(update)

    def going_on(self, first: int, starts: Sequence[int], lengths: Sequence[int]) -> Any:
        """A cache for a forward pass over the rest of texts whose beginnings lie in the slots from `first` on.

        Row N of the pass has `lengths[N]` tokens, whose places begin at `starts[N]`. Attention is given all `length`
        tokens of these slots.
        """

        def update(keys: torch.Tensor, values: torch.Tensor, layer: int, *_: Any, **__: Any) -> Any:
            self._layer(layer, keys)
            for kept, new in zip(self.kept[layer], (keys, values), strict=True):
                for slot, (row, start, length) in enumerate(zip(new, starts, lengths, strict=True), first):
                    kept[slot, :, start : start + length] = row[:, :length]
            return tuple(kept[first : first + len(starts)] for kept in self.kept[layer])

        return _cache(update)

    def writing(self, places: torch.Tensor) -> Any:
        """A cache for a forward pass over one more token of each of the first N texts, at these (N,) places.

        Attention is given all `length` tokens of their slots.
        """
        rows = torch.arange(len(places), device=places.device)

        def update(keys: torch.Tensor, values: torch.Tensor, layer: int, *_: Any, **__: Any) -> Any:
            for kept, new in zip(self.kept[layer], (keys, values), strict=True):
                kept[rows, :, places] = new[:, :, 0]
            return tuple(kept[: len(places)] for kept in self.kept[layer])

        return _cache(update)

    def move(self, source: int, target: int) -> None:
        """Copy one slot over another."""
        for pair in self.kept:
            for kept in pair:
                kept[target] = kept[source]

    def copied(self, slot: int, tokens: int) -> Pairs:
        """A copy of what a slot holds of its first tokens, (key heads, tokens, size)."""
        return [(keys[slot, :, :tokens].clone(), values[slot, :, :tokens].clone()) for keys, values in self.kept]

    def put(self, slot: int, pairs: Pairs) -> None:
        """Begin a slot with keys and values that were copied."""
        self.grow(pairs[0][0].shape[1], slot + 1)
        for layer, pair in enumerate(pairs):
            self._layer(layer, pair[0])
            for kept, given in zip(self.kept[layer], pair, strict=True):
                kept[slot, :, : given.shape[1]] = given

    def grow(self, tokens: int, texts: int = 0) -> None:
        """Make room for texts of so many tokens, and for so many texts."""
        if tokens <= self.length and texts <= self.count:
            return
        self.length = max(self.length, -(-tokens // STEP) * STEP)
        self.count = self.count if texts <= self.count else max(texts, 2 * self.count)
        for layer, pair in enumerate(self.kept):
            larger = tuple(map(self._room, pair))
            for new, old in zip(larger, pair, strict=True):
                new[: old.shape[0], :, : old.shape[2]] = old
            self.kept[layer] = (larger[0], larger[1])

    def clear(self) -> None:
        """Give the memory back; nothing may be in use."""
        self.kept, self.count, self.length = [], 1, 0

    def _layer(self, layer: int, like: torch.Tensor) -> None:
        if layer == len(self.kept):
            self.kept.append((self._room(like), self._room(like)))

    def _room(self, like: torch.Tensor) -> torch.Tensor:
        # What a mask hides is still multiplied, by zero: it must be a number.
        return like.new_zeros(self.count, like.shape[-3], self.length, like.shape[-1])


def _cache(update: Any) -> Any:
    """A cache that architectures accept and that keeps nothing itself."""
    cache = forward.cache_of([])
    cache.update = update
    return cache


BYTES = 256_000_000
"""Keys and values that are kept at most"""
WORTH = 16
"""Tokens in common under which reading anew is as fast"""


class PrefixCache:
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
            common = shared_prefix(wanted, ids)
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
        return any(shared_prefix(wanted, ids) == len(wanted) for ids, _ in self._texts.values())

    def keep(self, text: Sequence[int], pairs: Pairs) -> None:
        """Keep a text's keys and values, in place of those of its own beginnings, unless they have no room."""
        ids = np.asarray(text)
        size = _bytes(pairs)
        if size > self.room:
            return
        for tokens, (others, _) in list(self._texts.items()):
            if shared_prefix(ids, others) == len(others):
                self._forget(tokens)
        while self.held + size > self.room:
            self._forget(next(iter(self._texts)))
        self._texts[tuple(text)] = (ids, pairs)
        self.held += size

    def _forget(self, tokens: tuple[int, ...]) -> None:
        self.held -= _bytes(self._texts.pop(tokens)[1])


def shared_prefix(first: np.ndarray, second: np.ndarray) -> int:
    """How many tokens two texts begin with alike."""
    length = min(len(first), len(second))
    differ = np.flatnonzero(first[:length] != second[:length])
    return int(differ[0]) if len(differ) else length


def _bytes(pairs: Pairs) -> int:
    return sum(part.nbytes for pair in pairs for part in pair)
