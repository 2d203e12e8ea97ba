"""An open index: its manifest (`index.json`), the files beside its table, and searching.

The manifest names the table and its version, and describes what the index contains and how it was built. The files
beside a table contain the reranker's knowledge and the BM25 postings.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version as installed
from pathlib import Path
from typing import Any

from meditune import __version__
from meditune.errors import DataError, ModelError
from meditune.models.sentence_encoder import EncoderIdentity, SentenceEncoder, load_encoder
from meditune.retrieve import bm25, collections, hybrid_search, reranker, storage, topics
from meditune.retrieve.collections import Collection, find_library
from meditune.retrieve.cross_encoder import CrossEncoder
from meditune.retrieve.hybrid_search import OpenedIndex, Rows, SearchResult
from meditune.retrieve.query_understanding import row_filter
from meditune.retrieve.reranker import Knowledge
from meditune.retrieve.storage import MANIFEST, IndexStorage, index_storage

TABLE = "passages-"  # Prefix of table names, followed by a number


@dataclass(frozen=True)
class Manifest:
    """The content of `index.json`; other programs may rely on the keys."""

    format: int
    table: str
    version: int  # The version of the table in use
    passages: int
    documents: int
    content: str  # SHA-256 over the ids and digests of all passages, in order of id
    embedding: dict[str, Any]  # `name`, `dimension`, `space` (a hash of the weights)
    sources: dict[str, dict[str, Any]]  # For each source: `passages`, `documents`, `licences`, `restricted`
    collections: list[dict[str, Any]]  # The collections that an update without arguments reads again
    created: str
    updated: str
    versions: dict[str, str]
    knowledge: str  # Name of the file with the reranker's knowledge
    superseded: dict[str, str] = field(default_factory=dict)  # Earlier versions kept for readers -> when superseded
    words: str = ""  # Name of the file with the BM25 postings; empty if the index is large and LanceDB searches it

    @property
    def restricted(self) -> list[str]:
        """The sources whose licence forbids sharing them."""
        return [name for name, source in self.sources.items() if source["restricted"]]

    def check_encoder(self, identity: EncoderIdentity, store: IndexStorage) -> None:
        """Raise ModelError if the index was built with another embedding model than that of `identity`."""
        own = (self.embedding["space"], self.embedding["dimension"])
        if own != (identity.space, identity.dimension):
            raise ModelError(
                f"{store.name} was built with the embedding model {self.embedding['name']} "
                f"({self.embedding['dimension']} dimensions). Vectors of "
                f"{identity.name} ({identity.dimension} dimensions) cannot be compared with those in it. Use the "
                "index's model (--embedding), or rebuild the index with the other model (--replace)."
            )


def read(store: IndexStorage) -> Manifest:
    """Return the manifest of an index. Raises DataError if there is no index, or this version can't read it."""
    value = store.read(MANIFEST)
    if value is None:
        raise DataError(f"{store.name}: contains no index. Build one with `meditune index build -o {store.name}`.")
    if value.get("format") != storage.FORMAT:
        raise DataError(
            f"{store.name}: this index has format {value.get('format')!r}, but this version of Meditune reads "
            f"{storage.FORMAT}. Build it again with --replace."
        )
    try:
        return Manifest(**value)
    except TypeError as error:
        raise DataError(
            f"{store.name}/{MANIFEST} is damaged ({error}). Build the index again with --replace."
        ) from error


def tables_of(store: IndexStorage, existing: Sequence[str]) -> tuple[str | None, str]:
    """Return the name of the table in use (or None), and the name of the table that a build fills.

    The table to fill may already exist, from an interrupted build. If the manifest can't be read, it is a new table,
    because any of the `existing` tables may be damaged.
    """
    try:
        value = store.read(MANIFEST)
    except DataError:
        return None, _after(existing)
    if value is None:
        return None, _after([])
    name = str(value.get("table"))
    return name, _after([name])


