"""An index that is open for searching.

What an index is: `index.json`, which names the table and its version, and says what is in it and what made it.

The files beside a table, brought up to date with it: what a reranker knows, and the postings of its words.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version as installed
from pathlib import Path
from typing import Any

from meditune import __version__
from meditune.errors import DataError, ModelError
from meditune.retrieve import bm25, collections, hybrid_search, reranker, storage, topics
from meditune.retrieve.bm25 import BM25Index
from meditune.retrieve.collections import Collection, find_library
from meditune.retrieve.hybrid_search import Found, Opened, Rows
from meditune.retrieve.query_understanding import row_filter
from meditune.retrieve.reranker import Knowledge
from meditune.retrieve.storage import MANIFEST, IndexStorage, index_storage
from meditune.retrieve.vector_search import Embedder, Identity, embedder

TABLE = "passages-"
"""... and a number: the name of a table"""


@dataclass(frozen=True)
class Manifest:
    """The keys of `index.json`; readers of other programs may rely on them."""

    format: int
    table: str
    version: int
    """The table's version that is in use"""
    passages: int
    documents: int
    content: str
    """SHA-256 over all passages' ids and digests, in order of id"""
    embedding: dict[str, Any]
    """`name`, `dimension`, `space` (a hash of the weights)"""
    sources: dict[str, dict[str, Any]]
    """For each: `passages`, `documents`, `licences`, `restricted`"""
    collections: list[dict[str, str]]
    """What an update without arguments reads again"""
    created: str
    updated: str
    versions: dict[str, str]
    knowledge: str = ""
    """The file of what the reranker knows; empty in an index of before"""
    words: str = ""
    """The file of what BM25 is searched by; empty in a large index, and in one of before, where LanceDB is asked"""

    @property
    def restricted(self) -> list[str]:
        """Sources whose licence forbids passing them on."""
        return [name for name, source in self.sources.items() if source["restricted"]]

    def check_embedder(self, identity: Identity, place: IndexStorage) -> None:
        """Raise ModelError where questions would be embedded otherwise than the index was."""
        mine = (self.embedding["space"], self.embedding["dimension"])
        if mine != (identity.space, identity.dimension):
            raise ModelError(
                f"{place.name} was built with the embedding model {self.embedding['name']} "
                f"({self.embedding['dimension']} numbers a vector), and {identity.name} ({identity.dimension}) isn't "
                "the same: their vectors can't be compared. Use that model (--embedding), or build the index anew "
                "with this one (--replace)."
            )

    def write(self, place: IndexStorage) -> None:
        """Switch the index to this."""
        place.write(MANIFEST, asdict(self))


def read(place: IndexStorage) -> Manifest:
    """That of the index. Raises DataError where there is none, or one that this version can't read."""
    value = place.read(MANIFEST)
    if value is None:
        raise DataError(f"{place.name}: no index here. Build one with `meditune index build -o {place.name}`.")
    if value.get("format") != storage.FORMAT:
        raise DataError(
            f"{place.name}: an index in format {value.get('format')!r}, and this version of Meditune reads "
            f"{storage.FORMAT}. Build it again with --replace."
        )
    try:
        return Manifest(**value)
    except TypeError as error:
        raise DataError(
            f"{place.name}/{MANIFEST} is damaged ({error}). Build the index again with --replace."
        ) from error


def tables_of(place: IndexStorage, there: Sequence[str]) -> tuple[str | None, str]:
    """The table in use (None without one), and the one that a build fills: the next, which may have been begun.

    Where the manifest can't be read, a table that isn't among `there` is filled, since any of them may be damaged.
    """
    try:
        value = place.read(MANIFEST)
    except DataError:
        return None, _after(there)
    if value is None:
        return None, _after([])
    name = str(value.get("table"))
    return name, _after([name])


def _after(names: Sequence[str]) -> str:
    numbers = [int(found[1]) for name in names if (found := re.fullmatch(TABLE + r"(\d{1,9})", name))]
    return f"{TABLE}{max(numbers, default=0) + 1}"


def describe(
    table: Any, name: str, collections: Sequence[Collection], identity: Identity, before: Manifest | None
) -> Manifest:
    """The manifest of the table as it is now."""
    now = datetime.now(UTC).isoformat(timespec="seconds")
    digests: list[str] = []
    sources: dict[str, dict[str, Any]] = {}
    documents: dict[str, set[bytes]] = {}
    for batch in storage.scan(table, ["id", "document", "source", "licence", "restricted", storage.DIGEST]):
        for row in batch.to_pylist():
            digests.append(f"{row['id']} {row[storage.DIGEST]}")
            said = sources.setdefault(
                row["source"], {"passages": 0, "documents": 0, "licences": set(), "restricted": False}
            )
            said["passages"] += 1
            said["licences"].add(row["licence"])
            said["restricted"] |= row["restricted"]
            documents.setdefault(row["source"], set()).add(
                hashlib.blake2b(row["document"].encode(), digest_size=8).digest()
            )
    for source, said in sources.items():
        said["documents"] = len(documents[source])
        # PubMed's publishers each word their claim; a few show what kinds there are.
        said["licences"] = sorted(said["licences"])[:20]
    return Manifest(
        format=storage.FORMAT,
        table=name,
        version=table.version,
        passages=len(digests),
        documents=sum(said["documents"] for said in sources.values()),
        content=hashlib.sha256("\n".join(sorted(digests)).encode()).hexdigest(),
        embedding=before.embedding if before else identity.as_dict(),
        sources=dict(sorted(sources.items())),
        collections=[each.as_dict() for each in collections],
        created=before.created if before else now,
        updated=now,
        versions={"meditune": __version__, "lancedb": installed("lancedb")},
    )


