"""A model's starting point, and L2-SP: the pull back to it.

L2-SP (Li, Grandvalet and Davoine 2018, "Explicit Inductive Bias for Transfer Learning with Convolutional Networks",
arXiv:1802.01483) adds strength / 2 * ||w - w0||^2 to the loss. For LoRA the weight that the model works with is
W + scale * B A, and starts at W, so the distance is that of scale * B A from zero, not that of A and B apart, whose
starting values mean nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch

Masters = Mapping[torch.nn.Parameter, torch.Tensor]
"""The FP32 master copy of each trained parameter"""


class Penalty(Protocol):
    """A term of the loss that depends on the weights alone."""

    def add_gradients(self, masters: Masters) -> float:
        """Add the term's gradient to that of the master copies, in FP32, and return the term's value."""


@dataclass(frozen=True, eq=False)
class Pair:
    """A LoRA layer, which adds scale * B A to a weight of its base layer."""

    layer: torch.nn.Module
    a: torch.nn.Parameter
    """(rank, inputs)"""
    b: torch.nn.Parameter
    """(outputs, rank)"""
    scale: float


class StartingPoint:
    """Where training starts: LoRA pairs at B A = 0, and the values of every other trained parameter.

    Make it before the first step, and before a checkpoint is taken up. It copies the other parameters, nothing of LoRA.
    """

    def __init__(self, model: Any) -> None:
        self.pairs = list(_pairs(model))
        paired = {id(parameter) for pair in self.pairs for parameter in (pair.a, pair.b)}
        self.others = [
            (parameter, parameter.detach().clone())
            for parameter in model.parameters()
            if parameter.requires_grad and id(parameter) not in paired
        ]


def _pairs(model: Any) -> Iterator[Pair]:
    from peft.tuners.lora import LoraLayer

    for module in model.modules():
        if isinstance(module, LoraLayer):
            for name, first in module.lora_A.items():
                a, b = first.weight, module.lora_B[name].weight
                if a.requires_grad and b.requires_grad:
                    yield Pair(module, a, b, module.scaling[name])


class L2SP:
    """The pull to the starting point, the same for every weight.

    ||B A||_F^2 is the sum over (B^T B) * (A A^T), two matrices of rank x rank, so B A is never built.
    """

    def __init__(self, start: StartingPoint, strength: float) -> None:
        self.start, self.strength = start, strength

    def add_gradients(self, masters: Masters) -> float:
        """See Penalty."""
        total = 0.0
        for pair in self.start.pairs:
            a, b = masters[pair.a], masters[pair.b]
            outer, inner = b.T @ b, a @ a.T
            factor = self.strength * pair.scale**2
            total += float((outer * inner).sum()) * factor / 2
            add(b, factor * (b @ inner))
            add(a, factor * (outer @ a))
        for parameter, start in self.start.others:
            moved = masters[parameter] - start
            total += float(moved.square().sum()) * self.strength / 2
            add(masters[parameter], self.strength * moved)
        return total


def add(master: torch.Tensor, gradient: torch.Tensor) -> None:
    """Add to what the master copy's gradient holds."""
    master.grad = gradient if master.grad is None else master.grad + gradient
