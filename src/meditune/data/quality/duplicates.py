"""Rows that say the same as another, or nearly, and questions that are asked again."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from meditune.data.example import Example
from meditune.data.near_duplicates import Questions, same_facts, words
from meditune.data.quality import minhash
from meditune.data.quality.minhash import Hashes, SignedTexts, Texts
from meditune.data.splits import context_key, question_key
from meditune.progress import track

THRESHOLDS = (0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)
"""Where near duplicates are counted, to show what another choice would do."""


ANSWERS_ALIKE = 0.5
"""Least Jaccard index of the answers alone: a long question or context may not outweigh that these differ."""


Key = tuple[int, int]
"""A digest of 128 bits, so that no two different texts have the same"""
Keys = NDArray[np.uint64]
"""(rows, 2)"""
Sign = Callable[[Callable[[Texts], SignedTexts], Iterable[Texts]], Iterable[SignedTexts]]
"""Applies the function to each, in order, as `map` does; elsewhere, if it likes"""


@dataclass(frozen=True)
class Marks:
    """What is kept of a row to compare it, beside the row itself."""

    content: Key
    """Question, context, answer and decision, letter case and punctuation aside"""
    asked: Key
    """Question and context, so"""
    wording: Key
    """The question's words"""
    shingles: Hashes


class Rows(Protocol):
    """Rows to compare, wherever they are: what is kept of all, and each row when it is asked for."""

    contents: Keys
    wordings: Keys
    shingles: Sequence[Hashes]
    examples: Sequence[Example]

    def questions(self, rows: NDArray[np.int64]) -> Iterator[str]:
        """Those rows' questions."""
        ...


@dataclass(frozen=True, slots=True)
class Pair:
    """Two rows, as indices, of which the second says what the first says."""

    first: int
    again: int
    alike: float
    """Jaccard index of their words and word pairs; 1 for the same but for letter case and punctuation"""
    exact: bool = False


class InMemory:
    """Rows that are all here."""

    def __init__(self, examples: Sequence[Example]) -> None:
        made = [marks(example) for example in track(examples, "Comparing rows", unit="rows")]
        self.examples = examples
        self.shingles: Sequence[Hashes] = [each.shingles for each in made]
        self.contents, self.wordings = keys(each.content for each in made), keys(each.wording for each in made)

    def questions(self, rows: NDArray[np.int64]) -> Iterator[str]:
        """Those rows' questions."""
        return (self.examples[index].question for index in rows)


def pairs(examples: Sequence[Example]) -> list[Pair]:
    """Every pair of rows that say the same, or nearly (from the lowest of THRESHOLDS on), the earlier row first.

    Nearly the same say rows whose questions are light rewrites of each other, with the same decision, whose numbers and
    negations agree, and that share that part of their words and word pairs. Of rows that say exactly the same, each is
    paired with the first only, and only that one is compared with others.
    """
    return pairs_among(InMemory(examples))


def pairs_among(rows: Rows, sign: Sign = map, folder: Path | None = None) -> list[Pair]:
    """As `pairs`, of rows that needn't be in memory; `folder` takes unnamed files."""
    first = first_occurrences(rows.contents)
    alone = np.flatnonzero(first == np.arange(len(first)))
    found = [Pair(int(first[at]), int(at), 1.0, exact=True) for at in np.flatnonzero(first != np.arange(len(first)))]
    hashed = LazySelection(rows.shingles, alone)
    signed = sign(minhash.sign, minhash.texts_to_sign(hashed))
    likely = []
    near = minhash.near_duplicate_pairs(signed, len(alone), THRESHOLDS[0], folder)
    for one, two in track(near, "Comparing rows that look alike", unit="pairs"):
        alike = minhash.jaccard(hashed[one], hashed[two])
        if alike >= THRESHOLDS[0]:
            likely.append(Pair(int(alone[one]), int(alone[two]), alike))
    asked = Questions(
        _Questions(rows, alone[first_occurrences(rows.wordings[alone]) == np.arange(len(alone))]),
        ((rows.examples[pair.first].question, rows.examples[pair.again].question) for pair in likely),
    )
    found += [pair for pair in likely if _same(rows.examples[pair.first], rows.examples[pair.again], asked)]
    return sorted(found, key=lambda pair: (pair.again, pair.first))


