"""MinHash signatures of texts, and the search for near-duplicate pairs without comparing all pairs.

MinHash: Broder 1997, "On the resemblance and containment of documents"; banding: Leskovec, Rajaraman & Ullman, "Mining
of Massive Datasets", chapter 3. Hashes don't depend on the process or on other texts, so signatures from several
processes can be combined. Candidates are pairs of rows whose signatures share a band; time and memory grow linearly
with the number of rows, whatever their content.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from meditune.data.near_duplicates import words

Hashes = NDArray[np.uint64]

PERMUTATIONS = 126
ROWS = 3
"""Values in a band: with 42 bands, two texts with Jaccard index 0.7 share no band in one of ten million cases, with 0.5
in 4 of 1,000"""
BANDS = PERMUTATIONS // ROWS
MIN_RARE_SHINGLES, ENOUGH_RARE_SHINGLES = 3, 8
"""Rare shingles that a row needs to be compared by them at all, and to be compared by them only"""
COMMON, MOST_COMMON = 50, 250
"""A shingle in more rows belongs to a form that these rows fill in: the limit is one row in 400, between these two
values. Without it, the pairs of rows from one form would grow with the square of the rows"""
TABLE_BITS = 22
"""Bits of the index of the table that counts shingles"""
TEXTS = 256
"""Number of texts signed at a time"""

_GENERATOR = np.random.Generator(np.random.PCG64(20_171))
_FACTORS = _GENERATOR.integers(1, 2**63, PERMUTATIONS, dtype=np.uint64) | np.uint64(1)
_OFFSETS = _GENERATOR.integers(0, 2**63, PERMUTATIONS, dtype=np.uint64)


def shingles(text: str) -> Hashes:
    """Return sorted unique hashes of the words and of the pairs of adjacent words.

    Pairs capture word order; single words reduce the effect of one replaced word in a short text.
    """
    single = np.array([_hash(word) for word in words(text)], dtype=np.uint64)
    pairs = _mixed(single[:-1] * np.uint64(0x9E3779B97F4A7C15) + single[1:])
    return np.unique(np.concatenate([single, pairs]))


def jaccard(first: Hashes, second: Hashes) -> float:
    """Return the Jaccard index of two sets of shingles; 0 for two empty texts."""
    shared = len(np.intersect1d(first, second, assume_unique=True))
    return shared / max(len(first) + len(second) - shared, 1)


@dataclass(frozen=True)
class Texts:
    """The concatenated shingles of some rows, which can be sent to other processes as a few arrays."""

    kind: str
    members: NDArray[np.int64]
    """Indices of the rows"""
    joined: Hashes
    lengths: NDArray[np.int64]


@dataclass(frozen=True)
class SignedTexts:
    """Shortened signatures of some rows."""

    kind: str
    members: NDArray[np.int64]
    keys: Hashes
    """(rows, BANDS): a key for each band"""
    low_bits: NDArray[np.uint8]
    """(rows, PERMUTATIONS): the last eight bits of each value; unrelated values agree in one of 256 cases"""


def compute_signatures(texts: Texts) -> SignedTexts:
    """Return the shortened signatures of some rows.

    A signature is the smallest hash under each permutation; the share of equal values of two texts estimates their
    Jaccard index. A text without words gets the largest values.
    """
    signatures = np.full((len(texts.lengths), PERMUTATIONS), np.iinfo(np.uint32).max, dtype=np.uint32)
    filled = np.flatnonzero(texts.lengths)
    starts = np.cumsum([0, *texts.lengths[filled]])[:-1]
    for column in range(PERMUTATIONS if len(filled) else 0):
        hashed = ((texts.joined * _FACTORS[column] + _OFFSETS[column]) >> np.uint64(32)).astype(np.uint32)
        signatures[filled, column] = np.minimum.reduceat(hashed, starts)
    bands = signatures.reshape(len(signatures), BANDS, ROWS).astype(np.uint64)
    keys = _mixed((bands[:, :, 0] << np.uint64(32) | bands[:, :, 1]) ^ _mixed(bands[:, :, 2]))
    return SignedTexts(texts.kind, texts.members, keys, signatures.astype(np.uint8))


def texts_to_sign(rows: Sequence[Hashes]) -> Iterator[Texts]:
    """Yield the shingles for comparison, TEXTS rows at a time, of kind "own" or "all" (some rows are in both).

    Rows are compared by rare shingles ("own"); otherwise, thousands of answers from one form ("The Human Phenotype
    Ontology provides the following list ...") would all be compared with each other. Rows with few rare shingles are
    also compared by all their shingles.
    """
    counts = np.zeros(1 << TABLE_BITS, np.int32)
    for row in rows:
        counts[_table_indices(row)] += 1  # shingles of a row are unique; two in one slot count as one
    most = max(COMMON, min(MOST_COMMON, len(rows) // 400))
    waiting: dict[str, list[tuple[int, Hashes]]] = {"own": [], "all": []}
    for at, row in enumerate(rows):
        own = row[counts[_table_indices(row)] <= most]
        if len(own) >= MIN_RARE_SHINGLES:
            waiting["own"].append((at, own))
        if len(own) < ENOUGH_RARE_SHINGLES:
            waiting["all"].append((at, row))
        for kind, some in waiting.items():
            if len(some) == TEXTS:
                yield _together(kind, some)
                waiting[kind] = []
    yield from (_together(kind, some) for kind, some in waiting.items() if some)


def _together(kind: str, rows: list[tuple[int, Hashes]]) -> Texts:
    members = np.array([at for at, _ in rows], np.int64)
    return Texts(kind, members, np.concatenate([row for _, row in rows]), np.array([len(row) for _, row in rows]))


def _table_indices(row: Hashes) -> NDArray[np.int64]:
    return (row >> np.uint64(64 - TABLE_BITS)).astype(np.int64)


@lru_cache(maxsize=1 << 20)
def _hash(word: str) -> int:
    return int.from_bytes(hashlib.blake2b(word.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


def _mixed(values: Hashes) -> Hashes:
    """Return the values with their bits mixed (the finalizer of MurmurHash3)."""
    values = values ^ (values >> np.uint64(33))
    values = values * np.uint64(0xFF51AFD7ED558CCD)
    values = values ^ (values >> np.uint64(33))
    values = values * np.uint64(0xC4CEB9FE1A85EC53)
    return values ^ (values >> np.uint64(33))


SLACK = 0.14
"""Three standard errors of an estimate from 126 values: pairs that are less similar by more aren't compared exactly"""
WINDOW = 50
"""In a larger bucket, each row is paired with the first row and with this number of following rows only, because the
pairs would grow with the square of the rows. Similar rows share many other buckets"""
BLOCK = 50_000
"""Number of pairs compared at a time"""


def near_duplicate_pairs(
    signed: Iterable[SignedTexts], rows: int, min_similarity: float, folder: Path | None = None
) -> NDArray[np.int64]:
    """Return sorted unique (pairs, 2) of row indices, the smaller first, which may be near duplicates.

    Their Jaccard index may be at least `min_similarity`. `rows` is the number of rows. Bands are stored in
    unnamed files in `folder` or in the folder for temporary files.
    """
    tables: dict[str, _Table] = {}
    for some in signed:
        if some.kind not in tables:
            tables[some.kind] = _Table(rows, folder)
        tables[some.kind].add(some)
    found = np.unique(
        np.concatenate([np.empty(0, np.int64), *(table.candidates(min_similarity) for table in tables.values())])
    )
    return np.stack(np.divmod(found, max(rows, 1)), axis=1)


class _Table:
    """Signatures of one kind: bands in files, the rest in memory (134 bytes per row)."""

    def __init__(self, rows: int, folder: Path | None) -> None:
        self.size = 0
        self.members = np.empty(rows, np.int64)
        self._low = np.empty((rows, PERMUTATIONS), np.uint8)
        self._bands = [tempfile.TemporaryFile(dir=folder) for _ in range(BANDS)]  # noqa: SIM115 (closed in `candidates`)

    def add(self, texts: SignedTexts) -> None:
        """Add rows in order."""
        place = slice(self.size, self.size + len(texts.members))
        self.members[place], self._low[place] = texts.members, texts.low_bits
        self.size = place.stop
        for band, stream in enumerate(self._bands):
            stream.write(texts.keys[:, band].tobytes())

    def candidates(self, min_similarity: float) -> NDArray[np.int64]:
        """Return the pairs of rows that share a band and have an estimated similarity of about `min_similarity`.

        A pair is one number: the first row times the number of rows, plus the second.
        """
        count = np.int64(max(self.size, 1))
        seen = np.empty(0, np.int64)
        for stream in self._bands:
            with stream:
                stream.seek(0)
                keys = np.frombuffer(stream.read(), np.uint64)
            found = [seen]
            for one, two in _within(keys):
                agreed = (self._low[one] == self._low[two]).mean(axis=1) >= min_similarity - SLACK
                found.append(one[agreed] * count + two[agreed])
            seen = np.unique(np.concatenate(found))
        pairs: NDArray[np.int64] = self.members[seen // count] * len(self.members) + self.members[seen % count]
        return pairs


def _within(keys: Hashes) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Yield pairs of places with the same key, the smaller first, up to BLOCK at a time."""
    order = np.argsort(keys, kind="stable")
    keys = keys[order]
    starts = np.flatnonzero(np.append(True, keys[1:] != keys[:-1]))
    begins = np.repeat(starts, np.diff(np.append(starts, len(keys))))
    for step in range(1, WINDOW + 1):
        at = np.flatnonzero(keys[step:] == keys[:-step]) if len(keys) > step else starts[:0]
        if not len(at):
            return
        yield from _blocks(order[at], order[at + step])
    far = np.flatnonzero(np.arange(len(keys)) - begins > WINDOW)
    yield from _blocks(order[begins[far]], order[far])


def _blocks(
    first: NDArray[np.int64], second: NDArray[np.int64]
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    for start in range(0, len(first), BLOCK):
        yield first[start : start + BLOCK], second[start : start + BLOCK]
