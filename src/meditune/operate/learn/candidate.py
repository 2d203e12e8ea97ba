"""What may be sent to experts: an answer that was given, or a row that nobody has labelled yet."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from meditune.data.example import Example
from meditune.data.splits import context_key, question_key
from meditune.errors import DataError


class NothingToAskError(DataError):
    """No question is there, all are known or were asked before, or none has what is looked for. Nothing is wrong."""


Origin = Literal["answer", "row"]
Chances = Mapping[str, float]
"""Probability of each decision: of yes, no and maybe, or of other labels, the same for all opinions on a candidate"""


@dataclass(frozen=True)
class Word:
    """What a user said of an answer. Texts are masked."""

    rating: str
    """up or down"""
    reasons: tuple[str, ...] = ()
    comment: str = ""
    correction: str = ""


@dataclass(frozen=True)
class Candidate:
    """One question with what is known of how well it is answered. Only `example` must be there."""

    example: Example
    """What an expert is shown; its answer and decision may be missing"""
    origin: Origin = "row"
    outcome: str = ""
    """answered, abstained, escalated, declined"""
    sentences: int | None = None
    """Those that the model wrote"""
    supported: int | None = None
    """Those of them that passages bear out"""
    opinions: Mapping[str, Chances] = field(default_factory=dict)
    """Whose decision (served, base, tuned ...) -> how likely each was to it; the first one counts most"""
    samples: tuple[str, ...] = ()
    """Answers that a model wrote by chance"""
    words: tuple[Word, ...] = ()
    asked: int = 1
    """How often the question came"""

    @property
    def id(self) -> str:
        """The example's."""
        return self.example.id


def merged(candidates: Iterable[Candidate]) -> list[Candidate]:
    """One candidate for all that ask the same: the latest that users spoke of, else the latest.

    Rows ask the same where their context is the same, too. What users said of another answer doesn't count.
    """
    found: dict[tuple[str, str], Candidate] = {}
    counts: Counter[tuple[str, str]] = Counter()
    for each in candidates:
        key = question_key(each.example.question), "" if each.origin == "answer" else context_key(each.example)
        counts[key] += each.asked
        if key not in found or each.words or not found[key].words:
            found[key] = each
    return [replace(each, asked=counts[key]) for key, each in found.items()]
