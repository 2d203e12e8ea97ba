"""Pruning whole layers: those that change their input least are taken out."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import torch

from meditune.errors import ModelError
from meditune.models.calibration import Passage
from meditune.models.frozen import blocks_of
from meditune.progress import track


def check_count(model: Any, count: int) -> None:
    """Raises ModelError where taking out `count` layers would leave none."""
    there = len(blocks_of(model))
    if count >= there:
        raise ModelError(
            f"model.prune.layers: the model has {there} layers, and one at least must stay. Take out at most "
            f"{there - 1}."
        )


def block_influence(model: Any, batches: Sequence[Passage]) -> list[float]:
    """For each layer, 1 - the mean cosine between a token's hidden state before it and after it.

    From Men et al. 2024 (ShortGPT), arXiv:2403.03853. `batches` must come from this model; they are used up.
    """
    layers = blocks_of(model)
    tokens = sum(int(batch.real.sum()) for batch in batches)
    found = []
    for number in track(range(len(layers)), "Layers' influence", unit="layers"):
        cosines = 0.0
        with torch.no_grad():
            for batch in batches:
                after = batch.after(layers, number)
                before, changed = batch.hidden[batch.real].float(), after[batch.real].float()
                cosines += float(torch.nn.functional.cosine_similarity(before, changed, dim=-1).double().sum())
                batch.hidden = after
        found.append(1 - cosines / tokens)
    return found


def least(influence: Sequence[float], count: int) -> list[int]:
    """The numbers (from 0) of the `count` layers of least influence, in the model's order."""
    return sorted(sorted(range(len(influence)), key=lambda number: influence[number])[:count])


def remove_layers(model: Any, removed: Collection[int]) -> None:
    """Take these layers (numbers from 0) out of the model, in place.

    What the config says of each layer goes with them, and the others are numbered anew, because caches and masks go by
    layer numbers.
    """
    config = model.config.get_text_config()
    count = config.num_hidden_layers
    blocks = blocks_of(model)
    stack = next(
        module
        for module in model.modules()
        if isinstance(module, torch.nn.ModuleList) and len(module) == count and module[0] is blocks[0]
    )
    for number in sorted(removed, reverse=True):
        del stack[number]
    for number, block in enumerate(stack):
        for module in (each for each in block.modules() if isinstance(getattr(each, "layer_idx", None), int)):
            module.__dict__["layer_idx"] = number
    listed = {
        name: [kind for number, kind in enumerate(kinds) if number not in removed]
        for name, kinds in vars(config).items()
        if "layer" in name and isinstance(kinds, list) and len(kinds) == count
    }
    config.num_hidden_layers = len(stack)
    for name, kinds in listed.items():
        setattr(config, name, kinds)
