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

NAME = "meditune_grouped"


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
    key_heads, keys = key.shape[1], key.shape[2]
    folded = query.reshape(batch * key_heads, (heads // key_heads) * queries, size)
    scale = scaling if scaling is not None else 1 / math.sqrt(size)
    scores = torch.bmm(folded * scale, key.reshape(batch * key_heads, keys, size).transpose(1, 2))
    if attention_mask is not None:
        scores = (scores.view(batch, heads, queries, keys) + attention_mask).view_as(scores)
    weights = torch.softmax(scores, dim=-1)
    if dropout and module.training:
        weights = torch.nn.functional.dropout(weights, dropout)
    mixed = torch.bmm(weights, value.reshape(batch * key_heads, keys, value.shape[-1]))
    return mixed.view(batch, heads, queries, -1).transpose(1, 2).contiguous(), None


def register() -> str:
    """Make the attention known to transformers; returns its name for `attn_implementation`."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import eager_mask

    AttentionInterface.register(NAME, grouped_attention)
    AttentionMaskInterface.register(NAME, eager_mask)
    return NAME
