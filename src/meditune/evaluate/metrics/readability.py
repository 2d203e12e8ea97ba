"""Metrics of the reading difficulty of written answers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import numpy as np

from meditune import readability
from meditune.evaluate.predictions import Predictions
from meditune.statistics import Array, Metric, Statistics

METRICS = (
    Metric(
        "grade_gap",
        "Distance from grade 6 to 8",
        "down",
        2,
        "Mean distance of the answers' Flesch-Kincaid grades from the range 6 to 8, in school grades.",
    ),
    Metric(
        "smog", "SMOG grade", "down", 1, "School grade by words of three or more syllables, for all answers together."
    ),
    Metric("sentence_length", "Sentence length", "down", 1, "Mean number of words per sentence."),
    Metric("rare_words", "Rare words", "down", 1, "Words that few readers know, in percent."),
    Metric("unexplained_terms", "Unexplained terms", "down", 2, "Medical terms without an explanation, per 100 words."),
)
COMMONEST = 20
_COLUMNS = ("answers", "outside", "sentences", "words", "polysyllables", "rare", "unexplained")


def statistics(predictions: Predictions) -> dict[str, Statistics]:
    """Return the statistics of each metric; empty if at least half of the answers are empty.

    Empty answers are left out of these metrics. `spread` counts them.
    """
    rows = [measured(row["prediction"]) for row in predictions.answer]
    if 2 * sum(row["answers"] for row in rows) <= len(rows):
        return {}
    ids = tuple(row["id"] for row in predictions.answer)
    items = np.array([[row[name] for name in _COLUMNS] for row in rows], dtype=np.float64)

    def part(over: str, under: str, times: float = 1.0) -> Statistics:
        columns = items[:, [_COLUMNS.index(over), _COLUMNS.index(under)]]
        return Statistics(ids, columns, lambda sums: times * _ratio(sums))

    hard = part("polysyllables", "sentences")
    return {
        "grade_gap": part("outside", "answers"),
        "smog": Statistics(ids, hard.items, lambda sums: readability.smog(_ratio(sums), np.ones(()))),
        "sentence_length": part("words", "sentences"),
        "rare_words": part("rare", "words", 100.0),
        "unexplained_terms": part("unexplained", "words", 100.0),
    }


@lru_cache(maxsize=8192)
def measured(text: str) -> Mapping[str, float]:
    """Return a text's terms of the metrics' sums, and its `grade`; zeros and no grade if it has no words."""
    counts = readability.counted(text)
    if not counts.words:
        return dict.fromkeys(_COLUMNS, 0.0)
    return {
        "answers": 1.0,
        "grade": counts.grade,
        "outside": readability.outside(counts.grade),
        "sentences": counts.sentences,
        "words": counts.words,
        "polysyllables": counts.polysyllables,
        "rare": sum(map(readability.is_rare, readability.words(text))),
        "unexplained": sum(not explained for explained in readability.terms(text).values()),
    }


def spread(texts: list[str]) -> dict[str, Any]:
    """Return quantiles of the texts' Flesch-Kincaid grades, and percentages below, inside and above the target.

    `texts` and `empty` are counts; `unexplained` has the most common unexplained terms with the number of texts. If
    every text is empty, only the counts are present.
    """
    found = np.array([row["grade"] for row in map(measured, texts) if row["answers"]])
    counts = {"texts": len(texts), "empty": len(texts) - len(found)}
    if not len(found):
        return counts
    low, high = readability.TARGET
    left = Counter(term for text in texts for term, explained in readability.terms(text).items() if not explained)
    quantiles = zip(("p10", "p25", "median", "p75", "p90"), np.percentile(found, [10, 25, 50, 75, 90]), strict=True)
    return counts | {
        **{name: float(value) for name, value in quantiles},
        "below": float(100 * (found < low).mean()),
        "inside": float(100 * ((found >= low) & (found <= high)).mean()),
        "above": float(100 * (found > high).mean()),
        "unexplained": [[term, left[term]] for term in sorted(left, key=lambda term: (-left[term], term))[:COMMONEST]],
    }


def _ratio(sums: Array) -> Array:
    # A bootstrap draw may contain only empty answers; other counts are at least 1.
    return np.asarray(sums[..., 0] / np.maximum(sums[..., 1], 1.0))
