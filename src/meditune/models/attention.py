"""Attention for CPUs: the query heads that share a key head are folded into one batched matrix product.

PyTorch's fused CPU attention is slow in BF16, and repeating the key heads for grouped-query attention costs memory
traffic. Folding the G query heads of a key head into the rows of one product needs neither. Registered with
transformers under the name below, so any architecture that uses its attention interface can have it; "sdpa" is the
plain fallback, and a test holds the two equal.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from meditune.models.inference import products

NAME = "meditune_grouped"
BLOCK = 128
"""Queries at a time where no gradients are kept: keys after the last of them are seen by none and left out."""


def grouped_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Attention of `query` (batch, heads, queries, size) over `key` and `value` (batch, key heads, keys, size).

    `attention_mask` is added to the scores: (batch or 1, 1, queries, keys). Returns (batch, queries, heads, size).
    """
    batch, heads, queries, size = query.shape
    keys = key.shape[2]
    scale = scaling if scaling is not None else 1 / math.sqrt(size)
    if torch.is_grad_enabled() or queries <= BLOCK or attention_mask is None or not getattr(module, "is_causal", False):
        rate = dropout if module.training else 0.0
        return _attended(query * scale, key, value, attention_mask, rate).contiguous(), None
    mixed = query.new_empty(batch, queries, heads, value.shape[-1])
    for first in range(0, queries, BLOCK):
        last = min(first + BLOCK, queries)
        seen = keys - queries + last
        block, mask = query[:, :, first:last] * scale, attention_mask[:, :, first:last, :seen]
        mixed[:, first:last] = _attended(block, key[:, :, :seen], value[:, :, :seen], mask, 0.0)
    return mixed, None


def _attended(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None, dropout: float
) -> torch.Tensor:
    """The same of scaled queries, as a view: (batch, queries, heads, size)."""
    batch, heads, queries, size = query.shape
    key_heads, keys = key.shape[1], key.shape[2]
    folded = query.reshape(batch * key_heads, (heads // key_heads) * queries, size)
    scores = products(folded, key.reshape(batch * key_heads, keys, size))
    if mask is not None:
        scores = (scores.view(batch, heads, queries, keys) + mask).view_as(scores)
    weights = torch.softmax(scores, dim=-1)
    if dropout:
        weights = torch.nn.functional.dropout(weights, dropout)
    mixed = products(weights, value.reshape(batch * key_heads, keys, value.shape[-1]).transpose(1, 2))
    return mixed.view(batch, heads, queries, -1).transpose(1, 2)


def register() -> str:
    """Make the attention known to transformers; returns its name for `attn_implementation`."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import eager_mask

    AttentionInterface.register(NAME, grouped_attention)
    AttentionMaskInterface.register(NAME, eager_mask)
    return NAME
