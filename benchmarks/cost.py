"""The operations that training needs at the least, by formula: what model FLOP utilization (MFU) counts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass
from typing import Any


@dataclass(frozen=True)
class Read:
    """What a training read, padding not counted."""

    tokens: int = 0
    supervised: int = 0
    """Tokens whose prediction is trained"""
    pairs: int = 0
    """Of a token and one that it sees, itself included"""

    def __add__(self, other: Read) -> Read:
        return Read(*(one + two for one, two in zip(astuple(self), astuple(other), strict=True)))


def total(reads: Sequence[Read]) -> Read:
    """All of them together."""
    return sum(reads, Read())


def read_of_text(tokens: int, supervised: int) -> Read:
    """An ordinary row, in which every token sees itself and all before it."""
    return Read(tokens, supervised, tokens * (tokens + 1) // 2)


def read_of_row(row: Any) -> Read:
    """One of Meditune's rows, in which branches see the common start and themselves."""
    seen, pairs = {0: 0}, 0
    for branch in row.branch:
        seen[branch] = seen.get(branch, 0) + 1
        pairs += seen[branch] + (seen[0] if branch else 0)
    return Read(len(row), len(row.targets), pairs)


@dataclass(frozen=True)
class Cost:
    """Operations of a forward and a backward pass, two for each multiplication and addition.

    Matrix products only, and only what the result needs, whoever computes more:

    - a weight of a layer takes 2 for each token on the way forward, 2 on the way back where the gradient of its input
      is asked for (frozen weights above the lowest trained one), and 2 where the weight itself is trained (LoRA's: 6
      in all, but for those that read the text's embeddings);
    - a weight of the output head takes 2 and 2 (and 2 if trained) for each supervised token;
    - attention takes, for each layer, head and number in it, 4 for each token that a token sees (score and value) on
      the way forward, and 8 on the way back. Masked and padded places count nothing.
    """

    per_token: int
    per_supervised: int
    per_pair: int

    def of(self, read: Read) -> int:
        """Operations of a training that read this once."""
        return self.per_token * read.tokens + self.per_supervised * read.supervised + self.per_pair * read.pairs


def cost_of(model: Any) -> Cost:
    """The cost of training a transformers model that has its adapter; it reads two tokens for it.

    Sliding windows aren't regarded: no row here is longer than one.
    """
    import torch
    from transformers.pytorch_utils import Conv1D

    whole = model.get_base_model() if hasattr(model, "get_base_model") else model
    config, head = whole.config.get_text_config(), whole.get_output_embeddings()
    per_token = 0

    def count(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        nonlocal per_token
        per_token += 2 * module.weight.numel() * (1 + inputs[0].requires_grad + module.weight.requires_grad)

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
