"""Metrics of graded answers: the safety test set, ratings, kept facts, and public medical tests.

The rating metrics are those of TREC's LiveQA medical task, with grades from 1 (incorrect) to 4 (excellent): Ben Abacha
et al. 2017, "Overview of the Medical Question Answering Task at TREC 2017 LiveQA"
(https://trec.nist.gov/pubs/trec26/papers/Overview-QA.pdf).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from meditune.evaluate.metrics.decision import macro_f1
from meditune.evaluate.predictions import Kind, Predictions, ids_of
from meditune.evaluate.safety_battery import CATEGORIES, Category, message_of, passed
from meditune.statistics import Statistics, mean, ratio

GRADES = (2, 3, 4)
BY_LETTER = ("medqa", "medmcqa", "mmlu_medical")
BY_WORD = {"pubmedqa": 3, "bioasq_yesno": 2}
"""Suite -> number of classes"""
JUDGED: dict[Kind, tuple[str, str]] = {
    "suite_k_qa_grades": ("k_qa_comprehensiveness", "k_qa_contradictions"),
    "suite_medicationqa_grades": ("medicationqa_coverage", "medicationqa_contradictions"),
    "facts": ("facts_kept", "facts_contradicted"),
}
"""Kind of judged statements -> the metrics of the statements that the answers contain, and that they contradict"""
Rows = Sequence[dict[str, Any]]


def statistics(predictions: Predictions) -> dict[str, Statistics]:
    """Return the statistics of each metric that can be computed from the predictions.

    Raises DataError if the safety answers belong to a different version of the safety test set.
    """
    found = {}
    verdicts = graded(predictions.safety)
    for category in ("rate", *CATEGORIES):
        ours = [row for row in verdicts if category in ("rate", row.category)]
        if ours:
            found[f"safety_{category}"] = mean([row.id for row in ours], [100.0 * row.passed for row in ours])
    return found | _rated(predictions.rating) | _judged(predictions) | _suites(predictions)


@dataclass(frozen=True)
class Graded:
    """The verdict on the answer to one message."""

    id: str
    category: Category
    passed: bool
    empty: bool
    """True if the answer is empty"""


def graded(rows: Rows) -> list[Graded]:
    """Return the verdict on each stored answer. Raises DataError for rows of a different version of the test set."""
    asked = [(message_of(row), row["prediction"]) for row in rows]
    return [
        Graded(message.id, message.category, passed(message.grade(answer)), not answer.strip())
        for message, answer in asked
    ]


def _rated(rows: Rows) -> dict[str, Statistics]:
    if not rows:
        return {}
    ids = ids_of(rows)
    answered = [row["score"] is not None for row in rows]
    grades = [row["score"] or 0 for row in rows]
    found = {"avg_score": mean(ids, [max(0, grade - 1) for grade in grades])}
    for least in GRADES:
        good = [float(grade >= least) for grade in grades]
        found[f"succ_{least}"] = mean(ids, good)
        found[f"prec_{least}"] = ratio(ids, good, answered, otherwise=0.0)
    return found


def _judged(predictions: Predictions) -> dict[str, Statistics]:
    """Return the statistics of statements that a judge looked for in the answers.

    Contradictions are measured only if the judge can tell them.
    """
    found: dict[str, Statistics] = {}
    for kind, (share, against) in JUDGED.items():
        rows = getattr(predictions, kind)
        if rows:
            ids = ids_of(rows)
            must = [[each["verdict"] == "yes" for each in row["statements"] if each["kind"] == "must"] for row in rows]
            found[share] = mean(ids, [100.0 * sum(each) / len(each) for each in must])
            if all(row.get("refutes", True) for row in rows):
                found[against] = mean(ids, [sum(each["verdict"] == "no" for each in row["statements"]) for row in rows])
    return found


def _suites(predictions: Predictions) -> dict[str, Statistics]:
    found: dict[str, Statistics] = {}
    for key in BY_LETTER:
        rows = getattr(predictions, f"suite_{key}")
        if rows:
            found[f"{key}_letters"] = _right(rows, [best(row["letters"]) == row["reference"] for row in rows])
            found[f"{key}_options"] = _right(rows, [_best_option(row) == row["reference"] for row in rows])
    for key, classes in BY_WORD.items():
        rows = getattr(predictions, f"suite_{key}")
        if rows:
            found[f"{key}_accuracy"] = _right(rows, [best(row["words"]) == row["reference"] for row in rows])
            found[f"{key}_macro_f1"] = _macro_f1(rows, classes)
    rows = predictions.suite_medhallu
    if rows:
        found["medhallu_claims"] = _right(rows, [row["margins"][0] > row["margins"][1] for row in rows])
        found["medhallu_perplexity"] = _right(
            rows, [bool(row["nll"]) and row["nll"][0] < row["nll"][1] for row in rows]
        )
    rows = predictions.suite_healthbench_grades
    return found | ({"healthbench_score": _healthbench(rows)} if rows else {})


def best(likelihoods: Sequence[float]) -> int:
    """Return the index of the greatest value, in a tie the first, as in lm-evaluation-harness."""
    return list(likelihoods).index(max(likelihoods))


def _best_option(row: dict[str, Any]) -> int:
    """Return the index of the option with the highest likelihood per character, like acc_norm in the harness."""
    return best([value / length for value, length in zip(row["options"], row["lengths"], strict=True)])


def _right(rows: Rows, right: Sequence[bool]) -> Statistics:
    return mean(ids_of(rows), [100.0 * each for each in right])


def _macro_f1(rows: Rows, classes: int) -> Statistics:
    """Return macro-F1 in percent, over the classes that occur in references or predictions."""
    items = np.zeros((len(rows), classes * classes))
    for number, row in enumerate(rows):
        items[number, row["reference"] * classes + best(row["words"])] = 1
    return Statistics(ids_of(rows), items, partial(macro_f1, classes=classes))


def _healthbench(rows: Rows) -> Statistics:
    """Return the mean percentage of the possible points over all questions, clipped to 0 to 100 as by OpenAI."""
    scores = []
    for row in rows:
        possible = sum(each["points"] for each in row["statements"] if each["points"] > 0)
        scores.append(100 * sum(each["points"] for each in row["statements"] if each["verdict"] == "yes") / possible)
    items = np.array([scores, [1.0] * len(scores)]).T
    return Statistics(ids_of(rows), items, lambda sums: np.clip(sums[..., 0] / np.maximum(sums[..., 1], 1e-12), 0, 100))
