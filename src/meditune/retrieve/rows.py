"""What is kept in memory of each of a table's rows, so that hits are compared and collapsed without reading it.

For each row its document and its title as numbers (16 bytes a passage with the row's id), and its vector where there
are few enough passages to compare all of them (1.5 kB each).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from meditune.retrieve import tables
from meditune.retrieve.title_vectors import Vectors

Places = NDArray[np.int64]
"""Numbers of rows, from 0 in order of their ids"""
FILTERS = 8
"""Conditions whose rows are remembered"""


class Rows:
    """The rows of one version of a table."""

    def __init__(self, table: Any, titles: Sequence[str], with_vectors: bool) -> None:
        """`titles` are those that get numbers, by their place; `with_vectors` keeps all vectors."""
        columns = ["document", *(["title"] if titles else []), *([tables.VECTOR] if with_vectors else [])]
        found = table.search().select(columns).with_row_id(True).limit(max(table.count_rows(), 1)).to_arrow()
        ids = found["_rowid"].to_numpy()
        order = np.argsort(ids)
        self.ids = ids[order]
        codes = found["document"].combine_chunks().dictionary_encode()
        self.documents: NDArray[np.int32] = _chunk(codes).indices.to_numpy()[order]
        self.titles = _numbers(found["title"], titles)[order] if titles else np.full(len(ids), -1, dtype=np.int32)
        self._by_title = np.argsort(self.titles, kind="stable").astype(np.int64)
        self._starts = np.searchsorted(self.titles[self._by_title], np.arange(len(titles) + 1))
        self.vectors: Vectors | None = None
        if with_vectors:
            flat = _chunk(found[tables.VECTOR].combine_chunks()).flatten().to_numpy()
            self.vectors = flat.reshape(len(ids), -1)[order] if len(ids) else None
        self.allowed = lru_cache(FILTERS)(lambda where: self._allowed(table, where))

    def places(self, ids: Sequence[int]) -> Places:
        """Where rows of these ids are."""
        return np.searchsorted(self.ids, np.asarray(ids, dtype=self.ids.dtype))

    def of_title(self, number: int) -> Places:
        """The rows of one title."""
        made: Places = self._by_title[self._starts[number] : self._starts[number + 1]]
        return made

    def nearest(self, vectors: Vectors, most: int, where: str | None) -> list[dict[int, float]]:
        """For each of the vectors (n, size) ids and cosines of the rows nearest to it, the nearest first.

        Vectors must be kept.
        """
        assert self.vectors is not None, "vectors aren't kept"
        # One by one: BLAS takes longer for a few vectors at once, which it lays out anew.
        return [self._best(self.vectors @ vector, most, where) for vector in vectors]

    def _best(self, cosines: Vectors, most: int, where: str | None) -> dict[int, float]:
        if where:
            cosines = np.where(self.allowed(where), cosines, -np.inf)
        few = min(most, len(cosines))
        best = np.argpartition(-cosines, few - 1)[:few]
        # Equal ones in the order of their ids, so that the same question always gives the same hits.
        ordered = best[np.lexsort((best, -cosines[best]))]
        pairs = zip(self.ids[ordered].tolist(), cosines[ordered].tolist(), strict=True)
        return {row: cosine for row, cosine in pairs if cosine > -np.inf}

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
