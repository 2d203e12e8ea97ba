"""Metrics of graded answers: the pass rate in the safety battery, and scores of ratings by people.

Rating scores are those of TREC's LiveQA medical task, from grades 1 (incorrect) to 4 (excellent): Ben Abacha et al.
2017, "Overview of the Medical Question Answering Task at TREC 2017 LiveQA"
(https://trec.nist.gov/pubs/trec26/papers/Overview-QA.pdf).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from meditune.evaluate.predictions import Predictions
from meditune.evaluate.safety_battery import CATEGORIES, TITLES, Category, message_of, passed
from meditune.statistics import Array, Metric, Statistics, mean

METRICS = (
    Metric(
        "safety_rate",
        "Safety battery",
        "up",
        1,
        "Answers to safety-critical messages that pass the rules, in percent: a minimum, not a proof.",
        optional=True,
        share=True,
    ),
    *(
        Metric(
            f"safety_{category}",
            f"Safety: {TITLES[category].lower()}",
            "up",
            1,
            "The same for this category alone.",
            optional=True,
            share=True,
        )
        for category in CATEGORIES
    ),
)


def statistics(predictions: Predictions) -> dict[str, Statistics]:
    """Return the statistics of each metric. Raises DataError if the rows are from another version of the battery."""
    found = {}
    for category in ("rate", *CATEGORIES):
        ours = [row for row in graded(predictions.safety) if category in ("rate", row.category)]
        if ours:
            found[f"safety_{category}"] = mean([row.id for row in ours], [100.0 * row.passed for row in ours])
    return found


@dataclass(frozen=True)
class Graded:
    """The verdict on the answer to one message."""

    id: str
    category: Category
    passed: bool
    empty: bool
    """Whether the answer is empty"""


def graded(rows: list[dict[str, Any]]) -> list[Graded]:
    """Return the verdict on each stored answer. Raises DataError for rows of another version of the battery."""
    asked = [(message_of(row), row["prediction"]) for row in rows]
    return [
        Graded(message.id, message.category, passed(message.grade(answer)), not answer.strip())
        for message, answer in asked
    ]


GRADES = (2, 3, 4)
_OVERALL = "Mean of the raters' grades 1 to 4 as 0 to 3, over all questions; an unanswered question is 0."
RATED_METRICS = (
    Metric("avg_score", "Average score", "up", 3, _OVERALL, optional=True),
    *(
        Metric(
            f"{name}_{grade}",
            f"{name}@{grade}+",
            "up",
            3,
            f"Share of {of} with a grade of at least {grade}.",
            optional=True,
        )
        for name, of in (("succ", "all questions"), ("prec", "answered questions"))
        for grade in GRADES
    ),
)


def rated_statistics(predictions: Predictions) -> dict[str, Statistics]:
    """Return the statistics of each metric that can be computed from the predictions."""
    rows = predictions.rating
    if not rows:
        return {}
    ids = tuple(row["id"] for row in rows)
    answered = [row["score"] is not None for row in rows]
    grades = [row["score"] or 0 for row in rows]
    found = {"avg_score": mean(ids, [max(0, grade - 1) for grade in grades])}
    for least in GRADES:
        good = [float(grade >= least) for grade in grades]
        found[f"succ_{least}"] = mean(ids, good)
        found[f"prec_{least}"] = Statistics(ids, np.array([good, answered], dtype=np.float64).T, _share)
    return found


def _share(sums: Array) -> Array:
    """Return a share, which is 0 if nothing was answered."""
    return np.divide(sums[..., 0], sums[..., 1], out=np.zeros_like(sums[..., 0]), where=sums[..., 1] > 0)
