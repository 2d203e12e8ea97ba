"""Prompts continued in batches: how many at once, how they are padded, and what a model's distribution gives."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from meditune.machine import memory_gb
from meditune.models.load import LoadedModel

BATCH_TOKENS = 24_000
"""Tokens that are kept at once at most"""


def token_bytes(config: Any, element_size: int) -> int:
    """Bytes that the key-value cache of a model of this configuration takes for each token."""
    text = config.get_text_config()
    heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    size = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    return int(2 * text.num_hidden_layers * heads * size * element_size)


def cached_tokens(model: Any) -> int:
    """How many tokens are kept at once: as many as half of the free memory holds, and at most BATCH_TOKENS."""
    weight = model.get_input_embeddings().weight
    if weight.is_cuda:
        # What torch holds of freed tensors isn't free to the driver.
        freed = torch.cuda.memory_reserved(weight.device) - torch.cuda.memory_allocated(weight.device)
        free = torch.cuda.mem_get_info(weight.device)[0] + freed
    else:
        free = int(memory_gb()[1] * 1e9)
    return min(BATCH_TOKENS, free // 2 // token_bytes(model.config, weight.element_size()))


def batch_size(longest: int, more: int, model: Any = None) -> int:
    """How many prompts of at most `longest` tokens are continued at once by up to `more` tokens.

    Where `model` is given, as many as there is memory for.
    """
    return max(1, (BATCH_TOKENS if model is None else cached_tokens(model)) // (longest + more))


def left_padded(prompts: Sequence[list[int]], pad_id: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(N, longest) token ids that all end in the last column, and a mask of the same shape: 1 where they are real."""
    length = max(map(len, prompts))
    tokens = torch.full((len(prompts), length), pad_id)
    mask = torch.zeros((len(prompts), length), dtype=torch.long)
    for index, prompt in enumerate(prompts):
        tokens[index, length - len(prompt) :] = torch.tensor(prompt)
        mask[index, length - len(prompt) :] = 1
    return tokens, mask


def sampled(loaded: LoadedModel, prompts: Sequence[list[int]], more: int, temperature: float = 1.0) -> list[list[int]]:
    """Up to `more` tokens after each prompt, at least one before the end token, which is kept where it came.

    Nothing is cut off the distribution. Torch's global seed decides, so the batch a prompt is in does, too.
    """
    from transformers import GenerationConfig

    model, end = loaded.model, loaded.tokenizer.eos_token_id
    tokens, mask = left_padded(prompts, loaded.pad_id)
    whole = GenerationConfig(
        do_sample=True,
        temperature=temperature,
        top_k=0,
        top_p=1.0,
        max_new_tokens=more,
        begin_suppress_tokens=[end],
        eos_token_id=end,
        pad_token_id=loaded.pad_id,
    )
    device = next(model.parameters()).device
    # What the model's own settings say (top_k, penalties) would fill the gaps of these and bend the distribution.
    usual, model.generation_config = model.generation_config, GenerationConfig()
    try:
        with torch.inference_mode():
            output = model.generate(
                input_ids=tokens.to(device), attention_mask=mask.to(device), generation_config=whole
            )
    finally:
        model.generation_config = usual
    written: list[list[int]] = output[:, tokens.shape[1] :].tolist()
    return [ids[: ids.index(end) + 1] if end in ids else ids for ids in written]
