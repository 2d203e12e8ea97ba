"""One training in several processes: how weights are spread, and how a step's rows are dealt.

A step is the weighted mean over all tokens of its examples, so each process computes its rows' share of that mean's
gradient, and the shares are summed once in a step. The result is that of one process, but for the order of sums.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple

import torch

from meditune import ranks
from meditune.machine import memory_gb
from meditune.models.rows import Row, by_length
from meditune.recipe import Recipe
from meditune.train.optimizer import STATE_BYTES

BUCKET = 25_000_000
"""Gradients are summed in FP32 in groups of about so many"""
ROOM = 0.5
"""Weights and optimizer may take this share of a process's memory before they are spread; activations need the rest."""


def mode(model: Any, recipe: Recipe) -> Literal["one", "ddp", "fsdp"]:
    """How the processes share the work: one alone, each with whole weights, or each with a share of them."""
    if ranks.world() == 1:
        return "one"
    if recipe.train.parallel != "auto":
        return recipe.train.parallel
    weights = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    trained = sum(
        parameter.numel() * (STATE_BYTES[recipe.train.optimizer] + parameter.element_size())
        for parameter in model.parameters()
    )
    needed = weights + (trained if recipe.model.strategy == "full" else 0)
    too_large = needed > ROOM * _memory() and not recipe.needs_whole_weights
    return "fsdp" if ranks.told(too_large) else "ddp"


def _memory() -> float:
    """Bytes of memory that a process can have."""
    if torch.cuda.is_available():
        return float(torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory)
    return memory_gb()[0] * 1e9 / ranks.local_world()


class Piece(NamedTuple):
    """Rows of one forward and backward pass."""

    indices: list[int]
    idle: bool = False
    """Computed for nothing, with weights of zero, because sharded layers are gathered by all processes at once"""


def dealt(rows: Sequence[Row], max_tokens: int, lockstep: bool) -> list[Piece]:
    """This process's share of the rows, about as many tokens as any other's, in pieces of at most `max_tokens` tokens.

    With `lockstep` every process gets the same number of pieces.
    """
    order = sorted(range(len(rows)), key=lambda index: -len(rows[index]))

    def pieces_of(rank: int) -> list[Piece]:
        mine = order[rank :: ranks.world()]
        grouped = by_length([rows[index] for index in mine], max_tokens)
        return [Piece([mine[index] for index in group]) for group in grouped]

    pieces = pieces_of(ranks.rank())
    if lockstep:
        most = max(len(pieces_of(rank)) for rank in range(ranks.world()))
        pieces += [Piece(order[-1:], idle=True)] * (most - len(pieces))
    return pieces


def start_alike(parameters: Sequence[torch.nn.Parameter]) -> None:
    """Give every process the first one's values; what a prefix begins with isn't rounded alike on all machines."""
    for parameter in parameters:
        ranks.copied(parameter.data)


def sum_gradients(parameters: Sequence[torch.nn.Parameter]) -> None:
    """Put into every parameter's gradient the sum of all processes' gradients, taken in FP32; none counts as zero."""
    if ranks.world() == 1:
        return
    for bucket in _buckets(parameters):
        gradients = [torch.zeros_like(each) if each.grad is None else each.grad for each in bucket]
        flat = ranks.summed(torch.cat([gradient.flatten().float() for gradient in gradients]))
        for parameter, piece in zip(bucket, flat.split([each.numel() for each in bucket]), strict=True):
            parameter.grad = piece.view_as(parameter).to(parameter.dtype)


def _buckets(parameters: Sequence[torch.nn.Parameter]) -> Iterator[list[torch.nn.Parameter]]:
    bucket: list[torch.nn.Parameter] = []
    for parameter in parameters:
        bucket.append(parameter)
        if sum(each.numel() for each in bucket) >= BUCKET:
            yield bucket
            bucket = []
    if bucket:
        yield bucket
