"""Exact and near duplicates of rows, and repeated questions.

Near duplicates are found with MinHash signatures (Broder 1997, "On the resemblance and containment of documents") and
banding (Leskovec, Rajaraman & Ullman, "Mining of Massive Datasets", chapter 3). The hash functions are fixed, so all
processes compute the same signatures. Time and memory grow linearly with the number of rows, whatever the rows contain.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from meditune.data.example import Example
from meditune.data.near_duplicates import Questions, same_facts, words, words_and_signs
from meditune.progress import track

THRESHOLDS = (0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)
"""Similarity thresholds at which near duplicates are counted, to show the effect of other thresholds"""
MIN_ANSWER_SIMILARITY = 0.5
"""Minimum Jaccard index of the answers alone, because a long question or context could hide different answers"""

PERMUTATIONS = 126
ROWS = 3
"""Number of values in a band. With 42 bands, the probability that two texts share no band is 2 in 100 million for a
Jaccard index of 0.7, and 4 in 1,000 for a Jaccard index of 0.5"""
BANDS = PERMUTATIONS // ROWS
MIN_RARE_SHINGLES, ENOUGH_RARE_SHINGLES = 3, 8
"""A row with at least MIN_RARE_SHINGLES rare shingles is compared by its rare shingles. A row with fewer than
ENOUGH_RARE_SHINGLES is compared by all its shingles. A row between these limits is compared in both ways"""
COMMON, MOST_COMMON = 50, 250
"""A shingle is rare if at most one row in 400 contains it; this limit is clamped to the range COMMON to MOST_COMMON.
Other shingles come from templates that many rows fill in; comparing rows by these would give far too many pairs"""
TABLE_BITS = 22
"""Number of bits of an index into the table that counts shingles"""
TEXTS = 256

_GENERATOR = np.random.Generator(np.random.PCG64(20_171))
_FACTORS = _GENERATOR.integers(1, 2**63, PERMUTATIONS, dtype=np.uint64) | np.uint64(1)
_OFFSETS = _GENERATOR.integers(0, 2**63, PERMUTATIONS, dtype=np.uint64)
SLACK = 0.14
"""Three standard errors of a similarity estimated from 126 values. A pair is compared exactly unless its estimate is
further below the threshold than this"""
WINDOW = 50
"""In a bucket with more rows than this, each row is paired only with the bucket's first row and with this number of
following rows, because the number of all pairs grows quadratically. Similar rows also share many other buckets"""
BLOCK = 50_000

Hashes = NDArray[np.uint64]
Keys = NDArray[np.bytes_]
"""128-bit digests, for which collisions are practically impossible"""
Sign = Callable[[Callable[["Texts"], "SignedTexts"], Iterable["Texts"]], Iterable["SignedTexts"]]
"""Applies the function to each item in order, like `map`, possibly in other processes"""


class Marks(NamedTuple):
    """The digests and shingles by which a row is compared."""

    content: bytes
    """Digest of question, context, answer, decision and a conversation's other turns, without case and punctuation,
    but with signs such as <"""
    asked: bytes
    wording: bytes
    shingles: Hashes


class Rows(NamedTuple):
    """Rows to compare: all digests, plus shingles and examples, which can be loaded on access."""

    contents: Keys
    wordings: Keys
    shingles: Sequence[Hashes]
    examples: Sequence[Example]


@dataclass(frozen=True, slots=True)
class Pair:
    """The indices of two rows; the second row exactly or nearly duplicates the first."""

    first: int
    repeat: int
    alike: float
    """Jaccard index of the rows' words and word pairs; 1 if the rows differ only in letter case and punctuation"""
    exact: bool = False


def pairs(examples: Sequence[Example]) -> list[Pair]:
    """Return all pairs of exact or near duplicates, with the earlier row first in each pair.

    In near duplicates, the questions are light rewrites of each other; decisions, numbers and negations agree; and the
    similarity of words and word pairs is at least the lowest of THRESHOLDS. An exact duplicate is only paired with its
    first occurrence.
    """
    row_marks = [marks(example) for example in track(examples, "Comparing rows", unit="rows")]
    contents, wordings = (keys(getattr(each, name) for each in row_marks) for name in ("content", "wording"))
    return pairs_among(Rows(contents, wordings, [each.shingles for each in row_marks], examples))


