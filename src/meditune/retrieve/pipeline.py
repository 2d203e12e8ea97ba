"""From a message to passages: rankings by words, titles and meaning give candidates, and a reranker orders them.

    words    -> BM25 for the message, and for what it asks with other names of its topics     \\
    titles   -> the titles nearest to the message, and to what it asks                          fusion -> reranker
    meaning  -> the passages nearest to the message, and to what it asks                      /
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from meditune.retrieve import fusion
from meditune.retrieve.rerank import Asked, Reranker
from meditune.retrieve.rows import Rows
from meditune.retrieve.title_vectors import Vectors

CANDIDATES = 100
"""Passages, or titles, that each ranking gives"""
RERANKED = 100
"""Candidates that are compared, the best by fusion; the rest stay as they were fused"""
ASKED = 1
"""Which of `Asked.vectors` is of what is asked; the first is of the whole message"""

Ranking = Mapping[int, float]
"""Rows by their ids with scores, the best first"""


@dataclass(frozen=True)
class Search:
    """One version of an index, narrowed as the user wants it."""

    rows: Rows
    words: Callable[[str, int], Ranking]
    """BM25 of so many best passages"""
    meaning: Callable[[Vectors, int], Ranking]
    """Cosine of so many nearest passages"""
    where: str | None = None
    """What the search is narrowed by"""


@dataclass(frozen=True)
class Candidates:
    """Rows that may answer, the best by fusion first."""

    ids: list[int]
    words: Ranking
    """BM25 for the message"""
    meaning: Ranking
    """Cosines with the message"""


def candidates(
    asked: Asked, search: Search, reranker: Reranker, most: int = CANDIDATES, words: str | None = None
) -> Candidates:
    """What all rankings find; `words` are searched for instead of the message's own, where they are given."""
    message, focused = asked.vectors[0], asked.vectors[ASKED]
    by_words = search.words(words or asked.corrected, most)
    near = search.meaning(message, most)
    rankings: dict[str, Sequence[Sequence[int]]] = {
        "words": [[each] for each in by_words],
        "meaning": [[each] for each in near],
        "titles": _by_title(message, search, reranker, most),
    }
    if not words and asked.expanded != asked.corrected:
        rankings["names"] = [[each] for each in search.words(asked.expanded, most)]
    if asked.focused.query != asked.corrected:
        rankings["asked"] = [[each] for each in search.meaning(focused, most)]
        rankings["asked of titles"] = _by_title(focused, search, reranker, most)
    return Candidates(list(fusion.reciprocal_ranks(rankings)), by_words, near)


def _by_title(vector: Vectors, search: Search, reranker: Reranker, most: int) -> list[list[int]]:
    """The rows of each of the nearest titles."""
    rows = search.rows
    allowed = rows.allowed(search.where) if search.where else None
    found = []
    for number in reranker.title_vectors.nearest(vector, most):
        places = rows.of_title(number)
        found.append(rows.ids[places if allowed is None else places[allowed[places]]].tolist())
    return found


def ordered(scores: NDArray[np.float64]) -> list[int]:
    """Places of the scores, the highest first, equal ones as they come."""
    return [int(place) for place in np.argsort(-scores, kind="stable")]
