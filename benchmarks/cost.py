"""The minimum number of operations that training needs, by formula. Model FLOP utilization (MFU) is based on it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass
from typing import Any


@dataclass(frozen=True)
class Read:
    """The amount of text that a training run read, without padding."""

    tokens: int = 0
    supervised: int = 0
    """Tokens whose prediction is trained"""
    pairs: int = 0
    """Number of pairs of a token and a token that it attends to, itself included"""

    def __add__(self, other: Read) -> Read:
        return Read(*(one + two for one, two in zip(astuple(self), astuple(other), strict=True)))


def total(reads: Sequence[Read]) -> Read:
    """Return their sum."""
    return sum(reads, Read())


def read_of_text(tokens: int, supervised: int) -> Read:
    """Return the counts of an ordinary row, in which every token attends to itself and all tokens before it."""
    return Read(tokens, supervised, tokens * (tokens + 1) // 2)


def read_of_row(row: Any) -> Read:
    """Return the counts of one of Meditune's rows, in which branches attend to the common start and to themselves."""
    seen, pairs = {0: 0}, 0
    for branch in row.branch:
        seen[branch] = seen.get(branch, 0) + 1
        pairs += seen[branch] + (seen[0] if branch else 0)
    return Read(len(row), len(row.targets), pairs)


@dataclass(frozen=True)
class Cost:
    """Operations of a forward and a backward pass, two for each multiplication and addition.

    Only matrix products that the result needs are counted, even if an engine computes more:

    - a weight of a layer takes 2 for each token in the forward pass, 2 in the backward pass if the gradient of its
      input is needed (frozen weights above the lowest trained one), and 2 if the weight itself is trained (LoRA's
      weights: 6 in all, except those that read the embeddings);
    - a weight of the output head takes 2 forward and 2 backward (and 2 if trained) for each supervised token;
    - attention takes, for each layer, head and dimension, 4 for each token that a token attends to (score and value)
      in the forward pass, and 8 in the backward pass. Masked and padded positions are not counted.
    """

    per_token: int
    per_supervised: int
    per_pair: int

    def of(self, read: Read) -> int:
        """Return the operations of a training run that reads this text once."""
        return self.per_token * read.tokens + self.per_supervised * read.supervised + self.per_pair * read.pairs


def cost_of(model: Any) -> Cost:
    """Return the cost of training a transformers model with its adapter; the model reads two tokens to find it.

    Sliding windows are ignored, because no row here is longer than a window.
    """
    import torch
    from transformers.pytorch_utils import Conv1D

    whole = model.get_base_model() if hasattr(model, "get_base_model") else model
    config, head = whole.config.get_text_config(), whole.get_output_embeddings()
    per_token = 0

    def count(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        nonlocal per_token
        # A quantized weight has fewer elements than its layer.
        is_linear = isinstance(module, torch.nn.Linear)
        weights = module.in_features * module.out_features if is_linear else module.weight.numel()
        per_token += 2 * weights * (1 + inputs[0].requires_grad + module.weight.requires_grad)

    layers = [module for module in whole.base_model.modules() if isinstance(module, (torch.nn.Linear, Conv1D))]
    hooks = [module.register_forward_pre_hook(count) for module in layers]
    try:
        whole.base_model(input_ids=torch.tensor([[0, 1]]), use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return Cost(
        per_token,
        2 * head.weight.numel() * (2 + head.weight.requires_grad),
        12 * config.num_attention_heads * size * config.num_hidden_layers,
    )
