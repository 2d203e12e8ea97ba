"""Greedy decoding for models with virtual tokens.

transformers' `generate` pads on the left, between the virtual tokens and the prompt, and so moves a prompt away from
them by as much as it is shorter than its neighbours. Here rows are padded on the right, and every token has its own
position and mask, so a prompt's answer doesn't depend on its batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from meditune.models import virtual
from meditune.models.forward import head_only_at
from meditune.models.masks import attention_masks


def continuations(
    model: Any, prompts: Sequence[list[int]], max_new_tokens: int, end_id: int, pad_id: int
) -> list[list[int]]:
    """The likeliest next tokens after each prompt, up to `max_new_tokens` or the end token and what follows it."""
    base = model.get_base_model()
    device = next(model.parameters()).device
    lengths = torch.tensor([len(prompt) for prompt in prompts], device=device)
    padded = [torch.tensor(prompt, device=device) for prompt in prompts]
    tokens = torch.nn.utils.rnn.pad_sequence(padded, batch_first=True, padding_value=pad_id)
    size, length = tokens.shape
    positions = torch.arange(length, device=device).expand(size, length)
    real = positions < lengths[:, None]
    sees = real[:, None, :] & real.new_ones(length, length).tril()
    inputs, shift = virtual.inputs_of(model, tokens, sees, positions)
    cache_name, count = virtual.cache_name(model), virtual.virtual_tokens(model)
    cache = inputs.setdefault(cache_name, virtual.cache_of([]))
    with head_only_at(model, torch.arange(size, device=device), lengths - 1 + shift):
        following = base(**inputs, use_cache=True).logits[0].argmax(dim=-1)
    written = [following]
    real = torch.cat([real.new_ones(size, count), real], dim=1)
    places = torch.cat([torch.arange(count, device=device).expand(size, count), positions + count], dim=1)
    ended = following == end_id
    for step in range(max_new_tokens - 1):
        if bool(ended.all()):
            break
        here = (lengths + count + step)[:, None]
        real = torch.cat([real, real.new_ones(size, 1)], dim=1)
        places = torch.cat([places, here], dim=1)
        masks = attention_masks(model, real[:, None, :], here, places)
        step_inputs = {"input_ids": following[:, None], "attention_mask": masks, "position_ids": here}
        following = base(**step_inputs, **{cache_name: cache}, use_cache=True).logits[:, -1].argmax(dim=-1)
        written.append(following)
        ended |= following == end_id
    return torch.stack(written, dim=1).tolist()
