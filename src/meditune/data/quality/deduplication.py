"""Exact and near duplicates of rows, and repeated questions."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from meditune.data.example import Example
from meditune.data.near_duplicates import Questions, same_facts, words
from meditune.data.quality import minhash
from meditune.data.quality.minhash import Hashes, SignedTexts, Texts
from meditune.data.splits import context_key, question_key
from meditune.progress import track

THRESHOLDS = (0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)
"""Thresholds at which near duplicates are counted, to show the effect of another choice"""
MIN_ANSWER_SIMILARITY = 0.5
"""Least Jaccard index of the answers alone: a long question or context must not hide different answers"""

Key = tuple[int, int]
"""A digest of 128 bits, so that collisions are practically impossible"""
Keys = NDArray[np.uint64]
"""(rows, 2)"""
Sign = Callable[[Callable[[Texts], SignedTexts], Iterable[Texts]], Iterable[SignedTexts]]
"""Applies the function to each item in order, like `map`, possibly in other processes"""


@dataclass(frozen=True)
class Marks:
    """The digests and shingles by which a row is compared."""

    content: Key
    """Question, context, answer, decision and a conversation's other turns, without letter case and punctuation"""
    asked: Key
    """Question and context, normalized in the same way"""
    wording: Key
    """The set of the question's words"""
    shingles: Hashes


@dataclass(frozen=True)
class Rows:
    """Rows to compare, in memory or on disk: the marks of all rows, and single rows on access."""

    contents: Keys
    wordings: Keys
    shingles: Sequence[Hashes]
    examples: Sequence[Example]


@dataclass(frozen=True, slots=True)
class Pair:
    """Two rows, as indices, of which the second (nearly) duplicates the first."""

    first: int
    repeat: int
    alike: float
    """Jaccard index of their words and word pairs; 1 if they differ only in letter case and punctuation"""
    exact: bool = False


def pairs(examples: Sequence[Example]) -> list[Pair]:
    """Return all pairs of exact or near duplicates (from the lowest of THRESHOLDS on), the earlier row first.

    In near duplicates, the questions are light rewrites of each other, decisions, numbers and negations agree, and the
    rows share enough of their words and word pairs. Exact duplicates are only paired with their first occurrence, and
    only that one is compared with other rows.
    """
    row_marks = [marks(example) for example in track(examples, "Comparing rows", unit="rows")]
    contents, wordings = (keys(getattr(each, name) for each in row_marks) for name in ("content", "wording"))
    return pairs_among(Rows(contents, wordings, [each.shingles for each in row_marks], examples))


def pairs_among(rows: Rows, sign: Sign = map, folder: Path | None = None) -> list[Pair]:
    """Return the same as `pairs`, for rows that needn't be in memory; unnamed files are created in `folder`."""
    examples, first = rows.examples, first_occurrences(rows.contents)
    is_first = first == np.arange(len(first))
    unique = np.flatnonzero(is_first)
    found = [Pair(int(first[at]), int(at), 1.0, exact=True) for at in np.flatnonzero(~is_first)]
    hashed = LazySelection(rows.shingles.__getitem__, unique)
    signed = sign(minhash.compute_signatures, minhash.texts_to_sign(hashed))
    likely = []
    near = minhash.near_duplicate_pairs(signed, len(unique), THRESHOLDS[0], folder)
    for one, two in track(near, "Comparing similar rows", unit="pairs"):
        alike = minhash.jaccard(hashed[one], hashed[two])
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
    """Return the number of near-duplicate pairs at each of THRESHOLDS, {"alike", "pairs"}, without exact duplicates."""
    alike: NDArray[np.float64] = np.array([pair.alike for pair in pairs if not pair.exact])
    return [{"alike": each, "pairs": int((alike >= each).sum())} for each in THRESHOLDS]


def repeated_questions(examples: Sequence[Example]) -> list[tuple[int, int]]:
    """Return (first row, later row) of each repeated question about the same context.

    Letter case and punctuation are ignored.
    """
    return repeated_questions_among(keys(_asked(example) for example in examples))


def repeated_questions_among(question_keys: Keys) -> list[tuple[int, int]]:
    """Return the same as `repeated_questions`, from the rows' Marks.asked."""
    first = first_occurrences(question_keys)
    return [(int(first[at]), int(at)) for at in np.flatnonzero(first != np.arange(len(first)))]


def marks(example: Example) -> Marks:
    """Return the digests and shingles by which a row is compared."""
    wording = _digest(*sorted(set(words(example.user_text))))
    text = f"{example.user_text} {example.context_text} {example.answer}"
    return Marks(_content(example), _asked(example), wording, minhash.shingles(text))


def keys(digests: Iterable[Key]) -> Keys:
    """Return digests as an array."""
    return np.array(list(digests), np.uint64).reshape(-1, 2)


def first_occurrences(keys: Keys) -> NDArray[np.int64]:
    """Return, for each row, the first row with the same key: itself or an earlier one."""
    order = np.lexsort((keys[:, 1], keys[:, 0]))
    ordered = keys[order]
    begins = np.ones(len(ordered), bool)
    begins[1:] = (ordered[1:] != ordered[:-1]).any(axis=1)
    first = np.empty(len(ordered), np.int64)
    first[order] = order[np.maximum.accumulate(np.where(begins, np.arange(len(ordered)), 0))]
    return first


class LazySelection(Sequence[Any]):
    """The results of a function for some rows in a given order, each computed on access."""

    def __init__(self, fetch: Callable[[int], Any], rows: NDArray[np.int64]) -> None:
        self._fetch, self._rows = fetch, rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: Any) -> Any:
        return self._fetch(int(self._rows[index]))


def _content(example: Example) -> Key:
    asked, answer = question_key(example.user_text), question_key(example.answer)
    return _digest(asked, context_key(example), answer, example.decision or example.label or "", *_others(example))


def _others(example: Example) -> list[str]:
    """Return the system message and the earlier replies of a conversation, normalized."""
    return [question_key(turn.text) for turn in example.turns or () if turn.role != "user"]


def _asked(example: Example) -> Key:
    return _digest(question_key(example.user_text), context_key(example))


def _digest(*texts: str) -> Key:
    digest = hashlib.blake2b(digest_size=16)
    for text in texts:
        encoded = text.encode("utf-8", "surrogatepass")
        digest.update(len(encoded).to_bytes(8, "little") + encoded)
    low, high = struct.unpack("<QQ", digest.digest())
    return high, low


def _same(first: Example, second: Example, questions: Questions) -> bool:
    """Return True if questions and answers are the same except for wording."""
    if (first.decision, first.label) != (second.decision, second.label) or bool(first.answer) != bool(second.answer):
        return False
    if _others(first) != _others(second):
        return False
    texts = f"{first.context_text} {first.answer}", f"{second.context_text} {second.answer}"
    if not questions.same(first.user_text, second.user_text, texts, bool(first.context) and bool(second.context)):
        return False
    alike = minhash.jaccard(*(minhash.shingles(example.answer) for example in (first, second))) if first.answer else 1.0
    return alike >= MIN_ANSWER_SIMILARITY and same_facts(first.answer, second.answer)
