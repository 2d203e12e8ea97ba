"""Grading of stored answers: faithfulness to their sources, similarity to the references, and plain versions of texts.

Each grader returns one row for each answer. The rows are stored beside the predictions, so `meditune report` can add
new metrics to an older run without its model. The detector in meditune.evidence grades faithfulness. If the recipe
names a support model, the scores come from that model, and the spans from both. If the support model can tell, it also
decides whether a sentence contradicts its sources. For plain versions of a source text, the operations for SARI are
counted, and the support model looks for the reference's statements in the answer.
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
from meditune.engines.evidence_judge import load_support_model, open_judge
from meditune.errors import ModelError
from meditune.evaluate.decision_calibration import fit_calibration
from meditune.evaluate.metrics.written_answers import sari_counts
from meditune.evaluate.predictions import Kind, Predictions, read, references, write_once
from meditune.evaluate.suites.llm_judge import cannot_refute, verdicts_on
from meditune.evidence.lexical_detector import Sources, Verdict, detect
from meditune.evidence.support_model import SupportQuestion
from meditune.progress import Progress
from meditune.text import sentences

if TYPE_CHECKING:
    from meditune.engines.evidence_judge import EvidenceJudge, SupportJudge
    from meditune.models.sentence_encoder import SentenceModel, TokenVectors

GRADED: tuple[Kind, ...] = (
    *("calibration", "similarity", "faithfulness", "reference_faithfulness"),
    *("retrieved_faithfulness", "retrieved_reference_faithfulness", "sari", "facts"),
)
"""Kinds of rows that are computed from stored predictions"""
REFUTED = 0.5
"""The minimum probability of refutation, according to a support model, for a sentence to count as contradicting"""
WORDS = "words"
"""Name of the grader that needs no model"""


def grade_faithfulness(
    predictions: Predictions,
    examples: Mapping[str, Example],
    spec: EvaluateSpec,
    of_references: bool = False,
    retrieved: bool = False,
) -> Iterable[dict[str, Any]] | None:
    """Return a row for each answer with sources (docs/reference/report.md); None if there are no such answers.

    With `of_references`, the reference answers are graded instead; most marks in reference answers are false alarms.
    With `retrieved`, the answers given with retrieved passages are graded, against the passages that fit into the
    prompt.
    """
    if retrieved:
        examples = {
            row["id"]: with_best(examples[row["id"]], row["passages"])
            for row in predictions.retrieved_answer
            if row["id"] in examples and "passages" in row
        }
        predictions = predictions.under("retrieved")
    answers = predictions.answer
    if of_references:
        answers = [row | {"prediction": row["reference"]} for row in answers]
    rows = [row for row in answers if row["id"] in examples and _texts(examples[row["id"]])]
    if not rows:
        return None
    if spec.faithfulness_model == "none":
        return _by_words(rows, examples)
    return _by_model(rows, examples, spec.faithfulness_model)


def overview(predictions: Predictions, of_references: bool = False) -> dict[str, Any]:
    """Return the grader's name, the numbers of graded, empty and sourceless answers, and of spans by kind."""
    rows = predictions.reference_faithfulness if of_references else predictions.faithfulness
    kinds = Counter(span["kind"] for row in rows for span in row["spans"])
    return {
        "by": rows[0]["by"] if rows else None,
        "graded": len(rows),
        "without_sources": len(predictions.answer) - len(rows),
        "nothing_said": sum(row["score"] is None for row in rows),
        "spans": dict(kinds.most_common()),
    }


def _by_words(rows: Sequence[dict[str, Any]], examples: Mapping[str, Example]) -> Iterator[dict[str, Any]]:
    with Progress("Faithfulness", len(rows), "answers") as progress:
        for row in rows:
            yield _row(row["id"], WORDS, _judged(row, examples))
            progress.advance(1)


