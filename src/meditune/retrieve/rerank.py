"""The order of passages that were found for a message: how near they are in meaning and in words, weighed together.

A message is compared as a whole, by what it asks (`focus`) and sentence by sentence with a passage's title; and in
words, misspelled topics put right and other names of them added (`synonyms`). The weights are a few numbers.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from meditune.retrieve import titles
from meditune.retrieve.focus import Focused, focus
from meditune.retrieve.lexical import LETTERS, counted, overlap
from meditune.retrieve.near import Vectors
from meditune.retrieve.rerank_weights import SIBLINGS, WEIGHTS
from meditune.retrieve.synonyms import Synonyms, key, says, words
from meditune.retrieve.title_vectors import Embed, TitleVectors
from meditune.text import sentences

FEWEST_WORDS = 3
"""Of a sentence that is compared by itself"""
MOST_SENTENCES = 12
TITLE_LENGTH = 8.0
"""Words of a usual title"""
HEADLINE = 200
"""Letters that stand for the title where there is none"""
BEST = 3
"""Passages of a topic that speak for it"""

Scores = NDArray[np.float64]


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
        self,
        synonyms: Synonyms,
        title_vectors: TitleVectors,
        embed: Embed,
        weights: Mapping[str, float] = WEIGHTS,
        siblings: float = SIBLINGS,
    ) -> None:
        self.synonyms = synonyms
        self.title_vectors = title_vectors
        self.embed = embed
        self.weights = weights
        self.siblings = siblings

    def asked(self, question: str) -> Asked:
        """The message made ready; nearly all of the time goes into its vectors."""
        corrected = self.synonyms.corrected(question)
        focused = focus(corrected, self.synonyms)
        parts = [part for part in sentences(" ".join(corrected.split())) if len(part.split()) >= FEWEST_WORDS]
        texts = [corrected, focused.query, *(parts[:MOST_SENTENCES] or [corrected])]
        once = list(dict.fromkeys(texts))
        vectors = dict(zip(once, self.embed(once), strict=True))
        expanded = self.synonyms.expand(focused.query)
        return Asked(corrected, focused, expanded, np.array([vectors[text] for text in texts], dtype=np.float32))

    def score(
        self, question: str | Asked, passages: Sequence[Passage], vectors: Vectors | None = None
    ) -> NDArray[np.float64]:
        """(n,) the higher, the better; comparable among the passages of one call only.

        `vectors` (n, size) are the passages' own, of length 1, by the same model, where the index has them.
        """
        if not passages:
            return np.zeros(0)
        seen = self.features(question, passages, vectors)
        total = np.sum([self.weights[name] * seen[name] for name in seen], axis=0)
        same: dict[str, list[int]] = defaultdict(list)
        for index, passage in enumerate(passages):
            same[key(titles.read(passage.title).topic) or f"#{index}"].append(index)
        # What several passages of a topic bear out is likelier to be meant than what one does.
        mean = total.copy()
        for indices in same.values():
            if len(indices) > 1:
                mean[indices] = np.sort(total[indices])[-BEST:].mean()
        return np.asarray(total + self.siblings * mean)

    def features(
        self, question: str | Asked, passages: Sequence[Passage], vectors: Vectors | None = None
    ) -> dict[str, Scores]:
        """What scores are made of: (n,) each, named as the weights are."""
        asked = self.asked(question) if isinstance(question, str) else question
        whole = [f"{passage.title}\n{passage.text}" for passage in passages]
        read = [titles.read(passage.title) for passage in passages]
        headlines = [headline(passage) for passage in passages]
        searched = set(words(asked.corrected)) | set(words(asked.expanded))
        counts, in_titles = counted(searched, whole), counted(searched, headlines)
        near = (self._headlines(headlines, vectors) @ asked.vectors.T).astype(float)
        said = {word for text in (asked.corrected, asked.focused.query) for word in words(text)}
        said |= {word for mention in asked.focused.mentions for word in mention.name.split()}
        seen = {
            "whole_near_title": near[:, 0],
            "asked_near_title": near[:, 1],
            "sentence_near_title": near[:, 2:].max(axis=1),
            "words": overlap(asked.corrected, counts),
            "names": overlap(asked.expanded, counts),
            "names_in_title": overlap(asked.expanded, in_titles, TITLE_LENGTH),
            "topic_named": np.array(
                [
                    _share(said, title.topic)
                    if title.topic
                    else _share(set(words(text[:LETTERS])), asked.focused.query)
                    for title, text in zip(read, whole, strict=True)
                ]
            ),
            "kind_asked": np.array([float(title.kind in asked.focused.kinds) for title in read]),
        }
        if vectors is not None:
            seen["whole_near_passage"] = (vectors @ asked.vectors[0]).astype(float)
        return seen

    def _headlines(self, headlines: Sequence[str], vectors: Vectors | None) -> Vectors:
        """Titles' vectors. A passage's own stands in for one that isn't known: nothing is embedded but the question."""
        if vectors is None:
            return self.title_vectors.of(headlines, self.embed)
        places = [self.title_vectors.place(headline) for headline in headlines]
        made = np.array(vectors)
        known = [index for index, place in enumerate(places) if place is not None]
        if known:
            made[known] = self.title_vectors.vectors[[place for place in places if place is not None]]
        return made


def _share(said: set[str], text: str) -> float:
    """How much of a text is among the words, each word counting by how much it says."""
    weights = _weights(text)
    total = sum(weights.values())
    return sum(weight for word, weight in weights.items() if word in said) / total if total else 0.0


@lru_cache(maxsize=65536)
def _weights(topic: str) -> dict[str, float]:
    """The words of a topic with how much each says."""
    return {word: says(word) for word in words(topic)}
