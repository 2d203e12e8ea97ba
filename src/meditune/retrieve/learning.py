"""Bringing what a reranker knows of an index up to date with its table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from meditune.retrieve import knowledge, tables, thesaurus
from meditune.retrieve.collections import Collection, found
from meditune.retrieve.embedders import Embedder
from meditune.retrieve.knowledge import Knowledge
from meditune.retrieve.manifest import Manifest
from meditune.retrieve.passages import medquad
from meditune.retrieve.place import Place

NAME = "knowledge-"
"""... table and version: the name of the file"""


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
    name = f"{NAME}{table.name}-{table.version}.npz"
    place.put(name, knowledge.as_bytes(made))
    return name


def load(place: Place, manifest: Manifest, space: str) -> Knowledge | None:
    """That of an index; None in one of before. Raises DataError where its file is missing or damaged."""
    if not manifest.knowledge:
        return None
    return knowledge.read(place.get(manifest.knowledge), f"{place.name}/{manifest.knowledge}", space)


def tidy(place: Place, made: Manifest, old: str | None) -> None:
    """Remove files that are neither of this version nor of the `old` table's, which readers may just be opening."""
    for name in place.files(NAME):
        if name != made.knowledge and not (old and name.startswith(f"{NAME}{old}-")):
            place.remove(name)


def _names(read: Sequence[Collection], together: Sequence[Collection], known: Knowledge | None) -> knowledge.Names:
    """MedQuAD's thesaurus where the index has MedQuAD."""
    for each in together:
        if each.kind == medquad.SOURCE:
            if known and known.thesaurus and each not in read:
                return known.thesaurus
            return tuple(thesaurus.of_medquad(found(each)))
    return ()
