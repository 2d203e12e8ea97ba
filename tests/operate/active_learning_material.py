"""Stores with answers whose faults are known, and vectors that are quick to make."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from meditune.data.example import DECISIONS, Example
from meditune.operate.active_learning.candidates import Candidate
from meditune.review.rating_set import VERDICT, read_key, read_set
from meditune.review.ratings_store import Note, Rating, Store
from meditune.store.answers import Answer, Answers, Feedback
from meditune.store.open_store import Place, open_store

SURE, TORN = {"yes": 0.9, "no": 0.06, "maybe": 0.04}, {"yes": 0.35, "no": 0.33, "maybe": 0.32}


def embed(texts: Sequence[str]) -> np.ndarray:
    """Bags of words as vectors of length 1: alike where words are shared."""
    found = np.zeros((len(texts), 256), dtype=np.float32)
    for row, text in zip(found, texts, strict=True):
        for word in text.casefold().split():
            row[int.from_bytes(hashlib.sha256(word.encode()).digest()[:2]) % 256] += 1
    return found / np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-9)


def candidate(question: str, **known: Any) -> Candidate:
    """A row that asks this."""
    answer = known.pop("answer", "")
    example = Example(id=f"own:{question}", source="own", question=question, answer=answer, group=question)
    return Candidate(example, **known)


def keep(place: Place, id: str, question: str | None, answer: str = "It helps.", **facts: Any) -> Answers:
    """A store with one more answer."""
    answers = Answers(open_store(place))
    outcome = facts.pop("outcome", "answered")
    chances = facts.pop("chances", None)
    if chances:
        best = max(chances, key=lambda each: chances[each])
        facts["decision"] = {"answer": best, "probabilities": chances, "calibrated": False}
    answers.keep(Answer(id, "", "ask", "tiny 1", "idx", outcome, facts, question, answer, time=1_700_000_000.0))
    return answers


def store(folder: Place) -> Place:
    """Six answers: unsure, unsupported, abstained, disliked, corrected, and one with nothing against it."""
    keep(folder, "unsure", "Does vitamin C prevent colds?", chances=TORN, sentences=1, supported=1)
    keep(folder, "unsupported", "What causes gout?", "Uric acid.", sentences=3, supported=1)
    keep(folder, "abstained", "How is rabies treated?", "", outcome="abstained", sentences=0, supported=0)
    answers = keep(folder, "disliked", "Is asthma curable?", chances=SURE, sentences=1, supported=1)
    keep(folder, "corrected", "Can children have migraine?", chances=SURE, sentences=1, supported=1)
    keep(folder, "fine", "Does exercise help the heart?", chances=SURE, sentences=2, supported=2)
    answers.say(Feedback("disliked", "a", "down", ["wrong"], "My doctor Dr. Jane Miller says otherwise."))
    answers.say(Feedback("corrected", "a", "down", [], "", "Yes, they can have it as well."))
    answers.say(Feedback("fine", "a", "up"))
    return folder


def judge(folder: Path, name: str, said: dict[str, tuple[str | None, str | None, str]]) -> None:
    """Let an expert say decision, verdict and a better text (or nothing of one) of examples by id."""
    there = Store(folder)
    rater = there.rater(name).id
    items = {origin.example: id for id, origin in read_key(folder)[0].items()}
    assert set(items.values()) == set(read_set(folder).items)
    for example, (decision, verdict, better) in said.items():
        item, ratings = items[example], []
        if decision:
            number = DECISIONS.index(decision) + 1 if decision in DECISIONS else len(DECISIONS) + 1  # type: ignore[arg-type]
            ratings.append(Rating(rater, item, "decision", number, 1.0))
        if verdict:
            ratings.append(Rating(rater, item, "verdict", VERDICT.number(verdict.capitalize()), 1.0))
        there.save(ratings, [Note(rater, item, "", better)] if better else [])
