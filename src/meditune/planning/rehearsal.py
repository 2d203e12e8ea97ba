"""One piece of training on the meta device, where nothing is computed, to see what it would hold and multiply.

The training code itself runs, so its attention, its head, checkpointing, frozen layers and every architecture are seen
as they are. What a formula per layer would leave out (the adapters' copies of their inputs, FP32 norms) is in it.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from meditune.models.frozen import FrozenLayers, frozen_count
from meditune.models.lora_layer import one_operation
from meditune.models.rows import Row, join, with_prompt
from meditune.models.virtual import virtual_tokens
from meditune.prompts import Encoded
from meditune.recipe import Recipe
from meditune.train.head_loss import loss_of_rows
from meditune.train.sft import recompute_activations


@dataclass(frozen=True)
class Piece:
    """What one forward and backward pass takes."""

    tokens: int
    held: int
    """Bytes at its peak, without weights and gradients that were there before."""
    flops: int
    """Operations of its matrix products and attention, two for each multiplication and addition"""


def longest_rows(recipe: Recipe) -> list[Row]:
    """As many rows of `prompt.max_tokens` as one piece takes, each with the longest answer that room is kept for."""
    form = recipe.prompt
    prompt, answer = [0] * (form.max_tokens - form.answer_room), [0] * (form.answer_room + 1)
    row = join([Encoded("longest", "answer", prompt, answer, answer_cut=False)])
    row = with_prompt(row) if recipe.train.prompt_share else row
    return [row] * max(1, recipe.train.micro_batch_tokens // len(row))


def rehearse(model: Any, recipe: Recipe) -> Piece:
    """Run the largest piece of a step on `model`, which must lie on the meta device and be trainable.

    Gradients are there from earlier pieces where a step has several.
    """
    rows = longest_rows(recipe)
    tokens = sum(map(len, rows))
    if recipe.train.gradient_checkpointing:
        recompute_activations(model)
    model.train()
    count = 0 if virtual_tokens(model) else frozen_count(model, recipe.model.top_layers)
    frozen = FrozenLayers(model, count)
    for parameter in model.parameters():
        parameter.grad = torch.empty_like(parameter) if parameter.requires_grad else None
    weights = [1.0] * sum(len(row.targets) for row in rows)
    with one_operation(model), _Watched() as watched:
        loss, _ = loss_of_rows(model, frozen, rows, weights, 0)
        loss.backward()
    for parameter in model.parameters():
        parameter.grad = None
    return Piece(tokens, watched.peak, watched.flops)


IN_PLACE = {torch.ops.aten.addmm_: torch.ops.aten.addmm}
"""Products that the registry of operations doesn't know, and one that costs the same."""


class _Watched(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Bytes of the tensors that were made inside the block and still live, the most at once, and operations."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = self.flops = 0
        self._known: dict[int, Any] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        counted = IN_PLACE.get(func._overloadpacket, func._overloadpacket)
        if counted in flop_registry:
            self.flops += flop_registry[counted](*args, **(kwargs or {}), out_val=made)
        given = {_storage(each)._cdata for each in tree_leaves((args, kwargs)) if isinstance(each, torch.Tensor)}
        for each in tree_leaves(made):
            if isinstance(each, torch.Tensor) and (storage := _storage(each))._cdata not in given | self._known.keys():
                size = storage.nbytes()
                self.now += size
                self._known[storage._cdata] = weakref.ref(storage, self._let_go(storage._cdata, size))
        self.peak = max(self.peak, self.now)
        return made

    def _let_go(self, key: int, size: int) -> Callable[[Any], None]:
        def gone(_: Any) -> None:
            self.now -= size
            self._known.pop(key, None)

        return gone


def _storage(tensor: torch.Tensor) -> Any:
    return tensor.untyped_storage()
