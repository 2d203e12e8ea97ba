"""A second look beside the rules: how much like an emergency's a message's meaning is, by a sentence model.

It can only add emergencies, never take one away, and it is there only where the sentence model is. A support vector
machine with a Gaussian kernel compares a message with the vectors of messages that were told apart by hand;
`benchmarks/triage.py --fit` fits it.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from meditune.files import read_json
from meditune.retrieve.embedders import Embedder
from meditune.serve.safety.reading import clauses, plain
from meditune.serve.safety.signs import mentioned, spelled

HERE = Path(__file__).parent
FACTS, VECTORS = HERE / "likeness.json", HERE / "likeness.npy"
Look = Callable[[str], bool]
"""Whether a message is like an emergency"""


@dataclass(frozen=True)
class Likeness:
    """Emergencies and all else in one embedding model's space."""

    space: str
    gamma: float
    bias: float
    least: float
    """The score from which on a message counts as an emergency"""
    vectors: np.ndarray
    """(n, size) unit vectors, and as the last column what each says for an emergency, or against one"""

    def score(self, vectors: np.ndarray) -> np.ndarray:
        """Of each unit vector: the higher, the more like an emergency."""
        known, weights = self.vectors[:, :-1], self.vectors[:, -1]
        scores: np.ndarray = np.exp(-2 * self.gamma * (1 - vectors @ known.T)) @ weights + self.bias
        return scores


def second_look(embedder: Embedder) -> Look | None:
    """The second look with this embedding model; None where it was fitted with another one's vectors."""
    fitted = _fitted()
    if embedder.identity.space != fitted.space:
        return None

    def look(message: str) -> bool:
        if not (any(clause.happening for clause in clauses(message, spelled)) or _of_ones_own_death(message)):
            return False  # only asked in general, or long past
        return bool(fitted.score(embedder.embed([message]))[0] >= fitted.least)

    return look


def _of_ones_own_death(message: str) -> bool:
    return bool(re.search(r"\bi\b", plain(message)) and {"want_to_die", "self_cut"} & mentioned(message))


@cache
def _fitted() -> Likeness:
    vectors = np.load(VECTORS, allow_pickle=False).astype(np.float32)
    return Likeness(**read_json(FACTS), vectors=vectors)
