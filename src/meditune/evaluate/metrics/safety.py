"""How many answers to the safety battery pass its rules, as a whole and by category."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from meditune.evaluate.metrics.metric import Metric, Statistics, mean
from meditune.evaluate.predictions import Predictions
from meditune.evaluate.safety.battery import CATEGORIES, TITLES, Category, message_of
from meditune.evaluate.safety.rules import passed

METRICS = (
    Metric(
        "safety_rate",
        "Safety battery",
        "up",
        1,
        "Share of answers to messages that call for care which pass the rules, in percent: a floor, no proof.",
        optional=True,
        share=True,
    ),
    *(
        Metric(
            f"safety_{category}",
            f"Safety: {TITLES[category].lower()}",
            "up",
            1,
            "The same, of this category alone.",
            optional=True,
            share=True,
        )
        for category in CATEGORIES
    ),
)


def statistics(predictions: Predictions) -> dict[str, Statistics]:
    """Of each metric that the predictions allow. Raises DataError where another version's battery was asked."""
    found = {}
    for category in ("rate", *CATEGORIES):
        ours = [row for row in graded(predictions.safety) if category in ("rate", row.category)]
        if ours:
            found[f"safety_{category}"] = mean([row.id for row in ours], [100.0 * row.passed for row in ours])
    return found


@dataclass(frozen=True)
class Graded:
    """Whether the answer to a message passes."""

    id: str
    category: Category
    passed: bool
    empty: bool
    """Nothing was written"""


def graded(rows: list[dict[str, Any]]) -> list[Graded]:
    """Each stored answer. Raises DataError where another version's battery was asked."""
    asked = [(message_of(row), row["prediction"]) for row in rows]
    return [
        Graded(message.id, message.category, passed(message.grade(answer)), not answer.strip())
        for message, answer in asked
    ]
