"""Grading stored answers by their sources: which sentences the example's passages and question bear out.

The detector of meditune.faithfulness always reads; a model that the recipe names gives the scores in its place, and the
detector's spans stay. An answer to an example without passages has nothing to be faithful to, and isn't graded.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from meditune.data.example import Example
from meditune.data.retrieved import with_best
from meditune.evaluate.predictions import Predictions
from meditune.faithfulness.detect import Judgement, detect
from meditune.faithfulness.sources import Sources
from meditune.models.support import Asked, Support, supporter
from meditune.progress import Progress
from meditune.recipe import EvaluateSpec

WORDS = "words"
"""What graded, where no model did"""


def grade(
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
    return grade(predictions.under("retrieved"), _seen(predictions, found), spec)


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
    model = supporter(name)
    judged = [_judged(row, examples) for row in rows]
    asked = [
        Asked(_texts(examples[row["id"]]), examples[row["id"]].question, row["prediction"], each.start, each.end)
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


def _progressing(model: Support, asked: Sequence[Asked]) -> Iterator[Any]:
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


def _judged(row: Mapping[str, Any], examples: Mapping[str, Example]) -> Judgement:
    example = examples[row["id"]]
    return detect(row["prediction"], Sources(_texts(example), example.question))


def _texts(example: Example) -> tuple[str, ...]:
    return tuple(passage.text for passage in example.context if passage.text.strip())


def _row(identifier: str, by: str, judgement: Judgement) -> dict[str, Any]:
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
