"""One request as the detectors see it: texts, a vector, figures. What is missing doesn't feed its signals."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from meditune.errors import DataError
from meditune.files import numbered_jsonl

Vector = NDArray[np.float32]


@dataclass(frozen=True)
class Request:
    """What is known of one request. Only `id` must be there."""

    id: str
    question: str | None = None
    answer: str | None = None
    vector: Vector | None = None
    """The question's embedding, of length 1; by whoever has it already, or filled in before the detectors"""
    outcome: str = ""
    """answered, abstained, escalated, declined"""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """Figures as the server keeps them: decision, confidence, reading_grade, tokens, sources, retrieval ..."""
    ratings: tuple[str, ...] | None = None
    """up or down, of each who rated; None where it is too early to tell"""
    sequence: int = 0
    """Its place in the order of coming, by which the store knows it again"""


def from_row(row: Mapping[str, Any], where: str, sequence: int = 0) -> Request:
    """A row as `meditune answers export` writes it, or an object with a question. Raises DataError."""
    question, answer = row.get("question"), row.get("answer")
    facts, feedback = row.get("facts") or {}, row.get("feedback", None)
    for name, value in (("question", question), ("answer", answer)):
        if value is not None and not isinstance(value, str):
            raise DataError(f"{where}: {name} is {type(value).__name__}, not text.")
    if not isinstance(facts, Mapping):
        raise DataError(f"{where}: facts is {type(facts).__name__}, not an object of figures.")
    if feedback is not None and not (isinstance(feedback, list) and all(isinstance(each, dict) for each in feedback)):
        raise DataError(f"{where}: feedback isn't a list of objects with a rating.")
    if question is None and not facts and not row.get("outcome"):
        raise DataError(f"{where}: neither question, facts nor outcome. Each line needs a question at least.")
    ratings = None if feedback is None else tuple(str(each.get("rating")) for each in feedback)
    made = hashlib.sha256(f"{sequence}\n{question}".encode("utf-8", "surrogatepass")).hexdigest()[:16]
    return Request(
        str(row.get("id") or made),
        question,
        answer,
        outcome=str(row.get("outcome") or ""),
        facts=dict(facts),
        ratings=ratings,
        sequence=sequence,
    )


def decision_of(said: Mapping[str, Any]) -> str | None:
    """Yes, no or maybe in an answer of `/v1/ask` or in kept facts, where it is an object, or a row's plain word."""
    found = said.get("decision")
    word = found.get("answer") if isinstance(found, Mapping) else found
    return word if isinstance(word, str) else None


def from_file(path: Path, after: int = 0) -> Iterator[Request]:
    """The requests of a JSON Lines file in its order, without the first `after`. Raises DataError at a bad line."""
    for number, (line, row) in enumerate(numbered_jsonl(path), start=1):
        if number > after:
            yield from_row(row, f"{path}, line {line}", number)


def questions(requests: Iterable[Request]) -> list[str]:
    """The texts that there are."""
    return [each.question for each in requests if each.question]
