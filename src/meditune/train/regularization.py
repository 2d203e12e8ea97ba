"""Penalties that keep weights near the starting point of training: L2-SP and elastic weight consolidation (EWC).

For LoRA, both penalties apply to the change of the effective weight, scale * B A, because the starting values of A and
B are arbitrary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch

from meditune import distributed
from meditune.errors import ModelError
from meditune.models.hidden_state_cache import HiddenStateCache
from meditune.models.shared_prefix_batch import Row
from meditune.progress import Progress
from meditune.train.losses import loss_of_rows

Masters = Mapping[torch.nn.Parameter, torch.Tensor]  # the FP32 master copy of each trained parameter


class Penalty(Protocol):
    """A term of the loss that depends only on the weights."""

    def add_gradients(self, masters: Masters) -> float:
        """Add the term's gradient to the gradients of the FP32 master copies, and return the term's value."""


@dataclass(frozen=True, eq=False)
class Pair:
    """A LoRA layer, which adds scale * B A to a weight of its base layer."""

    layer: torch.nn.Module
    a: torch.nn.Parameter  # (rank, inputs)
    b: torch.nn.Parameter  # (outputs, rank)
    scale: float


class StartingPoint:
    """The starting point of training, which must be created before the first step.

    It contains LoRA pairs, for which B A is still 0, and copies of all other trained parameters.
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
    """The L2-SP penalty, strength / 2 * ||w - w0||^2, which pulls every weight equally to the starting point.

    Li, Grandvalet and Davoine 2018 (arXiv:1802.01483). ||B A||_F^2 is the sum of all entries of (B^T B) * (A A^T), an
    elementwise product of two rank x rank matrices, so B A is never computed.
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
    """Add `gradient` to the gradient of a master copy."""
    master.grad = gradient if master.grad is None else master.grad + gradient


class Fisher(NamedTuple):
    """The diagonal empirical Fisher information in FP32: how strongly the loss per token depends on each weight."""

    pairs: list[torch.Tensor]  # (outputs, inputs) for each pair of the starting point, in its order
    others: list[torch.Tensor]
    """A tensor for each other parameter, of its shape and in the starting point's order"""


def estimate(model: Any, pad_id: int, rows: Sequence[Row], frozen: HiddenStateCache, start: StartingPoint) -> Fisher:
    """Return the mean over the rows of (gradient of the row's summed loss)^2 / tokens, at the starting point.

    The gradient for W is computed from the inputs of its layer and the gradient of the layer's output, so W itself
    needs no gradient and may be quantized. Several processes share the rows. Raises ModelError if the estimate isn't
    finite.
    """
    found = Fisher(
        [torch.zeros(pair.b.shape[0], pair.a.shape[1], device=pair.b.device) for pair in start.pairs],
        [torch.zeros_like(value, dtype=torch.float32) for _, value in start.others],
    )
    own_rows = rows[distributed.rank() :: distributed.world()]
    model.eval()
    with ExitStack() as hooks, Progress("Estimating Fisher information", len(own_rows), "rows") as progress:
        for pair, total in zip(start.pairs, found.pairs, strict=True):
            hooks.callback(pair.layer.register_forward_hook(_squares_into(total)).remove)
        for row in own_rows:
            # The wanted value is the square of the gradient of loss / sqrt(tokens).
            weights = [len(row.targets) ** -0.5] * len(row.targets)
            loss_of_rows(model, frozen, [row], weights, pad_id)[0].backward()
            for (parameter, _), total in zip(start.others, found.others, strict=True):
                if parameter.grad is not None:
                    total += parameter.grad.float().square()
            model.zero_grad()
            progress.advance(1)
    for total in (*found.pairs, *found.others):
        distributed.all_reduce_sum(total)
        total /= len(rows)
        if not torch.isfinite(total).all():
            raise ModelError(
                "train.ewc: the Fisher information isn't finite. Set model.dtype=float32 or train.ewc.strength=0."
            )
    return found


def _squares_into(total: torch.Tensor) -> Callable[..., None]:
    """Return a forward hook that adds the squared gradient of the layer's weight to `total` in the backward pass."""

    def watch(_: torch.nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        given = inputs[0].detach().flatten(0, -2)

        def gather(slope: torch.Tensor) -> None:
            total.add_((slope.flatten(0, -2).float().T @ given.float()).square_())

        if output.requires_grad:
            output.register_hook(gather)  # type: ignore[no-untyped-call]

    return watch


class EWC:
    """The EWC penalty: a pull to the starting point that is stronger for weights that matter more for replay text.

    Kirkpatrick et al. 2017 (arXiv:1612.00796): strength / 2 * sum over weights of F * (w - w0)^2, where F is the
    diagonal of the Fisher information. A low-rank change moves many weights together, and a diagonal captures only a
    small part of that effect, so useful strengths are far above 1.
    """

    def __init__(self, start: StartingPoint, fisher: Fisher, strength: float) -> None:
        self.start, self.fisher, self.strength = start, fisher, strength

    def add_gradients(self, masters: Masters) -> float:
        """See Penalty."""
        total = 0.0
        for pair, importance in zip(self.start.pairs, self.fisher.pairs, strict=True):
            a, b = masters[pair.a], masters[pair.b]
            change = pair.scale * (b @ a)
            pull = self.strength * importance * change
            total += float((pull * change).sum()) / 2
            add(b, pair.scale * (pull @ a.T))
            add(a, pair.scale * (b.T @ pull))
        for (parameter, start), importance in zip(self.start.others, self.fisher.others, strict=True):
            moved = masters[parameter] - start
            pull = self.strength * importance * moved
            total += float((pull * moved).sum()) / 2
            add(masters[parameter], pull)
        return total
