"""An index brought up to date with the library: only what changed is read and embedded."""

from __future__ import annotations

from collections.abc import Sequence

from meditune.data import pubmedqa
from meditune.operate.literature.library import Library
from meditune.retrieve import build, collections, manifest, tables
from meditune.retrieve.build import Changes
from meditune.retrieve.collections import Collection
from meditune.retrieve.embedders import DEFAULT, embedder
from meditune.retrieve.manifest import Manifest
from meditune.retrieve.passages import articles
from meditune.retrieve.passages.library import THERE
from meditune.retrieve.place import MANIFEST, Place


def bring_up(
    library: Library, place: Place, documents: Sequence[Collection], embedding: str | None
) -> tuple[Manifest, Changes] | None:
    """The index with the library and the documents as they are now, built where there is none; None where it is so
    already, or there is nothing to index yet.

    What was retracted or deleted leaves it, wherever it came from. Raises DataError and ModelError as `build.update`.
    """
    change, mine = library.change(), collections.library_in(library.folder)
    if place.read(MANIFEST) is None:
        if not documents and not library.counts()[THERE]:
            return None
        made, changes = build.build(place, [mine, *documents], embedder(embedding or DEFAULT))
    else:
        before = manifest.read(place)
        registered = mine.as_dict() in before.collections
        since = library.indexed(place.name, before.content) if registered else 0
        if since == change and registered and not documents:
            return None
        model = embedder(embedding or before.embedding["name"])
        made, changes = build.update(place, [mine, *documents], model, since=since)
    library.is_indexed(place.name, made.content, change)
    return made, changes


def pmids(place: Place) -> set[str]:
    """PubMed ids of the articles that an index holds, wherever they came from; none where there is no index."""
    if place.read(MANIFEST) is None:
        return set()
    with tables.readable(place):
        table = tables.connect(place).open_table(manifest.read(place).table)
        documents = {name for batch in tables.scan(table, ["document"]) for name in batch["document"].to_pylist()}
    sources = (articles.SOURCE, pubmedqa.SOURCE)
    return {name.partition(":")[2] for name in documents if name.partition(":")[0] in sources}
