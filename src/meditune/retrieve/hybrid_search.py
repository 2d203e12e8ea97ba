"""Hybrid search in one version of an index: from a message to ranked hits. The modes are:

hybrid    BM25 finds candidates for the message, and for its question with other names of its topics. Vectors find the
          titles and passages that are nearest to the message and to its question. All these rankings are fused, and
          the best candidates are reranked. If the index has a cross-encoder, it scores the best of these again.
fused     One ranking by BM25 and one by vectors are combined by reciprocal rank fusion, without reranking.
bm25      The ranking is by BM25 only.
vectors   The ranking is by vectors only.

For each row, numbers for its document and its title are kept in memory (16 bytes per passage), so that hits from the
same document are found without reading the table. If the index is small enough for exact search, its passages, vectors
and postings are kept in memory, too.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from meditune.errors import DataError
from meditune.models.sentence_encoder import SentenceEncoder, Vectors
from meditune.retrieve import storage
from meditune.retrieve.bm25 import BM25Index
from meditune.retrieve.cross_encoder import CrossEncoder
from meditune.retrieve.documents.document import IndexedPassage
from meditune.retrieve.query_understanding import Query, build_query, row_filter
from meditune.retrieve.reranker import Passage, Reranker, RerankQuery, nearest
from meditune.retrieve.storage import IndexStorage

Mode = Literal["hybrid", "fused", "bm25", "vectors"]
Ranking = Mapping[int, float]  # Row ids with scores, the best first
Places = NDArray[np.int64]  # Positions of rows (0-based) in the order of their ids

CONSTANT = 60
"""k in 1 / (k + rank): Cormack, Clarke and Büttcher 2009, "Reciprocal rank fusion outperforms Condorcet" (SIGIR)"""
FILTERS = 8  # Number of conditions whose matching rows are cached
CANDIDATES = 100  # Number of passages, or titles, taken from each ranking
RERANKED = 100  # Number of candidates that are reranked: the best by fusion; the others keep their order
CROSS_ENCODED = 30  # Number of reranked candidates that a cross-encoder scores
MEANING_WEIGHT = 3
"""Weight of the ranking by vectors in `fused`; the ranking by BM25 has the weight 1 (docs/experiments/retrieval.md)"""
MAX_HITS = 10_000
PROBES = 32  # Number of partitions of an approximate vector index to search
REFINE = 4  # Factor by which more candidates are fetched, to be ordered by their full vectors


def reciprocal_rank(
    rankings: Iterable[Iterable[Sequence[int]]], weights: Iterable[float] = itertools.repeat(1)
) -> dict[int, float]:
    """Return each item's sum of weight / (60 + rank) over the rankings, the best item first.

    Ranks are 1-based. Items may share a rank.
    """
    scores: dict[int, float] = {}
    for ranking, weight in zip(rankings, weights, strict=False):
        for rank, items in enumerate(ranking, start=1):
            for item in items:
                scores[item] = scores.get(item, 0.0) + weight / (CONSTANT + rank)
    return dict(sorted(scores.items(), key=lambda pair: -pair[1]))


class Rows:
    """The rows of one version of a table."""

    def __init__(
        self, table: Any, titles: Sequence[str], keep_passages: bool, postings: BM25Index | None = None
    ) -> None:
        """Read the rows. A title's number is its position in `titles`.

        `keep_passages` keeps passages and vectors in memory.
        """
        columns = [*storage.COLUMNS, storage.VECTOR] if keep_passages else ["document", *(["title"] if titles else [])]
        found = table.search().select(columns).with_row_id(True).limit(max(table.count_rows(), 1)).to_arrow()
        ids = found["_rowid"].to_numpy()
        order = np.argsort(ids)
        self.ids = ids[order]
        codes = found["document"].combine_chunks().dictionary_encode()
        self.documents: NDArray[np.int32] = _chunk(codes).indices.to_numpy()[order]
        self.titles = _numbers(found["title"], titles)[order] if titles else np.full(len(ids), -1, dtype=np.int32)
        self._by_title = np.argsort(self.titles, kind="stable").astype(np.int64)
        self._starts = np.searchsorted(self.titles[self._by_title], np.arange(len(titles) + 1))
        self.table, self._postings = table, postings
        self._vectors: Vectors | None = None
        self._passages: Any = None
        if keep_passages and len(ids):
            flat = _chunk(found[storage.VECTOR].combine_chunks()).flatten().to_numpy()
            self._vectors = flat.reshape(len(ids), -1)[order]
            self._passages = found.select(storage.COLUMNS).take(order).combine_chunks()
        self._allowed = lru_cache(FILTERS)(self._matching)

    def places(self, ids: Sequence[int]) -> Places:
        """Return the positions of the rows with these ids."""
        return np.searchsorted(self.ids, np.asarray(ids, dtype=self.ids.dtype))

    def of_titles(self, numbers: Iterable[int], condition: str | None) -> list[list[int]]:
        """Return, for each title number, the ids of the rows with this title that meet the condition."""
        allowed = self._allowed(condition) if condition else None
        rows = (self._by_title[self._starts[number] : self._starts[number + 1]] for number in numbers)
        return [self.ids[some if allowed is None else some[allowed[some]]].tolist() for some in rows]

    def by_words(self, text: str, k: int, condition: str | None) -> dict[int, float]:
        """Return the ids and BM25 scores of the `k` rows that match a text best, the best first."""
        if self._postings is not None:
            found = self._postings.best(text, k, self._allowed(condition) if condition else None)
            return dict(zip(self.ids[list(found)].tolist(), found.values(), strict=True)) if found else {}
        query = self.table.search(text, query_type="fts", fts_columns=storage.SEARCHED).select(["_score"])
        hits = self._hits(query, k, condition)
        return _ranked(hits["_rowid"].to_pylist(), hits["_score"].to_pylist())

    def by_meaning(self, vector: Vectors, k: int, condition: str | None) -> dict[int, float]:
        """Return the ids and cosines of the `k` rows nearest to a vector, the nearest first."""
        if self._vectors is not None:
            places, cosines = nearest(self._vectors, vector, k, self._allowed(condition) if condition else None)
            return dict(zip(self.ids[places].tolist(), cosines.tolist(), strict=True))
        query = self.table.search(vector).distance_type("dot").select(["_distance"])
        hits = self._hits(query.nprobes(PROBES).refine_factor(REFINE), k, condition)
        return _ranked(hits["_rowid"].to_pylist(), [1.0 - distance for distance in hits["_distance"].to_pylist()])

    def run_parallel(self, searches: Sequence[Callable[[], Ranking]]) -> list[Ranking]:
        """Return the result of each search. LanceDB's searches run in parallel, because LanceDB releases the GIL."""
        if self._vectors is not None:
            return [search() for search in searches]
        with ThreadPoolExecutor(len(searches)) as pool:
            return list(pool.map(lambda search: search(), searches))

    def passages(self, ids: Sequence[int]) -> list[IndexedPassage]:
        """Return the passages of these rows."""
        return [IndexedPassage(**row) for row in self._columns(ids, storage.COLUMNS).to_pylist()] if ids else []

    def titles_and_vectors(self, ids: Sequence[int]) -> tuple[list[Passage], Vectors]:
        """Return the titles and texts of the passages in these rows, and the passages' vectors (n, size)."""
        if not ids:
            return [], np.zeros((0, self.table.schema.field(storage.VECTOR).type.list_size), dtype=np.float32)
        names = ["title", "text"] if self._vectors is not None else ["title", "text", storage.VECTOR]
        found = self._columns(ids, names)
        titles = list(map(Passage, found["title"].to_pylist(), found["text"].to_pylist()))
        if self._vectors is not None:
            return titles, self._vectors[self.places(ids)]
        return titles, np.stack(found[storage.VECTOR].to_numpy(zero_copy_only=False))

    def _columns(self, ids: Sequence[int], names: Sequence[str]) -> Any:
        if self._passages is not None:
            return self._passages.select(list(names)).take(self.places(ids))
        found = self.table.take_row_ids(list(ids)).select(list(names)).with_row_id().to_arrow()
        place = {row: number for number, row in enumerate(found["_rowid"].to_pylist())}
        return found.take([place[row] for row in ids]).select(list(names))

    def _hits(self, query: Any, k: int, condition: str | None) -> Any:
        query = query.with_row_id(True)
        return (query.where(condition, prefilter=True) if condition else query).limit(k).to_arrow()

    def _matching(self, condition: str) -> NDArray[np.bool_]:
        query = self.table.search().where(condition).select(["id"]).with_row_id(True)
        allowed = np.zeros(len(self.ids), dtype=bool)
        allowed[self.places(query.limit(max(len(self.ids), 1)).to_arrow()["_rowid"].to_numpy())] = True
        return allowed


