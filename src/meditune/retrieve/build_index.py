"""Building and updating an index; readers see the old version until the new one is complete and checked.

Passages are embedded and added in batches, so that an interrupted build or update can resume. The manifest
(`index.json`) names the table and the version of it that readers use. Replacing the manifest, which is atomic, makes a
new version visible. If a process is interrupted, the next build or update continues or undoes its unfinished work.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from dataclasses import replace as changed
from datetime import UTC, datetime, timedelta
from typing import Any

from meditune.errors import DataError
from meditune.models.sentence_encoder import SentenceEncoder
from meditune.progress import Progress
from meditune.retrieve import index, storage
from meditune.retrieve.collections import KIND as LIBRARY_KIND
from meditune.retrieve.collections import Collection, Reading
from meditune.retrieve.documents.document import Document, IndexedPassage
from meditune.retrieve.documents.text_files import SOURCE as DOCUMENTS
from meditune.retrieve.index import Manifest
from meditune.retrieve.storage import MANIFEST, IndexStorage

BATCH = 512  # Number of passages embedded and saved at once; a killed build loses at most one batch
APPROXIMATE_FROM = 50_000  # Minimum number of passages for an approximate index of the vectors
KEEP_VERSIONS = timedelta(days=1)  # How long readers can keep using a version after a newer one has superseded it
UPDATING = "updating.json"


@dataclass
class Changes:
    """The number of passages that a build or an update changed, and what was left out."""

    added: int = 0
    changed: int = 0
    removed: int = 0
    unchanged: int = 0
    left_out: dict[str, dict[str, int]] = field(default_factory=dict)
    locations: dict[tuple[str, str], list[str]] = field(default_factory=dict)  # Examples of left_out


def build(
    store: IndexStorage, collections: Sequence[Collection], encoder: SentenceEncoder, replace: bool = False
) -> tuple[Manifest, Changes]:
    """Build an index of the collections, and return its manifest and the changes.

    `replace` allows an existing index to be replaced.

    Raises DataError if an index exists, there is nothing to index, or another process is writing.
    """
    _check(collections)
    with store.writing():
        if not replace and store.read(MANIFEST) is not None:
            raise DataError(
                f"{store.name} already contains an index. Update it with `meditune index update {store.name}`, "
                "rebuild it with --replace (searches continue meanwhile), or choose another folder."
            )
        database = storage.connect(store)
        old, name = index.tables_of(store, list(database.list_tables().tables))
        # If an interrupted build used the same embedding model, continue to fill its table.
        schema = storage.schema(encoder.identity.dimension).with_metadata({"embedding": encoder.identity.space})
        table = database.open_table(name) if name in database.list_tables().tables else None
        if table is not None and not table.schema.equals(schema, check_metadata=True):
            database.drop_table(name)
            table = None
        if table is None:
            table = database.create_table(name, schema=schema)
        reading = Reading(collections)
        changes = _fill(table, reading, encoder, replace_all=True)
        manifest = _finish(store, table, name, collections, collections, encoder, changes, None, old)
        for other in database.list_tables().tables:
            if other.startswith(index.TABLE) and other not in {name, old}:
                database.drop_table(other)
    return manifest, changes


def update(
    store: IndexStorage,
    collections: Sequence[Collection],
    encoder: SentenceEncoder,
    remove: Sequence[str] = (),
    since: int = 0,
) -> tuple[Manifest, Changes]:
    """Update the index: embed changed and new passages, and remove passages that no longer exist.

    Only `collections` are read again, or all collections of the index if `collections` is empty. Collections named in
    `remove` are removed. From a library, only changes after the change number `since` are read. If a library of the
    index has withdrawn a document, such as a retracted article, the document isn't added from other sources, either.

    Raises DataError if there is no index or an unnamed folder would replace another one, and ModelError if the index
    was built with another embedding model.
    """
    with store.writing():
        before = index.read(store)
        before.check_encoder(encoder.identity, store)
        unknown = [name for name in remove if name not in before.sources]
        if unknown:
            raise DataError(
                f"{store.name} has no collection {unknown[0]!r} to remove. Its collections: "
                f"{', '.join(before.sources)}."
            )
        known = [Collection(**each) for each in before.collections]
        _check_folder(store, known, [each for each in collections if each.source not in remove])
        chosen = list(collections) or [each for each in known if each.source not in remove]
        _check(chosen, may_be_empty=bool(remove))
        with storage.readable(store):
            table = storage.connect(store).open_table(before.table)
            _settle(store, table, before, chosen, remove)
        libraries = [each for each in known if each.kind == LIBRARY_KIND and each not in chosen]
        reading = Reading(chosen, since=since, asked=[each for each in libraries if each.source not in remove])
        changes = _fill(table, reading, encoder, replace_all=False, remove=remove)
        remaining = [each for each in known if each.source not in remove]
        new = [each for each in chosen if each not in remaining]
        replaced = {each.source for each in new if not each.adds_only}
        together = [each for each in remaining if each.source not in replaced] + new
        manifest = _finish(store, table, before.table, chosen, together, encoder, changes, before)
    return manifest, changes


def _check(collections: Sequence[Collection], may_be_empty: bool = False) -> None:
    if not collections and not may_be_empty:
        raise DataError("Nothing to index. Specify --source, --documents or --pubmed.")
    twice = [name for name, count in Counter(c.source for c in collections if not c.adds_only).items() if count > 1]
    if twice:
        raise DataError(
            f"Two collections have the name {twice[0]!r}. Give each its own name: --documents NAME=PATH, or own/NAME "
            "in a recipe."
        )


def _check_folder(store: IndexStorage, known: Sequence[Collection], chosen: Sequence[Collection]) -> None:
    """Raise DataError if an unnamed folder or file of the user's would replace another one."""
    paths = {each.source: each.path for each in known}
    for each in chosen:
        if each.source == DOCUMENTS and paths.get(DOCUMENTS, each.path) != each.path:
            raise DataError(
                f"{store.name} already has documents without a name: {paths[DOCUMENTS]}. To add {each.path} as another "
                f"source, give it a name: --documents NAME={each.path}. To replace the documents without a name, add "
                f"--remove {DOCUMENTS}."
            )