KNOWLEDGE, WORDS = "knowledge-", "words-"
"""... table and version: the names of the files"""


def learn_topics(
    place: IndexStorage,
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
    titles = (title for batch in storage.scan(table, ["title"]) for title in batch["title"].to_pylist())
    made = reranker.make(titles, embedder.embed, space, _names(read, together, known), known)
    name = f"{KNOWLEDGE}{table.name}-{table.version}.npz"
    place.put(name, reranker.as_bytes(made))
    return name


def learn_words(place: IndexStorage, table: Any) -> str:
    """Write a file with the postings of the table's words; its name. Empty where LanceDB searches a large table."""
    if storage.is_approximate(table):
        return ""
    there = table.search().select([storage.SEARCHED]).with_row_id(True).limit(table.count_rows()).to_arrow()
    texts = there.sort_by("_rowid")[storage.SEARCHED]
    name = f"{WORDS}{table.name}-{table.version}.npz"
    place.put(name, bm25.as_bytes(bm25.build_postings(text.as_py() for text in texts)))
    return name


def load(place: IndexStorage, manifest: Manifest, space: str) -> Knowledge | None:
    """That of an index; None in one of before. Raises DataError where its file is missing or damaged."""
    if not manifest.knowledge:
        return None
    return reranker.read(place.get(manifest.knowledge), f"{place.name}/{manifest.knowledge}", space)


def load_words(place: IndexStorage, manifest: Manifest) -> BM25Index | None:
    """Those of an index; None where LanceDB is asked. Raises DataError where their file is missing or damaged."""
    if not manifest.words:
        return None
    return bm25.read(place.get(manifest.words), f"{place.name}/{manifest.words}", manifest.passages)


def remove_unused(place: IndexStorage, made: Manifest, old: str | None) -> None:
    """Remove files that are neither of this version nor of the `old` table's, which readers may just be opening."""
    for kind in (KNOWLEDGE, WORDS):
        for name in place.files(kind):
            if name not in (made.knowledge, made.words) and not (old and name.startswith(f"{kind}{old}-")):
                place.remove(name)


def _names(read: Sequence[Collection], together: Sequence[Collection], known: Knowledge | None) -> reranker.Names:
    """MedQuAD's thesaurus where the index has MedQuAD."""
    for each in together:
        if each.kind == collections.SOURCE:
            if known and known.thesaurus and each not in read:
                return known.thesaurus
            return tuple(topics.of_medquad(find_library(each)))
    return ()


class Index:
    """One version of an index; it stays the same while the index is updated, until `refresh`.

    Searches may come from several threads.
    """

    def __init__(self, where: IndexStorage, embedding: Embedder | None = None) -> None:
        self.place = where
        self.manifest = read(where)
        self.embedder = embedding or embedder(self.manifest.embedding["name"])
        self.manifest.check_embedder(self.embedder.identity, where)
        self.opened = self._open()

    @classmethod
    def open(cls, where: Path | str, embedding: str | Embedder | None = None) -> Index:
        """The index in a folder or in object storage, with the embedding model it was made with unless given.

        Raises DataError where there is none or it is damaged, ModelError where the embedding model isn't the index's
        or can't be had.
        """
        return cls(index_storage(where), embedder(embedding) if isinstance(embedding, str) else embedding)

    def refresh(self) -> bool:
        """Go over to the newest version, if there is a newer one: whether there was."""
        newest = read(self.place)
        if newest == self.manifest:
            return False
        newest.check_embedder(self.embedder.identity, self.place)
        old, self.manifest = self.manifest, newest
        try:
            self.opened = self._open()
        except BaseException:
            self.manifest = old
            raise
        return True

    def search(self, question: str, k: int = 10, **options: Any) -> Found:
        """The passages that bear best on the question; `options` are those of `search.search`."""
        return hybrid_search.search(self.opened, self.embedder, question, k, **options)

    def passages(self, document: str) -> Sequence[dict[str, Any]]:
        """All passages of a document in order, as their columns."""
        with storage.readable(self.place):
            found = (
                self.opened.table.search().where(f"document = {storage.quoted(document)}").select(list(storage.COLUMNS))
            )
            rows: list[dict[str, Any]] = found.limit(100_000).to_list()
        return sorted(rows, key=lambda row: int(row["id"].rpartition("#")[2]))

    def texts(self, sources: Sequence[str] | None = None) -> Iterator[tuple[str, str]]:
        """Document and text of every passage, of these sources alone if any are named; memory holds some at a time."""
        where = row_filter(tuple(self.manifest.sources), sources, None, None)
        with storage.readable(self.place):
            table = storage.connect(self.place).open_table(self.manifest.table)
            table.checkout(self.manifest.version)
            asked = table.search().select(["document", "text"]).limit(self.manifest.passages)
            for batch in (asked.where(where) if where else asked).to_batches(1000):
                yield from zip(batch["document"].to_pylist(), batch["text"].to_pylist(), strict=True)

    def _open(self) -> Opened:
        with storage.readable(self.place):
            table = storage.connect(self.place).open_table(self.manifest.table)
            table.checkout(self.manifest.version)
            storage.verify(table, self.manifest.passages)
        known = load(self.place, self.manifest, self.embedder.identity.space)
        words = load_words(self.place, self.manifest)
        with storage.readable(self.place):
            rows = Rows(table, known.titles if known else (), not storage.is_approximate(table), words)
        return Opened(
            self.place,
            table,
            rows,
            tuple(self.manifest.sources),
            self.embedder.identity.dimension,
            known.reranker(self.embedder.embed) if known else None,
        )
