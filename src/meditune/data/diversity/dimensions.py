"""By what coverage is told: the dimensions, and an example's groups in each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from meditune.data.example import Example
from meditune.data.traits import PEOPLE, TRAITS, people, texts
from meditune.readability.grades import TARGET, counted

Groups = Callable[[Example], Sequence[str] | set[str]]
GRADES = ("below grade 6", "grade 6 to 8", "above 8, up to 12", "above 12, up to 16", "above grade 16")
"""The second is readability's TARGET, both ends included."""
LENGTHS = ((25, "up to 24 words"), (75, "25 to 74 words"), (150, "75 to 149 words"), (300, "150 to 299 words"))
LONGEST = "300 words and more"
SEMANTIC_TYPES = {
    "T019": "congenital abnormality",
    "T020": "acquired abnormality",
    "T033": "finding",
    "T037": "injury or poisoning",
    "T046": "pathologic function",
    "T047": "disease or syndrome",
    "T048": "mental or behavioural dysfunction",
    "T049": "cell or molecular dysfunction",
    "T184": "sign or symptom",
    "T190": "anatomical abnormality",
    "T191": "neoplastic process",
}
"""UMLS's semantic types among disorders (https://www.nlm.nih.gov/research/umls/META3_current_semantic_types.html)"""


@dataclass(frozen=True)
class Dimension:
    """One way to group examples."""

    name: str
    """Its key in diversity.json"""
    title: str
    groups: Groups
    kind: Literal["one", "several", "ordered"] = "one"
    """several: an example may be in more than one group; ordered: `order` says how they follow each other"""
    order: tuple[str, ...] = ()
    compared: bool = True
    """Whether train and test should be alike in it; foci and headings differ by design."""


def focus(example: Example) -> list[str]:
    """What the example is about by its source, in lower case; empty where the source doesn't say."""
    return [" ".join(text.casefold().split()) for text in texts(example.meta.get("focus")) if text.strip()]


@lru_cache(maxsize=65536)
def grade(answer: str) -> float | None:
    """Flesch-Kincaid grade of an answer; None where it has no word."""
    counts = counted(answer)
    return counts.grade if counts.words else None


def _grade(example: Example) -> list[str]:
    value = grade(example.answer)
    if value is None:
        return []
    low, high = TARGET
    return [GRADES[(value >= low) + (value > high) + (value > 12) + (value > 16)]]


def _length(example: Example) -> list[str]:
    count = len(example.answer.split())
    return [_band(count, LENGTHS, LONGEST)] if count else []


def _band(value: float, bands: Sequence[tuple[int, str]], last: str) -> str:
    return next((name for end, name in bands if value < end), last)


def _semantic(example: Example) -> list[str]:
    types = dict.fromkeys(texts(example.meta.get("semantic_type")))
    return [SEMANTIC_TYPES.get(each, each) for each in types]


def _names(bands: Sequence[tuple[int, str]], last: str) -> tuple[str, ...]:
    return (*(name for _, name in bands), last)


YEARS = ("before 2000", "2000 to 2004", "2005 to 2009", "2010 to 2014", "2015 and later")
QUESTION_LENGTHS = ("up to 8 words", "9 to 15 words", "16 to 30 words", "more than 30 words")
DIMENSIONS = (
    Dimension("source", "Source", TRAITS["source"]),
    Dimension("collection", "Part of the source", lambda example: texts(example.meta.get("collection"))),
    Dimension("decision", "Decision", TRAITS["reference decision"]),
    Dimension("question_type", "Question type", TRAITS["question type"], "several"),
    Dimension("focus", "Focus", focus, "several", compared=False),
    Dimension("mesh", "MeSH heading", lambda example: set(texts(example.meta.get("mesh"))), "several", compared=False),
    Dimension("subject", "Subject, by MeSH headings", TRAITS["subject"], "several"),
    Dimension("semantic_type", "Semantic type (UMLS)", _semantic, "several"),
    Dimension("people", "People mentioned", people, "several", PEOPLE),
    Dimension("year", "Year", TRAITS["year"], "ordered", YEARS),
    Dimension("reading_grade", "Reading grade of the answer", _grade, "ordered", GRADES),
    Dimension("answer_length", "Length of the answer", _length, "ordered", _names(LENGTHS, LONGEST)),
    Dimension("question_length", "Length of the question", TRAITS["question length"], "ordered", QUESTION_LENGTHS),
)
BY_NAME = {dimension.name: dimension for dimension in DIMENSIONS}
