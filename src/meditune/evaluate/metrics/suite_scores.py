"""Metrics of public medical tests: accuracy of multiple choice, detection of hallucinations, and judged answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from meditune.evaluate.predictions import Predictions
from meditune.statistics import Array, Metric, Statistics, mean

BY_LETTER = {"medqa": "MedQA", "medmcqa": "MedMCQA", "mmlu_medical": "MMLU medical"}
BY_WORD = {"pubmedqa": ("PubMedQA", 3), "bioasq_yesno": ("BioASQ yes/no", 2)}
"""Suite -> title and number of classes"""

METRICS = (
    *(
        metric
        for key, title in BY_LETTER.items()
        for metric in (
            Metric(
                f"{key}_letters",
                f"{title}, letters",
                "up",
                1,
                f"Questions of {title} whose correct letter is the most likely one, in percent; guessing gives 25.",
                optional=True,
                share=True,
            ),
            Metric(
                f"{key}_options",
                f"{title}, full options",
                "up",
                1,
                "The same by the likelihood of the full option, divided by its characters.",
                optional=True,
                share=True,
            ),
        )
    ),
    *(
        metric
        for key, (title, _) in BY_WORD.items()
        for metric in (
            Metric(
                f"{key}_accuracy", f"{title}, accuracy", "up", 1, f"Correct answers to {title}, in percent.", True,
                share=True,
            ),
            Metric(f"{key}_macro_f1", f"{title}, macro-F1", "up", 1, "Mean of the answers' F1, in percent.", True),
        )
    ),
    Metric(
        "medhallu_claims",
        "MedHallu, as claims",
        "up",
        1,
        "Pairs whose true answer, as a claim, is supported more than the hallucinated one, in percent; guessing: 50.",
        optional=True,
        share=True,
    ),
    Metric(
        "medhallu_perplexity",
        "MedHallu, by perplexity",
        "up",
        1,
        "Pairs whose true answer has the lower perplexity, in percent; guessing gives 50.",
        optional=True,
        share=True,
    ),
    Metric(
        "k_qa_comprehensiveness",
        "K-QA, must-have statements",
        "up",
        1,
        "Must-have statements that the answer contains according to the judge, in percent; mean over questions.",
        optional=True,
    ),
    Metric(
        "k_qa_contradictions",
        "K-QA, contradictions",
        "down",
        2,
        "Statements per question that the answer contradicts according to the judge.",
        optional=True,
    ),
    Metric(
        "medicationqa_coverage",
        "MedicationQA, coverage",
        "up",
        1,
        "Sentences of the reference answer that the answer contains according to the judge, in percent; mean over "
        "questions.",
        optional=True,
    ),
    Metric(
        "medicationqa_contradictions",
        "MedicationQA, contradictions",
        "down",
        2,
        "Sentences of the reference answer per question that the answer contradicts according to the judge.",
        optional=True,
    ),
    Metric(
        "healthbench_score",
        "HealthBench",
        "up",
        1,
        "Points of the criteria that the judge finds met, in percent of the possible ones; mean over questions.",
        optional=True,
    ),
)  # fmt: skip


def statistics(predictions: Predictions) -> dict[str, Statistics]:
    """Return the statistics of each metric that can be computed from the predictions."""
    found: dict[str, Statistics] = {}
    for key in BY_LETTER:
        rows = getattr(predictions, f"suite_{key}")
        if rows:
            found[f"{key}_letters"] = _share(rows, [best(row["letters"]) == row["reference"] for row in rows])
            found[f"{key}_options"] = _share(rows, [best_option(row) == row["reference"] for row in rows])
    for key, (_, classes) in BY_WORD.items():
        rows = getattr(predictions, f"suite_{key}")
        if rows:
            found[f"{key}_accuracy"] = _share(rows, [best(row["words"]) == row["reference"] for row in rows])
            found[f"{key}_macro_f1"] = _macro_f1(rows, classes)
    rows = predictions.suite_medhallu
    if rows:
        found["medhallu_claims"] = _share(rows, [row["margins"][0] > row["margins"][1] for row in rows])
        found["medhallu_perplexity"] = _share(
            rows, [bool(row["nll"]) and row["nll"][0] < row["nll"][1] for row in rows]
        )
    return found | _judged(predictions)


def best(likelihoods: Sequence[float]) -> int:
    """Return the index of the greatest value; of equal ones the first, as in lm-evaluation-harness."""
    return list(likelihoods).index(max(likelihoods))


def best_option(row: dict[str, Any]) -> int:
    """Return the index of the option with the highest likelihood per character, as the harness's acc_norm."""
    return best([value / length for value, length in zip(row["options"], row["lengths"], strict=True)])


def _share(rows: Sequence[dict[str, Any]], right: Sequence[bool]) -> Statistics:
    return mean([row["id"] for row in rows], [100.0 * each for each in right])


def _macro_f1(rows: Sequence[dict[str, Any]], classes: int) -> Statistics:
    """Return macro-F1 in percent, over the classes that occur in references or predictions."""
    items = np.zeros((len(rows), classes * classes))
    for number, row in enumerate(rows):
        items[number, row["reference"] * classes + best(row["words"])] = 1

    def figure(sums: Array) -> Array:
        matrix = sums.reshape(*sums.shape[:-1], classes, classes)
        right = np.diagonal(matrix, axis1=-2, axis2=-1)
        total = matrix.sum(axis=-1) + matrix.sum(axis=-2)
        f1 = np.divide(200 * right, total, out=np.zeros_like(total), where=total > 0)
        return np.asarray(f1.sum(axis=-1) / np.maximum((total > 0).sum(axis=-1), 1))

    return Statistics(tuple(row["id"] for row in rows), items, figure)


def _judged(predictions: Predictions) -> dict[str, Statistics]:
    found = {}
    named = (("k_qa", "comprehensiveness"), ("medicationqa", "coverage"))
    for key, name in named:
        rows = getattr(predictions, f"suite_{key}_grades")
        if rows:
            ids = [row["id"] for row in rows]
            must = [[each["verdict"] == "yes" for each in row["statements"] if each["kind"] == "must"] for row in rows]
            found[f"{key}_{name}"] = mean(ids, [100.0 * sum(each) / len(each) for each in must])
            against = [sum(each["verdict"] == "no" for each in row["statements"]) for row in rows]
            found[f"{key}_contradictions"] = mean(ids, against)
    rows = predictions.suite_healthbench_grades
    if rows:
        found["healthbench_score"] = _healthbench(rows)
    return found


def _healthbench(rows: Sequence[dict[str, Any]]) -> Statistics:
    """Return the mean over questions of points over possible points, in percent, clipped to 0 to 100 like OpenAI's."""
    scores = []
    for row in rows:
        possible = sum(each["points"] for each in row["statements"] if each["points"] > 0)
        scores.append(100 * sum(each["points"] for each in row["statements"] if each["verdict"] == "yes") / possible)
    items = np.array([scores, [1.0] * len(scores)]).T
    ids = tuple(row["id"] for row in rows)
    return Statistics(ids, items, lambda sums: np.clip(sums[..., 0] / np.maximum(sums[..., 1], 1e-12), 0, 100))
