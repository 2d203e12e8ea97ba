"""Hybrid search: BM25 and vectors, each with its best passages, joined by reciprocal rank fusion.

    words   -> BM25 over title, section and text (English stems, no stop words)   \\
                                                                                    fusion -> one per document -> hits
    meaning -> vectors, by cosine                                                  /
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np

from meditune.errors import DataError
from meditune.retrieve import fusion, tables
from meditune.retrieve.embedders import Embedder
from meditune.retrieve.passages.passage import IndexedPassage
from meditune.retrieve.place import Place
from meditune.retrieve.query import condition, query

Mode = Literal["hybrid", "words", "meaning"]
CANDIDATES = 100
"""Passages that each part gives to the fusion, unless more are asked for"""
WEIGHTS = {"words": 1.0, "meaning": 1.0}
MOST_HITS = 10_000
PROBES = 32
"""Parts of an approximate vector index that are looked through"""
REFINE = 1
"""So many times the candidates are put in order by their full vectors then"""


@dataclass(frozen=True)
class Hit:
    """A passage that was found."""

    passage: IndexedPassage
    score: float
    """Of the fusion (or of the only part): the higher, the better; comparable within one search only"""
    words: float | None
    """BM25; None where it wasn't among that part's candidates"""
    meaning: float | None
    """Cosine; None likewise"""


@dataclass(frozen=True)
class Found:
    """What a search gives."""

    hits: tuple[Hit, ...]
    remarks: tuple[str, ...] = ()
    """What the user should know: that the question was cut, for one"""


class DocumentOf:
    """Which document each row is of, as numbers: 12 bytes a passage, so that hits are collapsed without reading."""

    def __init__(self, table: Any) -> None:
        import pyarrow as pa

        found = table.search().select(["document"]).with_row_id(True).limit(max(table.count_rows(), 1)).to_arrow()
        rows = found["_rowid"].to_numpy()
        order = np.argsort(rows)
        codes = found["document"].combine_chunks().dictionary_encode()
        codes = codes.combine_chunks() if isinstance(codes, pa.ChunkedArray) else codes
        self._rows = rows[order]
        self._codes = codes.indices.to_numpy()[order]

    def __getitem__(self, rows: Sequence[int]) -> list[int]:
        """A number for each row, the same for rows of one document."""
        places = np.searchsorted(self._rows, np.asarray(rows, dtype=self._rows.dtype))
        numbers: list[int] = self._codes[places].tolist()
        return numbers


@dataclass(frozen=True)
class Opened:
    """One version of an index's table."""

    place: Place
    table: Any
    documents: DocumentOf
    sources: tuple[str, ...]
    approximate: bool
    """Whether vectors are found by an index that may miss some"""


def search(
    opened: Opened,
    embedder: Embedder,
    question: str,
    k: int = 10,
    *,
    words: str | None = None,
    meaning: str | None = None,
    mode: Mode = "hybrid",
    weights: Mapping[str, float] | None = None,
    sources: Sequence[str] | None = None,
    since: str | None = None,
    until: str | None = None,
    per_document: int | None = 1,
    diversity: float = 0.0,
    candidates: int | None = None,
) -> Found:
    """The best k passages.

    `words` and `meaning` word the question otherwise for BM25 and for the vectors; `mode` takes one part alone;
    `weights` says how much each part counts in the fusion; `sources`, `since` and `until` (dates) narrow the search;
    `per_document` is how many passages of one document may be among the hits (None: all); `diversity`, from 0 to 1,
    how much likeness to better hits counts against one; `candidates` how many passages each part gives.

    Raises DataError where the question is empty or an option makes no sense.
    """
    _check(k, mode, per_document, diversity, candidates, weights)
    asked = query(question, words, meaning)
    where = condition(opened.sources, sources, since, until)
    most = max(candidates or CANDIDATES, k)
    table = opened.table
    vector = embedder.embed([asked.meaning])[0] if mode != "words" else None
    parts: dict[str, dict[int, float]] = {}
    with tables.readable(opened.place):
        if mode != "meaning":
            parts["words"] = _by_words(table, asked.words, where, most)
        if vector is not None:
            parts["meaning"] = _by_meaning(opened, vector, where, most)
    if len(parts) == 1:
        scores = next(iter(parts.values()))
    else:
        scores = fusion.reciprocal_rank(
            {name: list(found) for name, found in parts.items()}, {**WEIGHTS, **(weights or {})}
        )
    chosen = list(scores) if per_document is None else _few_of_each(list(scores), opened.documents, per_document)
    with tables.readable(opened.place):
        chosen = _apart(table, chosen, scores, k, diversity) if diversity else chosen[:k]
        passages = _passages(table, chosen)
    hits = [
        Hit(passages[row], scores[row], *(parts.get(p, {}).get(row) for p in ("words", "meaning"))) for row in chosen
    ]
    return Found(tuple(hits), asked.remarks)


