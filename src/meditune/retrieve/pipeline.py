"""From a message to passages: rankings by words, titles and meaning give candidates, and a reranker orders them.

    words    -> BM25 for the message, and for what it asks with other names of its topics     \\
    titles   -> the titles nearest to the message, and to what it asks                          fusion -> reranker
    meaning  -> the passages nearest to the message, and to what it asks                      /
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from meditune.retrieve import fusion
from meditune.retrieve.near import Vectors
from meditune.retrieve.rerank import Asked, Reranker
from meditune.retrieve.rows import Rows

CANDIDATES = 100
"""Passages, or titles, that each ranking gives"""
RERANKED = 100
"""Candidates that are compared, the best by fusion; the rest stay as they were fused"""
WORDINGS = ("", " asked")
"""What the first vectors of `Asked.vectors` are of: the whole message, and what it asks"""

Ranking = Mapping[int, float]
"""Rows by their ids with scores, the best first"""


@dataclass(frozen=True)
class Search:
    """One version of an index, narrowed as the user wants it."""

    rows: Rows
    words: Callable[[str, int], Ranking]
    """BM25 of so many best passages"""
    meaning: Callable[[Vectors, int], Ranking]
    """Cosine of so many passages nearest to a vector"""
    together: Callable[[Sequence[Callable[[], Ranking]]], Sequence[Ranking]]
    """Does some of these; what each gives, in their order"""
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
    wordings = asked.vectors[: 1 if asked.focused.query == asked.corrected else 2]
    texts = [words or asked.corrected]
    if not words and asked.expanded != asked.corrected:
        texts.append(asked.expanded)
    worded = [partial(search.words, text, most) for text in texts]
    found = search.together([*worded, *(partial(search.meaning, vector, most) for vector in wordings)])
    by_words, near = found[: len(texts)], found[len(texts) :]
    rankings: dict[str, Sequence[Sequence[int]]] = {
        name: [[each] for each in ranking] for name, ranking in zip(("words", "names"), by_words, strict=False)
    }
    titled = reranker.title_vectors.nearest(wordings, most)
    for name, passages, titles in zip(WORDINGS, near, titled, strict=False):
        rankings[f"meaning{name}"] = [[each] for each in passages]
        rankings[f"titles{name}"] = _of_titles(titles, search)
    return Candidates(list(fusion.reciprocal_ranks(rankings)), by_words[0], near[0])


def _of_titles(numbers: Sequence[int], search: Search) -> list[list[int]]:
    """The rows of each title."""
    rows = search.rows
    allowed = rows.allowed(search.where) if search.where else None
    places = map(rows.of_title, numbers)
    return [rows.ids[some if allowed is None else some[allowed[some]]].tolist() for some in places]


def ordered(scores: NDArray[np.float64]) -> list[int]:
    """Places of the scores, the highest first, equal ones as they come."""
    return [int(place) for place in np.argsort(-scores, kind="stable")]
