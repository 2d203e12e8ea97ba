"""A model traced for other programs: a function of tokens and what was read before, with our own cache and masks.

Keys and values are inputs and outputs, in the names that optimum gave them and others know.
"""

from __future__ import annotations

from typing import Any

import torch

from meditune.models import virtual
from meditune.models.quiet import quiet_transformers

BATCH, BEFORE, NEW = 2, 3, 4
"""Rows, tokens before and new tokens of the example that is traced; any others may follow"""
INPUTS = ("input_ids", "attention_mask", "position_ids")


class Traced(torch.nn.Module):
    """The model as a function of tokens, mask, positions and the keys and values before them."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        self.config = model.config.get_text_config()
        self.cache_name = virtual.cache_name(model)

    def forward(self, tokens: torch.Tensor, mask: torch.Tensor, positions: torch.Tensor, *past: torch.Tensor) -> Any:
        """Logits, and the keys and values of everything so far."""
        present: list[torch.Tensor] = []

        def update(keys: torch.Tensor, values: torch.Tensor, layer: int, *_: Any, **__: Any) -> Any:
            pair = [torch.cat([past[2 * layer + part], new], dim=2) for part, new in enumerate((keys, values))]
            present.extend(pair)
            return tuple(pair)

        cache = virtual.cache_of([])
        cache.update = update
        output = self.model(
            input_ids=tokens,
            attention_mask=self._masks(mask, positions),
            position_ids=positions,
            use_cache=True,
            **{self.cache_name: cache},
        )
        return (output.logits, *present)

    def _masks(self, mask: torch.Tensor, positions: torch.Tensor) -> Any:
        """As models/masks.py makes them, in operations whose shapes stay open."""
        keys = torch.arange(mask.shape[1])[None, None, None, :]
        queries = positions[:, None, :, None]
        sees = (keys <= queries) & (mask[:, None, None, :] > 0)
        window, kinds = getattr(self.config, "sliding_window", None), getattr(self.config, "layer_types", None)
        if not window or (kinds and "sliding_attention" not in kinds):
            return sees
        near = sees & (queries - keys < window)
        return {"full_attention": sees, "sliding_attention": near} if kinds else near


def example(shapes: list[tuple[int, int]]) -> tuple[torch.Tensor, ...]:
    """What a model is traced with: tokens, mask, positions, and keys and values of these shapes."""
    return (
        torch.ones(BATCH, NEW, dtype=torch.long),
        torch.ones(BATCH, BEFORE + NEW, dtype=torch.long),
        torch.arange(BEFORE, BEFORE + NEW).expand(BATCH, NEW).contiguous(),
        *(torch.zeros(BATCH, heads, BEFORE, size) for heads, size in shapes),
    )


def past_names(count: int) -> list[str]:
    """What the keys and values are called that go in."""
    return [f"past_key_values.{number // 2}.{('key', 'value')[number % 2]}" for number in range(count)]


def present(past: str) -> str:
    """... and those that come out."""
    return past.replace("past_key_values", "present")


def cache_shapes(model: Any) -> list[tuple[int, int]]:
    """Heads and their size of each layer's keys, then values."""
    cache = virtual.cache_of([])
    with torch.no_grad(), quiet_transformers():
        model(input_ids=torch.zeros(1, 1, dtype=torch.long), use_cache=True, **{virtual.cache_name(model): cache})
    return [(part.shape[1], part.shape[3]) for layer in cache.layers for part in (layer.keys, layer.values)]