def _settle(
    store: IndexStorage, table: Any, before: Manifest, chosen: Sequence[Collection], remove: Sequence[str]
) -> None:
    """Keep rows that an interrupted run of the same update added; undo any other interrupted update."""
    task = {"version": before.version, "collections": [asdict(each) for each in chosen], "remove": list(remove)}
    if table.version != before.version and store.read(UPDATING) != task:
        table.restore(before.version)
    store.write(UPDATING, task)


def _fill(
    table: Any, reading: Reading, encoder: SentenceEncoder, replace_all: bool, remove: Sequence[str] = ()
) -> Changes:
    """Update the table with the documents being read. `replace_all` removes every passage that isn't read again."""
    changes = Changes()
    known: dict[str, bytes] = {}
    for rows in storage.scan(table, ["id", storage.DIGEST]):
        for name, digest in zip(rows["id"].to_pylist(), rows[storage.DIGEST].to_pylist(), strict=True):
            known[name] = bytes.fromhex(digest)
    lengths: dict[str, int] = {}
    with Progress("Indexing", None, "passages") as progress:
        for batch, dropped, again in _batches(reading.documents(), lengths):
            fresh = [each for each in batch if known.get(each.id) != bytes.fromhex(each.digest)]
            old = [each.id for each in fresh if each.id in known or each.id in again]
            # Compute vectors first: the shorter the time between deleting and adding, the less a killed process loses.
            vectors = encoder.encode([each.searched for each in fresh]) if fresh else None
            storage.delete(table, [*dropped, *old])
            if vectors is not None:
                table.add(storage.rows(fresh, vectors))
            for name in (*dropped, *(each.id for each in batch)):
                known.pop(name, None)
            changes.added += len(fresh) - len(old)
            changes.changed += len(old)
            changes.unchanged += len(batch) - len(fresh)
            changes.removed += len(dropped)
            progress.advance(len(batch))
    reading.warn_of_identifiers()
    complete_sources = {each.source for each in reading.collections if not each.adds_only} | set(remove)

    def vanished(passage: str) -> bool:
        document = passage.rpartition("#")[0]
        source = document.partition(":")[0]
        return replace_all or source in complete_sources or document in lengths or document in reading.withdrawn

    gone = [name for name in known if vanished(name)]
    withdrawn = [f"{name}#{number}" for name in reading.withdrawn for number in range(lengths.get(name, 0))]
    storage.delete(table, gone + withdrawn)
    changes.removed += len(gone) + len(withdrawn)
    changes.left_out, changes.locations = reading.rejects.counts(), reading.rejects.places()
    return changes


