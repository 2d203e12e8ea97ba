"""A second look beside the rules: how much like an emergency's a message's meaning is, by a sentence model.

It can only add emergencies, never take one away, and it is there only where the sentence model is (an index brings it).
Its numbers are one weight for each part of a message's vector; `benchmarks/triage.py --fit` fits them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from meditune.files import read_json
from meditune.retrieve.embedders import Embedder
from meditune.serve.safety.reading import clauses
from meditune.serve.safety.signs import spelled

FILE = Path(__file__).parent / "likeness.json"
Look = Callable[[str], bool]
"""Whether a message is like an emergency"""


@dataclass(frozen=True)
class Likeness:
    """A line between emergencies and all else, in one embedding model's space."""

    space: str
    weights: Sequence[float]
    bias: float
    least: float
    """The score from which on a message counts as an emergency"""

    def score(self, vectors: np.ndarray) -> np.ndarray:
        """Of each vector: the higher, the more like an emergency."""
        return vectors @ np.asarray(self.weights, dtype=np.float32) + self.bias


def second_look(embedder: Embedder) -> Look | None:
    """The second look with this embedding model; None where it was fitted with another one's vectors."""
    fitted = _fitted()
    if embedder.identity.space != fitted.space:
        return None

    def look(message: str) -> bool:
        if not any(clause.happening for clause in clauses(message, spelled)):
            return False  # only asked in general, or long past
        return bool(fitted.score(embedder.embed([message]))[0] >= fitted.least)

    return look


@cache
def _fitted() -> Likeness:
    return Likeness(**read_json(FILE))
