"""Counts of a text, and what they say of the school years it takes to read it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TypeVar

from numpy import float64
from numpy.typing import NDArray

from meditune.readability.syllables import syllables
from meditune.text import sentences

T = TypeVar("T", float, NDArray[float64])

TARGET = (6.0, 8.0)
"""School grades that health texts for everyone should have (CDC and NIH advise grade 8 at most, the AMA 6)."""
_WORD = re.compile(r"[^\W_]+(?:[.,](?=\d)\d+|['’\-‐‑][^\W_]+)*")
_BULLET = re.compile(r"^\s*(?:[-*•·]|\(?\d{1,2}[.)])\s+")


@dataclass(frozen=True)
class Counts:
    """What the formulas need of a text."""

    sentences: int
    words: int
    syllables: int
    polysyllables: int
    """Words of three and more syllables"""

    @property
    def grade(self) -> float:
        """Flesch-Kincaid grade of this text; needs a word."""
        return flesch_kincaid(self.words, self.sentences, self.syllables)


def words(text: str) -> list[str]:
    """Words and numbers in reading order; "well-known", "don't" and "1,000" are one each."""
    return _WORD.findall(text)


def counted(text: str) -> Counts:
    """Counts of `text`. A line's end ends a sentence too, as in lists and headings; bullets are no words."""
    found = [words(sentence) for line in text.split("\n") for sentence in sentences(_BULLET.sub("", line))]
    found = [sentence for sentence in found if sentence]
    lengths = [syllables(word) for sentence in found for word in sentence]
    return Counts(len(found), len(lengths), sum(lengths), sum(length >= 3 for length in lengths))


def flesch_kincaid(words: float, sentences: float, syllables: float) -> float:
    """School grade (Kincaid, Fishburne, Rogers and Chissom 1975, Navy research branch report 8-75)."""
    return 0.39 * words / sentences + 11.8 * syllables / words - 15.59


def smog(polysyllables: T, sentences: T) -> T:
    """School grade of a reader who understands all of it (McLaughlin 1969, Journal of Reading 12(8):639-646)."""
    root: T = (30 * polysyllables / sentences) ** 0.5
    return 3.1291 + 1.0430 * root


def outside(grade: float) -> float:
    """School grades between `grade` and TARGET; 0 inside."""
    low, high = TARGET
    return max(low - grade, grade - high, 0.0)
