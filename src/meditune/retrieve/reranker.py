"""The order of passages that were found for a message: how near they are in meaning and in words, weighed together.

A message is compared as a whole, by what it asks (`focus`) and sentence by sentence with a passage's title; and in
words, misspelled topics put right and other names of them added (`synonyms`). The weights are a few numbers.

How well a passage's words meet a question's, for a few passages and without an index: BM25 with English counts.

BM25 (Robertson and Zaragoza 2009, https://doi.org/10.1561/1500000019) weighs a word by how few passages hold it. Here
its rarity in English takes that place, so that a handful of candidates can be compared and scores don't change when the
index does.

What a reranker knows of an index, made from its titles, in a file beside the table.

One numpy archive, so that it is whole or not there, in a folder as in object storage:

model        by which name the embedding model is known again
titles       the titles
vectors      their vectors, as 16-bit numbers
thesaurus    topics with their other names, besides those that titles give
"""

from __future__ import annotations

import io
import json
import zipfile
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from meditune.errors import DataError, ModelError
from meditune.retrieve import topics
from meditune.retrieve.query_understanding import QueryFocus, query_focus
from meditune.retrieve.rerank_weights import SIBLINGS, WEIGHTS
from meditune.retrieve.topics import Synonyms, key, says, words
from meditune.retrieve.vector_search import Embed, TitleVectors, Vectors
from meditune.text import sentences

SATURATION, LENGTH = 1.2, 0.6
"""BM25's k1 and b"""
USUAL_LENGTH = 150.0
"""Words of a passage whose score is neither raised nor lowered for its length"""
LETTERS = 1500
"""Of a passage's text that are looked at"""
_BETWEEN = str.maketrans({sign: " " for sign in (*map(chr, range(128)), *"’‘“”–—•…") if not sign.isalnum()})


def split(text: str) -> list[str]:
    """The text's words as they are written, in small letters; what stands behind an apostrophe is a word by itself."""
    return text[:LETTERS].casefold().translate(_BETWEEN).split()


@dataclass(frozen=True)
class WordCounts:
    """How often each of some words stands in a text, and how many words it has."""

    there: Counter[str]
    words: int


def count_words(asked: Iterable[str], texts: Iterable[str]) -> list[WordCounts]:
    """The texts with the asked words (without plural endings) counted; plural endings in a text don't count."""
    # Only words that are asked for are looked at: putting all words of 100 passages into the singular takes 10 ms.
    meant = {f"{word}{ending}": word for word in asked for ending in ("s", "")}
    divided = map(split, texts)
    return [WordCounts(Counter([meant[word] for word in text if word in meant]), len(text)) for text in divided]


def overlap(question: str, texts: Sequence[WordCounts], usual: float = USUAL_LENGTH) -> NDArray[np.float64]:
    """(n,) BM25 of each text for the question's words, as a share of the highest; zeros where no word is met."""
    asked = {word: says(word) for word in set(words(question))}
    found = np.array([_score(asked, text, usual) for text in texts])
    highest = found.max(initial=0.0)
    return found / highest if highest else found