def _numbers(column: Any, titles: Sequence[str]) -> NDArray[np.int32]:
    """Return the position of each text among the titles, or -1 for a text that isn't a title."""
    place = {title: number for number, title in enumerate(titles)}
    coded = _chunk(column.combine_chunks().dictionary_encode())
    once = np.array([place.get(text, -1) for text in coded.dictionary.to_pylist()], dtype=np.int32)
    numbers: NDArray[np.int32] = once[coded.indices.to_numpy()]
    return numbers


def _chunk(column: Any) -> Any:
    import pyarrow as pa

    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column


def _ranked(rows: Sequence[int], scores: Sequence[float]) -> dict[int, float]:
    # Order ties by row, so that the same question always gives the same hits.
    return dict(sorted(zip(rows, scores, strict=True), key=lambda pair: (-pair[1], pair[0])))


@dataclass(frozen=True)
class Hit:
    """A passage that was found."""

    passage: IndexedPassage
    score: float
    """From the cross-encoder, reranker, fusion or a single method. Higher is better. Comparable only within one search
    """
    words: float | None  # BM25 score; None if BM25 didn't find the passage as a candidate
    meaning: float | None
    """The passage's cosine with the message or with its question, whichever is higher. None if the passage wasn't
    reranked (mode hybrid) or wasn't found by vectors (other modes).
    """