def pairs_among(rows: Rows, sign: Sign = map, folder: Path | None = None) -> list[Pair]:
    """Return the same pairs as `pairs`, but for rows that needn't be in memory; temporary files are in `folder`."""
    examples, first = rows.examples, first_occurrences(rows.contents)
    is_first = first == np.arange(len(first))
    unique = np.flatnonzero(is_first)
    found = [Pair(int(first[at]), int(at), 1.0, exact=True) for at in np.flatnonzero(~is_first)]
    hashed = LazySelection(rows.shingles.__getitem__, unique)
    signed = sign(compute_signatures, texts_to_sign(hashed))
    likely = []
    near = near_duplicate_pairs(signed, len(unique), THRESHOLDS[0], folder)
    for one, two in track(near, "Comparing similar rows", unit="pairs"):
        alike = jaccard(hashed[one], hashed[two])
        if alike >= THRESHOLDS[0]:
            likely.append(Pair(int(unique[one]), int(unique[two]), alike))
    one_per_wording = unique[first_occurrences(rows.wordings[unique]) == np.arange(len(unique))]
    questions = Questions(
        LazySelection(lambda row: examples[row].user_text, one_per_wording),
        ((examples[pair.first].user_text, examples[pair.repeat].user_text) for pair in likely),
    )
    found += [pair for pair in likely if _same(examples[pair.first], examples[pair.repeat], questions)]
    return sorted(found, key=lambda pair: (pair.repeat, pair.first))


def by_threshold(pairs: Sequence[Pair]) -> list[dict[str, Any]]:
    """Return {"alike": threshold, "pairs": number of near-duplicate pairs} for each of THRESHOLDS."""
    alike: NDArray[np.float64] = np.array([pair.alike for pair in pairs if not pair.exact])
    return [{"alike": each, "pairs": int((alike >= each).sum())} for each in THRESHOLDS]


def repeated_questions(question_keys: Keys) -> list[tuple[int, int]]:
    """Return (first row, later row) for each repeated question about the same context; the keys are `asked_key`s."""
    first = first_occurrences(question_keys)
    return [(int(first[at]), int(at)) for at in np.flatnonzero(first != np.arange(len(first)))]


def marks(example: Example) -> Marks:
    """Return the digests and shingles by which a row is compared."""
    asked, context, answer = map(_content, (example.user_text, example.context_text, example.answer))
    return Marks(
        content=_digest(asked, context, answer, example.decision or example.label or "", *_others(example)),
        asked=asked_key(example),
        wording=_digest(*sorted(set(words(example.user_text)))),
        shingles=shingles(f"{example.user_text} {example.context_text} {example.answer}"),
    )


def asked_key(example: Example) -> bytes:
    """Return a digest of the question and context, without letter case and punctuation, but with signs such as <."""
    return _digest(_content(example.user_text), _content(example.context_text))


def _content(text: str) -> str:
    return " ".join(words_and_signs(text))


def keys(digests: Iterable[bytes]) -> Keys:
    """Return digests as an array."""
    return np.array(list(digests), "S16")


def first_occurrences(keys: Keys) -> NDArray[np.int64]:
    """Return, for each row, the index of the first row with the same key, which can be the row itself."""
    _, first, inverse = np.unique(keys, return_index=True, return_inverse=True)
    return first[inverse]


class LazySelection(Sequence[Any]):
    """A sequence of a function's results for the given row indices, each computed on access."""

    def __init__(self, fetch: Callable[[int], Any], rows: NDArray[np.int64]) -> None:
        self._fetch, self._rows = fetch, rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: Any) -> Any:
        return self._fetch(int(self._rows[index]))


def _others(example: Example) -> list[str]:
    """Return the system message and the earlier replies of a conversation, normalized."""
    return [_content(turn.text) for turn in example.turns or () if turn.role != "user"]


def _digest(*texts: str) -> bytes:
    digest = hashlib.blake2b(digest_size=16)
    for text in texts:
        encoded = text.encode("utf-8", "surrogatepass")
        digest.update(len(encoded).to_bytes(8, "little") + encoded)
    return digest.digest()


def _same(first: Example, second: Example, questions: Questions) -> bool:
    """Return True if the questions and the answers of two examples differ only slightly in wording."""
    if (first.decision, first.label) != (second.decision, second.label) or bool(first.answer) != bool(second.answer):
        return False
    if _others(first) != _others(second):
        return False
    texts = f"{first.context_text} {first.answer}", f"{second.context_text} {second.answer}"
    if not questions.same(first.user_text, second.user_text, texts, bool(first.context) and bool(second.context)):
        return False
    contexts = first.context_text, second.context_text
    if words(contexts[0]) == words(contexts[1]) and _content(contexts[0]) != _content(contexts[1]):
        return False  # only signs differ
    alike = jaccard(*(shingles(example.answer) for example in (first, second))) if first.answer else 1.0
    return (
        alike >= MIN_ANSWER_SIMILARITY
        and same_facts(first.answer, second.answer)
        and same_facts(first.user_text, second.user_text)
    )


def shingles(text: str) -> Hashes:
    """Return sorted unique hashes of the words and of the pairs of adjacent words."""
    single = np.array([_hash(word) for word in words(text)], dtype=np.uint64)
    pairs = _mixed(single[:-1] * np.uint64(0x9E3779B97F4A7C15) + single[1:])
    return np.unique(np.concatenate([single, pairs]))