def _score(asked: Mapping[str, float], text: WordCounts, usual: float) -> float:
    longer = SATURATION * (1 - LENGTH + LENGTH * text.words / usual)
    return sum(
        asked[word] * count * (SATURATION + 1) / (count + longer) for word, count in text.there.items() if word in asked
    )


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
class RerankQuery:
    """A message made ready for comparing."""

    corrected: str
    focused: QueryFocus
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

    def asked(self, question: str) -> RerankQuery:
        """The message made ready; nearly all of the time goes into its vectors."""
        corrected = self.synonyms.corrected(question)
        focused = query_focus(corrected, self.synonyms)
        parts = [part for part in sentences(" ".join(corrected.split())) if len(part.split()) >= FEWEST_WORDS]
        texts = [corrected, focused.query, *(parts[:MOST_SENTENCES] or [corrected])]
        once = list(dict.fromkeys(texts))
        vectors = dict(zip(once, self.embed(once), strict=True))
        expanded = self.synonyms.expand(focused.query)
        return RerankQuery(corrected, focused, expanded, np.array([vectors[text] for text in texts], dtype=np.float32))

    def score(
        self, question: str | RerankQuery, passages: Sequence[Passage], vectors: Vectors | None = None
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
            same[key(topics.read(passage.title).topic) or f"#{index}"].append(index)
        # What several passages of a topic bear out is likelier to be meant than what one does.
        mean = total.copy()
        for indices in same.values():
            if len(indices) > 1:
                mean[indices] = np.sort(total[indices])[-BEST:].mean()
        return np.asarray(total + self.siblings * mean)

    def features(
        self, question: str | RerankQuery, passages: Sequence[Passage], vectors: Vectors | None = None
    ) -> dict[str, Scores]:
        """What scores are made of: (n,) each, named as the weights are."""
        asked = self.asked(question) if isinstance(question, str) else question
        whole = [f"{passage.title}\n{passage.text}" for passage in passages]
        read = [topics.read(passage.title) for passage in passages]
        headlines = [headline(passage) for passage in passages]
        searched = set(words(asked.corrected)) | set(words(asked.expanded))
        counts, in_titles = count_words(searched, whole), count_words(searched, headlines)
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


MOST_TITLES = 100_000
"""More different titles than these get neither names nor vectors: passages then count by their own vectors"""

Names = tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Knowledge:
    """All that is stored."""

    model: str
    titles: tuple[str, ...]
    vectors: Vectors
    """(titles, size), of length 1"""
    thesaurus: Names = ()

    def reranker(self, embed: Embed) -> Reranker:
        """One that knows this; `embed` is the same model's function."""
        groups = [*(topics.read(title).names for title in self.titles), *self.thesaurus]
        return Reranker(Synonyms(groups), TitleVectors(self.titles, self.vectors), embed)


def make(
    some: Iterable[str],
    embed: Embed,
    model: str,
    thesaurus: Iterable[Sequence[str]] = (),
    before: Knowledge | None = None,
) -> Knowledge:
    """What there is to know of passages with these titles; only those that `before` doesn't hold are embedded.

    `thesaurus`: topics with their other names (`thesaurus.of_medquad`). Empty titles don't count.
    """
    once = tuple(title for title in dict.fromkeys(some) if title)
    names = tuple(tuple(group) for group in thesaurus)
    if len(once) > MOST_TITLES:
        once = ()
    known = TitleVectors(before.titles, before.vectors) if before and before.model == model else None
    if not once:
        return Knowledge(model, (), np.zeros((0, 0), dtype=np.float32), names)
    return Knowledge(model, once, known.of(once, embed) if known else embed(once), names)


def as_bytes(known: Knowledge) -> bytes:
    """The archive."""
    stream = io.BytesIO()
    parts = {"model": known.model, "titles": known.titles, "thesaurus": known.thesaurus}
    texts: dict[str, Any] = {
        name: np.frombuffer(json.dumps(value).encode(), dtype=np.uint8) for name, value in parts.items()
    }
    texts["vectors"] = known.vectors.astype(np.float16)
    np.savez_compressed(stream, allow_pickle=False, **texts)
    return stream.getvalue()


def read(data: bytes | None, name: str, model: str) -> Knowledge:
    """What the archive called `name` holds.

    Raises DataError where there is none or it is damaged, ModelError where its vectors are another model's.
    """
    try:
        if data is None:
            raise ValueError("there is no such file")
        with np.load(io.BytesIO(data), allow_pickle=False) as stored:
            said: dict[str, Any] = {
                part: json.loads(stored[part].tobytes()) for part in ("model", "titles", "thesaurus")
            }
            vectors = stored["vectors"].astype(np.float32)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"{name}: what the reranker knows is missing or damaged ({error}). {REBUILD}") from error
    if said["model"] != model:
        raise ModelError(
            f"{name} was made with the embedding model {said['model']}, and {model} gives other vectors. {REBUILD}"
        )
    if len(vectors) != len(said["titles"]):
        raise DataError(f"{name}: {len(said['titles']):,} titles but {len(vectors):,} vectors. {REBUILD}")
    vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9) if len(vectors) else 1.0
    return Knowledge(model, tuple(said["titles"]), vectors, tuple(map(tuple, said["thesaurus"])))


REBUILD = "Build the index again with `meditune index build --replace`."
