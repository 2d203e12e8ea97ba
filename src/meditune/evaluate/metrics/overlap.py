"""What written answers share with the references: never our own BLEU or ROUGE."""

from __future__ import annotations

import numpy as np

from meditune.evaluate.metrics.metric import Array, Metric, Statistics, mean, ratio
from meditune.evaluate.predictions import Predictions

METRICS = (
    Metric("bleu", "BLEU", "up", 2, "sacrebleu's corpus BLEU of greedy answers, 0 to 100."),
    Metric("rouge1", "ROUGE-1", "up", 3, "Words shared with the reference (F, stemmed)."),
    Metric("rouge2", "ROUGE-2", "up", 3, "Pairs of neighbouring words shared with the reference (F, stemmed)."),
    Metric("rougeL", "ROUGE-L", "up", 3, "Longest sequence of words in the reference's order (F, stemmed)."),
    Metric("length_ratio", "Length ratio", "one", 2, "Words written over words of the references."),
)
ROUGE = ("rouge1", "rouge2", "rougeL")


def statistics(predictions: Predictions) -> dict[str, Statistics]:
    """Of each metric that the predictions allow."""
    rows = predictions.answer
    if not rows:
        return {}
    from rouge_score.rouge_scorer import RougeScorer
    from sacrebleu.metrics import BLEU

    ids = tuple(row["id"] for row in rows)
    bleu, scorer = BLEU(), RougeScorer(list(ROUGE), use_stemmer=True)
    grams, rouge = [], []
    for row in rows:
        counted = bleu.corpus_score([row["prediction"]], [[row["reference"]]])
        grams.append([counted.sys_len, counted.ref_len, *counted.counts, *counted.totals])
        rouge.append(scorer.score(row["reference"], row["prediction"]))
    found = {"bleu": Statistics(ids, np.array(grams, dtype=np.float64), corpus_bleu)}
    found |= {kind: mean(ids, [scores[kind].fmeasure for scores in rouge]) for kind in ROUGE}
    written, meant = ([len(row[key].split()) for row in rows] for key in ("prediction", "reference"))
    return found | {"length_ratio": ratio(ids, written, meant)}


def corpus_bleu(sums: Array) -> Array:
    """sacrebleu's corpus BLEU from summed statistics (..., 10): lengths, matches and totals of 1- to 4-grams."""
    from sacrebleu.metrics import BLEU

    flat = sums.reshape(-1, sums.shape[-1])
    scores = [
        BLEU.compute_bleu(
            correct=[int(value) for value in row[2:6]],
            total=[int(value) for value in row[6:10]],
            sys_len=int(row[0]),
            ref_len=int(row[1]),
            smooth_method="exp",
        ).score
        for row in flat
    ]
    return np.array(scores).reshape(sums.shape[:-1])
