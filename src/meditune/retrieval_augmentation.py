"""Retrieval of passages for a run's examples; the passages are stored in the run's folder, for training and evaluation.

As in RAFT (Zhang et al. 2024, arXiv:2403.10131), a training example gets either its own passage among other passages,
or only other passages. The model thus learns to tell relevant passages from similar ones, and to cope when retrieval
fails. An example without its own passage keeps its target, because no decision means "not in the passages".
"""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

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

TRAINING_PASSAGES, TRAINING_MISSING = 3, 0.2  # Passages per example; fraction of examples without their own passage
WINDOW_WORDS = 400  # Maximum number of words shown from a document; a complete abstract fits


@dataclass(frozen=True)
class Document:
    """A retrieved document as the model sees it."""

    id: str  # Id of the retrieved passage
    document: str
    source: str
    group: str
    title: str
    sections: Sequence[Section]
    score: float

    def stored(self, rank: int) -> dict[str, Any]:
        """Return the document as a passage in the format of data/retrieved_passages.py."""
        shown = {name: value for name, value in vars(self).items() if name != "group"}
        return shown | {"sections": [list(section) for section in self.sections], "rank": rank}


def open_search(
    spec: SearchedSpec, contexts: Sequence[Example], form: PromptFormat, elsewhere: str = ""
) -> IndexSearch | ContextSearch:
    """Return the search that the recipe specifies: in an index, or in the examples' contexts.

    `elsewhere` is the name of a third party that will see the passages, or empty. Raises DataError if there is nothing
    to search, or if the passages may not be sent to that third party.
    """
    if spec.index in (None, CONTEXTS):
        return ContextSearch(contexts, form)
    from meditune.retrieve.index import Index

    return IndexSearch(Index.open(str(spec.index)), form, elsewhere)


class IndexSearch:
    """Hybrid search (by words and by meaning) in an index."""

    def __init__(self, index: Index, form: PromptFormat, elsewhere: str = "") -> None:
        self.index, self.form = index, form
        restricted = index.manifest.restricted
        if elsewhere and restricted:
            raise DataError(
                f"Passages from {', '.join(restricted)} may not be sent to {elsewhere}, because their licence forbids "
                "it. Use an index without passages from these sources, or a model that runs on this machine."
            )
        self._whole = lru_cache(maxsize=1000)(index.passages)

    def search(self, question: str, k: int, hidden: Collection[str] = ()) -> list[Document]:
        """Return up to `k` documents, best first, leaving out documents of the groups in `hidden`."""
        limit = k
        while True:
            hits = self.index.search(question, limit).hits
            found = [hit for hit in hits if hit.passage.group not in hidden]
            if len(found) >= k or len(hits) < limit or limit >= 50 * k:
                break
            limit *= 3
        documents = []
        for hit in found[:k]:
            each = hit.passage
            title = clean_passage(each.title, self.form).text
            parts = with_neighbors(self._whole(each.document), each.id, WINDOW_WORDS)
            if sections := in_sections(parts, self.form):
                score = round(float(hit.score), 6)
                documents.append(Document(each.id, each.document, each.source, each.group, title, sections, score))
        return documents

    def passages(self) -> Iterator[tuple[str, str]]:
        """Yield the document id and the text of each passage in the index."""
        yield from self.index.texts()

    def facts(self) -> dict[str, Any]:
        """Return a description of the search, for the run's records."""
        manifest = self.index.manifest
        return {
            "index": self.index.store.name,
            "content": manifest.content,
            "embedding": manifest.embedding["name"],
            "documents": manifest.documents,
        }


class ContextSearch:
    """BM25 search (bm25s: Lù 2024, arXiv:2407.03618) in the contexts of examples, but not in their questions."""

    def __init__(self, examples: Sequence[Example], form: PromptFormat) -> None:
        """Build the BM25 index; raise DataError if no example has a context."""
        import bm25s

        self.examples = [example for example in examples if example.context]
        if not self.examples:
            raise DataError(
                "None of the run's examples has a context, so there is nothing to search. Set retrieve.index "
                "to an index; `meditune index build` builds one."
            )
        self.sections = [_given(example, form) for example in self.examples]
        self.texts = [" ".join(text for _, text in sections) for sections in self.sections]
        self._tokens: Callable[..., Any] = bm25s.tokenize
        self._ranker = bm25s.BM25()
        self._ranker.index(self._tokens(self.texts, stopwords="en", show_progress=False), show_progress=False)

    def search(self, question: str, k: int, hidden: Collection[str] = ()) -> list[Document]:
        """Return up to `k` documents, best first, leaving out documents of the groups in `hidden`."""
        asked = self._tokens([question], stopwords="en", show_progress=False, return_ids=False)
        scores = self._ranker.get_scores(asked[0])
        places = (each for each in np.argsort(-scores, kind="stable") if self.examples[each].group not in hidden)
        found = []
        for place in islice(places, k):
            each, score = self.examples[place], round(float(scores[place]), 6)
            found.append(Document(each.id, each.id, each.source, each.group, "", self.sections[place], score))
        return found

    def passages(self) -> Iterator[tuple[str, str]]:
        """Yield the id and the text of each document."""
        yield from ((example.id, text) for example, text in zip(self.examples, self.texts, strict=True))

    def facts(self) -> dict[str, Any]:
        """Return a description of the search, for the run's records."""
        return {"index": CONTEXTS, "content": None, "embedding": None, "documents": len(self.examples)}


def own_passages(example: Example, form: PromptFormat) -> list[Section]:
    """Return the passages that an example is based on: its context, or else the beginning of its answer."""
    if example.context:
        return _given(example, form)
    parts = [{"id": str(place), "section": "", "text": text} for place, text in enumerate(split_text(example.answer))]
    return in_sections(with_neighbors(parts, "0", WINDOW_WORDS), form) if parts else []


