"""The losses of preference tuning, on rows whose two branches are an answer to prefer and one to avoid.

DPO: Rafailov et al. 2023, "Direct Preference Optimization" (arXiv:2305.18290). ORPO: Hong, Lee and Thorne 2024, "ORPO:
Monolithic Preference Optimization without Reference Model" (arXiv:2403.07691).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.nn.functional import logsigmoid

from meditune.models.frozen import FrozenLayers
from meditune.models.rows import Batch, Row
from meditune.train.head_loss import losses_of_rows

Reference = Mapping[str, Sequence[float]]
"""Pair id -> log-likelihoods of its two answers before training"""


class PairLoss:
    """Mean over pairs of DPO's loss, where a reference is given, else of ORPO's."""

    def __init__(self, beta: float, reference: Reference | None) -> None:
        self.beta, self.reference = beta, reference

    def of(self, row: Row) -> list[float]:  # noqa: ARG002 (every pair counts the same)
        """The weight of a pair."""
        return [1.0]

    def __call__(
        self, model: Any, frozen: FrozenLayers, rows: Sequence[Row], weights: Sequence[float], pad_id: int
    ) -> tuple[Any, Batch]:
        """Sum over the rows of weight * loss, and the batch that the rows made."""
        likelihoods, tokens, batch = log_likelihoods(model, frozen, rows, pad_id)
        if self.reference is None:
            each = orpo(likelihoods / tokens, self.beta)
        else:
            before = [self.reference[row.encoded[0].id] for row in rows]
            each = dpo(likelihoods, torch.tensor(before, device=likelihoods.device), self.beta)
        return (each * torch.tensor(weights, device=each.device)).sum(), batch


def log_likelihoods(
    model: Any, frozen: FrozenLayers, rows: Sequence[Row], pad_id: int
) -> tuple[torch.Tensor, torch.Tensor, Batch]:
    """(R, 2) summed log-likelihoods of R rows' two answers, end tokens included, their (R, 2) tokens, and the batch."""
    each, batch = losses_of_rows(model, frozen, rows, pad_id)
    place = torch.tensor([2 * number + branch for number, row in enumerate(rows) for branch in row.of])
    place = place.to(each.device)
    sums = torch.zeros(2 * len(rows), device=each.device).index_add(0, place, -each)
    tokens = torch.zeros(2 * len(rows), device=each.device).index_add(0, place, torch.ones_like(each))
    return sums.view(-1, 2), tokens.view(-1, 2), batch


def dpo(now: torch.Tensor, before: torch.Tensor, beta: float) -> torch.Tensor:
    """(R,) losses from (R, 2) summed log-likelihoods under the model and under its starting point.

    -log sigmoid(beta * ((chosen - rejected) now - (chosen - rejected) before)): ln 2 where nothing has moved.
    """
    moved = now - before
    return -logsigmoid(beta * (moved[:, 0] - moved[:, 1]))


def orpo(mean: torch.Tensor, beta: float) -> torch.Tensor:
    """(R,) losses from (R, 2) mean log-likelihoods per token.

    The preferred answer's cross-entropy - beta * log sigmoid(log odds ratio), with odds = p / (1 - p) of the mean.
    """
    odds = mean - _log_of_one_minus_exp(mean)
    return -mean[:, 0] - beta * logsigmoid(odds[:, 0] - odds[:, 1])


def _log_of_one_minus_exp(values: torch.Tensor) -> torch.Tensor:
    """log(1 - e^x) for x < 0, exact near 0 as well as far below (Maechler 2012)."""
    values = values.clamp(max=-1e-7)
    near = values > -math.log(2)
    close = torch.log(-torch.expm1(torch.where(near, values, torch.full_like(values, -1.0))))
    far = torch.log1p(-torch.exp(torch.where(near, torch.full_like(values, -1.0), values)))
    return torch.where(near, close, far)
