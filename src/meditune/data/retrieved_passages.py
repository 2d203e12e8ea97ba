"""Passages that were found for examples, as a run's folder keeps them: every model sees the same, and figures last.

    retrieved.jsonl         for the items that are measured: id, question, passages, the best first
    retrieved.json          where they were found, and what is known of that
    retrieved_train.jsonl   for training examples: id, right (whether the own passage is there), passages as shown

A passage has `id`, `document`, `source`, `title`, `sections` (each a heading, which may be empty, and a text), `score`,
and `rank`: 0 is the last to be left out where the prompt has no room for all.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from meditune.data.example import Example, Passage
from meditune.data.splits import question_key
from meditune.errors import DataError
from meditune.files import read_jsonl

FOUND = "retrieved.jsonl"
FACTS = "retrieved.json"
TRAINING = "retrieved_train.jsonl"
RANKS = "ranks"
"""In the meta of an example that shows found passages: the rank of the passage that each part of its context is of"""

Row = dict[str, Any]


def read(path: Path) -> dict[str, Row]:
    """Rows by id. Raises DataError where the file isn't one of these."""
    found = {}
    for number, row in enumerate(read_jsonl(path), start=1):
        if not isinstance(row.get("id"), str) or not isinstance(row.get("passages"), list):
            raise DataError(f"{path}, line {number}: no id or no passages. Remove the file; it is made again.")
        found[row["id"]] = row
    return found


def shown_passages(example: Example, passages: Sequence[Mapping[str, Any]]) -> Example:
    """The example with these passages in place of its context.

    A title that is the question itself isn't repeated: PubMedQA's questions are titles of articles.
    """
    parts = [(part, passage["rank"]) for passage in passages for part in _parts(example, passage)]
    context, ranks = tuple(part for part, _ in parts), [rank for _, rank in parts]
    return example.model_copy(update={"context": context, "meta": {**example.meta, RANKS: ranks}})


def count(example: Example) -> int:
    """How many passages an example shows that were found for it."""
    return len(set(example.meta[RANKS]))


def in_training(examples: Iterable[Example], folder: Path) -> list[Example]:
    """The training examples as the run in that folder shows them: a share with found passages."""
    rows = read(folder / TRAINING) if (folder / TRAINING).is_file() else {}
    return [
        shown_passages(example, rows[example.id]["passages"]) if example.id in rows else example for example in examples
    ]


def is_own(passage: Mapping[str, Any], item: str) -> bool:
    """Whether a passage that was found is of the document that the item with this id was made of."""
    return publishers_id(passage["document"]) == publishers_id(item)


def publishers_id(identifier: str) -> str:
    """An example's or a document's id without the name of the source."""
    return identifier.partition(":")[2]


def with_best(example: Example, most: int) -> Example:
    """The example with only so many of its found passages, the best."""
    ranks = example.meta[RANKS]
    kept = sorted(set(ranks))[:most]
    context = tuple(part for part, rank in zip(example.context, ranks, strict=True) if rank in kept)
    return example.model_copy(
        update={"context": context, "meta": {**example.meta, RANKS: [rank for rank in ranks if rank in kept]}}
    )


def as_text(passage: Mapping[str, Any]) -> str:
    """A passage's sections, each in a line."""
    return "\n".join(f"{heading}: {text}" if heading else text for heading, text in passage["sections"])


def _parts(example: Example, passage: Mapping[str, Any]) -> list[Passage]:
    title = str(passage["title"])
    is_new = title and question_key(title) != question_key(example.question)
    sections = [Passage(text=text, label=heading) for heading, text in passage["sections"]]
    return [Passage(text=title), *sections] if is_new else sections
