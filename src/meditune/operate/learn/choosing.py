"""Which candidates are sent: from what the signals saw, and from how unlike those before it each one is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from meditune.errors import DataError
from meditune.operate.learn.candidate import NothingToAskError
from meditune.operate.learn.distances import Array, Vectors, gaps
from meditune.operate.learn.signals import FAMILIES, Family

Strategy = Literal["mix", "random", "uncertainty", "disagreement", "diversity", "feedback", "novelty"]
STRATEGIES: tuple[Strategy, ...] = get_args(Strategy)
DEFAULT: Strategy = "mix"
WEIGHTS: Mapping[Family, float] = {"uncertainty": 0.5, "disagreement": 0.5, "feedback": 0.9, "novelty": 0.5}
"""How far each family can raise a candidate in the mix; what users say goes before what a model thinks of itself"""
MEANING: frozenset[Strategy] = frozenset(("mix", "diversity", "novelty"))
"""Those that need questions' vectors"""
_NEEDS: Mapping[Family, str] = {
    "uncertainty": "no candidate has decisions, unsupported sentences or abstentions. Let a model decide: --ask MODEL",
    "disagreement": "no candidate has two decisions or sampled answers. Let two models decide (--ask MODEL, twice), or "
    "give --predictions or --samples",
    "feedback": "nobody has rated an answer down or corrected one yet",
    "novelty": "no question is farther from what is known (--known FILE) than that is from itself",
}


@dataclass(frozen=True)
class Pick:
    """One that was chosen."""

    place: int
    """Among the candidates"""
    score: float
    """0 to 1: by its signals alone"""
    gap: float | None
    """One less the best cosine with those before it, 1 for the first; None where that didn't count"""


def check_strategy(name: str) -> Strategy:
    """The strategy of that name. Raises DataError for an unknown one."""
    found = next((each for each in STRATEGIES if each == name), None)
    if found is None:
        raise DataError(f"There is no --strategy {name}. Choose from {', '.join(STRATEGIES)}.")
    return found


def picks(
    strategy: Strategy,
    scores: Mapping[Family, Array],
    vectors: Vectors | None,
    known: Vectors | None,
    budget: int,
    rng: np.random.Generator,
) -> list[Pick]:
    """At most `budget` picks, the most urgent first; fewer where so few have what the strategy looks for.

    `scores` are (n,) of each family, `vectors` (n, size); `known` are those of questions whose answers are learnt
    already. Raises DataError where no candidate has what the strategy looks for.
    """
    count = len(next(iter(scores.values())))
    order = rng.permutation(count)
    if strategy == "random":
        return [Pick(int(place), 0.0, None) for place in order[:budget]]
    if strategy in FAMILIES:
        return _highest(strategy, scores[strategy], order, budget)
    if vectors is None:
        raise ValueError(f"{strategy} needs vectors")
    if strategy == "diversity":
        return _spread(np.ones(count), vectors, gaps(vectors, known), order, budget)
    # What is known counts as novelty; here questions need only be unlike each other.
    return _spread(together(scores), vectors, np.ones(count), order, budget)


def together(scores: Mapping[Family, Array]) -> Array:
    """(n,) from 0 to 1: each family's ranks as independent chances that a candidate is worth asking for."""
    none = np.ones(len(next(iter(scores.values()))))
    for family, values in scores.items():
        none *= 1 - WEIGHTS[family] * ranks(values)
    return 1 - none


def ranks(values: Array) -> Array:
    """(n,) the share of the others that are lower, so that families with other scales count alike; 0 stays 0."""
    if len(values) < 2:
        return np.minimum(values, 1.0)
    found: Array = np.searchsorted(np.sort(values), values) / (len(values) - 1)
    return found


def _highest(family: Family, scores: Array, order: NDArray[np.int64], budget: int) -> list[Pick]:
    """Those with the highest scores, equal ones by chance."""
    if not (scores > 0).any():
        raise NothingToAskError(
            f"--strategy {family}: {_NEEDS[family]}. Or take --strategy {DEFAULT}, which uses what is there."
        )
    placed = sorted((int(place) for place in order if scores[place] > 0), key=lambda place: -scores[place])
    return [Pick(place, float(scores[place]), None) for place in placed[:budget]]


def _spread(urgent: Array, vectors: Vectors, gap: Array, order: NDArray[np.int64], budget: int) -> list[Pick]:
    """Greedy k-center (Sener and Savarese 2018, arXiv:1708.00489), distances weighed by how urgent a candidate is.

    `gap` (n,) is how far each is from what was there before.
    """
    chosen: list[Pick] = []
    left = np.ones(len(urgent), dtype=bool)
    while len(chosen) < min(budget, len(urgent)):
        worth = np.where(left, urgent * gap, -1.0)[order]
        place = int(order[worth.argmax()])
        chosen.append(Pick(place, float(urgent[place]), float(gap[place])))
        left[place] = False
        gap = np.minimum(gap, 1 - vectors @ vectors[place])
    return chosen
