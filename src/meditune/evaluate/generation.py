"""Writing answers: greedy decoding in batches of prompts of like length."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from meditune.models.load import LoadedModel
from meditune.progress import Progress
from meditune.prompts import Encoded

BATCH_TOKENS = 24_000
"""Bounds the memory of the key-value cache."""


def generate(loaded: LoadedModel, prompts: Sequence[Encoded], max_new_tokens: int, label: str) -> dict[str, str]:
    """The greedy continuation of each prompt up to its end token, by example id.

    Many answers at once: a step of a small model costs about the same for one answer as for fifty.
    """
    from transformers import GenerationConfig

    end = loaded.tokenizer.eos_token_id
    config = GenerationConfig(
        max_new_tokens=max_new_tokens, do_sample=False, num_beams=1, eos_token_id=end, pad_token_id=loaded.pad_id
    )
    written: dict[str, str] = {}
    order = sorted(prompts, key=lambda prompt: len(prompt.prompt))
    device = next(loaded.model.parameters()).device
    with torch.inference_mode(), Progress(label, len(order), "answers") as progress:
        while order:
            size = max(1, BATCH_TOKENS // (len(order[-1].prompt) + max_new_tokens))
            chosen, order = order[-size:], order[:-size]
            length = max(len(item.prompt) for item in chosen)
            tokens = torch.full((len(chosen), length), loaded.pad_id)
            mask = torch.zeros((len(chosen), length), dtype=torch.long)
            for index, item in enumerate(chosen):
                tokens[index, length - len(item.prompt) :] = torch.tensor(item.prompt)
                mask[index, length - len(item.prompt) :] = 1
            output = loaded.model.generate(
                input_ids=tokens.to(device), attention_mask=mask.to(device), generation_config=config
            )
            for item, ids in zip(chosen, output[:, length:].tolist(), strict=True):
                kept = ids[: ids.index(end)] if end in ids else ids
                written[item.id] = loaded.tokenizer.decode(kept, skip_special_tokens=True).strip()
            progress.advance(len(chosen))
    return written
