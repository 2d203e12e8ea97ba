"""A key-value cache whose memory is taken once: one slot for each text that is being continued.

transformers' cache is copied whole for every token that is added. Here a token is written into its place, and a text
that has ended gives its slot to another one. Slots are as long as the longest text in them needs, rounded up, and are
given to attention whole, because a product with a part of them would copy that part.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from meditune.models import virtual

STEP = 32
"""Tokens by which slots grow"""
Pairs = list[tuple[torch.Tensor, torch.Tensor]]
"""Keys and values of each layer, (texts, key heads, tokens, size)"""


class Slots:
    """Keys and values of up to `count` texts.

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
            if layer == len(self.kept):
                self.kept.append((self._room(keys), self._room(values)))
            for kept, new in zip(self.kept[layer], (keys, values), strict=True):
                for slot, row in zip(slots, new, strict=True):
                    kept[slot, :, : row.shape[1]] = row
            return keys, values

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

    def grow(self, tokens: int) -> None:
        """Make room for texts of so many tokens."""
        if tokens <= self.length:
            return
        self.length = -(-tokens // STEP) * STEP
        for layer, pair in enumerate(self.kept):
            longer = tuple(map(self._room, pair))
            for new, old in zip(longer, pair, strict=True):
                new[:, :, : old.shape[2]] = old
            self.kept[layer] = (longer[0], longer[1])

    def _room(self, like: torch.Tensor) -> torch.Tensor:
        # What a mask hides is still multiplied, by zero: it must be a number.
        return like.new_zeros(self.count, like.shape[1], self.length, like.shape[3])


def _cache(update: Any) -> Any:
    """A cache that architectures accept and that keeps nothing itself."""
    cache = virtual.cache_of([])
    cache.update = update
    return cache
