"""The reranker: scores candidate passages by a weighted sum of a few features of meaning and words.

The whole message, its question (`QueryFocus.query`) and each of its sentences are embedded, and these vectors are
compared with the vector of a passage's title. The words of the message and the passage are compared, too, after
misspelled topics have been corrected and other names of the topics have been added (`topics.Synonyms`). The word score
is BM25 (Robertson and Zaragoza 2009, https://doi.org/10.1561/1500000019), but a word's weight is its rarity in English,
not its rarity in the index. What the reranker knows about an index (the titles, the titles' vectors and a thesaurus of
topics) is stored in one numpy archive beside the table.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from meditune.errors import DataError, ModelError
from meditune.models.sentence_encoder import Vectors
from meditune.retrieve import topics
from meditune.retrieve.bm25 import term_score
from meditune.retrieve.query_understanding import QueryFocus, query_focus
from meditune.retrieve.storage import REBUILD, archive, read_archive
from meditune.retrieve.topics import Synonyms, key, says, words
from meditune.text import sentences

FITTED: dict[str, float] = {
    "whole_near_title": 2.784,
    "asked_near_title": 4.176,
    "sentence_near_title": 3.676,
    "words": 1.572,
    "names": 0.922,
    "names_in_title": 1.831,
    "whole_near_passage": 5.992,
}  # Weights of features, fitted by `python benchmarks/retrieval.py --fit` on questions that are in no test set
CHOSEN: dict[str, float] = {"topic_named": 1.0, "kind_asked": 0.3}
"""Weights chosen by hand: fitted to questions labelled by topic and kind, they would be too high for other questions"""
WEIGHTS = FITTED | CHOSEN
SIBLINGS = 0.3  # Weight, in a passage's score, of the mean score of its topic's best passages; chosen from 0, 0.3, 1
LENGTH = 0.6  # BM25's b
USUAL_LENGTH = 150.0  # Length of a passage, in words, at which the length normalization has no effect
LETTERS = 1500  # Maximum number of characters of a passage's text that are used
_BETWEEN = str.maketrans({sign: " " for sign in (*map(chr, range(128)), *"’‘“”–—•…") if not sign.isalnum()})


def split(text: str) -> list[str]:
    """Return the lowercase words of the text's first `LETTERS` characters; apostrophes separate words, too."""
    return text[:LETTERS].casefold().translate(_BETWEEN).split()


def count_words(query: Iterable[str], texts: Iterable[str]) -> list[tuple[Counter[str], int]]:
    """Return, for each text, the counts of the query's words (singular or plural) and its length in words."""
    # Only the query's words are counted: reducing all words of 100 passages to the singular would take 10 ms.
    singular = {f"{word}{ending}": word for word in query for ending in ("s", "")}
    divided = map(split, texts)
    return [(Counter([singular[word] for word in text if word in singular]), len(text)) for text in divided]


def overlap(
    query: str, texts: Sequence[tuple[Counter[str], int]], average_length: float = USUAL_LENGTH
) -> NDArray[np.float64]:
    """Return the texts' BM25 scores (n,) for the query's words, divided by the highest; all 0 if no word matches."""
    rarity = {word: says(word) for word in words(query)}
    scores = np.array(
        [
            sum(
                term_score(rarity[word], n, length, average_length, LENGTH)
                for word, n in counts.items()
                if word in rarity
            )
            for counts, length in texts
        ]
    )
    highest = scores.max(initial=0.0)
    return scores / highest if highest else scores


MIN_WORDS = 3  # Minimum number of words in a sentence that is compared separately
MAX_SENTENCES = 12
TITLE_LENGTH = 8.0  # Length of a typical title, in words
HEADLINE = 200  # Number of characters of the text that are used if the title is missing
BEST = 3  # Maximum number of passages whose mean score represents a topic

Scores = NDArray[np.float64]


Encode = Callable[[Sequence[str]], Vectors]  # Maps n texts to vectors of length 1, with shape (n, size)


def nearest(
    vectors: Vectors, vector: Vectors, k: int, allowed: NDArray[np.bool_] | None = None
) -> tuple[NDArray[np.int64], Vectors]:
    """Return the positions and cosines of the `k` rows of `vectors` (n, size) nearest to `vector`, the nearest first.

    `allowed` (n,) marks the vectors that may be returned. Vectors have length 1.
    """
    cosines = vectors @ vector
    places = np.arange(len(vectors)) if allowed is None else np.flatnonzero(allowed)
    if len(places) > k:
        places = places[np.argpartition(cosines[places], len(places) - k)[len(places) - k :]]
    # Ties are ordered by position, so that the same question always gives the same hits.
    places = places[np.lexsort((places, -cosines[places]))]
    return places, cosines[places]


