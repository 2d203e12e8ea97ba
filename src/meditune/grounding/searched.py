"""What a run's examples are searched for in: an index, or their own contexts.

Both give documents, each once, the best first, with as much of their text as is asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from meditune.data.example import Example
from meditune.errors import DataError
from meditune.recipe import CONTEXTS, PromptFormat, SearchedSpec
from meditune.retrieve.around import Section, around, clean, in_sections
from meditune.retrieve.passages.split import pieces
from meditune.retrieve.untrusted import cleaned

if TYPE_CHECKING:
    from meditune.retrieve.index import Index


@dataclass(frozen=True)
class Document:
    """A document that was found, as it is shown."""

    id: str
    """Of the passage that was found"""
    document: str
    source: str
    group: str
    title: str
    sections: Sequence[Section]
    score: float

    def stored(self, rank: int) -> dict[str, Any]:
        """As a passage of data/retrieved.py."""
        return {
            "id": self.id,
            "document": self.document,
            "source": self.source,
            "title": self.title,
            "sections": [list(section) for section in self.sections],
            "score": self.score,
            "rank": rank,
        }


class Searched(Protocol):
    """Something that questions are put to."""

    def search(self, question: str, k: int, hidden: Collection[str] = ()) -> list[Document]:
        """The best k documents, the best first, none of them of a group in `hidden`."""

    def passages(self) -> Iterator[tuple[str, str]]:
        """Every document's id with its text, in pieces."""

    def facts(self) -> dict[str, Any]:
        """What it is, for the run's records."""


def searched(spec: SearchedSpec, contexts: Sequence[Example], form: PromptFormat, elsewhere: str = "") -> Searched:
    """What the recipe names: an index, or the examples' contexts.

    `elsewhere` is who gets to see what is found, where that isn't this machine alone. Raises DataError where there is
    nothing to search, or what is there may not be shown.
    """
    if spec.index in (None, CONTEXTS):
        return Contexts(contexts, form)
    from meditune.retrieve.index import Index

    return InIndex(Index.open(str(spec.index)), spec, form, elsewhere)


class InIndex:
    """An index, searched with all that it has."""

    def __init__(self, index: Index, spec: SearchedSpec, form: PromptFormat, elsewhere: str = "") -> None:
        self.index, self.spec, self.form = index, spec, form
        self.sources = spec.sources or None
        restricted = [name for name in index.manifest.restricted if not spec.sources or name in spec.sources]
        if elsewhere and restricted:
            raise DataError(
                f"Passages from {', '.join(restricted)} may not be sent to {elsewhere}: their licence forbids passing "
                "them to a third party. Name the other sources under retrieve.sources, or use a model that runs on "
                "this machine."
            )
        self._whole = lru_cache(maxsize=1000)(index.passages)

    def search(self, question: str, k: int, hidden: Collection[str] = ()) -> list[Document]:
        """The best k documents, the best first, none of them of a group in `hidden`."""
        wanted = k
        while True:
            hits = self.index.search(question, wanted, sources=self.sources).hits
            found = [hit for hit in hits if hit.passage.group not in hidden]
            if len(found) >= k or len(hits) < wanted or wanted >= 50 * k:
                break
            wanted *= 3
        return [document for hit in found[:k] if (document := self._shown(hit)).sections]

    def _shown(self, hit: Any) -> Document:
        passage = hit.passage
        parts = around(self._whole(passage.document), passage.id, self.spec.words)
        title = cleaned(passage.title, self.form).text
        sections, score = in_sections(parts, self.form), round(float(hit.score), 6)
        return Document(passage.id, passage.document, passage.source, passage.group, title, sections, score)

    def passages(self) -> Iterator[tuple[str, str]]:
        """Every document's id with its text, in pieces."""
        yield from self.index.texts(self.sources)

    def facts(self) -> dict[str, Any]:
        """What it is, for the run's records."""
        said = self.index.manifest
        return {
            "index": self.index.place.name,
            "content": said.content,
            "embedding": said.embedding["name"],
            "documents": said.documents,
        }


class Contexts:
    """Contexts of examples, searched by BM25 (bm25s: Lù 2024, arXiv:2407.03618) without their questions."""

    def __init__(self, examples: Sequence[Example], form: PromptFormat) -> None:
        """Raises DataError where no example has a context."""
        import bm25s

        self.examples = [example for example in examples if example.context]
        if not self.examples:
            raise DataError(
                "None of the run's examples has a context, so there is nothing to search. Name an index: "
                "`meditune index build` makes one."
            )
        self.sections = [_given(example, form) for example in self.examples]
        self.texts = [" ".join(text for _, text in sections) for sections in self.sections]
        self._tokens: Callable[..., Any] = bm25s.tokenize
        self._ranker = bm25s.BM25()
        self._ranker.index(self._tokens(self.texts, stopwords="en", show_progress=False), show_progress=False)

    def search(self, question: str, k: int, hidden: Collection[str] = ()) -> list[Document]:
        """The best k documents, the best first, none of them of a group in `hidden`."""
        asked = self._tokens([question], stopwords="en", show_progress=False, return_ids=False)
        scores = self._ranker.get_scores(asked[0])
        found = []
        for place in np.argsort(-scores, kind="stable"):
            if self.examples[place].group not in hidden:
                found.append(self._shown(int(place), float(scores[place])))
            if len(found) == k:
                break
        return found

    def _shown(self, place: int, score: float) -> Document:
        example = self.examples[place]
        return Document(
            example.id, example.id, example.source, example.group, "", self.sections[place], round(score, 6)
        )

    def passages(self) -> Iterator[tuple[str, str]]:
        """Every document's id with its text."""
        yield from ((example.id, text) for example, text in zip(self.examples, self.texts, strict=True))

    def facts(self) -> dict[str, Any]:
        """What it is, for the run's records."""
        return {"index": CONTEXTS, "content": None, "embedding": None, "documents": len(self.examples)}


def own(example: Example, form: PromptFormat, words: int) -> list[Section]:
    """What an example itself rests on: its context, or the beginning of its answer where it has none."""
    if example.context:
        return _given(example, form)
    parts = [{"id": str(place), "section": "", "text": text} for place, text in enumerate(pieces(example.answer))]
    return in_sections(around(parts, "0", words), form) if parts else []


def _given(example: Example, form: PromptFormat) -> list[Section]:
    return clean([(passage.label.capitalize(), passage.text) for passage in example.context], form)