@dataclass(frozen=True)
class SearchResult:
    """The result of a search."""

    hits: tuple[Hit, ...]
    remarks: tuple[str, ...] = ()  # Remarks for the user, for example that the question was truncated
    nearest: float | None = None
    """The highest cosine among the `k` best passages; a cross-encoder doesn't change it"""


@dataclass(frozen=True)
class OpenedIndex:
    """One version of an index, opened for searching."""

    store: IndexStorage
    rows: Rows
    sources: tuple[str, ...]
    reranker: Reranker
    cross_encoder: CrossEncoder | None = None


def search(
    opened: OpenedIndex,
    encoder: SentenceEncoder,
    question: str,
    k: int = 10,
    *,
    mode: str = "hybrid",
    sources: Sequence[str] | None = None,
    since: str | None = None,
    until: str | None = None,
    per_document: int | None = 1,
) -> SearchResult:
    """Return the `k` best passages for a question.

    `mode` is hybrid (BM25 and vectors, reranked), fused (BM25 and vectors, not reranked), bm25 or vectors. `sources`
    and the dates `since` and `until` narrow the search. `per_document` is the maximum number of passages from one
    document (None: no limit).

    Raises DataError if the question is empty or not valid UTF-8, or an option is invalid.
    """
    if mode not in get_args(Mode):
        raise DataError(f"mode {mode!r} must be one of {', '.join(get_args(Mode))}.")
    for name, number in (("k", k), ("per_document", per_document)):
        if number is not None and not 1 <= number <= MAX_HITS:
            raise DataError(f"{name} is {number}; it must be from 1 to {MAX_HITS:,}.")
    query = build_query(question)
    where = row_filter(opened.sources, sources, since, until)
    if mode == "hybrid":
        compared = compare(opened, query, k, where, per_document)
        first = ranked = _reranked(opened, compared)
        if opened.cross_encoder:
            ranked = _cross_encoded(opened.cross_encoder, query, compared, ranked)
    else:
        first = ranked = _fused(opened, encoder, query.text, k, where, mode, per_document)
    with storage.readable(opened.store):
        ids = ranked.ids[:k]
        passages = opened.rows.passages(ids)
    hits = (
        Hit(passage, ranked.scores[row], ranked.words.get(row), ranked.meaning.get(row))
        for row, passage in zip(ids, passages, strict=True)
    )
    cosines = (first.meaning.get(row) for row in first.ids[:k])
    nearest = max((cosine for cosine in cosines if cosine is not None), default=None)
    return SearchResult(tuple(hits), query.remarks, nearest)


@dataclass(frozen=True)
class _Ranked:
    """Ranked rows, with their scores."""

    ids: list[int]
    scores: Ranking
    words: Ranking
    meaning: Ranking


@dataclass(frozen=True)
class ComparedPassages:
    """A message and its candidate passages, read for the reranker."""

    message: RerankQuery
    words: Ranking  # BM25 scores for the message
    ids: list[int]  # Ids of the candidates to rerank, the best by fusion first
    others: list[int]  # Ids of the candidates that aren't reranked
    passages: list[Passage]  # The passages of `ids`, in their order
    vectors: Vectors  # (ids, dimension)


