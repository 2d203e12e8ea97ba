r"""Hybrid search in one version of an index: from a message to ranked hits.

hybrid          candidates by words, titles and meaning, ordered by the reranker
fused           BM25 and vectors, joined by reciprocal rank fusion only
words, meaning  one of these only

words    -> BM25 for the message, and for its question with other names of its topics        \
titles   -> the titles nearest to the message, and to its question                             fusion -> reranker
meaning  -> the passages nearest to the message, and to its question                         /

Compact data of all rows is kept in memory, so that hits are compared and collapsed without reading the table: for each
row its document and title as numbers (16 bytes per passage with the row's id). If the index is small enough for exact
comparison, the whole passage (1 kB), its vector (2 kB with the reduced copy) and its words are kept too.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from meditune.errors import DataError
from meditune.retrieve import storage
from meditune.retrieve.bm25 import BM25Index
from meditune.retrieve.documents.document import IndexedPassage
from meditune.retrieve.query_understanding import Query, build_query, row_filter
from meditune.retrieve.reranker import Reranker, RerankQuery
from meditune.retrieve.storage import IndexStorage
from meditune.retrieve.vector_search import Embedder, Vectors, VectorSearch

CONSTANT = 60
"""k in 1 / (k + rank): Cormack, Clarke and Büttcher 2009, "Reciprocal rank fusion outperforms Condorcet" (SIGIR)"""


def reciprocal_rank(rankings: Mapping[str, Sequence[int]], weights: Mapping[str, float]) -> dict[int, float]:
    """Return the score of each item: the sum over rankings of weight / (60 + its rank from 1), the best first."""
    scores: dict[int, float] = {}
    for name, ranking in rankings.items():
        for rank, item in enumerate(ranking, start=1):
            scores[item] = scores.get(item, 0.0) + weights[name] / (CONSTANT + rank)
    return dict(sorted(scores.items(), key=lambda pair: -pair[1]))


def reciprocal_ranks(rankings: Mapping[str, Sequence[Sequence[int]]]) -> dict[int, float]:
    """Return scores like `reciprocal_rank`, for rankings of equal weight in which several items may share a rank."""
    scores: dict[int, float] = {}
    for ranking in rankings.values():
        for rank, items in enumerate(ranking, start=1):
            for item in items:
                scores[item] = scores.get(item, 0.0) + 1 / (CONSTANT + rank)
    return dict(sorted(scores.items(), key=lambda pair: -pair[1]))


def marginal_relevance(scores: Sequence[float], vectors: NDArray[Any], k: int, diversity: float) -> list[int]:
    """Return the indices of k items, each chosen by its score minus its similarity to those chosen before, in that
    order.

    Carbonell and Goldstein 1998, "The use of MMR" (SIGIR): (1 - diversity) * score - diversity * highest cosine. Scores
    are scaled to 0..1; vectors have length 1.
    """
    given = np.asarray(scores, dtype=np.float64)
    spread = np.ptp(given) if len(given) else 0.0
    relevance = (given - given.min()) / spread if spread else np.ones_like(given)
    chosen: list[int] = []
    nearest = np.zeros(len(given))
    left = np.ones(len(given), dtype=bool)
    while left.any() and len(chosen) < k:
        worth = np.where(left, (1 - diversity) * relevance - diversity * nearest, -np.inf)
        best = int(worth.argmax())
        chosen.append(best)
        left[best] = False
        nearest = np.maximum(nearest, vectors @ vectors[best])
    return chosen


Places = NDArray[np.int64]
"""Row numbers, from 0 in order of the rows' ids"""
FILTERS = 8
"""Number of conditions whose matching rows are cached"""