def _given(example: Example, form: PromptFormat) -> list[Section]:
    return clean_text([(passage.label.capitalize(), passage.text) for passage in example.context], form)


def retrieve_for_evaluation(recipe: Recipe, splits: Splits, folder: Path, elsewhere: str = "") -> dict[str, Any] | None:
    """Retrieve passages for each measured item and store them in the run's `folder`, unless they are already stored.

    Returns None if the recipe retrieves nothing, else the content of retrieved.json: the facts of the search, `k`, the
    number of `items`, the result of `own_document_ranks` as `own`, and `leaks` in the format of leakage.json.
    `elsewhere` is the name of a third party that will see the passages, or empty.
    """
    spec = recipe.evaluate.retrieve
    if spec.index is None:
        return None
    if (folder / retrieved_passages.RETRIEVED_FACTS).is_file():
        stored: dict[str, Any] = read_json(folder / retrieved_passages.RETRIEVED_FACTS)
        return stored
    items = splits.measured(recipe.evaluate.split)
    contexts = [example for examples in splits.named().values() for example in examples]
    searcher = open_search(spec, contexts, recipe.prompt, elsewhere)
    documents: set[str] = set()

    def recorded() -> Iterator[tuple[str, str]]:
        for document, text in searcher.passages():
            documents.add(document)
            yield document, text

    leaks = leakage.in_documents(items, recorded())

    def rows() -> Any:
        for example in track(items, "Finding passages", unit="questions"):
            found = searcher.search(example.question, spec.k)
            passages = [document.stored(rank) for rank, document in enumerate(found)]
            yield {"id": example.id, "question": example.question, "passages": passages}

    write_jsonl(folder / retrieved_passages.RETRIEVED_FILE, rows())
    facts = searcher.facts() | {
        "k": spec.k,
        "items": len(items),
        "own": own_document_ranks(retrieved_passages.read(folder / retrieved_passages.RETRIEVED_FILE), documents),
        "leaks": leakage.facts(leaks),
    }
    write_json(folder / retrieved_passages.RETRIEVED_FACTS, facts)
    return facts


def with_retrieved(recipe: Recipe, examples: Sequence[Example], folder: Path) -> list[Example]:
    """Return the examples with their stored passages; [] if the recipe retrieves nothing or no passages are stored."""
    if recipe.evaluate.retrieve.index is None or not (folder / retrieved_passages.RETRIEVED_FILE).is_file():
        return []
    rows = retrieved_passages.read(folder / retrieved_passages.RETRIEVED_FILE)
    return [
        retrieved_passages.shown_passages(example, rows[example.id]["passages"])
        for example in examples
        if example.id in rows
    ]


def own_document_ranks(rows: dict[str, retrieved_passages.Row], documents: set[str]) -> dict[str, Any]:
    """Return `items`, the number of items whose own document is in `documents`, and `ranks`.

    `ranks` maps a rank (1-based) to the number of these items whose own document was retrieved at that rank. An item
    and its own document have the same publisher's id, even if their sources differ: pubmed:123 is the document of
    pubmedqa:123.
    """
    known = {retrieved_passages.publishers_id(document) for document in documents}
    matching = [row for row in rows.values() if retrieved_passages.publishers_id(row["id"]) in known]
    ranks: dict[str, int] = {}
    for row in matching:
        for rank, passage in enumerate(row["passages"], start=1):
            if retrieved_passages.is_own(passage, row["id"]):
                ranks[str(rank)] = ranks.get(str(rank), 0) + 1
                break
    return {"items": len(matching), "ranks": dict(sorted(ranks.items(), key=lambda pair: int(pair[0])))}


def retrieve_for_training(recipe: Recipe, splits: Splits, folder: Path, elsewhere: str = "") -> None:
    """Retrieve passages for some of the training examples and store them in the run's `folder`, unless already stored.

    The recipe sets the fraction of examples with passages. The seed decides which examples these are, which of them
    lack their own passage, and the order of the passages. No passage comes from the group of a dev or test item, and
    only an example's own passage comes from the example's group. `elsewhere` is the name of a third party that will see
    the passages, or empty.
    """
    spec = recipe.train.retrieve
    path = folder / retrieved_passages.TRAINING
    if not spec.share or path.is_file():
        return
    able = [example for example in splits.train if own_passages(example, recipe.prompt)]
    chance = random.Random(f"{recipe.seed}/retrieved")
    chosen = sorted(chance.sample(range(len(able)), round(spec.share * len(able))))
    without_own = set(chance.sample(chosen, round(TRAINING_MISSING * len(chosen))))
    searcher = open_search(spec, splits.train, recipe.prompt, elsewhere)
    unseen = {example.group for example in (*splits.dev, *splits.test)}

    def rows() -> Any:
        for index in track(chosen, "Finding training passages", unit="examples"):
            example, has_own = able[index], index not in without_own
            limit = TRAINING_PASSAGES - has_own
            others = searcher.search(example.question, limit, {*unseen, example.group}) if limit else []
            sections = own_passages(example, recipe.prompt)
            own = Document(example.id, example.id, example.source, example.group, "", sections, 0.0)
            # If a prompt is too long, the passage of rank 0 is left out last: the example's own passage, if included.
            passages = [each.stored(rank) for rank, each in enumerate([own, *others] if has_own else others)]
            random.Random(f"{recipe.seed}/{example.id}").shuffle(passages)
            yield {"id": example.id, "right": has_own, "passages": passages}

    write_jsonl(path, rows())