def jaccard(first: Hashes, second: Hashes) -> float:
    """Return the Jaccard index of two sets of shingles; 0 for two empty texts."""
    shared = len(np.intersect1d(first, second, assume_unique=True))
    return shared / max(len(first) + len(second) - shared, 1)


class Texts(NamedTuple):
    """The shingles of several rows, concatenated so that they can be sent to another process as a few arrays."""

    kind: str
    members: NDArray[np.int64]
    joined: Hashes
    lengths: NDArray[np.int64]


class SignedTexts(NamedTuple):
    """Shortened signatures of several rows."""

    kind: str
    members: NDArray[np.int64]
    keys: Hashes
    """(rows, BANDS): a key for each band"""
    low_bits: NDArray[np.uint8]
    """(rows, PERMUTATIONS): the lowest eight bits of each value; unrelated values agree with a probability of 1/256"""


def compute_signatures(texts: Texts) -> SignedTexts:
    """Return shortened signatures; the fraction of values that two of them share estimates the texts' Jaccard index."""
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
    """Yield the shingles to compare, TEXTS rows at a time: only rare shingles ("own"), or all shingles ("all").

    Only rows with few rare shingles are compared by all their shingles. Otherwise, thousands of answers that fill in
    the same form would be compared with each other.
    """
    counts = np.zeros(1 << TABLE_BITS, np.int32)
    for row in rows:
        counts[_table_indices(row)] += 1  # a row's shingles are unique, but those that share a slot count once
    most = max(COMMON, min(MOST_COMMON, len(rows) // 400))
    waiting: dict[str, list[tuple[int, Hashes]]] = {"own": [], "all": []}

    def together(kind: str) -> Texts:
        members, some = zip(*waiting[kind], strict=True)
        waiting[kind] = []
        return Texts(kind, np.array(members, np.int64), np.concatenate(some), np.array(list(map(len, some))))

    for at, row in enumerate(rows):
        own = row[counts[_table_indices(row)] <= most]
        if len(own) >= MIN_RARE_SHINGLES:
            waiting["own"].append((at, own))
        if len(own) < ENOUGH_RARE_SHINGLES:
            waiting["all"].append((at, row))
        yield from (together(kind) for kind, some in waiting.items() if len(some) == TEXTS)
    yield from (together(kind) for kind, some in waiting.items() if some)


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


def near_duplicate_pairs(
    signed: Iterable[SignedTexts], rows: int, min_similarity: float, folder: Path | None = None
) -> NDArray[np.int64]:
    """Return a sorted array (pairs, 2) of rows that may be near duplicates; temporary files are in `folder`."""
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
    """The signatures of one kind: the bands are in files, the rest is in memory (134 bytes per row)."""

    def __init__(self, rows: int, folder: Path | None) -> None:
        self._size = 0
        self._members = np.empty(rows, np.int64)
        self._low = np.empty((rows, PERMUTATIONS), np.uint8)
        self._bands = [tempfile.TemporaryFile(dir=folder) for _ in range(BANDS)]  # noqa: SIM115 (closed in `candidates`)

    def add(self, texts: SignedTexts) -> None:
        """Add signatures, in the order of the rows."""
        place = slice(self._size, self._size + len(texts.members))
        self._members[place], self._low[place] = texts.members, texts.low_bits
        self._size = place.stop
        for band, stream in enumerate(self._bands):
            stream.write(texts.keys[:, band].tobytes())

    def candidates(self, min_similarity: float) -> NDArray[np.int64]:
        """Return the pairs of rows that share a band and may be similar.

        A pair is encoded as the first row times the number of rows, plus the second row.
        """
        count = np.int64(max(self._size, 1))
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
        pairs: NDArray[np.int64] = self._members[seen // count] * len(self._members) + self._members[seen % count]
        return pairs


def _within(keys: Hashes) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Yield arrays with up to BLOCK pairs of indices of equal keys; the smaller index comes first."""
    order = np.argsort(keys, kind="stable")
    keys = keys[order]
    starts = np.flatnonzero(np.append(True, keys[1:] != keys[:-1]))
    begins = np.repeat(starts, np.diff(np.append(starts, len(keys))))
    for step in range(1, WINDOW + 1):
        at = np.flatnonzero(keys[step:] == keys[:-step]) if len(keys) > step else starts[:0]
        if not len(at):
            return
        yield from zip(_blocks(order[at]), _blocks(order[at + step]), strict=True)
    far = np.flatnonzero(np.arange(len(keys)) - begins > WINDOW)
    yield from zip(_blocks(order[begins[far]]), _blocks(order[far]), strict=True)


def _blocks(values: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
    return (values[start : start + BLOCK] for start in range(0, len(values), BLOCK))