class Rows:
    """The rows of one version of a table."""

    def __init__(self, table: Any, titles: Sequence[str], whole: bool, postings: BM25Index | None = None) -> None:
        """`titles` are the titles that get numbers, by their position; `whole` keeps passages and their vectors."""
        columns = [*storage.COLUMNS, storage.VECTOR] if whole else ["document", *(["title"] if titles else [])]
        found = table.search().select(columns).with_row_id(True).limit(max(table.count_rows(), 1)).to_arrow()
        ids = found["_rowid"].to_numpy()
        order = np.argsort(ids)
        self.ids = ids[order]
        codes = found["document"].combine_chunks().dictionary_encode()
        self.documents: NDArray[np.int32] = _chunk(codes).indices.to_numpy()[order]
        self.titles = _numbers(found["title"], titles)[order] if titles else np.full(len(ids), -1, dtype=np.int32)
        self._by_title = np.argsort(self.titles, kind="stable").astype(np.int64)
        self._starts = np.searchsorted(self.titles[self._by_title], np.arange(len(titles) + 1))
        self.near: VectorSearch | None = None
        self.postings = postings
        self._passages: Any = None
        if whole and len(ids):
            flat = _chunk(found[storage.VECTOR].combine_chunks()).flatten().to_numpy()
            self.near = VectorSearch(flat.reshape(len(ids), -1)[order])
            self._passages = found.select(storage.COLUMNS).take(order).combine_chunks()
        self.allowed = lru_cache(FILTERS)(lambda where: self._allowed(table, where))

    def places(self, ids: Sequence[int]) -> Places:
        """Return the positions of the rows with these ids."""
        return np.searchsorted(self.ids, np.asarray(ids, dtype=self.ids.dtype))

    def of_title(self, number: int) -> Places:
        """Return the rows with a title."""
        made: Places = self._by_title[self._starts[number] : self._starts[number + 1]]
        return made

    def vectors(self, ids: Sequence[int]) -> Vectors:
        """Return (n, size) the vectors of these rows, which must be in memory."""
        assert self.near is not None, "vectors aren't in memory"
        made: Vectors = self.near.vectors[self.places(ids)]
        return made

    def columns(self, ids: Sequence[int], names: Sequence[str]) -> list[dict[str, Any]]:
        """Return these columns of these rows, which must be in memory."""
        assert self._passages is not None, "passages aren't in memory"
        rows: list[dict[str, Any]] = self._passages.select(list(names)).take(self.places(ids)).to_pylist()
        return rows

    def by_words(self, text: str, most: int, where: str | None) -> dict[int, float]:
        """Return ids and BM25 scores of the `most` best rows, the best first. Postings must be in memory."""
        assert self.postings is not None, "postings aren't in memory"
        found = self.postings.best(text, most, self.allowed(where) if where else None)
        return dict(zip(self.ids[list(found)].tolist(), found.values(), strict=True)) if found else {}

    def by_meaning(self, vector: Vectors, most: int, where: str | None) -> dict[int, float]:
        """Return ids and cosines of the rows nearest to a vector, the nearest first. Vectors must be in memory."""
        assert self.near is not None, "vectors aren't in memory"
        places, cosines = self.near.nearest(vector, most, self.allowed(where) if where else None)
        return dict(zip(self.ids[places].tolist(), cosines.tolist(), strict=True))

    def _allowed(self, table: Any, where: str) -> NDArray[np.bool_]:
        """Return for each row whether it meets a condition."""
        found = table.search().where(where).select(["id"]).with_row_id(True).limit(max(len(self.ids), 1)).to_arrow()
        allowed = np.zeros(len(self.ids), dtype=bool)
        allowed[self.places(found["_rowid"].to_numpy())] = True
        return allowed


def _numbers(column: Any, titles: Sequence[str]) -> NDArray[np.int32]:
    """Return each text's position among the titles, -1 if it isn't one of them."""
    place = {title: number for number, title in enumerate(titles)}
    coded = _chunk(column.combine_chunks().dictionary_encode())
    once = np.array([place.get(text, -1) for text in coded.dictionary.to_pylist()], dtype=np.int32)
    numbers: NDArray[np.int32] = once[coded.indices.to_numpy()]
    return numbers


def _chunk(column: Any) -> Any:
    import pyarrow as pa

    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column