def _by_words(table: Any, text: str, where: str | None, most: int) -> dict[int, float]:
    """Row and BM25 of the best passages, the best first."""
    asked = table.search(text, query_type="fts", fts_columns=tables.SEARCHED).select(["_score"]).with_row_id(True)
    found = (asked.where(where, prefilter=True) if where else asked).limit(most).to_arrow()
    return _ranked(found["_rowid"].to_pylist(), found["_score"].to_pylist())


def _by_meaning(opened: Opened, vector: Any, where: str | None, most: int) -> dict[int, float]:
    """Row and cosine of the nearest passages, the nearest first."""
    asked = opened.table.search(vector).distance_type("dot").select(["_distance"]).with_row_id(True)
    if opened.approximate:
        asked = asked.nprobes(PROBES).refine_factor(REFINE)
    found = (asked.where(where, prefilter=True) if where else asked).limit(most).to_arrow()
    return _ranked(found["_rowid"].to_pylist(), [1.0 - distance for distance in found["_distance"].to_pylist()])


def _ranked(rows: Sequence[int], scores: Sequence[float]) -> dict[int, float]:
    # Equal scores in an order of their own, so that the same question always gives the same hits.
    return dict(sorted(zip(rows, scores, strict=True), key=lambda pair: (-pair[1], pair[0])))


def _few_of_each(rows: Sequence[int], documents: DocumentOf, most: int) -> list[int]:
    seen: Counter[int] = Counter()
    kept: list[int] = []
    for row, document in zip(rows, documents[rows], strict=True):
        seen[document] += 1
        if seen[document] <= most:
            kept.append(row)
    return kept


def _apart(table: Any, rows: Sequence[int], scores: Mapping[int, float], k: int, diversity: float) -> list[int]:
    best = list(rows[: max(4 * k, 20)])
    if not best:
        return []
    found = table.take_row_ids(best).select([tables.VECTOR]).with_row_id().to_arrow()
    vectors = np.stack(found[tables.VECTOR].to_numpy(zero_copy_only=False))
    place = {row: number for number, row in enumerate(found["_rowid"].to_pylist())}
    ordered = vectors[[place[row] for row in best]]
    return [best[n] for n in fusion.marginal_relevance([scores[row] for row in best], ordered, k, diversity)]


def _passages(table: Any, rows: Sequence[int]) -> dict[int, IndexedPassage]:
    if not rows:
        return {}
    found = table.take_row_ids(list(rows)).select(list(tables.COLUMNS)).with_row_id().to_arrow().to_pylist()
    return {row.pop("_rowid"): IndexedPassage(**row) for row in found}


def _check(
    k: int,
    mode: str,
    per_document: int | None,
    diversity: float,
    candidates: int | None,
    weights: Mapping[str, float] | None,
) -> None:
    if mode not in get_args(Mode):
        raise DataError(f"mode {mode!r} isn't one of {', '.join(get_args(Mode))}.")
    for name, number in (("k", k), ("per_document", per_document), ("candidates", candidates)):
        if number is not None and not 1 <= number <= MOST_HITS:
            raise DataError(f"{name} is {number}; it must be from 1 to {MOST_HITS:,}.")
    if not 0 <= diversity <= 1:
        raise DataError(f"diversity is {diversity}; it must be from 0 (by score alone) to 1.")
    for name, weight in (weights or {}).items():
        if name not in WEIGHTS or not 0 <= weight < float("inf"):
            raise DataError(f"weights: {name} {weight} isn't one of {', '.join(WEIGHTS)} with a number from 0.")
