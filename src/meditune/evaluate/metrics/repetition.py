"""Whether written answers repeat themselves, as small models do that don't know how to stop."""

from __future__ import annotations

import numpy as np

from meditune.evaluate.metrics.metric import Metric, Statistics, mean
from meditune.evaluate.predictions import Predictions

METRICS = (
    Metric(
        "answer_repetition",
        "Repetition",
        "down",
        1,
        "Share of an answer's four-word sequences that stood in it before, in percent.",
        optional=True,
    ),
    Metric(
        "answer_loops",
        "Answers in a loop",
        "down",
        1,
        "Share of answers that say one phrase three times in a row or more, in percent.",
        optional=True,
        share=True,
    ),
)
GRAM = 4
TIMES, SHORTEST = 3, 8
"""A loop: a phrase so many times in a row, so many words in all."""


def statistics(predictions: Predictions) -> dict[str, Statistics]:
    """Of each metric that the predictions allow."""
    rows = predictions.answer
    if not rows:
        return {}
    ids = [row["id"] for row in rows]
    return {
        "answer_repetition": mean(ids, [100 * repeated(row["prediction"]) for row in rows]),
        "answer_loops": mean(ids, [100.0 * loops(row["prediction"]) for row in rows]),
    }


def repeated(text: str) -> float:
    """1 - different four-word sequences / all of them (seq-rep-4 of Welleck et al. 2020, arXiv:1908.04319, on words).

    0 for a text of fewer than four words. Case doesn't count.
    """
    words = text.lower().split()
    grams = [tuple(words[start : start + GRAM]) for start in range(len(words) - GRAM + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def loops(text: str) -> bool:
    """Whether some phrase stands in `text` at least three times in a row, making up eight words or more."""
    words = text.lower().split()
    numbers = np.unique(words, return_inverse=True)[1] if words else np.array([], dtype=np.int64)
    for period in range(1, len(words) // TIMES + 1):
        same = numbers[period:] == numbers[:-period]
        if _longest_run(same) + period >= max(TIMES * period, SHORTEST):
            return True
    return False


def _longest_run(values: np.typing.NDArray[np.bool_]) -> int:
    """How many neighbouring values are true at most."""
    edges = np.flatnonzero(~np.concatenate(([False], values, [False])))
    return int(np.diff(edges).max()) - 1
