"""What is watched, by name: from which part of a request each figure comes, and how it is told.

A number is ranked; a category is one of several. Figures about a question's meaning need its vector and what the
reference learned (`shape.py`).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

from meditune.data.quality.judging import foreign
from meditune.operate.drift.request import Request, decision_of
from meditune.operate.drift.shape import Shape

Kind = Literal["number", "category"]
Value = float | str | None

_WORD = re.compile(r"[^\W_]+(?:['’\-][^\W_]+)*")
_SCRIPTS = {
    "Cyrillic": re.compile("[\u0400-\u052f]"),
    "Arabic": re.compile("[\u0600-\u06ff]"),
    "Han or kana": re.compile("[\u3040-\u9fff]"),
    "Hangul": re.compile("[\uac00-\ud7af]"),
}
READ = 2000
"""Characters of an answer that are read for its grade"""
_OTHER_THAN_LATIN = re.compile("[\u0370-\uffff]")


Reader = Callable[[Request, Shape], Sequence[Value]]
"""One value, or one for each direction; None where it isn't known"""


@dataclass(frozen=True)
class Signal:
    """One thing that is watched."""

    name: str
    about: Literal["inputs", "retrieval", "outputs", "outcomes"]
    kind: Kind
    title: str
    more: str
    """What a rise is called"""
    less: str
    read: Reader


def words(text: str) -> list[str]:
    """The words of a text."""
    return _WORD.findall(text)


def _alone(read: Callable[[Request], Value]) -> Reader:
    """A reader that needs the request alone."""
    return lambda request, _: (read(request),)


def _length(request: Request) -> Value:
    return None if request.question is None else float(len(words(request.question)))


def _language(request: Request) -> Value:
    return None if request.question is None else language(request.question)


def _unknown(request: Request, shape: Shape) -> Sequence[Value]:
    return (None if request.question is None else shape.unknown_share(words(request.question)),)


def _topic(request: Request, shape: Shape) -> Sequence[Value]:
    return (None if request.vector is None else shape.topic(request.vector),)


def _novelty(request: Request, shape: Shape) -> Sequence[Value]:
    return (None if request.vector is None else shape.distance(request.vector),)


def _directions(request: Request, shape: Shape) -> Sequence[Value]:
    if request.vector is None:
        return (None,) * len(shape.directions)
    found: list[Value] = shape.placed(request.vector).tolist()
    return found


def _figure(name: str) -> Reader:
    return _alone(lambda request: _number(request.facts.get(name)))


def _number(value: Any) -> float | None:
    known = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if known else None


def _unanswerable(request: Request) -> Value:
    # An emergency is answered without a search.
    if "sources" not in request.facts or request.outcome in ("escalated", "declined"):
        return None
    sources = request.facts["sources"]
    found = len(sources) if isinstance(sources, list) else sources
    return "found" if found and request.outcome != "abstained" else "nothing found"


def _answer_length(request: Request) -> Value:
    if request.answer is not None:
        return float(len(words(request.answer)))
    tokens = request.facts.get("tokens")
    return _number(tokens.get("completion") if isinstance(tokens, dict) else request.facts.get("completion_tokens"))


def _grade(request: Request) -> Value:
    given = _number(request.facts.get("reading_grade"))
    if given is not None or not request.answer:
        return given
    from meditune.readability.grades import counted

    counts = counted(request.answer[:READ])
    return float(counts.grade) if counts.words else None


def _decision(request: Request) -> Value:
    return decision_of(request.facts)


def _support(request: Request) -> Value:
    said, supported = _number(request.facts.get("sentences")), _number(request.facts.get("supported"))
    return supported / said if said and supported is not None else None


def _calibration(request: Request) -> Value:
    sure = _number(request.facts.get("confidence"))
    return None if sure is None or not request.ratings else _up(request.ratings) - sure


def _feedback(request: Request) -> Value:
    if request.ratings is None:
        return None
    return "rated" if request.ratings else "not rated"


def _rating(request: Request) -> Value:
    if not request.ratings:
        return None
    return "up" if _up(request.ratings) > 0.5 else "down"


def _up(ratings: Sequence[str]) -> float:
    return sum(each == "up" for each in ratings) / len(ratings)


@lru_cache(maxsize=1024)
def language(text: str) -> str:
    """English, or the language that a text is surely in otherwise (ISO 639-1), or its script."""
    if len(_OTHER_THAN_LATIN.findall(text)) * 3 > len(text):
        return next(
            (name for name, signs in _SCRIPTS.items() if len(signs.findall(text)) * 3 > len(text)), "other script"
        )
    return foreign(text, ("en",)) or "en"


SIGNALS: tuple[Signal, ...] = (
    Signal("length", "inputs", "number", "Words in a question", "longer", "shorter", _alone(_length)),
    Signal("language", "inputs", "category", "Language of questions", "more", "less", _alone(_language)),
    Signal("unknown_words", "inputs", "number", "Share of words not in the reference", "more", "fewer", _unknown),
    Signal("topics", "inputs", "category", "Topics of questions", "more", "fewer", _topic),
    Signal("novelty", "inputs", "number", "Distance to the nearest known questions", "farther", "nearer", _novelty),
    Signal("directions", "inputs", "number", "Vectors along the main directions", "higher", "lower", _directions),
    Signal("retrieval", "retrieval", "number", "Likeness of the best passage", "better", "worse", _figure("retrieval")),
    Signal(
        "unanswerable", "retrieval", "category", "Questions without a passage", "more", "fewer", _alone(_unanswerable)
    ),
    Signal("answer_length", "outputs", "number", "Length of answers", "longer", "shorter", _alone(_answer_length)),
    Signal("reading_grade", "outputs", "number", "Reading grade of answers", "harder", "easier", _alone(_grade)),
    Signal(
        "outcome",
        "outputs",
        "category",
        "Answered, abstained, escalated, declined",
        "more",
        "fewer",
        _alone(lambda request: request.outcome or None),
    ),
    Signal("decision", "outputs", "category", "Decisions (yes, no, maybe)", "more", "fewer", _alone(_decision)),
    Signal(
        "support", "outputs", "number", "Share of sentences that passages bear out", "more", "less", _alone(_support)
    ),
    Signal("confidence", "outputs", "number", "Confidence in decisions", "surer", "less sure", _figure("confidence")),
    Signal(
        "calibration",
        "outputs",
        "number",
        "Ratings less confidence",
        "underconfident",
        "overconfident",
        _alone(_calibration),
    ),
    Signal("feedback", "outcomes", "category", "Share of answers that are rated", "more", "fewer", _alone(_feedback)),
    Signal("ratings", "outcomes", "category", "Ratings up and down", "more", "fewer", _alone(_rating)),
)
MEANING = "meaning"
"""The signal that compares whole blocks of vectors (`permutation.py`)"""
MEANING_TITLE = "Questions' vectors as a whole (MMD)"
BY_NAME = {signal.name: signal for signal in SIGNALS}
