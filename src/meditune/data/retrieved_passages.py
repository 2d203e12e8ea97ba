"""Passages retrieved for examples, stored in a run's folder so that every model sees the same passages.

A passage has `id`, `document`, `source`, `title`, `sections` (a list of headings, which may be empty, with texts),
`score` and `rank`. If a prompt is too long, the passages with the highest ranks are removed from it first, and the
passage with rank 0 last.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from meditune.data.example import Example, Passage
from meditune.data.splits import question_key
from meditune.errors import DataError
from meditune.files import read_jsonl

RETRIEVED_FILE = "retrieved.jsonl"
RETRIEVED_FACTS = "retrieved.json"
TRAINING = "retrieved_train.jsonl"
RANKS = "meditune_ranks"
"""Key in the meta of an example with retrieved passages; the value is the rank of the passage for each context part. A
column in a user's file is unlikely to have this name"""

Row = dict[str, Any]


def read(path: Path) -> dict[str, Row]:
    """Return example id -> row with the retrieved passages. Raises DataError if a row lacks its id or passages."""
    found = {}
    for number, row in enumerate(read_jsonl(path), start=1):
        if not isinstance(row.get("id"), str) or not isinstance(row.get("passages"), list):
            raise DataError(
                f"{path}, line {number}: the id or the passages are missing. Remove the file, and "
                "Meditune will create it again."
            )
        found[row["id"]] = row
    return found


def shown_passages(example: Example, passages: Sequence[Mapping[str, Any]]) -> Example:
    """Return the example with these passages as its context; a title that equals the question is left out."""
    context: list[Passage] = []
    ranks = []
    for passage in passages:
        title = str(passage["title"])
        parts = [Passage(text=text, label=heading) for heading, text in passage["sections"]]
        if title and question_key(title) != question_key(example.question):
            parts.insert(0, Passage(text=title))
        context += parts
        ranks += [passage["rank"]] * len(parts)
    return example.model_copy(update={"context": tuple(context), "meta": {**example.meta, RANKS: ranks}})


def count(example: Example) -> int:
    """Return the number of retrieved passages in an example's context."""
    return len(set(example.meta[RANKS]))


def in_training(examples: Iterable[Example], folder: Path) -> list[Example]:
    """Return the training examples as the run in `folder` uses them: some have retrieved passages as context."""
    rows = read(folder / TRAINING) if (folder / TRAINING).is_file() else {}
    return [
        shown_passages(example, rows[example.id]["passages"]) if example.id in rows else example for example in examples
    ]


def is_own(passage: Mapping[str, Any], item: str) -> bool:
    """Return True if a retrieved passage is from the document on which the item with this id is based."""
    return publishers_id(passage["document"]) == publishers_id(item)


def publishers_id(identifier: str) -> str:
    """Return an example's or a document's id without the name of the source."""
    return identifier.partition(":")[2]


def with_best(example: Example, count: int) -> Example:
    """Return the example with only the best `count` of its retrieved passages."""
    ranks = example.meta[RANKS]
    kept_ranks = sorted(set(ranks))[:count]
    context = tuple(part for part, rank in zip(example.context, ranks, strict=True) if rank in kept_ranks)
    return example.model_copy(
        update={"context": context, "meta": {**example.meta, RANKS: [rank for rank in ranks if rank in kept_ranks]}}
    )


def as_text(passage: Mapping[str, Any]) -> str:
    """Return a passage's sections, one per line."""
    return "\n".join(f"{heading}: {text}" if heading else text for heading, text in passage["sections"])
