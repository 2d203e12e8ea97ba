"""Rankings as one ranking, and hits that don't say the same twice."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

CONSTANT = 60
"""Cormack, Clarke and Büttcher 2009, "Reciprocal rank fusion outperforms Condorcet" (SIGIR): k in 1 / (k + rank)"""


def reciprocal_rank(rankings: Mapping[str, Sequence[int]], weights: Mapping[str, float]) -> dict[int, float]:
    """Score of each item: the sum over rankings of weight / (60 + its rank from 1), the best first."""
    scores: dict[int, float] = {}
    for name, ranking in rankings.items():
        for rank, item in enumerate(ranking, start=1):
            scores[item] = scores.get(item, 0.0) + weights[name] / (CONSTANT + rank)
    return dict(sorted(scores.items(), key=lambda pair: -pair[1]))


def reciprocal_ranks(rankings: Mapping[str, Sequence[Sequence[int]]]) -> dict[int, float]:
    """As `reciprocal_rank` where several items may share a rank, and all rankings weigh the same."""
    scores: dict[int, float] = {}
    for ranking in rankings.values():
        for rank, items in enumerate(ranking, start=1):
            for item in items:
                scores[item] = scores.get(item, 0.0) + 1 / (CONSTANT + rank)
    return dict(sorted(scores.items(), key=lambda pair: -pair[1]))


def marginal_relevance(scores: Sequence[float], vectors: NDArray[Any], k: int, diversity: float) -> list[int]:
    """Indices of k items, each the best by score less likeness to those before it, in that order.

    Carbonell and Goldstein 1998, "The use of MMR" (SIGIR): (1 - diversity) * score - diversity * highest cosine.
    Scores are scaled to 0..1; vectors have length 1.
    """
    given = np.asarray(scores, dtype=np.float64)
    spread = np.ptp(given) if len(given) else 0.0
    relevance = (given - given.min()) / spread if spread else np.ones_like(given)
    chosen: list[int] = []
    nearest = np.zeros(len(given))
    left = np.ones(len(given), dtype=bool)
    while left.any() and len(chosen) < k:
        worth = np.where(left, (1 - diversity) * relevance - diversity * nearest, -np.inf)
        best = int(worth.argmax())
        chosen.append(best)
        left[best] = False
        nearest = np.maximum(nearest, vectors @ vectors[best])
    return chosen
