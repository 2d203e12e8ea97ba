"""Passages for the items that are measured: found once, whole or not there, and checked for the items' answers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from meditune.data import leakage, retrieved
from meditune.data.example import Example
from meditune.data.splits import Splits
from meditune.files import read_json, write_json, write_jsonl
from meditune.grounding.searched import searched
from meditune.progress import track
from meditune.recipe import Recipe


def find(recipe: Recipe, splits: Splits, folder: Path, elsewhere: str = "") -> dict[str, Any] | None:
    """Leave each measured item's passages in the run's `folder`, unless they are there; None where none are asked for.

    Returns what retrieved.json says: `index`, `content` (a hash of what is in it), `embedding`, `documents`, `k`,
    `items`, `own` (items whose own document is there, and of how many it is among the passages), and `leaks` as
    leakage.json has them. `elsewhere` is who else gets to see the passages.
    """
    spec = recipe.evaluate.retrieve
    if spec.index is None:
        return None
    if (folder / retrieved.FACTS).is_file():
        stored: dict[str, Any] = read_json(folder / retrieved.FACTS)
        return stored
    items = splits.measured(recipe.evaluate.split)
    contexts = [example for examples in splits.named().values() for example in examples]
    place = searched(spec, contexts, recipe.prompt, elsewhere)
    documents: set[str] = set()
    leaks = leakage.in_documents(items, _noting(place.passages(), documents))

    def rows() -> Any:
        for example in track(items, "Finding passages", unit="questions"):
            found = place.search(example.question, spec.k)
            passages = [document.stored(rank) for rank, document in enumerate(found)]
            yield {"id": example.id, "question": example.question, "passages": passages}

    write_jsonl(folder / retrieved.FOUND, rows())
    facts = place.facts() | {
        "k": spec.k,
        "items": len(items),
        "own": own_found(retrieved.read(folder / retrieved.FOUND), documents),
        "leaks": leakage.facts(leaks),
    }
    write_json(folder / retrieved.FACTS, facts)
    return facts


def shown(recipe: Recipe, examples: Sequence[Example], folder: Path) -> list[Example]:
    """The measured examples as they are shown with what was found for them; none where nothing is retrieved."""
    if recipe.evaluate.retrieve.index is None or not (folder / retrieved.FOUND).is_file():
        return []
    rows = retrieved.read(folder / retrieved.FOUND)
    return [retrieved.shown(example, rows[example.id]["passages"]) for example in examples if example.id in rows]


def own_found(rows: dict[str, retrieved.Row], documents: set[str]) -> dict[str, Any]:
    """`items` whose own document is among the `documents`, and `ranks`: at which rank, from 1 -> of how many.

    An item's own document has the publisher's id of the item, whatever it was read from: pubmed:123 is pubmedqa:123's.
    """
    known = {retrieved.publishers_id(document) for document in documents}
    there = [row for row in rows.values() if retrieved.publishers_id(row["id"]) in known]
    ranks: dict[str, int] = {}
    for row in there:
        for rank, passage in enumerate(row["passages"], start=1):
            if retrieved.is_own(passage, row["id"]):
                ranks[str(rank)] = ranks.get(str(rank), 0) + 1
                break
    return {"items": len(there), "ranks": dict(sorted(ranks.items(), key=lambda pair: int(pair[0])))}


def _noting(passages: Any, documents: set[str]) -> Any:
    for document, text in passages:
        documents.add(document)
        yield document, text
