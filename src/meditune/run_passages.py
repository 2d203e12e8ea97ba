"""Passages that a run's examples are shown, found once and kept in its folder: where retrieval meets the rest.

Passages for the items that are measured: found once, whole or not there, and checked for the items' answers.

What a run's examples are searched for in: an index, or their own contexts.

Both give documents, each once, the best first, with as much of their text as is asked for.

Training examples among passages that were found: their own one beside others, or others alone.

After RAFT (Zhang et al. 2024, arXiv:2403.10131): what bears on the question must be told from what only looks like it,
and since retrieval fails at times, a share of the examples must do without. Those keep their target: there is no
fourth decision to teach, and the model will be asked all the same.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from meditune.config.data_options import CONTEXTS, PromptFormat, SearchedSpec
from meditune.config.recipe import Recipe
from meditune.data import leakage, retrieved_passages
from meditune.data.example import Example
from meditune.data.splits import Splits
from meditune.errors import DataError
from meditune.files import read_json, write_json, write_jsonl
from meditune.progress import track
from meditune.retrieve.context_packing import Section, clean_text, in_sections, with_neighbors
from meditune.retrieve.documents.document import split_text
from meditune.retrieve.prompt_injection import clean_passage

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
        """As a passage of data/retrieved_passages.py."""
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


def open_search(spec: SearchedSpec, contexts: Sequence[Example], form: PromptFormat, elsewhere: str = "") -> Searched:
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
        parts = with_neighbors(self._whole(passage.document), passage.id, self.spec.words)
        title = clean_passage(passage.title, self.form).text
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


def own_passages(example: Example, form: PromptFormat, words: int) -> list[Section]:
    """What an example itself rests on: its context, or the beginning of its answer where it has none."""
    if example.context:
        return _given(example, form)
    parts = [{"id": str(place), "section": "", "text": text} for place, text in enumerate(split_text(example.answer))]
    return in_sections(with_neighbors(parts, "0", words), form) if parts else []


def _given(example: Example, form: PromptFormat) -> list[Section]:
    return clean_text([(passage.label.capitalize(), passage.text) for passage in example.context], form)


def find_for_evaluation(recipe: Recipe, splits: Splits, folder: Path, elsewhere: str = "") -> dict[str, Any] | None:
    """Leave each measured item's passages in the run's `folder`, unless they are there; None where none are asked for.

    Returns what retrieved.json says: `index`, `content` (a hash of what is in it), `embedding`, `documents`, `k`,
    `items`, `own` (items whose own document is there, and of how many it is among the passages), and `leaks` as
    leakage.json has them. `elsewhere` is who else gets to see the passages.
    """
    spec = recipe.evaluate.retrieve
    if spec.index is None:
        return None
    if (folder / retrieved_passages.FACTS).is_file():
        stored: dict[str, Any] = read_json(folder / retrieved_passages.FACTS)
        return stored
    items = splits.measured(recipe.evaluate.split)
    contexts = [example for examples in splits.named().values() for example in examples]
    place = open_search(spec, contexts, recipe.prompt, elsewhere)
    documents: set[str] = set()
    leaks = leakage.in_documents(items, _noting(place.passages(), documents))

    def rows() -> Any:
        for example in track(items, "Finding passages", unit="questions"):
            found = place.search(example.question, spec.k)
            passages = [document.stored(rank) for rank, document in enumerate(found)]
            yield {"id": example.id, "question": example.question, "passages": passages}

    write_jsonl(folder / retrieved_passages.FOUND, rows())
    facts = place.facts() | {
        "k": spec.k,
        "items": len(items),
        "own": own_found(retrieved_passages.read(folder / retrieved_passages.FOUND), documents),
        "leaks": leakage.facts(leaks),
    }
    write_json(folder / retrieved_passages.FACTS, facts)
    return facts


def shown(recipe: Recipe, examples: Sequence[Example], folder: Path) -> list[Example]:
    """The measured examples as they are shown with what was found for them; none where nothing is retrieved."""
    if recipe.evaluate.retrieve.index is None or not (folder / retrieved_passages.FOUND).is_file():
        return []
    rows = retrieved_passages.read(folder / retrieved_passages.FOUND)
    return [
        retrieved_passages.shown_passages(example, rows[example.id]["passages"])
        for example in examples
        if example.id in rows
    ]


def own_found(rows: dict[str, retrieved_passages.Row], documents: set[str]) -> dict[str, Any]:
    """`items` whose own document is among the `documents`, and `ranks`: at which rank, from 1 -> of how many.

    An item's own document has the publisher's id of the item, whatever it was read from: pubmed:123 is pubmedqa:123's.
    """
    known = {retrieved_passages.publishers_id(document) for document in documents}
    there = [row for row in rows.values() if retrieved_passages.publishers_id(row["id"]) in known]
    ranks: dict[str, int] = {}
    for row in there:
        for rank, passage in enumerate(row["passages"], start=1):
            if retrieved_passages.is_own(passage, row["id"]):
                ranks[str(rank)] = ranks.get(str(rank), 0) + 1
                break
    return {"items": len(there), "ranks": dict(sorted(ranks.items(), key=lambda pair: int(pair[0])))}


def _noting(passages: Any, documents: set[str]) -> Any:
    for document, text in passages:
        documents.add(document)
        yield document, text


def find_for_training(recipe: Recipe, splits: Splits, folder: Path, elsewhere: str = "") -> None:
    """Leave the passages of a share of the training examples in the run's `folder`, unless they are there.

    Which examples these are, what they miss and in which order passages come follows from the seed. No passage is of a
    dev or test item, or of the example's own group but for its own one. `elsewhere` is who else gets to see them.
    """
    spec = recipe.train.retrieve
    path = folder / retrieved_passages.TRAINING
    if not spec.share or path.is_file():
        return
    able = [example for example in splits.train if own_passages(example, recipe.prompt, spec.words)]
    chance = random.Random(f"{recipe.seed}/retrieved")
    chosen = sorted(chance.sample(range(len(able)), round(spec.share * len(able))))
    alone = set(chance.sample(chosen, round(spec.missing * len(chosen))))
    place = open_search(spec, splits.train, recipe.prompt, elsewhere)
    unseen = {example.group for example in (*splits.dev, *splits.test)}

    def rows() -> Any:
        for index in track(chosen, "Finding passages to train with", unit="examples"):
            example = able[index]
            yield _row(example, place, index not in alone, unseen, recipe)

    write_jsonl(path, rows())


def _row(example: Example, place: Searched, right: bool, unseen: Collection[str], recipe: Recipe) -> dict[str, Any]:
    spec = recipe.train.retrieve
    wanted = spec.passages - right
    others = place.search(example.question, wanted, {*unseen, example.group}) if wanted else []
    sections = own_passages(example, recipe.prompt, spec.words)
    mine = Document(example.id, example.id, example.source, example.group, "", sections, 0.0)
    # The own passage is the last to be left out; of the others the best.
    passages = [each.stored(rank) for rank, each in enumerate([mine, *others] if right else others)]
    random.Random(f"{recipe.seed}/{example.id}").shuffle(passages)
    return {"id": example.id, "right": right, "passages": passages}
