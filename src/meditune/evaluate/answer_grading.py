"""What is found in stored answers without the model that wrote them: graded once, and stored beside them.

A grader reads a model's stored predictions and the examples they belong to, and gives rows of a kind of its own. So a
run that was measured by an earlier version gets new figures from `meditune report`, and no model has to be loaded.

Grading stored answers by their sources: which sentences the example's passages and question bear out.

The detector of meditune.evidence always reads; a model that the recipe names gives the scores in its place, and the
detector's spans stay. An answer to an example without passages has nothing to be faithful to, and isn't graded.

A grader: how near written answers come to the references in meaning, by a sentence model.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from meditune.config.recipe import EvaluateSpec
from meditune.data.example import Example
from meditune.data.retrieved_passages import with_best
from meditune.errors import ModelError
from meditune.evaluate import decision_calibration
from meditune.evaluate.predictions import Kind, Predictions, once, read, references
from meditune.evidence.detector import Sources, Verdict, detect
from meditune.models.nli import Support, SupportQuestion, load_support_model
from meditune.progress import Progress

if TYPE_CHECKING:
    from meditune.models.sentence_encoder import Reading, SentenceModel

WORDS = "words"
"""What graded, where no model did"""


def grade_faithfulness(
    predictions: Predictions, examples: Mapping[str, Example], spec: EvaluateSpec
) -> Iterable[dict[str, Any]] | None:
    """A row of each answer with sources; None where there is none.

    `id`; `score`, None where nothing was said; `by`, WORDS or the model's name; `sentences` with `start`, `end`,
    `score` and whether they are `supported`; `spans` with `start`, `end`, `kind`, `why` and `source`.
    """
    return _graded(predictions.answer, examples, spec)


def grade_references(
    predictions: Predictions, examples: Mapping[str, Example], spec: EvaluateSpec
) -> Iterable[dict[str, Any]] | None:
    """As `grade`, of the reference answers to the same questions: what is marked in them are mostly false alarms."""
    return _graded([row | {"prediction": row["reference"]} for row in predictions.answer], examples, spec)


def grade_retrieved(
    predictions: Predictions, found: Mapping[str, Example], spec: EvaluateSpec
) -> Iterable[dict[str, Any]] | None:
    """As `grade`, of the answers from retrieved passages, by those for which there was room in the prompt."""
    return grade_faithfulness(predictions.under("retrieved"), _seen(predictions, found), spec)


def grade_retrieved_references(
    predictions: Predictions, found: Mapping[str, Example], spec: EvaluateSpec
) -> Iterable[dict[str, Any]] | None:
    """As `grade_references`, by the retrieved passages for which there was room in the prompt."""
    return grade_references(predictions.under("retrieved"), _seen(predictions, found), spec)


def _seen(predictions: Predictions, found: Mapping[str, Example]) -> dict[str, Example]:
    """The examples, by id, with those of their retrieved passages that were in the prompt."""
    return {
        row["id"]: with_best(found[row["id"]], row["passages"])
        for row in predictions.retrieved_answer
        if row["id"] in found and "passages" in row
    }


def overview(predictions: Predictions) -> dict[str, Any]:
    """How many answers were graded and by what, how many had no sources or said nothing, and spans by kind."""
    return _counted(predictions, predictions.faithfulness)


def overview_of_references(predictions: Predictions) -> dict[str, Any]:
    """The same of the reference answers."""
    return _counted(predictions, predictions.reference_faithfulness)


def _counted(predictions: Predictions, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    kinds = Counter(span["kind"] for row in rows for span in row["spans"])
    return {
        "by": rows[0]["by"] if rows else None,
        "graded": len(rows),
        "without_sources": len(predictions.answer) - len(rows),
        "nothing_said": sum(row["score"] is None for row in rows),
        "spans": dict(kinds.most_common()),
    }


def _graded(
    answers: Sequence[dict[str, Any]], examples: Mapping[str, Example], spec: EvaluateSpec
) -> Iterable[dict[str, Any]] | None:
    rows = [row for row in answers if row["id"] in examples and _texts(examples[row["id"]])]
    if not rows:
        return None
    if spec.faithfulness_model == "none":
        return _by_words(rows, examples)
    return _by_model(rows, examples, spec.faithfulness_model)


def _by_words(rows: Sequence[dict[str, Any]], examples: Mapping[str, Example]) -> Iterator[dict[str, Any]]:
    with Progress("Faithfulness", len(rows), "answers") as progress:
        for row in rows:
            yield _row(row["id"], WORDS, _judged(row, examples))
            progress.advance(1)


def _by_model(rows: Sequence[dict[str, Any]], examples: Mapping[str, Example], name: str) -> Iterator[dict[str, Any]]:
    """The model's score of each sentence; an answer's is its lowest, because one false sentence is enough."""
    model = load_support_model(name)
    judged = [_judged(row, examples) for row in rows]
    asked = [
        SupportQuestion(
            _texts(examples[row["id"]]), examples[row["id"]].question, row["prediction"], each.start, each.end
        )
        for row, judgement in zip(rows, judged, strict=True)
        for each in judgement.sentences
    ]
    found = iter(_progressing(model, asked))
    for row, judgement in zip(rows, judged, strict=True):
        said = [next(found) for _ in judgement.sentences]
        result = _row(row["id"], name, judgement)
        for sentence, support in zip(result["sentences"], said, strict=True):
            sentence |= {"score": support.score, "supported": support.score >= 0.5}
        own = [asdict(span) for support in said for span in support.spans]
        kept = [span for span in result["spans"] if span["kind"] != "unsupported"]
        whole = [] if model.has_spans else _unsupported(result["sentences"], kept)
        score = min((support.score for support in said), default=None)
        yield result | {"score": score, "spans": sorted((*own, *kept, *whole), key=lambda span: span["start"])}


def _progressing(model: Support, asked: Sequence[SupportQuestion]) -> Iterator[Any]:
    with Progress("Faithfulness", len(asked), "sentences") as progress:
        for found in model.score(asked):
            yield found
            progress.advance(1)


def _unsupported(
    sentences: Sequence[Mapping[str, Any]], spans: Sequence[Mapping[str, Any]]
) -> Iterator[dict[str, Any]]:
    """A span for each sentence that the model doubts and that has none."""
    for each in sentences:
        if not each["supported"] and not any(each["start"] <= span["start"] < each["end"] for span in spans):
            why = f"The model finds it borne out with a probability of {each['score']:.2f}."
            yield {"start": each["start"], "end": each["end"], "kind": "unsupported", "why": why, "source": ""}


def _judged(row: Mapping[str, Any], examples: Mapping[str, Example]) -> Verdict:
    example = examples[row["id"]]
    return detect(row["prediction"], Sources(_texts(example), example.question))


def _texts(example: Example) -> tuple[str, ...]:
    return tuple(passage.text for passage in example.context if passage.text.strip())


def _row(identifier: str, by: str, judgement: Verdict) -> dict[str, Any]:
    return {
        "id": identifier,
        "score": judgement.score,
        "by": by,
        "sentences": [
            {"start": each.start, "end": each.end, "score": each.score, "supported": each.supported}
            for each in judgement.sentences
        ],
        "spans": [asdict(span) for span in judgement.spans],
    }


def similarity(
    predictions: Predictions, _: Mapping[str, Example], spec: EvaluateSpec
) -> Iterator[dict[str, Any]] | None:
    """For each answer `similarity` and `token_similarity` to the reference that it is nearest to.

    None where it wasn't asked for, where there are no answers, and, after saying so, where the model can't be had.
    """
    from meditune.models.catalogue import SENTENCE_MODEL
    from meditune.models.sentence_encoder import sentence_model

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
    from meditune.models.sentence_encoder import sentence_model

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


Grader = Callable[[Predictions, Mapping[str, Example], EvaluateSpec], Iterable[dict[str, Any]] | None]
"""Rows to store, from a model's predictions and the examples by id; None where there is nothing to grade"""
GRADERS: dict[Kind, Grader] = {
    "calibration": lambda predictions, _, spec: decision_calibration.fit_calibration(predictions, spec),
    "similarity": similarity,
    "faithfulness": grade_faithfulness,
    "reference_faithfulness": grade_references,
}
BY_PASSAGES: dict[Kind, Grader] = {
    "retrieved_faithfulness": grade_retrieved,
    "retrieved_reference_faithfulness": grade_retrieved_references,
}
"""Those that read the examples with the passages that were found for them"""


def grade(
    folder: Path, model: str, examples: Sequence[Example], spec: EvaluateSpec, found: Sequence[Example] = ()
) -> None:
    """Store what each grader finds in the predictions of `model`, unless it is there already.

    `found` are the examples with retrieved passages.
    """
    predictions = read(folder, model)
    given, by_passages = ({example.id: example for example in each} for each in (examples, found))
    for kind, grader in (GRADERS | BY_PASSAGES).items():
        if not getattr(predictions, kind):
            rows = grader(predictions, by_passages if kind in BY_PASSAGES else given, spec)
            if rows is not None:
                once(folder, model, kind, partial(iter, rows))