def compare(
    opened: OpenedIndex, query: Query, k: int = 10, condition: str | None = None, per_document: int | None = 1
) -> ComparedPassages:
    """Return the candidates for a message. Its texts are embedded in one batch, and the candidates are read at once."""
    message = opened.reranker.prepare(query.message)
    rows, most = opened.rows, max(CANDIDATES, k)
    # The vector of the whole message and, if it differs, that of its question
    vectors = message.vectors[: 1 if message.focused.query == message.corrected else 2]
    texts = dict.fromkeys([message.corrected, message.expanded])
    with storage.readable(opened.store):
        searches = [partial(rows.by_words, text, most, condition) for text in texts]
        found = rows.run_parallel(
            [*searches, *(partial(rows.by_meaning, vector, most, condition) for vector in vectors)]
        )
        rankings = [[[row] for row in ranking] for ranking in found[: len(texts)]]
        titles = opened.reranker.title_vectors.nearest(vectors, most)
        for ranking, numbers in zip(found[len(texts) :], titles, strict=True):
            rankings += [[[row] for row in ranking], rows.of_titles(numbers, condition)]
        ids = _limited(list(reciprocal_rank(rankings)), rows, per_document)
        few = max(RERANKED, k)
        passages, passage_vectors = rows.titles_and_vectors(ids[:few])
    return ComparedPassages(message, found[0], ids[:few], ids[few:], passages, passage_vectors)


def _reranked(opened: OpenedIndex, compared: ComparedPassages) -> _Ranked:
    scores = opened.reranker.score(compared.message, compared.passages, compared.vectors)
    lowest = float(scores.min()) if len(scores) else 0.0
    # A long message is far from every passage, but its question isn't, so the higher cosine counts.
    cosines = (compared.vectors @ compared.message.vectors[:2].T).max(axis=1).tolist()
    return _Ranked(
        [*(compared.ids[place] for place in np.argsort(-scores, kind="stable")), *compared.others],
        dict(zip(compared.ids, scores.tolist(), strict=True)) | dict.fromkeys(compared.others, lowest),
        compared.words,
        dict(zip(compared.ids, cosines, strict=True)),
    )


def _cross_encoded(model: CrossEncoder, query: Query, compared: ComparedPassages, ranked: _Ranked) -> _Ranked:
    """Return the ranking with its best rows in the order of a cross-encoder's scores; the other rows follow."""
    best, others = ranked.ids[:CROSS_ENCODED], ranked.ids[CROSS_ENCODED:]
    texts = dict(zip(compared.ids, (f"{each.title}\n{each.text}" for each in compared.passages), strict=True))
    scores = dict(zip(best, model.scores(query.text, [texts[row] for row in best]).tolist(), strict=True))
    # Scores of the other rows keep their order below the lowest score.
    lowest = min(scores.values(), default=0.0) - max((ranked.scores[row] for row in others), default=0.0)
    return replace(
        ranked,
        ids=[*sorted(best, key=lambda row: -scores[row]), *others],
        scores=scores | {row: lowest + ranked.scores[row] for row in others},
    )


def _fused(
    opened: OpenedIndex,
    encoder: SentenceEncoder,
    text: str,
    k: int,
    condition: str | None,
    mode: str,
    per_document: int | None,
) -> _Ranked:
    """Return the ranking by BM25, by vectors, or by both combined."""
    rows, most = opened.rows, max(CANDIDATES, k)
    searches: dict[str, Callable[[], Ranking]] = {}
    if mode != "vectors":
        searches["words"] = partial(rows.by_words, text, most, condition)
    if mode != "bm25":
        searches["meaning"] = partial(rows.by_meaning, encoder.encode([text])[0], most, condition)
    with storage.readable(opened.store):
        found = rows.run_parallel(list(searches.values()))
    scores = found[0]
    if len(found) == 2:
        scores = reciprocal_rank(([[row] for row in ranking] for ranking in found), (1, MEANING_WEIGHT))
    parts = dict(zip(searches, found, strict=True))
    return _Ranked(_limited(list(scores), rows, per_document), scores, parts.get("words", {}), parts.get("meaning", {}))


def _limited(ids: list[int], rows: Rows, per_document: int | None) -> list[int]:
    """Return the ids in order, but only those of the first `per_document` rows of each document."""
    if per_document is None:
        return ids
    count: Counter[int] = Counter()
    kept_rows: list[int] = []
    for row, document in zip(ids, rows.documents[rows.places(ids)].tolist(), strict=True):
        count[document] += 1
        if count[document] <= per_document:
            kept_rows.append(row)
    return kept_rows
