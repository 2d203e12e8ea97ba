"""Fixed-size signatures of texts, from which pairs that share many words in a row are found without comparing all.

MinHash: Broder 1997, "On the resemblance and containment of documents"; banding: Leskovec, Rajaraman & Ullman, "Mining
of Massive Datasets", chapter 3. Hashes don't depend on the process or on other texts, so signatures that were made in
several places can be put together.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from meditune.data.near import words

Hashes = NDArray[np.uint64]
Signatures = NDArray[np.uint32]

PERMUTATIONS = 126
ROWS = 3
"""Values in a band: with 42 bands, two texts of Jaccard index 0.7 share one in all but one of ten million cases, of 0.5
in all but 4 of 1,000."""
SLACK = 0.14
"""Three standard errors of an estimate from 126 values: pairs that look so much less alike aren't compared exactly."""
COMMON = 50
"""A shingle that more rows have belongs to a form that they fill."""
LEAST_OWN, ENOUGH_OWN = 3, 8
"""Shingles of its own that a row needs to be compared by them, and from which on that is enough."""
SLOTS = 22
"""Bits of the table in which shingles are counted."""
BLOCK = 200_000
"""Pairs looked at together."""
TEXTS = 256
"""Texts whose signatures are made together."""

_GENERATOR = np.random.Generator(np.random.PCG64(20_171))
_FACTORS = _GENERATOR.integers(1, 2**63, PERMUTATIONS, dtype=np.uint64) | np.uint64(1)
_OFFSETS = _GENERATOR.integers(0, 2**63, PERMUTATIONS, dtype=np.uint64)


def shingles(text: str) -> Hashes:
    """Hashes of the words, and of the pairs of words that stand beside each other, each once, in order of size.

    Pairs tell in which order words stand; with words beside them, one that is replaced costs less in a short text.
    """
    said = np.array([_hash(word) for word in words(text)], dtype=np.uint64)
    return np.unique(np.concatenate([said, _mixed(said[:-1] * np.uint64(0x9E3779B97F4A7C15) + said[1:])]))


def near(rows: Sequence[Hashes], least: float) -> Iterator[tuple[int, int]]:
    """Pairs of rows, the smaller first, whose Jaccard index may be `least` or more; each pair once.

    Rows are compared by the shingles that few of them have, because thousands that answer from one form ("The Human
    Phenotype Ontology provides the following list ...") would else all be compared with each other. Rows with hardly
    any of their own are also compared by all they have.
    """
    counts = np.zeros(1 << SLOTS, np.int64)
    slots = [(row >> np.uint64(64 - SLOTS)).astype(np.int64) for row in rows]
    for slot in slots:
        counts[slot] += 1  # each shingle of a row comes once; two in one slot count as one
    most = max(COMMON, len(rows) // 400)
    own = [row[counts[slot] <= most] for row, slot in zip(rows, slots, strict=True)]
    by_own = np.array([at for at, row in enumerate(own) if len(row) >= LEAST_OWN], np.int64)
    by_all = np.array([at for at, row in enumerate(own) if len(row) < ENOUGH_OWN], np.int64)
    seen: set[tuple[int, int]] = set()
    for members, used in ((by_own, own), (by_all, rows)):
        made = signatures([used[at] for at in members])
        for block in candidates(made, least):
            new = {(int(one), int(two)) for one, two in members[block]} - seen
            seen |= new
            yield from sorted(new)


def signatures(rows: Sequence[Hashes]) -> Signatures:
    """(texts, PERMUTATIONS) of the least hashes under each permutation; two texts agree in about as large a share of a
    row as their Jaccard index. A text without words gets the largest numbers.
    """
    made = np.full((len(rows), PERMUTATIONS), np.iinfo(np.uint32).max, dtype=np.uint32)
    for start in range(0, len(rows), TEXTS):
        some = [(start + at, row) for at, row in enumerate(rows[start : start + TEXTS]) if len(row)]
        if not some:
            continue
        starts = np.cumsum([0, *(len(row) for _, row in some)])[:-1]
        everything = np.concatenate([row for _, row in some])
        places = [place for place, _ in some]
        for column in range(PERMUTATIONS):
            hashed = ((everything * _FACTORS[column] + _OFFSETS[column]) >> np.uint64(32)).astype(np.uint32)
            made[places, column] = np.minimum.reduceat(hashed, starts)
    return made


def candidates(made: Signatures, least: float) -> Iterator[NDArray[np.int64]]:
    """(pairs, 2) of rows, the smaller first, that share a band and look about as alike as `least`; each pair once."""
    seen = np.empty(0, np.int64)
    count = np.int64(len(made))
    for start in range(0, PERMUTATIONS, ROWS):
        band = made[:, start : start + ROWS].astype(np.uint64)
        keys = _mixed((band[:, 0] << np.uint64(32) | band[:, 1]) ^ _mixed(band[:, 2]))
        found = []
        for pairs in _within_buckets(keys):
            agreed = (made[pairs[:, 0]] == made[pairs[:, 1]]).mean(axis=1)
            near = pairs[agreed >= least - SLACK]
            found.append(near[:, 0] * count + near[:, 1])
        new = np.setdiff1d(np.concatenate(found), seen) if found else np.empty(0, np.int64)
        seen = np.union1d(seen, new)
        for at in range(0, len(new), BLOCK):
            numbers = new[at : at + BLOCK]
            yield np.stack([numbers // count, numbers % count], axis=1)


def jaccard(first: Hashes, second: Hashes) -> float:
    """Shared shingles as a share of all; 0 for two empty texts."""
    shared = len(np.intersect1d(first, second, assume_unique=True))
    return shared / max(len(first) + len(second) - shared, 1)


def _within_buckets(keys: Hashes) -> Iterator[NDArray[np.int64]]:
    """Pairs of rows with the same key, the smaller first, at most about BLOCK at a time."""
    order = np.argsort(keys, kind="stable")
    said = keys[order]
    ends = np.flatnonzero(np.append(said[1:] != said[:-1], True)) + 1
    starts = np.append(0, ends[:-1])
    waiting, size = [], 0
    for start, end in zip(starts[ends - starts > 1], ends[ends - starts > 1], strict=True):
        members = order[start:end]
        for at in range(len(members) - 1):
            waiting.append(np.stack([np.full(len(members) - at - 1, members[at]), members[at + 1 :]], axis=1))
            size += len(members) - at - 1
            if size >= BLOCK:
                yield np.concatenate(waiting)
                waiting, size = [], 0
    if waiting:
        yield np.concatenate(waiting)


@lru_cache(maxsize=1 << 20)
def _hash(word: str) -> int:
    return int.from_bytes(hashlib.blake2b(word.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


def _mixed(values: Hashes) -> Hashes:
    """Every bit of each value spread over all (the finalizer of MurmurHash3)."""
    values = values ^ (values >> np.uint64(33))
    values = values * np.uint64(0xFF51AFD7ED558CCD)
    values = values ^ (values >> np.uint64(33))
    values = values * np.uint64(0xC4CEB9FE1A85EC53)
    return values ^ (values >> np.uint64(33))