CANDIDATES = 100
"""Number of passages, or titles, from each ranking"""
RERANKED = 100
"""Number of candidates that are reranked, the best by fusion; the others keep their order"""
WORDINGS = ("", " asked")
"""The texts of the first vectors in `RerankQuery.vectors`: the whole message, and its question"""

Ranking = Mapping[int, float]
"""Row ids with scores, the best first"""


@dataclass(frozen=True)
class Search:
    """One version of an index, with the user's filters."""

    rows: Rows
    words: Callable[[str, int], Ranking]
    """Returns the best passages by BM25"""
    meaning: Callable[[Vectors, int], Ranking]
    """Returns the passages nearest to a vector, with cosines"""
    together: Callable[[Sequence[Callable[[], Ranking]]], Sequence[Ranking]]
    """Runs several of these, and returns their results in order"""
    where: str | None = None
    """The filter condition"""


@dataclass(frozen=True)
class Candidates:
    """Rows that may answer the question, the best by fusion first."""

    ids: list[int]
    words: Ranking
    """BM25 scores for the message"""
    meaning: Ranking
    """Cosines with the message"""


def candidates(
    asked: RerankQuery, search: Search, reranker: Reranker, most: int = CANDIDATES, words: str | None = None
) -> Candidates:
    """Return the results of all rankings; `words`, if given, replace the message's own words."""
    wordings = asked.vectors[: 1 if asked.focused.query == asked.corrected else 2]
    texts = [words or asked.corrected]
    if not words and asked.expanded != asked.corrected:
        texts.append(asked.expanded)
    worded = [partial(search.words, text, most) for text in texts]
    found = search.together([*worded, *(partial(search.meaning, vector, most) for vector in wordings)])
    by_words, near = found[: len(texts)], found[len(texts) :]
    rankings: dict[str, Sequence[Sequence[int]]] = {
        name: [[each] for each in ranking] for name, ranking in zip(("words", "names"), by_words, strict=False)
    }
    titled = reranker.title_vectors.nearest(wordings, most)
    for name, passages, titles in zip(WORDINGS, near, titled, strict=False):
        rankings[f"meaning{name}"] = [[each] for each in passages]
        rankings[f"titles{name}"] = _of_titles(titles, search)
    return Candidates(list(reciprocal_ranks(rankings)), by_words[0], near[0])


def _of_titles(numbers: Sequence[int], search: Search) -> list[list[int]]:
    """Return the rows of each title."""
    rows = search.rows
    allowed = rows.allowed(search.where) if search.where else None
    places = map(rows.of_title, numbers)
    return [rows.ids[some if allowed is None else some[allowed[some]]].tolist() for some in places]


def ordered(scores: NDArray[np.float64]) -> list[int]:
    """Return the positions of the scores, the highest first, equal ones in their order."""
    return [int(place) for place in np.argsort(-scores, kind="stable")]


Mode = Literal["hybrid", "fused", "words", "meaning"]

WEIGHTS = {"words": 1.0, "meaning": 1.0}
MOST_HITS = 10_000
PROBES = 32
"""Number of partitions of an approximate vector index to search"""
REFINE = 4
"""Factor of extra candidates that are then ordered by their full vectors"""
UNRANKED = (
    "This index was made by an older version of Meditune, without the reranker's data, so hits are ordered by rank "
    "fusion only. Update it with `meditune index update {name}`."
)


@dataclass(frozen=True)
class Hit:
    """A passage that was found."""

    passage: IndexedPassage
    score: float
    """By the reranker, the fusion or the single part: higher is better; comparable only within one search"""
    words: float | None
    """BM25; None if the passage wasn't among the candidates by words"""
    meaning: float | None
    """The higher cosine with the message or its question; None if only words were searched, or the passage wasn't a
    candidate and nothing was reranked
    """


@dataclass(frozen=True)
class Found:
    """The result of a search."""

    hits: tuple[Hit, ...]
    remarks: tuple[str, ...] = ()
    """Remarks for the user, for example that the question was truncated"""


