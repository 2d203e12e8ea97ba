"""A key-value cache with one slot for each running text, and a cache of the prefixes of earlier texts.

transformers' cache is copied whole for every added token. Here a token is written in place, and the slot of a finished
text is reused. Slots are as long as the longest text needs, rounded up, and attention gets whole slots, because a
product with a part of them would copy that part.
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
    """The keys and values of `count` texts, or of more after `grow`.

    The first slots are in use. Layers with sliding windows keep all tokens, because masks restrict what they see.
    """

    def __init__(self, count: int) -> None:
        self.count, self.length = count, 0
        self.layers: Pairs = []

    def reading(self, first: int, before: Pairs) -> Any:
        """Return a cache for a forward pass over whole texts, stored from slot `first` on after the tokens `before`."""

        def update(keys: torch.Tensor, values: torch.Tensor, layer: int, *_: Any, **__: Any) -> Any:
            if before:
                keys = torch.cat([before[layer][0], keys], dim=2)
                values = torch.cat([before[layer][1], values], dim=2)
            self.grow(keys.shape[2])
            self._layer(layer, keys)
            for buffer, new in zip(self.layers[layer], (keys, values), strict=True):
                buffer[first : first + len(new), :, : new.shape[2]] = new
            return keys, values

        return _cache(update)

    def continuation(self, first: int, starts: Sequence[int], lengths: Sequence[int]) -> Any:
        """Return a cache for a forward pass over the rest of texts whose beginnings are in the slots from `first`.

        Row N of the pass has `lengths[N]` tokens, whose positions begin at `starts[N]`. Attention gets all `length`
        tokens of these slots.
        """
        counts = torch.tensor(lengths)
        rows = torch.arange(len(lengths)).repeat_interleave(counts)
        columns = torch.cat([torch.arange(length) for length in lengths])
        places = columns + torch.tensor(starts)[rows]

        def update(keys: torch.Tensor, values: torch.Tensor, layer: int, *_: Any, **__: Any) -> Any:
            nonlocal rows, columns, places
            rows, columns, places = (each.to(keys.device) for each in (rows, columns, places))
            self._layer(layer, keys)
            for buffer, new in zip(self.layers[layer], (keys, values), strict=True):
                buffer[rows + first, :, places] = new[rows, :, columns]
            return tuple(buffer[first : first + len(starts)] for buffer in self.layers[layer])

        return _cache(update)

    def writing(self, places: torch.Tensor) -> Any:
        """Return a cache for a forward pass over one more token of each of the first N texts, at these (N,) positions.

        Attention gets all `length` tokens of their slots.
        """
        rows = torch.arange(len(places), device=places.device)

        def update(keys: torch.Tensor, values: torch.Tensor, layer: int, *_: Any, **__: Any) -> Any:
            for buffer, new in zip(self.layers[layer], (keys, values), strict=True):
                buffer[rows, :, places] = new[:, :, 0]
            return tuple(buffer[: len(places)] for buffer in self.layers[layer])

        return _cache(update)

    def move(self, source: int, target: int) -> None:
        """Copy one slot over another."""
        for pair in self.layers:
            for buffer in pair:
                buffer[target] = buffer[source]

    def copied(self, slot: int, tokens: int) -> Pairs:
        """Return a copy of a slot's first keys and values, (key heads, tokens, size)."""
        return [(keys[slot, :, :tokens].clone(), values[slot, :, :tokens].clone()) for keys, values in self.layers]

    def put(self, slot: int, pairs: Pairs) -> None:
        """Write copied keys and values to the beginning of a slot."""
        self.grow(pairs[0][0].shape[1], slot + 1)
        for layer, pair in enumerate(pairs):
            self._layer(layer, pair[0])
            for buffer, given in zip(self.layers[layer], pair, strict=True):
                buffer[slot, :, : given.shape[1]] = given

    def grow(self, tokens: int, texts: int = 0) -> None:
        """Make room for texts of `tokens` tokens, and for `texts` texts."""
        if tokens <= self.length and texts <= self.count:
            return
        self.length = max(self.length, -(-tokens // STEP) * STEP)
        self.count = self.count if texts <= self.count else max(texts, 2 * self.count)
        for layer, pair in enumerate(self.layers):
            larger = tuple(map(self._room, pair))
            for new, old in zip(larger, pair, strict=True):
                new[: old.shape[0], :, : old.shape[2]] = old
            self.layers[layer] = (larger[0], larger[1])

    def clear(self) -> None:
        """Free the memory; no slot may be in use."""
        self.layers, self.count, self.length = [], 1, 0

    def _layer(self, layer: int, like: torch.Tensor) -> None:
        if layer == len(self.layers):
            self.layers.append((self._room(like), self._room(like)))

    def _room(self, like: torch.Tensor) -> torch.Tensor:
        # Masked values are still multiplied by zero, so they must be finite.
        return like.new_zeros(self.count, like.shape[-3], self.length, like.shape[-1])


def _cache(update: Any) -> Any:
    """Return a cache object that architectures accept and that stores nothing itself."""
    cache = forward.cache_of([])
    cache.update = update
    return cache


BYTES = 256_000_000
"""The most bytes of cached keys and values"""
MIN_PREFIX_TOKENS = 16
"""The fewest common tokens for which the cache is faster than reading them again"""


class PrefixCache:
    """A cache of texts' keys and values, at most `max_bytes` bytes; the least recently used texts are dropped first.

    A model's keys and values of a prefix don't depend on what follows. So a text that shares a prefix with a cached one
    (a system prompt, a source, a conversation) is only read from where it differs.
    """

    def __init__(self, max_bytes: int = BYTES) -> None:
        self.max_bytes, self.size_bytes = max_bytes, 0
        self._texts: dict[tuple[int, ...], tuple[np.ndarray, Pairs]] = {}
        """In order of use, the least recently used first"""

    def longest(self, text: Sequence[int]) -> tuple[int, Pairs]:
        """Return how many of the first tokens are cached, and their keys and values; 0 if they are too few to help.

        The last token is never included: the model must read it to predict the next one.
        """
        query = np.asarray(text[:-1])
        best, found = 0, None
        for tokens, (ids, _) in self._texts.items():
            common = shared_prefix(query, ids)
            if common > best:
                best, found = common, tokens
        if found is None or best < MIN_PREFIX_TOKENS:
            return 0, []
        entry = self._texts.pop(found)
        self._texts[found] = entry
        return best, [(keys[:, :best], values[:, :best]) for keys, values in entry[1]]

    def has(self, text: Sequence[int]) -> bool:
        """Return whether this whole text is cached."""
        query = np.asarray(text)
        return any(shared_prefix(query, ids) == len(query) for ids, _ in self._texts.values())

    def keep(self, text: Sequence[int], pairs: Pairs) -> None:
        """Cache a text's keys and values, which replace those of its own prefixes, unless they exceed the room."""
        ids = np.asarray(text)
        size = _bytes(pairs)
        if size > self.max_bytes:
            return
        for tokens, (others, _) in list(self._texts.items()):
            if shared_prefix(ids, others) == len(others):
                self._forget(tokens)
        while self.size_bytes + size > self.max_bytes:
            self._forget(next(iter(self._texts)))
        self._texts[tuple(text)] = (ids, pairs)
        self.size_bytes += size

    def _forget(self, tokens: tuple[int, ...]) -> None:
        self.size_bytes -= _bytes(self._texts.pop(tokens)[1])


def shared_prefix(first: np.ndarray, second: np.ndarray) -> int:
    """Return the number of tokens in the common prefix of two texts."""
    length = min(len(first), len(second))
    differ = np.flatnonzero(first[:length] != second[:length])
    return int(differ[0]) if len(differ) else length


def _bytes(pairs: Pairs) -> int:
    return sum(part.nbytes for pair in pairs for part in pair)