class TitleVectors:
    """Titles with their vectors.

    Ben Abacha and Demner-Fushman 2019 (https://doi.org/10.1186/s12859-019-3119-4) found answers by comparing consumers'
    questions with questions that have been answered. MedQuAD's titles are such questions.
    """

    def __init__(self, titles: Sequence[str], vectors: Vectors) -> None:
        self.titles = tuple(titles)
        self.vectors = vectors
        self._place = {title: place for place, title in enumerate(titles)}

    def place(self, title: str) -> int | None:
        """Return the position of a title's vector, or None if the title is unknown."""
        return self._place.get(title)

    def vectors_of(self, titles: Sequence[str], encode: Encode) -> Vectors:
        """Return the vectors of the titles (n, size); `encode` embeds unknown titles."""
        unknown = [title for title in dict.fromkeys(titles) if title not in self._place]
        fresh: dict[str, Any] = dict(zip(unknown, encode(unknown), strict=True)) if unknown else {}
        return np.array([fresh[t] if t in fresh else self.vectors[self._place[t]] for t in titles], dtype=np.float32)

    def nearest(self, vectors: Vectors, count: int) -> list[list[int]]:
        """Return, for each of the vectors (n, size), the positions of the `count` nearest titles, the nearest first."""
        return [nearest(self.vectors, vector, count)[0].tolist() if self.titles else [] for vector in vectors]


@dataclass(frozen=True, slots=True)
class Passage:
    """The parts of a passage that the reranker compares with the message."""

    title: str  # The passage's subject; may be empty
    text: str


@dataclass(frozen=True)
class RerankQuery:
    """A message prepared for comparison."""

    corrected: str
    focused: QueryFocus
    expanded: str  # The question, followed by other names of its topics
    vectors: Vectors  # Vectors (n, size) of the whole message, of its question, and of its sentences


class Reranker:
    """A reranker that scores how well passages answer a message."""

    def __init__(self, synonyms: Synonyms, title_vectors: TitleVectors, encode: Encode) -> None:
        self.synonyms = synonyms
        self.title_vectors = title_vectors
        self.encode = encode
        self.weights, self.siblings = WEIGHTS, SIBLINGS

    def prepare(self, question: str) -> RerankQuery:
        """Return the message prepared for comparison. Computing its vectors takes nearly all of the time."""
        corrected = self.synonyms.corrected(question)
        focused = query_focus(corrected, self.synonyms)
        parts = [part for part in sentences(" ".join(corrected.split())) if len(part.split()) >= MIN_WORDS]
        texts = [corrected, focused.query, *(parts[:MAX_SENTENCES] or [corrected])]
        once = list(dict.fromkeys(texts))
        vectors = dict(zip(once, self.encode(once), strict=True))
        expanded = self.synonyms.expand(focused.query)
        return RerankQuery(corrected, focused, expanded, np.array([vectors[text] for text in texts], dtype=np.float32))

    def score(self, query: RerankQuery, passages: Sequence[Passage], vectors: Vectors) -> NDArray[np.float64]:
        """Return the passages' scores (n,), higher is better. Scores are comparable only within one call.

        `vectors` (n, size) are the passages' own vectors, of length 1 and from the same embedding model.
        """
        if not passages:
            return np.zeros(0)
        features = self.features(query, passages, vectors)
        total = np.sum([self.weights[name] * features[name] for name in features], axis=0)
        same: dict[str, list[int]] = defaultdict(list)
        for index, passage in enumerate(passages):
            same[key(topics.read(passage.title).topic) or f"#{index}"].append(index)
        # A topic with several good passages is more likely to be the intended topic than a topic with one passage.
        mean = total.copy()
        for indices in same.values():
            if len(indices) > 1:
                mean[indices] = np.sort(total[indices])[-BEST:].mean()
        return np.asarray(total + self.siblings * mean)

    def features(self, query: RerankQuery, passages: Sequence[Passage], vectors: Vectors) -> dict[str, Scores]:
        """Return the features on which the score is based, each with shape (n,), by the names of their weights."""
        texts = [f"{passage.title}\n{passage.text}" for passage in passages]
        read = [topics.read(passage.title) for passage in passages]
        headlines = [passage.title or passage.text[:HEADLINE] for passage in passages]
        searched = dict.fromkeys([*words(query.corrected), *words(query.expanded)])
        counts, in_titles = count_words(searched, texts), count_words(searched, headlines)
        # An unknown title gets its passage's vector, so that no title has to be embedded.
        compared = np.array(vectors)
        for index, each in enumerate(headlines):
            if (place := self.title_vectors.place(each)) is not None:
                compared[index] = self.title_vectors.vectors[place]
        near = (compared @ query.vectors.T).astype(float)
        message_words = {word for text in (query.corrected, query.focused.query) for word in words(text)}
        message_words |= {word for mention in query.focused.mentions for word in mention.name.split()}
        return {
            "whole_near_title": near[:, 0],
            "asked_near_title": near[:, 1],
            "sentence_near_title": near[:, 2:].max(axis=1),
            "words": overlap(query.corrected, counts),
            "names": overlap(query.expanded, counts),
            "names_in_title": overlap(query.expanded, in_titles, TITLE_LENGTH),
            "topic_named": np.array(
                [
                    _share(message_words, title.topic)
                    if title.topic
                    else _share(set(words(text[:LETTERS])), query.focused.query)
                    for title, text in zip(read, texts, strict=True)
                ]
            ),
            "kind_asked": np.array([float(title.kind in query.focused.kinds) for title in read]),
            "whole_near_passage": (vectors @ query.vectors[0]).astype(float),
        }