def _by_model(rows: Sequence[dict[str, Any]], examples: Mapping[str, Example], name: str) -> Iterator[dict[str, Any]]:
    """Yield rows with the model's scores; an answer's score is that of its worst sentence."""
    model = load_support_model(name)
    judged = [_judged(row, examples) for row in rows]
    asked = [
        SupportQuestion(
            _texts(examples[row["id"]]), examples[row["id"]].question, row["prediction"], each.start, each.end
        )
        for row, judgement in zip(rows, judged, strict=True)
        for each in judgement.sentences
    ]
    with Progress("Faithfulness", len(asked), "sentences") as progress:
        scores = []
        for score in model.score(asked):
            scores.append(score)
            progress.advance(1)
    found = iter(scores)
    for row, judgement in zip(rows, judged, strict=True):
        supports = [next(found) for _ in judgement.sentences]
        result = _row(row["id"], name, judgement)
        for sentence, support in zip(result["sentences"], supports, strict=True):
            sentence |= {"score": support.score, "supported": support.score >= model.threshold}
            if support.refuted is not None:
                sentence["contradicting"] = support.refuted >= REFUTED
        own = [asdict(span) for support in supports for span in support.spans]
        other_spans = [span for span in result["spans"] if span["kind"] != "unsupported"]
        unsupported = [] if model.has_spans else _unsupported(result["sentences"], other_spans)
        spans = sorted((*own, *other_spans, *unsupported), key=lambda span: span["start"])
        yield result | {"score": min((support.score for support in supports), default=None), "spans": spans}


def _unsupported(
    sentences: Sequence[Mapping[str, Any]], spans: Sequence[Mapping[str, Any]]
) -> Iterator[dict[str, Any]]:
    """Yield a span for each sentence that has no span and that the sources don't support according to the model."""
    for each in sentences:
        if not each["supported"] and not any(each["start"] <= span["start"] < each["end"] for span in spans):
            why = f"According to the model, the sources support this with a probability of {each['score']:.2f}."
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


def similarity(predictions: Predictions, spec: EvaluateSpec) -> Iterator[dict[str, Any]] | None:
    """Return rows with each answer's `similarity` and `token_similarity` to its most similar reference.

    Returns None if the recipe turns similarity off, if there are no answers, or if the sentence model is unavailable,
    which a message reports.
    """
    from meditune.models.catalogue import SENTENCE_MODEL
    from meditune.models.sentence_encoder import sentence_model

    if not spec.similarity or not predictions.answer or not _is_available(SENTENCE_MODEL.folder):
        return None
    return compared(sentence_model(), predictions.answer)