def _after(names: Sequence[str]) -> str:
    numbers = [int(found[1]) for name in names if (found := re.fullmatch(TABLE + r"(\d{1,9})", name))]
    return f"{TABLE}{max(numbers, default=0) + 1}"


def describe(
    table: Any, name: str, collections: Sequence[Collection], identity: EncoderIdentity, before: Manifest | None
) -> Manifest:
    """Return the manifest of the table's current version."""
    now = datetime.now(UTC).isoformat(timespec="seconds")
    digests: list[str] = []
    sources: dict[str, dict[str, Any]] = {}
    documents: dict[str, set[bytes]] = {}
    for batch in storage.scan(table, ["id", "document", "source", "licence", "restricted", storage.DIGEST]):
        for row in batch.to_pylist():
            digests.append(f"{row['id']} {row[storage.DIGEST]}")
            entry = sources.setdefault(
                row["source"], {"passages": 0, "documents": 0, "licences": set(), "restricted": False}
            )
            entry["passages"] += 1
            entry["licences"].add(row["licence"])
            entry["restricted"] |= row["restricted"]
            documents.setdefault(row["source"], set()).add(
                hashlib.blake2b(row["document"].encode(), digest_size=8).digest()
            )
    for source, entry in sources.items():
        entry["documents"] = len(documents[source])
        # PubMed's publishers word their copyright notices differently; the first ones are enough as examples.
        entry["licences"] = sorted(entry["licences"])[:20]
    return Manifest(
        format=storage.FORMAT,
        table=name,
        version=table.version,
        passages=len(digests),
        documents=sum(entry["documents"] for entry in sources.values()),
        content=hashlib.sha256("\n".join(sorted(digests)).encode()).hexdigest(),
        embedding=before.embedding if before else asdict(identity),
        sources=dict(sorted(sources.items())),
        collections=[asdict(each) for each in collections],
        created=before.created if before else now,
        updated=now,
        versions={"meditune": __version__, "lancedb": installed("lancedb")},
        knowledge="",
    )


KNOWLEDGE, WORDS = "knowledge-", "words-"  # Prefixes of file names, followed by the table and its version


def learn(
    store: IndexStorage,
    table: Any,
    read: Sequence[Collection],
    all_collections: Sequence[Collection],
    encoder: SentenceEncoder,
    before: Manifest | None,
) -> dict[str, Any]:
    """Write the reranker's knowledge and the BM25 postings to files, and return the files' names for the manifest.

    `read` contains the collections that were just read, and `all_collections` all collections of the index. Titles that
    the index had `before` aren't embedded again. A large table has no postings, because LanceDB searches it.
    """
    space, version = encoder.identity.space, f"{table.name}-{table.version}.npz"
    known = load(store, before, space) if before else None
    titles = (title for batch in storage.scan(table, ["title"]) for title in batch["title"].to_pylist())
    thesaurus: reranker.Names = ()
    for each in all_collections:
        if each.kind == collections.SOURCE:
            kept = known is not None and known.thesaurus and each not in read
            thesaurus = known.thesaurus if known and kept else tuple(topics.of_medquad(find_library(each)))
    new = reranker.make(titles, encoder.encode, space, thesaurus, known)
    store.put(KNOWLEDGE + version, reranker.as_bytes(new))
    if storage.is_approximate(table):
        return {"knowledge": KNOWLEDGE + version}
    rows = table.search().select([storage.SEARCHED]).with_row_id(True).limit(table.count_rows()).to_arrow()
    texts = rows.sort_by("_rowid")[storage.SEARCHED]
    store.put(WORDS + version, bm25.as_bytes(bm25.build_postings(text.as_py() for text in texts)))
    return {"knowledge": KNOWLEDGE + version, "words": WORDS + version}


def load(store: IndexStorage, manifest: Manifest, space: str) -> Knowledge:
    """Return the reranker's knowledge about an index. Raises DataError if the file is missing or damaged."""
    return reranker.read(store.get(manifest.knowledge), f"{store.name}/{manifest.knowledge}", space)


