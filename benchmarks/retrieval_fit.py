"""Fit the reranker's weights on LiveQA's training questions: `python benchmarks/retrieval.py --fit`.

No passages were judged for these questions. A passage is taken as relevant if it is the reference answer word for word,
or if it is about the annotated topic and answers the annotated type of question. Questions without such a passage are
skipped.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from meditune.data.readers import liveqa
from meditune.data.readers.tables import Rejects
from meditune.retrieve import topics as titles
from meditune.retrieve.hybrid_search import compare
from meditune.retrieve.index import Index
from meditune.retrieve.query_understanding import build_query, row_filter
from meditune.retrieve.reranker import Reranker
from meditune.retrieve.topics import key, words
from retrieval_set import Task, Text, document

FEATURES = (
    "whole_near_title",
    "asked_near_title",
    "sentence_near_title",
    "words",
    "names",
    "names_in_title",
    "whole_near_passage",
)
KINDS = {
    "cause": "causes",
    "diagnosis": "exams and tests",
    "prognosis": "outlook",
    "symptom": "symptoms",
    "complication": "complications",
    "organization": "support groups",
}
"""LiveQA's question types with other names in MedQuAD"""
PULL = 0.03
"""Ridge penalty of a squared weight, for features scaled to unit variance"""
SAME = 200
"""Number of characters by which an answer is recognized"""

Features = NDArray[np.float64]


@dataclass(frozen=True)
class Group:
    """The candidates of one question."""

    features: Features
    """(n, features)"""
    share: NDArray[np.float64]
    """(n,) equal shares, which sum to 1, for the relevant candidates; else 0"""


def questions(data: Path, passages: Sequence[Text], reranker: Reranker) -> dict[str, tuple[set[int], set[int]]]:
    """Return for each training question the passages that are its reference answers, and those on its topics."""
    by_text: dict[str, list[int]] = defaultdict(list)
    by_topic: dict[str, list[int]] = defaultdict(list)
    read = [titles.read(passage.title) for passage in passages]
    for index, passage in enumerate(passages):
        by_text[_start(passage.text)].append(index)
        by_topic[key(read[index].topic)].append(index)
    found: dict[str, tuple[set[int], set[int]]] = {}
    train, _ = liveqa.official_split(list(liveqa.read(data / "liveqa", Rejects())))
    for each in train:
        exact, alike = found.setdefault(each.question, (set(), set()))
        exact.update(by_text.get(_start(each.answer), ()))
        kinds = {KINDS.get(kind, kind) for kind in each.meta["question_type"]}
        for name in each.meta["focus"]:
            named = [each for each in reranker.synonyms.find(name) if len(words(each.name)) == len(words(name))]
            topics = {topic for mention in named for topic in mention.topics}
            alike.update(index for topic in topics for index in by_topic[topic] if read[index].kind in kinds)
    return {question: both for question, both in found.items() if any(both)}


def _start(text: str) -> str:
    return " ".join(text.split())[:SAME]


def groups(
    asked: dict[str, tuple[set[int], set[int]]], task: Task, index: Index, sources: Sequence[str]
) -> list[Group]:
    """Return the features of each question's candidates, for questions with a relevant candidate."""
    number = {document(passage.id): place for place, passage in enumerate(task.passages)}
    reranker = index.opened.reranker
    where = row_filter(sources, sources, None, None)
    made = []
    for question, (exact, alike) in asked.items():
        there = compare(index.opened, build_query(question), condition=where)
        found = [number[passage.document] for passage in index.opened.rows.passages(there.ids)]
        relevant = np.array([each in exact or each in alike for each in found], dtype=float)
        if relevant.any():
            seen = reranker.features(there.message, there.passages, there.vectors)
            made.append(Group(np.stack([seen[name] for name in FEATURES], axis=1), relevant / relevant.sum()))
    return made


def fit(some: Sequence[Group], without: Sequence[str] = ()) -> dict[str, float]:
    """Return nonnegative weights that fit a softmax over each question's candidates (ListNet, Cao 2007)."""
    from scipy.optimize import minimize

    spread = np.concatenate([group.features for group in some]).std(axis=0) + 1e-9
    bounds = [(0.0, 0.0 if name in without else None) for name in FEATURES]

    def loss(weights: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        total, slope = 0.0, np.zeros(len(weights))
        for group in some:
            scores = group.features / spread @ weights
            likely = np.exp(scores - scores.max())
            likely /= likely.sum()
            total -= group.share @ np.log(likely + 1e-300)
            slope += (likely - group.share) @ (group.features / spread)
        return total / len(some) + PULL * weights @ weights, slope / len(some) + 2 * PULL * weights

    start = np.array([0.0 if name in without else 0.1 for name in FEATURES])
    found = minimize(loss, start, jac=True, method="L-BFGS-B", bounds=bounds)
    return {name: round(float(weight), 3) for name, weight in zip(FEATURES, found.x / spread, strict=True)}


def write(weights: dict[str, float], path: Path) -> None:
    """Write the weights to the package's module."""
    said = path.read_text(encoding="utf-8")
    for name, weight in weights.items():
        said = re.sub(rf'("{name}"): [\d.]+', rf"\1: {weight}", said)
    path.write_text(said, encoding="utf-8")