def compared(model: SentenceModel, rows: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yield `id`, `similarity` and `token_similarity` of each answer; both are 0 for an empty answer.

    The most similar reference can differ between the two measures.
    """
    texts = list(dict.fromkeys(text for row in rows for text in (row["prediction"], *references(row))))
    readings = dict(zip(texts, model.read(texts, "Similarity in meaning"), strict=True))
    for row in rows:
        answer, reference_vectors = readings[row["prediction"]], [readings[text] for text in references(row)]
        blank = not row["prediction"].strip()
        yield {
            "id": row["id"],
            "similarity": 0.0 if blank else max(float(answer.sentence @ each.sentence) for each in reference_vectors),
            "token_similarity": max(matched(answer, each) for each in reference_vectors),
        }


def matched(answer: TokenVectors, reference: TokenVectors) -> float:
    """Return the F1 of greedy token matching by cosine similarity (Zhang et al. 2020, arXiv:1904.09675).

    The result is 0 if the answer or the reference has no tokens.
    """
    if not len(answer.tokens) or not len(reference.tokens):
        return 0.0
    cosines = answer.tokens @ reference.tokens.T
    precision, recall = float(np.mean(cosines.max(axis=1))), float(np.mean(cosines.max(axis=0)))
    return 2 * precision * recall / (precision + recall) if precision + recall > 0 else 0.0


@cache
def _is_available(folder: Path) -> bool:
    """Return True if the sentence model is in the folder or can be downloaded to it; else print a message once."""
    from meditune.models.sentence_encoder import sentence_model

    try:
        sentence_model()
    except ModelError as error:
        reason = str(error).rstrip(".")
        print(
            f"Similarity in meaning is not measured: {reason}. To turn off this metric, set evaluate.similarity=false.",
            file=sys.stderr,
        )
        return False
    return folder.is_dir()


def plain_versions(predictions: Predictions, examples: Mapping[str, Example]) -> list[dict[str, Any]]:
    """Return the rows of the answers in plain style to examples with a source text."""
    found = ((row, examples.get(row["id"])) for row in predictions.answer)
    return [row for row, example in found if example and example.style == "plain" and _texts(example)]


def sari(predictions: Predictions, examples: Mapping[str, Example]) -> Iterator[dict[str, Any]] | None:
    """Return rows with the counts for SARI of each plain version of a source text; None without such answers."""
    rows = plain_versions(predictions, examples)
    if not rows:
        return None
    return (
        {"id": row["id"]} | sari_counts(examples[row["id"]].context_text, row["prediction"], references(row))
        for row in rows
    )


def facts(
    predictions: Predictions, examples: Mapping[str, Example], spec: EvaluateSpec
) -> Iterator[dict[str, Any]] | None:
    """Return rows with the judge's verdicts on whether a plain version contains the sentences of its reference.

    Returns None if there are no such answers, or if no model grades faithfulness. If the model can't be loaded, for
    example for a report on another machine, the function also prints a message.
    """
    rows, name = plain_versions(predictions, examples), spec.faithfulness_model
    if not rows or name == "none":
        return None
    try:
        judge = open_judge(name, option="evaluate.faithfulness_model")
    except ModelError as error:
        print(f"Which facts are kept is not measured: {str(error).rstrip('.')}.", file=sys.stderr)
        return None
    return _judged_facts(rows, judge, name)


def _judged_facts(
    rows: Sequence[dict[str, Any]], judge: EvidenceJudge | SupportJudge, name: str
) -> Iterator[dict[str, Any]]:
    with Progress("Facts kept", len(rows), "answers") as progress:
        for row in rows:
            stated = sentences(row["reference"])
            verdicts = verdicts_on(judge, stated, row["prediction"])
            statements = [
                {"kind": "must", "text": text, "verdict": verdict}
                for text, verdict in zip(stated, verdicts, strict=True)
            ]
            yield {"id": row["id"], "by": name, "statements": statements} | cannot_refute(judge)
            progress.advance(1)


def grade(
    folder: Path, model: str, examples: Sequence[Example], spec: EvaluateSpec, retrieved: Sequence[Example] = ()
) -> None:
    """Store each grader's rows for the predictions of `model`, unless they exist already.

    `retrieved` contains the examples with retrieved passages.
    """
    predictions = read(folder, model)
    given, by_passages = ({example.id: example for example in each} for each in (examples, retrieved))
    faithfulness = partial(grade_faithfulness, predictions)
    graders: dict[Kind, Callable[[], Iterable[dict[str, Any]] | None]] = {
        "calibration": lambda: fit_calibration(predictions, spec),
        "similarity": lambda: similarity(predictions, spec),
        "faithfulness": lambda: faithfulness(given, spec),
        "reference_faithfulness": lambda: faithfulness(given, spec, of_references=True),
        "sari": lambda: sari(predictions, given),
        "facts": lambda: facts(predictions, given, spec),
        "retrieved_faithfulness": lambda: faithfulness(by_passages, spec, retrieved=True),
        "retrieved_reference_faithfulness": lambda: faithfulness(by_passages, spec, of_references=True, retrieved=True),
    }
    for kind, grader in graders.items():
        rows = None if getattr(predictions, kind) else grader()
        if rows is not None:
            write_once(folder, model, kind, partial(iter, rows))