def _share(message_words: set[str], text: str) -> float:
    """Return the fraction of a text's words that occur in `message_words`; informative words weigh more."""
    weights = _weights(text)
    total = sum(weights.values())
    return sum(weight for word, weight in weights.items() if word in message_words) / total if total else 0.0


@lru_cache(maxsize=65536)
def _weights(topic: str) -> dict[str, float]:
    return {word: says(word) for word in words(topic)}


MAX_TITLES = 100_000  # If there are more distinct titles, none is stored, and only passages' own vectors are compared

Names = tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Knowledge:
    """The reranker's knowledge of an index: titles, the titles' vectors, and a thesaurus of topics."""

    model: str
    titles: tuple[str, ...]
    vectors: Vectors  # Shape (titles, size); each vector has length 1
    thesaurus: Names = ()

    def reranker(self, encode: Encode) -> Reranker:
        """Return a reranker with this knowledge; `encode` must use the same embedding model."""
        groups = [*(topics.read(title).names for title in self.titles), *self.thesaurus]
        return Reranker(Synonyms(groups), TitleVectors(self.titles, self.vectors), encode)


def make(
    titles: Iterable[str],
    encode: Encode,
    model: str,
    thesaurus: Iterable[Sequence[str]] = (),
    before: Knowledge | None = None,
) -> Knowledge:
    """Return the knowledge for these titles; titles that `before` already contains aren't embedded again.

    Each group in `thesaurus` contains a topic and its other names (`topics.of_medquad`). Empty titles are ignored.
    """
    distinct = tuple(title for title in dict.fromkeys(titles) if title)
    names = tuple(tuple(group) for group in thesaurus)
    if len(distinct) > MAX_TITLES:
        distinct = ()
    known = TitleVectors(before.titles, before.vectors) if before and before.model == model else None
    if not distinct:
        return Knowledge(model, (), np.zeros((0, 0), dtype=np.float32), names)
    return Knowledge(model, distinct, known.vectors_of(distinct, encode) if known else encode(distinct), names)


def as_bytes(known: Knowledge) -> bytes:
    """Return the knowledge as a numpy archive, with vectors in float16."""
    vectors = known.vectors.astype(np.float16)
    return archive(model=known.model, titles=known.titles, thesaurus=known.thesaurus, vectors=vectors)


def read(data: bytes | None, name: str, model: str) -> Knowledge:
    """Return the knowledge in an archive.

    Raises DataError if the archive is damaged, and ModelError if it was made with another embedding model.
    """
    found = read_archive(data, name, "the reranker's data is")
    if found["model"] != model:
        raise ModelError(
            f"{name} was made with the embedding model {found['model']}, but {model} has different vectors. {REBUILD}"
        )
    titles, vectors = found["titles"], found["vectors"].astype(np.float32)
    if len(vectors) != len(titles):
        raise DataError(f"{name}: {len(titles):,} titles but {len(vectors):,} vectors. {REBUILD}")
    vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9) if len(vectors) else 1.0
    return Knowledge(model, tuple(titles), vectors, tuple(map(tuple, found["thesaurus"])))