def _batches(
    documents: Iterable[Document], lengths: dict[str, int]
) -> Iterator[tuple[list[IndexedPassage], list[str], set[str]]]:
    """Yield batches: passages with unique ids, the ids of obsolete passages, and ids that a repeated document replaces.

    If several documents have the same id, the last one counts. `lengths` receives the number of passages of each
    document.
    """
    batch: dict[str, IndexedPassage] = {}
    dropped: list[str] = []
    again: set[str] = set()
    contents: dict[str, int] = {}
    for document in documents:
        passages = list(document.passages())
        content = hash(tuple(each.digest for each in passages))
        before = lengths.get(document.id, 0)
        if before and contents[document.id] == content:
            continue
        lengths[document.id], contents[document.id] = len(passages), content
        for number in range(before):
            name = f"{document.id}#{number}"
            batch.pop(name, None)
            (again.add if number < len(passages) else dropped.append)(name)
        for each in passages:
            batch[each.id] = each
            if len(batch) == BATCH:
                yield list(batch.values()), dropped, again
                batch, dropped, again = {}, [], set()
    if batch or dropped:
        yield list(batch.values()), dropped, again


def _finish(
    store: IndexStorage,
    table: Any,
    name: str,
    read: Sequence[Collection],
    all_collections: Sequence[Collection],
    encoder: SentenceEncoder,
    changes: Changes,
    before: Manifest | None,
    old: str | None = None,
) -> Manifest:
    """Index the table's columns, check the table, and make it visible to readers; return the new manifest.

    Raises DataError if there is nothing to index.
    """
    if table.count_rows() == 0:
        raise DataError(
            f"{store.name}: no passages found, so there is nothing to index. "
            + "; ".join(f"{source}: {n} {why}" for source, some in changes.left_out.items() for why, n in some.items())
        )
    with storage.readable(store):
        storage.make_searchable(table, approximate=table.count_rows() >= APPROXIMATE_FROM)
        manifest = index.describe(table, name, all_collections, encoder.identity, before)
        storage.verify(table, manifest.passages)
    manifest = changed(manifest, **index.learn(store, table, read, all_collections, encoder, before))
    manifest = changed(manifest, superseded=_superseded(before, manifest.version) if before else {})
    store.write(MANIFEST, asdict(manifest))
    index.remove_unused(store, manifest, old)
    with storage.readable(store):
        storage.remove_versions(table, before=min([manifest.version, *map(int, manifest.superseded)]))
    return manifest


def _superseded(before: Manifest, version: int) -> dict[str, str]:
    """Return the versions that readers may still use when this version supersedes that of the manifest `before`."""
    now = datetime.now(UTC)
    kept = {name: at for name, at in before.superseded.items() if now - datetime.fromisoformat(at) < KEEP_VERSIONS}
    return kept if version == before.version else kept | {str(before.version): now.isoformat(timespec="seconds")}
