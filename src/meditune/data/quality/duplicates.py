"""Rows that say the same as another, or nearly, and questions that are asked again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from meditune.data.example import Example
from meditune.data.near import Questions, same_facts
from meditune.data.quality import minhash
from meditune.data.splits import context_key, question_key
from meditune.progress import track

THRESHOLDS = (0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)
"""Where near duplicates are counted, to show what another choice would do."""


ANSWERS_ALIKE = 0.5
"""Least Jaccard index of the answers alone: a long question or context may not outweigh that these differ."""


@dataclass(frozen=True)
class Pair:
    """Two rows, as indices, of which the second says what the first says."""

    first: int
    again: int
    alike: float
    """Jaccard index of their words and word pairs; 1 for the same but for letter case and punctuation"""
    exact: bool = False


def pairs(examples: Sequence[Example]) -> list[Pair]:
    """Every pair of rows that say the same, or nearly (from the lowest of THRESHOLDS on), the earlier row first.

    Nearly the same say rows whose questions are light rewrites of each other, with the same decision, whose numbers and
    negations agree, and that share that part of their words and word pairs. Of rows that say exactly the same, each is
    paired with the first only, and only that one is compared with others.
    """
    first: dict[tuple[str, ...], int] = {}
    found, alone = [], []
    for index, example in enumerate(examples):
        there = first.setdefault(_content(example), index)
        if there == index:
            alone.append(index)
        else:
            found.append(Pair(there, index, 1.0, exact=True))
    asked = Questions(examples[index].question for index in alone)
    hashed = [minhash.shingles(text_of(examples[index])) for index in track(alone, "Comparing rows", unit="rows")]
    for one, two in minhash.near(hashed, THRESHOLDS[0]):
        alike = minhash.jaccard(hashed[one], hashed[two])
        if alike >= THRESHOLDS[0] and _same(examples[alone[one]], examples[alone[two]], asked):
            found.append(Pair(alone[one], alone[two], alike))
    return sorted(found, key=lambda pair: (pair.again, pair.first))


def by_threshold(found: Sequence[Pair]) -> list[dict[str, Any]]:
    """How many pairs there are from each of THRESHOLDS on: {"alike", "pairs"}; exact ones aren't among them."""
    alike: NDArray[np.float64] = np.array([pair.alike for pair in found if not pair.exact])
    return [{"alike": each, "pairs": int((alike >= each).sum())} for each in THRESHOLDS]


def repeated(examples: Sequence[Example]) -> list[tuple[int, int]]:
    """(first row, later row) of each question that is asked again about the same context, letter case and punctuation
    aside.
    """
    seen: dict[tuple[str, str], int] = {}
    found = []
    for index, example in enumerate(examples):
        there = seen.setdefault((question_key(example.question), context_key(example)), index)
        if there != index:
            found.append((there, index))
    return found


def text_of(example: Example) -> str:
    """All that is compared of a row."""
    return " ".join([example.question, *(passage.text for passage in example.context), example.answer])


def _content(example: Example) -> tuple[str, ...]:
    asked, answer = question_key(example.question), question_key(example.answer)
    return asked, context_key(example), answer, example.decision or ""


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
