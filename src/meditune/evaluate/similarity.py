"""A grader: how near written answers come to the references in meaning, by a sentence model."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from meditune.data.example import Example
from meditune.errors import ModelError
from meditune.evaluate.predictions import Predictions, references
from meditune.recipe import EvaluateSpec

if TYPE_CHECKING:
    from meditune.models.embedding import Reading, SentenceModel


def similarity(
    predictions: Predictions, _: Mapping[str, Example], spec: EvaluateSpec
) -> Iterator[dict[str, Any]] | None:
    """For each answer `similarity` and `token_similarity` to the reference that it is nearest to.

    None where it wasn't asked for, where there are no answers, and, after saying so, where the model can't be had.
    """
    from meditune.models.catalogue import SENTENCE_MODEL
    from meditune.models.embedding import sentence_model

    if not spec.similarity or not predictions.answer or not _can_be_had(SENTENCE_MODEL.folder):
        return None
    return compared(sentence_model(), predictions.answer)


def compared(model: SentenceModel, rows: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """`id`, `similarity` and `token_similarity` of each answer; an empty one is similar to nothing, 0.

    The reference that is nearest by one needn't be so by the other.
    """
    texts = list(dict.fromkeys(text for row in rows for text in (row["prediction"], *references(row))))
    readings = dict(zip(texts, model.read(texts, "Similarity in meaning"), strict=True))
    for row in rows:
        said, meant = readings[row["prediction"]], [readings[text] for text in references(row)]
        blank = not row["prediction"].strip()
        yield {
            "id": row["id"],
            "similarity": 0.0 if blank else max(float(said.sentence @ each.sentence) for each in meant),
            "token_similarity": max(matched(said, each) for each in meant),
        }


def matched(said: Reading, meant: Reading) -> float:
    """F1 of greedy matching (Zhang et al. 2020, arXiv:1904.09675).

    Precision is the mean over the answer's tokens of the cosine to the nearest token of the reference, recall the same
    the other way round. 0 where either has no tokens.
    """
    if not len(said.tokens) or not len(meant.tokens):
        return 0.0
    cosines = said.tokens @ meant.tokens.T
    precision, recall = float(np.mean(cosines.max(axis=1))), float(np.mean(cosines.max(axis=0)))
    return 2 * precision * recall / (precision + recall) if precision + recall > 0 else 0.0


@cache
def _can_be_had(folder: Path) -> bool:
    """Whether the sentence model lies in that folder, or could be fetched into it; says so once where it couldn't."""
    from meditune.models.embedding import sentence_model

    try:
        sentence_model()
    except ModelError as error:
        reason = str(error).rstrip(".")
        print(
            f"Similarity in meaning is not measured: {reason}. To do without it: evaluate.similarity=false.",
            file=sys.stderr,
        )
        return False
    return folder.is_dir()