def remove_unused(store: IndexStorage, new: Manifest, old: str | None) -> None:
    """Delete files that belong neither to a version that is kept nor to the `old` table, which may still be opened."""
    for kind in (KNOWLEDGE, WORDS):
        kept = {f"{kind}{new.table}-{version}.npz" for version in (new.version, *new.superseded)}
        for name in store.files(kind):
            if name not in kept and not (old and name.startswith(f"{kind}{old}-")):
                store.remove(name)


class Index:
    """An open index. Its version stays the same until `refresh` is called. Several threads can search it."""

    def __init__(
        self, store: IndexStorage, embedding: SentenceEncoder | None = None, cross_encoder: CrossEncoder | None = None
    ) -> None:
        self.store, self.cross_encoder = store, cross_encoder
        self.manifest = read(store)
        self.encoder = embedding or load_encoder(self.manifest.embedding["name"])
        self.manifest.check_encoder(self.encoder.identity, store)
        self.opened = self._open(self.manifest)

    @classmethod
    def open(
        cls, location: Path | str, embedding: str | SentenceEncoder | None = None, cross_encoder: str | None = None
    ) -> Index:
        """Open the index in a folder or in object storage, by default with the embedding model that built it.

        `cross_encoder` is the folder or hub id of a cross-encoder, which scores the best passages of a search again.
        Raises DataError if there is no index or the index is damaged, and ModelError if the embedding model is
        unavailable or isn't the one that built the index.
        """
        encoder = load_encoder(embedding) if isinstance(embedding, str) else embedding
        return cls(index_storage(location), encoder, CrossEncoder(cross_encoder) if cross_encoder else None)

    def refresh(self) -> bool:
        """Switch to the newest version; return whether there was a newer one."""
        newest = read(self.store)
        if newest == self.manifest:
            return False
        newest.check_encoder(self.encoder.identity, self.store)
        opened = self._open(newest)
        self.manifest, self.opened = newest, opened
        return True

    def search(self, question: str, k: int = 10, **options: Any) -> SearchResult:
        """Return the `k` most relevant passages; `options` are the keyword arguments of `hybrid_search.search`."""
        return hybrid_search.search(self.opened, self.encoder, question, k, **options)

    def passages(self, document: str) -> Sequence[dict[str, Any]]:
        """Return all passages of a document, in order, each as a dict of its columns."""
        with storage.readable(self.store):
            query = self.opened.rows.table.search().where(f"document = {storage.quoted(document)}")
            rows: list[dict[str, Any]] = query.select(list(storage.COLUMNS)).limit(100_000).to_list()
        return sorted(rows, key=lambda row: int(row["id"].rpartition("#")[2]))

    def texts(self, sources: Sequence[str] | None = None) -> Iterator[tuple[str, str]]:
        """Yield the document id and text of each passage, without loading all passages into memory.

        If `sources` is given, only passages of these sources are read.
        """
        where = row_filter(tuple(self.manifest.sources), sources, None, None)
        with storage.readable(self.store):
            query = self.opened.rows.table.search().select(["document", "text"]).limit(self.manifest.passages)
            for batch in (query.where(where) if where else query).to_batches(1000):
                yield from zip(batch["document"].to_pylist(), batch["text"].to_pylist(), strict=True)

    def _open(self, manifest: Manifest) -> OpenedIndex:
        with storage.readable(self.store):
            table = storage.connect(self.store).open_table(manifest.table)
            table.checkout(manifest.version)
            storage.verify(table, manifest.passages)
        known = load(self.store, manifest, self.encoder.identity.space)
        words = None
        if name := manifest.words:
            words = bm25.read(self.store.get(name), f"{self.store.name}/{name}", manifest.passages)
        with storage.readable(self.store):
            rows = Rows(table, known.titles, not storage.is_approximate(table), words)
        reranker = known.reranker(self.encoder.encode)
        return OpenedIndex(self.store, rows, tuple(manifest.sources), reranker, self.cross_encoder)
