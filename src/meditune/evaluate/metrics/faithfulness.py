"""Metrics of how well sources support written answers, and of self-consistency."""

from __future__ import annotations

from statistics import fmean
from typing import Any

from meditune.evaluate.predictions import Predictions
from meditune.evidence.detector import CONTRADICTIONS, Sentence, placed
from meditune.statistics import Metric, Statistics, mean, ratio

METRICS = (
    Metric(
        "faithfulness",
        "Faithfulness",
        "up",
        3,
        "Mean score of how well the sources support the answers, 0 to 1.",
        optional=True,
        detector=True,
    ),
    Metric(
        "unsupported_sentences",
        "Unsupported sentences",
        "down",
        1,
        "Sentences of the answers that their sources don't support, in percent.",
        optional=True,
        detector=True,
    ),
    Metric(
        "contradictions",
        "Contradicting sentences",
        "down",
        1,
        "Sentences that differ from the sources in a negation, a direction or a unit, in percent.",
        optional=True,
        detector=True,
    ),
    Metric(
        "unsupported_numbers",
        "Unsupported numbers",
        "down",
        1,
        "Answers with a number that the sources don't contain, or use for something else, in percent.",
        optional=True,
        detector=True,
    ),
    Metric(
        "unsupported_names",
        "Unsupported names",
        "down",
        1,
        "Answers with a drug, disease or other name that no source contains, in percent.",
        optional=True,
        detector=True,
    ),
    Metric(
        "self_consistency",
        "Self-consistency",
        "up",
        3,
        "Agreement of sampled answers with the answer, by words; it is low if a model makes things up.",
        optional=True,
    ),
)


def statistics(predictions: Predictions) -> dict[str, Statistics]:
    """Return the statistics of each metric that can be computed; empty answers are left out of all of them."""
    return by_sources(predictions.faithfulness) | _by_samples(predictions)


def references(predictions: Predictions) -> dict[str, Statistics]:
    """Return the statistics of the reference answers, graded against the same sources as the model's answers."""
    return by_sources(predictions.reference_faithfulness)


def agreement(answer: str, samples: list[str]) -> float | None:
    """Return how well samples agree with an answer, 0 to 1; None if the answer or all samples are empty.

    This is the mean over the answer's sentences and the samples of the weighted share of the sentence's words that
    occur in the sample's most similar sentence, after SelfCheckGPT (Manakul et al. 2023, arXiv:2303.08896), with
    shared words instead of BERTScore.
    """
    answer_sentences = [sentence for _, text in placed(answer) if (sentence := Sentence(text)).total]
    sample_weights = [[Sentence(text).weights for _, text in placed(sample)] for sample in samples]
    if not answer_sentences or not any(sample_weights):
        return None
    return fmean(
        max((each.share_in(one) for one in sample), default=0.0)
        for each in answer_sentences
        for sample in sample_weights
    )


def by_sources(rows: list[dict[str, Any]]) -> dict[str, Statistics]:
    """Return the statistics of graded answers; empty if all answers are empty."""
    if not any(row["sentences"] for row in rows):
        return {}
    ids = [row["id"] for row in rows]
    answered = [float(bool(row["sentences"])) for row in rows]
    sentences = [float(len(row["sentences"])) for row in rows]
    unsupported = [100.0 * sum(not each["supported"] for each in row["sentences"]) for row in rows]
    against = [100.0 * sum(_against(each, row["spans"]) for each in row["sentences"]) for row in rows]
    found = {
        "faithfulness": ratio(ids, [row["score"] or 0.0 for row in rows], answered),
        "unsupported_sentences": ratio(ids, unsupported, sentences),
        "contradictions": ratio(ids, against, sentences),
    }
    for kind in ("number", "name"):
        with_one = [100.0 * any(span["kind"] == kind for span in row["spans"]) for row in rows]
        found[f"unsupported_{kind}s"] = ratio(ids, with_one, answered)
    return found


def _against(sentence: dict[str, Any], spans: list[dict[str, Any]]) -> bool:
    return any(
        span["kind"] in CONTRADICTIONS and sentence["start"] <= span["start"] < sentence["end"] for span in spans
    )


def _by_samples(predictions: Predictions) -> dict[str, Statistics]:
    answers = {row["id"]: row["prediction"] for row in predictions.answer}
    rows = [row for row in predictions.samples if row["id"] in answers]
    found = [agreement(answers[row["id"]], row["predictions"]) for row in rows]
    if not any(each is not None for each in found):
        return {}
    ids = [row["id"] for row in rows]
    if all(each is not None for each in found):
        return {"self_consistency": mean(ids, [each or 0.0 for each in found])}
    return {
        "self_consistency": ratio(ids, [each or 0.0 for each in found], [float(each is not None) for each in found])
    }
