"""The LanceDB table of passages: its columns, its rows, and clear errors where it is damaged."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from datetime import timedelta
from typing import Any

import numpy as np

from meditune.errors import DataError, ModelError, install_command
from meditune.retrieve.passages.passage import IndexedPassage
from meditune.retrieve.place import Place

FORMAT = 1
"""Of table and manifest; an index of another one is built anew."""
COLUMNS = tuple(field.name for field in fields(IndexedPassage))
SEARCHED, VECTOR, DIGEST = "searched", "vector", "digest"
IDS_AT_ONCE = 500
APPROXIMATE = "IVFPQ"
"""The kind of index of many vectors"""


def connect(place: Place) -> Any:
    """LanceDB's connection. Raises ModelError where LanceDB isn't installed."""
    try:
        import lancedb
    except ImportError as error:
        raise ModelError(f"An index needs LanceDB. Install it with: {install_command('retrieve')}") from error
    with readable(place):
        return lancedb.connect(place.tables, storage_options=place.options)


@contextmanager
def readable(place: Place) -> Iterator[None]:
    """Turn what LanceDB raises at missing or damaged files into a DataError."""
    try:
        yield
    except (RuntimeError, ValueError, OSError) as error:
        first = str(error).strip().splitlines()[:1] or [type(error).__name__]
        raise DataError(
            f"{place.name}: the index can't be read; a file of it is missing or damaged ({first[0][:300]}). Build it "
            "again with `meditune index build --replace`."
        ) from error


def schema(dimension: int) -> Any:
    """Columns of the table."""
    import pyarrow as pa

    texts = [pa.field(name, pa.bool_() if name == "restricted" else pa.string()) for name in COLUMNS]
    vector = pa.field(VECTOR, pa.list_(pa.float32(), dimension))
    return pa.schema([*texts, pa.field(SEARCHED, pa.string()), pa.field(DIGEST, pa.string()), vector])


def rows(passages: Sequence[IndexedPassage], vectors: np.ndarray[Any, np.dtype[np.float32]]) -> Any:
    """Passages and their vectors as an Arrow table."""
    import pyarrow as pa

    columns: list[Any] = [pa.array([getattr(passage, name) for passage in passages]) for name in COLUMNS]
    columns.append(pa.array([passage.searched for passage in passages]))
    columns.append(pa.array([passage.digest for passage in passages]))
    columns.append(pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), vectors.shape[1]))
    return pa.Table.from_arrays(columns, schema=schema(vectors.shape[1]))


def scan(table: Any, columns: Sequence[str]) -> Iterator[Any]:
    """Arrow batches of some columns of all rows."""
    yield from table.search().select(list(columns)).limit(max(table.count_rows(), 1)).to_batches(10_000)


def delete(table: Any, ids: Iterable[str]) -> None:
    """Remove the passages of these ids."""
    waiting = list(ids)
    for start in range(0, len(waiting), IDS_AT_ONCE):
        table.delete(f"id IN ({', '.join(map(quoted, waiting[start : start + IDS_AT_ONCE]))})")


def quoted(text: str) -> str:
    """As a text in a condition."""
    return "'" + text.replace("'", "''") + "'"


def make_searchable(table: Any, approximate: bool, keep: timedelta) -> None:
    """Bring the table's pieces together and index its columns; new rows join the indices that are there."""
    from lancedb.index import FTS, Bitmap, IvfPq

    there = {tuple(index.columns): _kind(index) for index in table.list_indices()}
    if (SEARCHED,) not in there:
        table.optimize()
        table.create_index(SEARCHED, config=FTS(stem=True, remove_stop_words=True))
    if ("source",) not in there:
        table.create_index("source", config=Bitmap())
    if approximate and there.get((VECTOR,)) != APPROXIMATE:
        # A quarter of LanceDB's training vectors and rounds: the full vectors put the candidates in order anyway.
        near = IvfPq(distance_type="dot", sample_rate=64, max_iterations=20)
        table.create_index(VECTOR, config=near, replace=True)
    if not approximate:
        for index in table.list_indices():
            if index.columns == [VECTOR]:
                table.drop_index(index.name)
    table.optimize(cleanup_older_than=keep)


def is_approximate(table: Any) -> bool:
    """Whether the index of the vectors may miss some of the nearest."""
    return any(_kind(index) == APPROXIMATE for index in table.list_indices())


def _kind(index: Any) -> str:
    """IVF_PQ or FTS, whatever way LanceDB spells it."""
    return str(index.index_type).replace("_", "").upper()


def verify(table: Any, passages: int) -> None:
    """Raise DataError where the table isn't fit to be searched."""
    if table.count_rows() != passages:
        raise DataError(f"The new index has {table.count_rows():,} passages instead of {passages:,}; build it again.")
    for index in table.list_indices():
        if index.num_unindexed_rows:
            raise DataError(
                f"{index.num_unindexed_rows:,} passages aren't in the index {index.name}; build it with --replace."
            )
