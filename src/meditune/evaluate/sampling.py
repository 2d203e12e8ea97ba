"""Answers written by chance, several to a question: what a model says differently each time it may have made up."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from meditune.data.example import Example
from meditune.models.continuing import batch_size, sampled
from meditune.models.load import LoadedModel
from meditune.progress import Progress
from meditune.prompts import Encoder


def samples(
    loaded: LoadedModel, encoder: Encoder, examples: Sequence[Example], count: int, more: int, seed: int, label: str
) -> Iterator[dict[str, Any]]:
    """A row of each example: `id`, and `predictions` with `count` answers of up to `more` tokens, at temperature 1.

    The seed fixes them on a machine; another batch size (less free memory) or library version gives others.
    """
    prompts = {example.id: encoder.prompt(example, "answer").prompt for example in examples}
    # Prompts of like length share a batch, the longest first: what needs most memory shows at once.
    order = [name for name in sorted(prompts, key=lambda name: -len(prompts[name])) for _ in range(count)]
    written: dict[str, list[str]] = {name: [] for name in prompts}
    torch.manual_seed(seed)
    with Progress(label, len(order), "answers") as progress:
        while order:
            size = batch_size(len(prompts[order[0]]), more, loaded.model)
            names, order = order[:size], order[size:]
            for name, ids in zip(names, sampled(loaded, [prompts[name] for name in names], more), strict=True):
                written[name].append(loaded.tokenizer.decode(ids, skip_special_tokens=True).strip())
            progress.advance(len(names))
    for name, texts in written.items():
        yield {"id": name, "predictions": texts}
