"""The files beside a table, brought up to date with it: what a reranker knows, and the postings of its words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from meditune.retrieve import knowledge, postings, tables, thesaurus
from meditune.retrieve.collections import Collection, found
from meditune.retrieve.embedders import Embedder
from meditune.retrieve.knowledge import Knowledge
from meditune.retrieve.manifest import Manifest
from meditune.retrieve.passages import medquad
from meditune.retrieve.place import Place
from meditune.retrieve.postings import Postings

KNOWLEDGE, WORDS = "knowledge-", "words-"
"""... table and version: the names of the files"""


def learn(
    place: Place,
    table: Any,
    read: Sequence[Collection],
    together: Sequence[Collection],
    embedder: Embedder,
    before: Manifest | None,
) -> str:
    """Write a file with what the titles of the table's passages tell; its name.

    `read` are the collections that were read for it just now, `together` all that the index is built from. Titles that
    the index of `before` knew aren't embedded again.
    """
    space = embedder.identity.space
    known = load(place, before, space) if before else None
    titles = (title for batch in tables.scan(table, ["title"]) for title in batch["title"].to_pylist())
    made = knowledge.make(titles, embedder.embed, space, _names(read, together, known), known)
    name = f"{KNOWLEDGE}{table.name}-{table.version}.npz"
    place.put(name, knowledge.as_bytes(made))
    return name


def learn_words(place: Place, table: Any) -> str:
    """Write a file with the postings of the table's words; its name. Empty where LanceDB searches a large table."""
    if tables.is_approximate(table):
        return ""
    there = table.search().select([tables.SEARCHED]).with_row_id(True).limit(table.count_rows()).to_arrow()
    texts = there.sort_by("_rowid")[tables.SEARCHED]
    name = f"{WORDS}{table.name}-{table.version}.npz"
    place.put(name, postings.as_bytes(postings.made(text.as_py() for text in texts)))
    return name


def load(place: Place, manifest: Manifest, space: str) -> Knowledge | None:
    """That of an index; None in one of before. Raises DataError where its file is missing or damaged."""
    if not manifest.knowledge:
        return None
    return knowledge.read(place.get(manifest.knowledge), f"{place.name}/{manifest.knowledge}", space)


def load_words(place: Place, manifest: Manifest) -> Postings | None:
    """Those of an index; None where LanceDB is asked. Raises DataError where their file is missing or damaged."""
    if not manifest.words:
        return None
    return postings.read(place.get(manifest.words), f"{place.name}/{manifest.words}", manifest.passages)


def tidy(place: Place, made: Manifest, old: str | None) -> None:
    """Remove files that are neither of this version nor of the `old` table's, which readers may just be opening."""
    for kind in (KNOWLEDGE, WORDS):
        for name in place.files(kind):
            if name not in (made.knowledge, made.words) and not (old and name.startswith(f"{kind}{old}-")):
                place.remove(name)


def _names(read: Sequence[Collection], together: Sequence[Collection], known: Knowledge | None) -> knowledge.Names:
    """MedQuAD's thesaurus where the index has MedQuAD."""
    for each in together:
        if each.kind == medquad.SOURCE:
            if known and known.thesaurus and each not in read:
                return known.thesaurus
            return tuple(thesaurus.of_medquad(found(each)))
    return ()
