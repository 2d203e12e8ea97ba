"""Searching one version of an index: what is asked of it, and the hits.

hybrid          candidates by words, titles and meaning, ordered by the reranker (`pipeline.py`)
fused           BM25 and vectors, joined by reciprocal rank fusion alone
words, meaning  one of these
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from meditune.errors import DataError
from meditune.retrieve import fusion, pipeline, tables
from meditune.retrieve.embedders import Embedder
from meditune.retrieve.passages.passage import IndexedPassage
from meditune.retrieve.place import Place
from meditune.retrieve.query import Query, condition, query
from meditune.retrieve.rerank import Asked, Reranker
from meditune.retrieve.rows import Rows

Mode = Literal["hybrid", "fused", "words", "meaning"]
CANDIDATES = 100
"""Passages that each part gives to the fusion, unless more are asked for"""
WEIGHTS = {"words": 1.0, "meaning": 1.0}
MOST_HITS = 10_000
PROBES = 32
"""Parts of an approximate vector index that are looked through"""
REFINE = 4
"""So many times the candidates are put in order by their full vectors then"""
UNRANKED = (
    "This index was made before Meditune kept what its reranker knows, so hits are ordered by rank fusion alone. "
    "`meditune index update {name}` brings it up to date."
)

Vectors = NDArray[np.float32]


@dataclass(frozen=True)
class Hit:
    """A passage that was found."""

    passage: IndexedPassage
    score: float
    """Of the reranker, the fusion or the only part: the higher, the better; comparable within one search only"""
    words: float | None
    """BM25; None where it wasn't among that part's candidates"""
    meaning: float | None
    """Cosine with the question, or with what it asks, the higher; None where only words were searched, or
    likewise where nothing was reranked"""


@dataclass(frozen=True)
class Found:
    """What a search gives."""

    hits: tuple[Hit, ...]
    remarks: tuple[str, ...] = ()
    """What the user should know: that the question was cut, for one"""


@dataclass(frozen=True)
class Opened:
    """One version of an index's table."""

    place: Place
    table: Any
    rows: Rows
    sources: tuple[str, ...]
    dimension: int
    reranker: Reranker | None
    """None in an index of before, which has nothing for one"""


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

    `words` and `meaning` word the question otherwise for BM25 and for all that goes by meaning; `mode` leaves the
    reranker out ("fused") or takes one part alone; so do `weights`, which say how much each part counts in the fusion;
    `sources`, `since` and `until` (dates) narrow the search; `per_document` is how many passages of one document may be
    among the hits (None: all); `diversity`, from 0 to 1, how much likeness to better hits counts against one;
    `candidates` how many passages each part gives.

    Raises DataError where the question is empty or an option makes no sense.
    """
    _check(k, mode, per_document, diversity, candidates, weights)
    asked = query(question, words, meaning)
    where = condition(opened.sources, sources, since, until)
    most = max(candidates or CANDIDATES, k)
    remarks = asked.remarks
    if mode == "hybrid" and not weights:
        if opened.reranker:
            there = compare(opened, opened.reranker, asked, k, where, per_document, most)
            ranked = _reranked(there, opened.reranker)
            return Found(_hits(opened, ranked, k, diversity), remarks)
        remarks = (*remarks, UNRANKED.format(name=opened.place.name))
    ranked = _fused(opened, embedder, asked, where, mode, weights, per_document, most)
    return Found(_hits(opened, ranked, k, diversity), remarks)


@dataclass(frozen=True)
class _Ranked:
    """Rows in their order, with all that is known of them."""

    ids: list[int]
    scores: Mapping[int, float]
    words: Mapping[int, float]
    meaning: Mapping[int, float]


@dataclass(frozen=True, slots=True)
class Brief:
    """As much of a passage as is compared."""

    title: str
    text: str


@dataclass(frozen=True)
class Compared:
    """A message with the candidates that the reranker compares."""

    message: Asked
    found: pipeline.Candidates
    ids: list[int]
    """Of the compared ones, the best by fusion first"""
    others: list[int]
    """Candidates that aren't compared"""
    passages: list[Brief]
    """Of `ids`, in their order"""
    vectors: Vectors
    """(ids, dimension)"""


def compare(
    opened: Opened,
    reranker: Reranker,
    asked: Query,
    k: int = 10,
    where: str | None = None,
    per_document: int | None = 1,
    most: int = CANDIDATES,
) -> Compared:
    """Candidates; everything about the question is embedded at once, and all of them are read at once."""
    message = reranker.asked(asked.message)
    with tables.readable(opened.place):
        search = pipeline.Search(
            opened.rows,
            lambda text, most: _by_words(opened, text, where, most),
            lambda vector, most: _by_meaning(opened, vector, where, most),
            lambda jobs: _together(opened, jobs),
            where,
        )
        found = pipeline.candidates(message, search, reranker, most, asked.words if asked.reworded else None)
        ids = found.ids if per_document is None else _few_of_each(found.ids, opened.rows, per_document)
        few = max(pipeline.RERANKED, k)
        passages, vectors = _briefly(opened, ids[:few])
    return Compared(message, found, ids[:few], ids[few:], passages, vectors)


def _reranked(there: Compared, reranker: Reranker) -> _Ranked:
    scores = reranker.score(there.message, there.passages, there.vectors)
    lowest = float(scores.min()) if len(scores) else 0.0
    # A long message is far from everything; what it asks is not.
    cosines = (there.vectors @ there.message.vectors[:2].T).max(axis=1).tolist()
    return _Ranked(
        [*(there.ids[place] for place in pipeline.ordered(scores)), *there.others],
        dict(zip(there.ids, scores.tolist(), strict=True)) | dict.fromkeys(there.others, lowest),
        there.found.words,
        dict(zip(there.ids, cosines, strict=True)),
    )