@dataclass(frozen=True)
class Opened:
    """One version of an index's table."""

    place: IndexStorage
    table: Any
    rows: Rows
    sources: tuple[str, ...]
    dimension: int
    reranker: Reranker | None
    """None in an old index without the reranker's data"""


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
    """Return the best k passages.

    `words` and `meaning` replace the question's text for BM25 and for vectors; `mode` skips the reranker ("fused") or
    uses one part only; `weights` for the parts in the fusion skip the reranker too; `sources`, `since` and `until`
    (dates) narrow the search; `per_document` limits the passages of one document (None: all); `diversity`, from 0 to 1,
    is how much similarity to better hits lowers a hit; `candidates` is the number of passages from each part.

    Raises DataError if the question is empty or an option is invalid.
    """
    _check(k, mode, per_document, diversity, candidates, weights)
    asked = build_query(question, words, meaning)
    where = row_filter(opened.sources, sources, since, until)
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
    """Rows in their order, with their scores."""

    ids: list[int]
    scores: Mapping[int, float]
    words: Mapping[int, float]
    meaning: Mapping[int, float]


@dataclass(frozen=True, slots=True)
class PassageTitle:
    """The parts of a passage that are compared."""

    title: str
    text: str


@dataclass(frozen=True)
class ComparedPassages:
    """A message with the candidates that the reranker compares."""

    message: RerankQuery
    found: Candidates
    ids: list[int]
    """Ids of the compared candidates, the best by fusion first"""
    others: list[int]
    """Candidates that aren't compared"""
    passages: list[PassageTitle]
    """The passages of `ids`, in their order"""
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
) -> ComparedPassages:
    """Return the candidates; all texts of the question are embedded at once, and all candidates are read at once."""
    message = reranker.asked(asked.message)
    with storage.readable(opened.place):
        search = Search(
            opened.rows,
            lambda text, most: _by_words(opened, text, where, most),
            lambda vector, most: _by_meaning(opened, vector, where, most),
            lambda jobs: _together(opened, jobs),
            where,
        )
        found = candidates(message, search, reranker, most, asked.words if asked.reworded else None)
        ids = found.ids if per_document is None else _few_of_each(found.ids, opened.rows, per_document)
        few = max(RERANKED, k)
        passages, vectors = _briefly(opened, ids[:few])
    return ComparedPassages(message, found, ids[:few], ids[few:], passages, vectors)