def by_threshold(found: Sequence[Pair]) -> list[dict[str, Any]]:
    """How many pairs there are from each of THRESHOLDS on: {"alike", "pairs"}; exact ones aren't among them."""
    alike: NDArray[np.float64] = np.array([pair.alike for pair in found if not pair.exact])
    return [{"alike": each, "pairs": int((alike >= each).sum())} for each in THRESHOLDS]


def repeated_questions(examples: Sequence[Example]) -> list[tuple[int, int]]:
    """(first row, later row) of each question that is asked again about the same context, letter case and punctuation
    aside.
    """
    return repeated_questions_among(keys(_asked(example) for example in examples))


def repeated_questions_among(asked: Keys) -> list[tuple[int, int]]:
    """As `repeated`, of the rows' Marks.asked."""
    first = first_occurrences(asked)
    return [(int(first[at]), int(at)) for at in np.flatnonzero(first != np.arange(len(first)))]


def marks(example: Example) -> Marks:
    """What is kept of a row to compare it."""
    wording = _digest(*sorted(set(words(example.question))))
    return Marks(_content(example), _asked(example), wording, minhash.shingles(text_of(example)))


def keys(found: Iterable[Key]) -> Keys:
    """Digests as an array."""
    return np.array(list(found), np.uint64).reshape(-1, 2)


def first_occurrences(found: Keys) -> NDArray[np.int64]:
    """For each row the first one with the same key: itself, or an earlier one."""
    order = np.lexsort((found[:, 1], found[:, 0]))
    said = found[order]
    begins = np.ones(len(said), bool)
    begins[1:] = (said[1:] != said[:-1]).any(axis=1)
    first = np.empty(len(said), np.int64)
    first[order] = order[np.maximum.accumulate(np.where(begins, np.arange(len(said)), 0))]
    return first


class LazySelection(Sequence[Any]):
    """Some items of a sequence, in an order of their own, each fetched when it is asked for."""

    def __init__(self, items: Sequence[Any], chosen: NDArray[np.int64]) -> None:
        self._items, self._chosen = items, chosen

    def __len__(self) -> int:
        return len(self._chosen)

    def __getitem__(self, at: Any) -> Any:
        return self._items[int(self._chosen[at])]


@dataclass(frozen=True)
class _Questions:
    """The questions of some rows, as often as they are asked for."""

    rows: Rows
    chosen: NDArray[np.int64]

    def __iter__(self) -> Iterator[str]:
        return self.rows.questions(self.chosen)


def text_of(example: Example) -> str:
    """All that is compared of a row."""
    return " ".join([example.question, *(passage.text for passage in example.context), example.answer])


def _content(example: Example) -> Key:
    asked, answer = question_key(example.question), question_key(example.answer)
    return _digest(asked, context_key(example), answer, example.decision or "")


def _asked(example: Example) -> Key:
    return _digest(question_key(example.question), context_key(example))


def _digest(*texts: str) -> Key:
    made = hashlib.blake2b(digest_size=16)
    for text in texts:
        said = text.encode("utf-8", "surrogatepass")
        made.update(len(said).to_bytes(8, "little") + said)
    whole = int.from_bytes(made.digest(), "little")
    return whole >> 64, whole & 0xFFFFFFFFFFFFFFFF


def _same(one: Example, two: Example, asked: Questions) -> bool:
    """Whether they ask the same and answer the same, but for wording."""
    if one.decision != two.decision or bool(one.answer) != bool(two.answer):
        return False
    has_context = bool(one.context) and bool(two.context)
    if not asked.same(one.question, two.question, (_beside(one), _beside(two)), has_context):
        return False
    answers = [minhash.shingles(example.answer) for example in (one, two)]
    alike = minhash.jaccard(*answers) if one.answer else 1.0
    return alike >= ANSWERS_ALIKE and same_facts(one.answer, two.answer)


def _beside(example: Example) -> str:
    return f"{' '.join(passage.text for passage in example.context)} {example.answer}"
