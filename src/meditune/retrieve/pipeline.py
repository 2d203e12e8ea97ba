"""From a message to passages: two rankers give candidates, and a reranker orders them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from meditune.retrieve.rerank import Asked, Passage, Reranker
from meditune.retrieve.title_vectors import Vectors

CANDIDATES = 100
"""Passages that each ranker gives for each wording"""
RERANKED = 100
"""Candidates that are compared, the best by fusion; the rest stay as they were fused"""
FUSION = 60.0
"""Reciprocal rank fusion's constant (Cormack, Clarke and Büttcher 2009)"""


class Known(Passage, Protocol):
    """A passage with an id."""

    @property
    def id(self) -> str:
        """The same for the same passage, whichever ranker found it."""


class Search(Protocol):
    """An index that can be searched in two ways, the best first."""

    def bm25(self, query: str, k: int) -> Sequence[Known]:
        """By words."""

    def vectors(self, query: str, k: int) -> Sequence[Known]:
        """By meaning."""


@dataclass(frozen=True)
class Ranked:
    """A passage with its score."""

    passage: Known
    score: float
    """The higher, the better; comparable within one ranking only"""


def rank(
    question: str,
    search: Search,
    reranker: Reranker,
    k: int = 10,
    vectors_of: Callable[[Sequence[Known]], Vectors] | None = None,
) -> list[Ranked]:
    """The best k passages for a message, each once.

    `vectors_of` gives passages' own vectors, (n, size), where the index can: the order gets better by them.
    """
    asked = reranker.asked(question)
    order = candidates(asked, search)
    most = max(RERANKED, k)
    compared, others = order[:most], order[most:]
    own = vectors_of(compared) if vectors_of and compared else None
    scored = zip(compared, reranker.score(asked, compared, own), strict=True)
    best = [Ranked(passage, float(score)) for passage, score in sorted(scored, key=lambda pair: -pair[1])]
    lowest = best[-1].score if best else 0.0
    return [*best, *(Ranked(passage, lowest) for passage in others)][:k]


def candidates(asked: Asked, search: Search) -> list[Known]:
    """What both rankers find for the message and for what it asks, each passage once, fused by rank."""
    places: dict[str, float] = {}
    passages: dict[str, Known] = {}
    for found in (
        search.bm25(asked.corrected, CANDIDATES),
        search.bm25(asked.expanded, CANDIDATES),
        search.vectors(asked.corrected, CANDIDATES),
        search.vectors(asked.focused.query, CANDIDATES),
    ):
        for place, passage in enumerate(found, start=1):
            passages.setdefault(passage.id, passage)
            places[passage.id] = places.get(passage.id, 0.0) + 1 / (FUSION + place)
    return [passages[name] for name in sorted(places, key=lambda name: -places[name])]
