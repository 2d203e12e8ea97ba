"""How far an answer's words are borne out by its sources, as far as that shows without a model.

A crude, deterministic stand-in for a reader: it sees which words, numbers, negations and directions are shared, not
what is meant. Answers that copy a source's sentence score 1; a true answer in other words scores less.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from statistics import fmean

from meditune.data.example import Passage
from meditune.data.preference.wording import DIRECTION, NEGATIVE, NUMBER, OPPOSITE, value
from meditune.text import sentences

_WORD = re.compile(r"[^\W\d_]+(?:[-'’][^\W\d_]+)*")
_SHORT = re.compile(r"(?:n['’]t|['’]\w+)$")
_ENDINGS = re.compile(r"(?<=\w{4})(?:ings?|ed|es|e|s|ly)$")
_FUNCTION_WORDS = (
    "about above after again against all also although among and another any are because been before being below "
    "between both but can cannot could did does down during each either even for from further had has have having "
    "her here him his how however if into its itself may might more most must neither nor not now off once only "
    "other our out over own same shall she should since some such than that the their them then there therefore "
    "these they this those through thus too under until upon very was well were what when where whether which while "
    "who whom whose why will with within without would you your"
)
_MEANINGLESS = frozenset(_FUNCTION_WORDS.split())
MATCH = 0.6
"""A source's sentence says the same as one of the answer's, or its opposite, where it has this share of its words."""
NEAR = 0.3
"""... and may be where a number comes from, where it has this one."""


@dataclass(frozen=True)
class Faithfulness:
    """Three shares from 0 to 1, each None where the answer offers nothing to judge."""

    numbers: float | None
    """Of the answer's numbers, those whose value is in a source's sentence with NEAR of their sentence's words"""
    words: float | None
    """Of its different content words, those that are in the sources, endings aside"""
    agreement: float | None
    """Of its sentences of which a source's sentence has MATCH of the words, those it neither denies nor turns round"""

    @property
    def score(self) -> float:
        """Mean of the shares that there are; 0 without any."""
        return fmean([share for share in (self.numbers, self.words, self.agreement) if share is not None] or [0.0])


def faithfulness(answer: str, sources: Iterable[Passage]) -> Faithfulness:
    """What of the answer the sources bear out."""
    theirs = [_Sentence(text) for passage in sources for text in sentences(passage.text)]
    mine = [_Sentence(text) for text in sentences(answer)]
    numbers = [found for each in mine for found in each.numbers_in(theirs)]
    words = frozenset[str]().union(*(each.words for each in mine))
    known = frozenset[str]().union(*(each.words for each in theirs))
    agreed = [agrees for each in mine if (agrees := each.agrees_with(theirs)) is not None]
    return Faithfulness(
        numbers=fmean(numbers) if numbers else None,
        words=len(words & known) / len(words) if words else None,
        agreement=fmean(agreed) if agreed else None,
    )


class _Sentence:
    """What of a sentence is compared."""

    def __init__(self, text: str) -> None:
        self.words = _content(text)
        self.numbers = [value(number) for number in NUMBER.findall(text)]
        self.negative = len(NEGATIVE.findall(text)) % 2 == 1
        found = {word.lower() for word in DIRECTION.findall(text)}
        self.directions = {_stem(word) for word in found}
        self.opposites = {_stem(OPPOSITE[word]) for word in found}

    def share_in(self, other: _Sentence) -> float:
        """The share of these words that the other sentence has."""
        return len(self.words & other.words) / len(self.words) if self.words else 0.0

    def numbers_in(self, theirs: Iterable[_Sentence]) -> list[bool]:
        """Of each number, whether a source's sentence that says something like this has it."""
        known = {number for each in theirs if self.share_in(each) >= NEAR for number in each.numbers}
        return [number in known for number in self.numbers]

    def agrees_with(self, theirs: Iterable[_Sentence]) -> bool | None:
        """Whether the source's sentence that has most of these words says the same; None where it has too few."""
        best = max(theirs, key=self.share_in, default=None)
        if best is None or self.share_in(best) < MATCH:
            return None
        turned = (self.opposites & best.directions) - (self.directions & best.directions)
        return self.negative == best.negative and not turned


def _content(text: str) -> frozenset[str]:
    """Stems of its words of three letters or more that mean something by themselves."""
    words = (_SHORT.sub("", word.lower()) for word in _WORD.findall(text))
    return frozenset(_stem(word) for word in words if len(word) > 2 and word not in _MEANINGLESS)


def _stem(word: str) -> str:
    return _ENDINGS.sub("", word)
