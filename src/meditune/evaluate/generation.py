"""Writing answers: greedy decoding in batches of prompts of like length."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from meditune.models.continuing import batch_size, left_padded
from meditune.models.greedy import continuations
from meditune.models.load import LoadedModel
from meditune.models.virtual import virtual_tokens
from meditune.progress import Progress
from meditune.prompts import Encoded


def generate(loaded: LoadedModel, prompts: Sequence[Encoded], max_new_tokens: int, label: str) -> dict[str, str]:
    """The greedy continuation of each prompt up to its end token, by example id.

    Many answers at once: a step of a small model costs about the same for one answer as for fifty.
    """
    end = loaded.tokenizer.eos_token_id
    written: dict[str, str] = {}
    order = sorted(prompts, key=lambda prompt: len(prompt.prompt))
    before = virtual_tokens(loaded.model)
    with torch.inference_mode(), Progress(label, len(order), "answers") as progress:
        while order:
            size = batch_size(before + len(order[-1].prompt), max_new_tokens)
            chosen, order = order[-size:], order[:-size]
            texts = [item.prompt for item in chosen]
            if before:
                output = continuations(loaded.model, texts, max_new_tokens, end, loaded.pad_id)
            else:
                output = _by_transformers(loaded, texts, max_new_tokens)
            for item, ids in zip(chosen, output, strict=True):
                kept = ids[: ids.index(end)] if end in ids else ids
                written[item.id] = loaded.tokenizer.decode(kept, skip_special_tokens=True).strip()
            progress.advance(len(chosen))
    return written


def _by_transformers(loaded: LoadedModel, prompts: Sequence[list[int]], max_new_tokens: int) -> list[list[int]]:
    """Each prompt's next tokens, up to its end token and padding after it."""
    from transformers import GenerationConfig

    end = loaded.tokenizer.eos_token_id
    config = GenerationConfig(
        max_new_tokens=max_new_tokens, do_sample=False, num_beams=1, eos_token_id=end, pad_token_id=loaded.pad_id
    )
    device = next(loaded.model.parameters()).device
    tokens, mask = left_padded(prompts, loaded.pad_id)
    output = loaded.model.generate(
        input_ids=tokens.to(device), attention_mask=mask.to(device), generation_config=config
    )
    written: list[list[int]] = output[:, tokens.shape[1] :].tolist()
    return written
