"""An index that is open for searching."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from meditune.retrieve import learning, manifest, search, tables
from meditune.retrieve.embedders import Embedder, embedder
from meditune.retrieve.place import Place, place
from meditune.retrieve.query import condition
from meditune.retrieve.rows import Rows
from meditune.retrieve.search import Found, Opened


class Index:
    """One version of an index; it stays the same while the index is updated, until `refresh`.

    Searches may come from several threads.
    """

    def __init__(self, where: Place, embedding: Embedder | None = None) -> None:
        self.place = where
        self.manifest = manifest.read(where)
        self.embedder = embedding or embedder(self.manifest.embedding["name"])
        self.manifest.check_embedder(self.embedder.identity, where)
        self.opened = self._open()

    @classmethod
    def open(cls, where: Path | str, embedding: str | Embedder | None = None) -> Index:
        """The index in a folder or in object storage, with the embedding model it was made with unless given.

        Raises DataError where there is none or it is damaged, ModelError where the embedding model isn't the index's
        or can't be had.
        """
        return cls(place(where), embedder(embedding) if isinstance(embedding, str) else embedding)

    def refresh(self) -> bool:
        """Go over to the newest version, if there is a newer one: whether there was."""
        newest = manifest.read(self.place)
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
        return search.search(self.opened, self.embedder, question, k, **options)

    def passages(self, document: str) -> Sequence[dict[str, Any]]:
        """All passages of a document in order, as their columns."""
        with tables.readable(self.place):
            found = (
                self.opened.table.search().where(f"document = {tables.quoted(document)}").select(list(tables.COLUMNS))
            )
            rows: list[dict[str, Any]] = found.limit(100_000).to_list()
        return sorted(rows, key=lambda row: int(row["id"].rpartition("#")[2]))

    def texts(self, sources: Sequence[str] | None = None) -> Iterator[tuple[str, str]]:
        """Document and text of every passage, of these sources alone if any are named; memory holds some at a time."""
        where = condition(tuple(self.manifest.sources), sources, None, None)
        with tables.readable(self.place):
            table = tables.connect(self.place).open_table(self.manifest.table)
            table.checkout(self.manifest.version)
            asked = table.search().select(["document", "text"]).limit(self.manifest.passages)
            for batch in (asked.where(where) if where else asked).to_batches(1000):
                yield from zip(batch["document"].to_pylist(), batch["text"].to_pylist(), strict=True)

    def _open(self) -> Opened:
        with tables.readable(self.place):
            table = tables.connect(self.place).open_table(self.manifest.table)
            table.checkout(self.manifest.version)
            tables.verify(table, self.manifest.passages)
        known = learning.load(self.place, self.manifest, self.embedder.identity.space)
        words = learning.load_words(self.place, self.manifest)
        with tables.readable(self.place):
            rows = Rows(table, known.titles if known else (), not tables.is_approximate(table), words)
        return Opened(
            self.place,
            table,
            rows,
            tuple(self.manifest.sources),
            self.embedder.identity.dimension,
            known.reranker(self.embedder.embed) if known else None,
        )
