"""What is kept in memory of each of a table's rows, so that hits are compared and collapsed without reading it.

For each row its document and its title as numbers (16 bytes a passage with the row's id). Where there are few enough
passages to compare all of them: the whole passage (1 kB), its vector (2 kB with what is compared first), and its words.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from meditune.retrieve import tables
from meditune.retrieve.near import Near, Vectors
from meditune.retrieve.postings import Postings

Places = NDArray[np.int64]
"""Numbers of rows, from 0 in order of their ids"""
FILTERS = 8
"""Conditions whose rows are remembered"""


class Rows:
    """The rows of one version of a table."""

    def __init__(self, table: Any, titles: Sequence[str], whole: bool, postings: Postings | None = None) -> None:
        """`titles` are those that get numbers, by their place; `whole` keeps passages with their vectors."""
        columns = [*tables.COLUMNS, tables.VECTOR] if whole else ["document", *(["title"] if titles else [])]
        found = table.search().select(columns).with_row_id(True).limit(max(table.count_rows(), 1)).to_arrow()
        ids = found["_rowid"].to_numpy()
        order = np.argsort(ids)
        self.ids = ids[order]
        codes = found["document"].combine_chunks().dictionary_encode()
        self.documents: NDArray[np.int32] = _chunk(codes).indices.to_numpy()[order]
        self.titles = _numbers(found["title"], titles)[order] if titles else np.full(len(ids), -1, dtype=np.int32)
        self._by_title = np.argsort(self.titles, kind="stable").astype(np.int64)
        self._starts = np.searchsorted(self.titles[self._by_title], np.arange(len(titles) + 1))
        self.near: Near | None = None
        self.postings = postings
        self._passages: Any = None
        if whole and len(ids):
            flat = _chunk(found[tables.VECTOR].combine_chunks()).flatten().to_numpy()
            self.near = Near(flat.reshape(len(ids), -1)[order])
            self._passages = found.select(tables.COLUMNS).take(order).combine_chunks()
        self.allowed = lru_cache(FILTERS)(lambda where: self._allowed(table, where))

    def places(self, ids: Sequence[int]) -> Places:
        """Where rows of these ids are."""
        return np.searchsorted(self.ids, np.asarray(ids, dtype=self.ids.dtype))

    def of_title(self, number: int) -> Places:
        """The rows of one title."""
        made: Places = self._by_title[self._starts[number] : self._starts[number + 1]]
        return made

    def vectors(self, ids: Sequence[int]) -> Vectors:
        """(n, size) of these rows. They must be kept."""
        assert self.near is not None, "vectors aren't kept"
        made: Vectors = self.near.vectors[self.places(ids)]
        return made

    def columns(self, ids: Sequence[int], names: Sequence[str]) -> list[dict[str, Any]]:
        """These columns of these rows. They must be kept."""
        assert self._passages is not None, "passages aren't kept"
        rows: list[dict[str, Any]] = self._passages.select(list(names)).take(self.places(ids)).to_pylist()
        return rows

    def by_words(self, text: str, most: int, where: str | None) -> dict[int, float]:
        """Ids and BM25 of so many rows that meet the text's words best, the best first. Words must be kept."""
        assert self.postings is not None, "words aren't kept"
        found = self.postings.best(text, most, self.allowed(where) if where else None)
        return dict(zip(self.ids[list(found)].tolist(), found.values(), strict=True)) if found else {}

    def by_meaning(self, vector: Vectors, most: int, where: str | None) -> dict[int, float]:
        """Ids and cosines of the rows nearest to a vector, the nearest first. Vectors must be kept."""
        assert self.near is not None, "vectors aren't kept"
        places, cosines = self.near.nearest(vector, most, self.allowed(where) if where else None)
        return dict(zip(self.ids[places].tolist(), cosines.tolist(), strict=True))

    def _allowed(self, table: Any, where: str) -> NDArray[np.bool_]:
        """For each row whether it meets a condition."""
        found = table.search().where(where).select(["id"]).with_row_id(True).limit(max(len(self.ids), 1)).to_arrow()
        allowed = np.zeros(len(self.ids), dtype=bool)
        allowed[self.places(found["_rowid"].to_numpy())] = True
        return allowed


def _numbers(column: Any, titles: Sequence[str]) -> NDArray[np.int32]:
    """Each text's place among the titles, -1 where it isn't."""
    place = {title: number for number, title in enumerate(titles)}
    coded = _chunk(column.combine_chunks().dictionary_encode())
    once = np.array([place.get(text, -1) for text in coded.dictionary.to_pylist()], dtype=np.int32)
    numbers: NDArray[np.int32] = once[coded.indices.to_numpy()]
    return numbers


def _chunk(column: Any) -> Any:
    import pyarrow as pa

    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
