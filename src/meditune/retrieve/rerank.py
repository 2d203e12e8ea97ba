"""The order of passages that were found for a message: how near they are in meaning and in words, weighed together.

A message is compared as a whole, by what it asks (`focus`) and sentence by sentence with a passage's title; and in
words, misspelled topics put right and other names of them added (`synonyms`). The weights are a few numbers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from meditune.retrieve.focus import Focused, focus
from meditune.retrieve.lexical import overlap
from meditune.retrieve.rerank_weights import WEIGHTS
from meditune.retrieve.synonyms import Synonyms
from meditune.retrieve.title_vectors import Embed, TitleVectors, Vectors
from meditune.text import sentences

FEWEST_WORDS = 3
"""Of a sentence that is compared by itself"""
MOST_SENTENCES = 12
TITLE_LENGTH = 8.0
"""Words of a usual title"""
HEADLINE = 200
"""Letters that stand for the title where there is none"""


class Passage(Protocol):
    """What is ranked."""

    @property
    def title(self) -> str:
        """What it is about; may be empty."""

    @property
    def text(self) -> str:
        """What it says."""


@dataclass(frozen=True)
class Asked:
    """A message made ready for comparing."""

    corrected: str
    focused: Focused
    expanded: str
    """What is asked, and other names of the topics"""
    vectors: Vectors
    """Of the whole, of what is asked, and of each sentence"""


def headline(passage: Passage) -> str:
    """The title, or the beginning of a passage that has none."""
    return passage.title or passage.text[:HEADLINE]


class Reranker:
    """Scores passages for messages."""

    def __init__(
        self, synonyms: Synonyms, titles: TitleVectors, embed: Embed, weights: Mapping[str, float] = WEIGHTS
    ) -> None:
        self.synonyms = synonyms
        self.titles = titles
        self.embed = embed
        self.weights = weights

    def asked(self, question: str) -> Asked:
        """The message made ready: some milliseconds, most of them for its vectors."""
        corrected = self.synonyms.corrected(question)
        focused = focus(corrected, self.synonyms)
        parts = [part for part in sentences(" ".join(corrected.split())) if len(part.split()) >= FEWEST_WORDS]
        texts = [corrected, focused.query, *parts[:MOST_SENTENCES]]
        once = list(dict.fromkeys(texts))
        vectors = dict(zip(once, self.embed(once), strict=True))
        expanded = self.synonyms.expand(focused.query)
        return Asked(corrected, focused, expanded, np.array([vectors[text] for text in texts], dtype=np.float32))

    def score(self, question: str | Asked, passages: Sequence[Passage]) -> NDArray[np.float64]:
        """(n,) the higher, the better; comparable among the passages of one call only."""
        seen = self.features(question, passages)
        total = np.zeros(len(passages))
        for name, weight in self.weights.items():
            total += weight * seen[name]
        return total

    def features(self, question: str | Asked, passages: Sequence[Passage]) -> dict[str, NDArray[np.float64]]:
        """What the scores are made of: (n,) each."""
        asked = self.asked(question) if isinstance(question, str) else question
        titles = [headline(passage) for passage in passages]
        whole = [f"{passage.title}\n{passage.text}" for passage in passages]
        cosines = (self.titles.of(titles, self.embed) @ asked.vectors.T if passages else np.zeros((0, 2))).astype(float)
        return {
            "whole_near_title": cosines[:, 0],
            "asked_near_title": cosines[:, 1],
            "sentence_near_title": cosines[:, 2:].max(axis=1) if cosines.shape[1] > 2 else cosines[:, 0],
            "words": overlap(asked.corrected, whole),
            "names": overlap(asked.expanded, whole),
            "names_in_title": overlap(asked.expanded, titles, TITLE_LENGTH),
        }