def _fused(
    opened: Opened,
    embedder: Embedder,
    asked: Query,
    where: str | None,
    mode: Mode,
    weights: Mapping[str, float] | None,
    per_document: int | None,
    most: int,
) -> _Ranked:
    """By one part, or by both joined."""
    jobs: dict[str, Callable[[], dict[int, float]]] = {}
    if mode != "meaning":
        jobs["words"] = partial(_by_words, opened, asked.words, where, most)
    if mode != "words":
        jobs["meaning"] = partial(_by_meaning, opened, embedder.embed([asked.meaning])[0], where, most)
    with tables.readable(opened.place):
        parts = dict(zip(jobs, _together(opened, list(jobs.values())), strict=True))
    if len(parts) == 1:
        scores = next(iter(parts.values()))
    else:
        scores = fusion.reciprocal_rank(
            {name: list(found) for name, found in parts.items()}, {**WEIGHTS, **(weights or {})}
        )
    chosen = list(scores) if per_document is None else _few_of_each(list(scores), opened.rows, per_document)
    return _Ranked(chosen, scores, parts.get("words", {}), parts.get("meaning", {}))


def _hits(opened: Opened, ranked: _Ranked, k: int, diversity: float) -> tuple[Hit, ...]:
    with tables.readable(opened.place):
        ids = _apart(opened, ranked.ids, ranked.scores, k, diversity) if diversity else ranked.ids[:k]
        passages = read(opened, ids)
    return tuple(Hit(passages[row], ranked.scores[row], ranked.words.get(row), ranked.meaning.get(row)) for row in ids)


def _by_words(opened: Opened, text: str, where: str | None, most: int) -> dict[int, float]:
    """Row and BM25 of the best passages, the best first."""
    if opened.rows.postings is not None:
        return opened.rows.by_words(text, most, where)
    asked = (
        opened.table.search(text, query_type="fts", fts_columns=tables.SEARCHED).select(["_score"]).with_row_id(True)
    )
    found = (asked.where(where, prefilter=True) if where else asked).limit(most).to_arrow()
    return _ranked(found["_rowid"].to_pylist(), found["_score"].to_pylist())


def _by_meaning(opened: Opened, vector: Vectors, where: str | None, most: int) -> dict[int, float]:
    """Row and cosine of the nearest passages, the nearest first."""
    if opened.rows.near is not None:
        return opened.rows.by_meaning(vector, most, where)
    asked = opened.table.search(vector).distance_type("dot").select(["_distance"]).with_row_id(True)
    asked = asked.nprobes(PROBES).refine_factor(REFINE)
    found = (asked.where(where, prefilter=True) if where else asked).limit(most).to_arrow()
    return _ranked(found["_rowid"].to_pylist(), [1.0 - distance for distance in found["_distance"].to_pylist()])


def _together(opened: Opened, jobs: Sequence[Callable[[], Any]]) -> list[Any]:
    """What each job gives; at the same time where LanceDB does them, which leaves Python free meanwhile."""
    if opened.rows.near is not None:
        return [job() for job in jobs]
    with ThreadPoolExecutor(len(jobs)) as pool:
        return list(pool.map(lambda job: job(), jobs))


def _ranked(rows: Sequence[int], scores: Sequence[float]) -> dict[int, float]:
    # Equal scores in an order of their own, so that the same question always gives the same hits.
    return dict(sorted(zip(rows, scores, strict=True), key=lambda pair: (-pair[1], pair[0])))


def _few_of_each(ids: Sequence[int], rows: Rows, most: int) -> list[int]:
    seen: Counter[int] = Counter()
    kept: list[int] = []
    for row, document in zip(ids, rows.documents[rows.places(ids)].tolist(), strict=True):
        seen[document] += 1
        if seen[document] <= most:
            kept.append(row)
    return kept


def _apart(opened: Opened, rows: Sequence[int], scores: Mapping[int, float], k: int, diversity: float) -> list[int]:
    best = list(rows[: max(4 * k, 20)])
    if not best:
        return []
    vectors = _briefly(opened, best)[1] if opened.rows.near is None else opened.rows.vectors(best)
    return [best[n] for n in fusion.marginal_relevance([scores[row] for row in best], vectors, k, diversity)]


def _briefly(opened: Opened, ids: Sequence[int]) -> tuple[list[Brief], Vectors]:
    """What is compared of these rows' passages, and (n, size) their vectors, both in the order of `ids`."""
    if not ids:
        return [], np.zeros((0, opened.dimension), dtype=np.float32)
    if opened.rows.near is not None:
        return [Brief(**row) for row in opened.rows.columns(ids, ("title", "text"))], opened.rows.vectors(ids)
    found = opened.table.take_row_ids(list(ids)).select(["title", "text", tables.VECTOR]).with_row_id().to_arrow()
    place = {row: number for number, row in enumerate(found["_rowid"].to_pylist())}
    order = [place[row] for row in ids]
    briefs = list(map(Brief, found["title"].to_pylist(), found["text"].to_pylist()))
    vectors = np.stack(found[tables.VECTOR].to_numpy(zero_copy_only=False))[order]
    return [briefs[number] for number in order], vectors


def read(opened: Opened, ids: Sequence[int]) -> dict[int, IndexedPassage]:
    """The passages of these rows."""
    if not ids:
        return {}
    if opened.rows.near is not None:
        kept = opened.rows.columns(ids, tables.COLUMNS)
        return {row: IndexedPassage(**columns) for row, columns in zip(ids, kept, strict=True)}
    found = opened.table.take_row_ids(list(ids)).select(list(tables.COLUMNS)).with_row_id().to_arrow().to_pylist()
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