def _reranked(there: ComparedPassages, reranker: Reranker) -> _Ranked:
    scores = reranker.score(there.message, there.passages, there.vectors)
    lowest = float(scores.min()) if len(scores) else 0.0
    # A long message is far from every passage; its question is not.
    cosines = (there.vectors @ there.message.vectors[:2].T).max(axis=1).tolist()
    return _Ranked(
        [*(there.ids[place] for place in ordered(scores)), *there.others],
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
    """Return the ranking by one part, or by both combined."""
    jobs: dict[str, Callable[[], dict[int, float]]] = {}
    if mode != "meaning":
        jobs["words"] = partial(_by_words, opened, asked.words, where, most)
    if mode != "words":
        jobs["meaning"] = partial(_by_meaning, opened, embedder.embed([asked.meaning])[0], where, most)
    with storage.readable(opened.place):
        parts = dict(zip(jobs, _together(opened, list(jobs.values())), strict=True))
    if len(parts) == 1:
        scores = next(iter(parts.values()))
    else:
        scores = reciprocal_rank({name: list(found) for name, found in parts.items()}, {**WEIGHTS, **(weights or {})})
    chosen = list(scores) if per_document is None else _few_of_each(list(scores), opened.rows, per_document)
    return _Ranked(chosen, scores, parts.get("words", {}), parts.get("meaning", {}))


def _hits(opened: Opened, ranked: _Ranked, k: int, diversity: float) -> tuple[Hit, ...]:
    with storage.readable(opened.place):
        ids = _apart(opened, ranked.ids, ranked.scores, k, diversity) if diversity else ranked.ids[:k]
        passages = read(opened, ids)
    return tuple(Hit(passages[row], ranked.scores[row], ranked.words.get(row), ranked.meaning.get(row)) for row in ids)


def _by_words(opened: Opened, text: str, where: str | None, most: int) -> dict[int, float]:
    """Return row and BM25 of the best passages, the best first."""
    if opened.rows.postings is not None:
        return opened.rows.by_words(text, most, where)
    asked = (
        opened.table.search(text, query_type="fts", fts_columns=storage.SEARCHED).select(["_score"]).with_row_id(True)
    )
    found = (asked.where(where, prefilter=True) if where else asked).limit(most).to_arrow()
    return _ranked(found["_rowid"].to_pylist(), found["_score"].to_pylist())


def _by_meaning(opened: Opened, vector: Vectors, where: str | None, most: int) -> dict[int, float]:
    """Return row and cosine of the nearest passages, the nearest first."""
    if opened.rows.near is not None:
        return opened.rows.by_meaning(vector, most, where)
    asked = opened.table.search(vector).distance_type("dot").select(["_distance"]).with_row_id(True)
    asked = asked.nprobes(PROBES).refine_factor(REFINE)
    found = (asked.where(where, prefilter=True) if where else asked).limit(most).to_arrow()
    return _ranked(found["_rowid"].to_pylist(), [1.0 - distance for distance in found["_distance"].to_pylist()])


def _together(opened: Opened, jobs: Sequence[Callable[[], Any]]) -> list[Any]:
    """Return the result of each job; they run in parallel if LanceDB does them, which releases the GIL."""
    if opened.rows.near is not None:
        return [job() for job in jobs]
    with ThreadPoolExecutor(len(jobs)) as pool:
        return list(pool.map(lambda job: job(), jobs))


def _ranked(rows: Sequence[int], scores: Sequence[float]) -> dict[int, float]:
    # Break ties by row, so that the same question always gives the same hits.
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
    return [best[n] for n in marginal_relevance([scores[row] for row in best], vectors, k, diversity)]


def _briefly(opened: Opened, ids: Sequence[int]) -> tuple[list[PassageTitle], Vectors]:
    """Return the compared parts of these rows' passages, and (n, size) their vectors, both in the order of `ids`."""
    if not ids:
        return [], np.zeros((0, opened.dimension), dtype=np.float32)
    if opened.rows.near is not None:
        return [PassageTitle(**row) for row in opened.rows.columns(ids, ("title", "text"))], opened.rows.vectors(ids)
    found = opened.table.take_row_ids(list(ids)).select(["title", "text", storage.VECTOR]).with_row_id().to_arrow()
    place = {row: number for number, row in enumerate(found["_rowid"].to_pylist())}
    order = [place[row] for row in ids]
    briefs = list(map(PassageTitle, found["title"].to_pylist(), found["text"].to_pylist()))
    vectors = np.stack(found[storage.VECTOR].to_numpy(zero_copy_only=False))[order]
    return [briefs[number] for number in order], vectors


def read(opened: Opened, ids: Sequence[int]) -> dict[int, IndexedPassage]:
    """Return the passages of these rows."""
    if not ids:
        return {}
    if opened.rows.near is not None:
        kept = opened.rows.columns(ids, storage.COLUMNS)
        return {row: IndexedPassage(**columns) for row, columns in zip(ids, kept, strict=True)}
    found = opened.table.take_row_ids(list(ids)).select(list(storage.COLUMNS)).with_row_id().to_arrow().to_pylist()
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
        raise DataError(f"mode {mode!r} must be one of {', '.join(get_args(Mode))}.")
    for name, number in (("k", k), ("per_document", per_document), ("candidates", candidates)):
        if number is not None and not 1 <= number <= MOST_HITS:
            raise DataError(f"{name} is {number}; it must be from 1 to {MOST_HITS:,}.")
    if not 0 <= diversity <= 1:
        raise DataError(f"diversity is {diversity}; it must be from 0 (by score only) to 1.")
    for name, weight in (weights or {}).items():
        if name not in WEIGHTS or not 0 <= weight < float("inf"):
            raise DataError(
                f"weights: {name} {weight} must be one of {', '.join(WEIGHTS)}, with a number of at least 0."
            )
