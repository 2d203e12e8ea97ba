"""What a model said, and what was found in it, stored so that every figure can be computed again without the model.

One JSON Lines file per model and task under `predictions/`:

    base-decision.jsonl     id, reference, prediction, logits {label: logit}; of API models, by: likelihood or word
    base-dev_decision.jsonl the same on the dev split, for what is fitted there
    base-closed.jsonl       the same without any context in the prompt
    base-retrieved.jsonl    the same with passages that were found (the run's retrieved.jsonl) in place of the context
    base-written.jsonl      id, reference, prediction, text    (the decision that was written, and the words it is in)
    base-calibration.jsonl  id, method, temperature, bias {label: logit}, items    (one line; fitted on dev decisions)
    base-likelihood.jsonl   id, nll, tokens, bytes     (reference answers, without their end token)
    base-unconditional.jsonl   id, nll, tokens, bytes  (the same answers without question and context)
    base-answer.jsonl       id, reference, references, prediction   (greedy decoding; references has all of them)
    base-closed_likelihood.jsonl, base-closed_answer.jsonl, base-retrieved_likelihood.jsonl,
    base-retrieved_answer.jsonl   likelihoods and answers under these conditions; with retrieved passages, passages: how
                            many of the item's there was room for
    base-safety.jsonl       id, category, message, prediction   (the safety battery; graded when figures are made)
    base-general.jsonl      id, nll, tokens, bytes     (windows of general text)
    base-technical.jsonl    id, nll, tokens, bytes, python, sha256   (windows of technical text, and its edition)
    base-preference.jsonl   id, kind, chosen_nll, chosen_tokens, rejected_nll, rejected_tokens   (pairs of answers)
    base-samples.jsonl      id, predictions            (answers written by chance)
    base-faithfulness.jsonl id, score, by, sentences, spans   (graded answers: evaluate/faithfulness.py)
    base-retrieved_faithfulness.jsonl   the same of answers from retrieved passages, by those that were in the prompt
    base-reference_faithfulness.jsonl, base-retrieved_reference_faithfulness.jsonl   the same of the reference answers,
                            graded by the same sources: what the grader marks in true answers
    base-similarity.jsonl   id, similarity, token_similarity   (of each answer to its nearest reference)
    base-choice.jsonl       id, subject, reference, nll, bytes   (general knowledge; nll and bytes of every choice)
    base-rating.jsonl       id, score                  (1 to 4 by raters, null where nothing was answered; ratings.py)
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from meditune.data.example import Example
from meditune.data.retrieved import RANKS, count
from meditune.errors import DataError
from meditune.files import read_jsonl, write_jsonl
from meditune.prompts import decision_in

TextKind = Literal["general", "technical"]
"""Running text, measured in windows."""
Condition = Literal["closed", "retrieved"]
"""What stands in the prompt in place of the given context: nothing, or passages that were found."""
CONDITIONS: tuple[Condition, ...] = get_args(Condition)
DecisionKind = Literal["decision", "dev_decision", Condition]
"""Decisions by likelihood: on the measured items, on the dev split, and on the measured items under each condition."""
AnswerKind = Literal["answer", "closed_answer", "retrieved_answer"]
LikelihoodKind = Literal["likelihood", "closed_likelihood", "retrieved_likelihood"]
ANSWER: dict[Condition, AnswerKind] = {"closed": "closed_answer", "retrieved": "retrieved_answer"}
LIKELIHOOD: dict[Condition, LikelihoodKind] = {"closed": "closed_likelihood", "retrieved": "retrieved_likelihood"}
Kind = Literal[
    DecisionKind,
    AnswerKind,
    LikelihoodKind,
    "written",
    "calibration",
    "unconditional",
    "similarity",
    TextKind,
    "choice",
    "preference",
    "samples",
    "faithfulness",
    "retrieved_faithfulness",
    "reference_faithfulness",
    "retrieved_reference_faithfulness",
    "safety",
    "rating",
]
KINDS: tuple[Kind, ...] = get_args(Kind)


@dataclass
class Predictions:
    """Rows of each kind for one model; a kind that wasn't measured is empty."""

    decision: list[dict[str, Any]] = field(default_factory=list)
    likelihood: list[dict[str, Any]] = field(default_factory=list)
    answer: list[dict[str, Any]] = field(default_factory=list)
    general: list[dict[str, Any]] = field(default_factory=list)
    preference: list[dict[str, Any]] = field(default_factory=list)
    technical: list[dict[str, Any]] = field(default_factory=list)
    samples: list[dict[str, Any]] = field(default_factory=list)
    faithfulness: list[dict[str, Any]] = field(default_factory=list)
    unconditional: list[dict[str, Any]] = field(default_factory=list)
    similarity: list[dict[str, Any]] = field(default_factory=list)
    choice: list[dict[str, Any]] = field(default_factory=list)
    dev_decision: list[dict[str, Any]] = field(default_factory=list)
    closed: list[dict[str, Any]] = field(default_factory=list)
    closed_likelihood: list[dict[str, Any]] = field(default_factory=list)
    closed_answer: list[dict[str, Any]] = field(default_factory=list)
    retrieved: list[dict[str, Any]] = field(default_factory=list)
    retrieved_likelihood: list[dict[str, Any]] = field(default_factory=list)
    retrieved_answer: list[dict[str, Any]] = field(default_factory=list)
    retrieved_faithfulness: list[dict[str, Any]] = field(default_factory=list)
    reference_faithfulness: list[dict[str, Any]] = field(default_factory=list)
    retrieved_reference_faithfulness: list[dict[str, Any]] = field(default_factory=list)
    written: list[dict[str, Any]] = field(default_factory=list)
    calibration: list[dict[str, Any]] = field(default_factory=list)
    safety: list[dict[str, Any]] = field(default_factory=list)
    rating: list[dict[str, Any]] = field(default_factory=list)
    no_reference: list[str] = field(default_factory=list)
    """Ids of stored answers with an empty reference; they aren't in `answer`, as nothing can be measured on them."""

    def texts(self) -> dict[TextKind, list[dict[str, Any]]]:
        """The windows of each running text that was measured."""
        return {kind: getattr(self, kind) for kind in get_args(TextKind) if getattr(self, kind)}

    def under(self, condition: Condition | None) -> Predictions:
        """What was measured under a condition, as if it were all that was; None: with the given context.

        An item without a context of its own is the same closed book, so it isn't asked twice.
        """
        if condition is None:
            return Predictions(
                self.decision,
                self.likelihood,
                self.answer,
                faithfulness=self.faithfulness,
                reference_faithfulness=self.reference_faithfulness,
            )
        if condition == "retrieved":
            return Predictions(
                self.retrieved,
                self.retrieved_likelihood,
                self.retrieved_answer,
                faithfulness=self.retrieved_faithfulness,
                reference_faithfulness=self.retrieved_reference_faithfulness,
            )
        return Predictions(
            _filled(self.closed, self.decision),
            _filled(self.closed_likelihood, self.likelihood),
            _filled(self.closed_answer, self.answer),
        )


def _filled(rows: list[dict[str, Any]], others: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows in the order of the others, which stand in for those that are missing; none where there are no rows."""
    there = {row["id"]: row for row in rows}
    return [there.get(row["id"], row) for row in others] if rows else []


def answer_row(example: Example, written: str, left_out: int = 0) -> dict[str, Any]:
    """What is stored of an answer that a model wrote; `left_out` of the example's retrieved passages had no room."""
    shown = {"passages": count(example) - left_out} if RANKS in example.meta else {}
    return {
        "id": example.id,
        "reference": example.answer,
        "references": example.references(),
        "prediction": written,
        **shown,
    }


def references(row: dict[str, Any]) -> list[str]:
    """All reference answers of an answer's row; earlier versions stored only one."""
    found: list[str] = row.get("references") or [row["reference"]]
    return found


def written_row(identifier: str, reference: str | None, text: str) -> dict[str, Any]:
    """What is stored of a decision in words; its prediction is None where the words hold none of the labels."""
    return {"id": identifier, "reference": reference, "prediction": decision_in(text), "text": text}


def path_of(folder: Path, model: str, kind: Kind) -> Path:
    """Where one model's predictions of a kind are stored."""
    return folder / f"{model}-{kind}.jsonl"


def once(folder: Path, model: str, kind: Kind, make: Callable[[], Iterable[dict[str, Any]]]) -> None:
    """Store what `make` gives, unless a finished file is there already."""
    path = path_of(folder, model, kind)
    if not path.is_file():
        write_jsonl(path, make())


def read(folder: Path, model: str) -> Predictions:
    """All stored predictions of one model.

    Raises DataError where there are none, where a row has no id, and where an id comes twice.
    """
    found = {kind: read_jsonl(path_of(folder, model, kind)) for kind in KINDS if path_of(folder, model, kind).is_file()}
    if not found:
        raise DataError(f"{folder} holds no predictions of {model!r}. Run `meditune evaluate` first.")
    for kind, rows in found.items():
        _check_ids(rows, path_of(folder, model, kind))
    answers = found.get("answer", [])
    empty = [row["id"] for row in answers if not str(row.get("reference", "")).strip()]
    if empty:
        found["answer"] = [row for row in answers if row["id"] not in set(empty)]
    return Predictions(**found, no_reference=empty)


def _check_ids(rows: list[dict[str, Any]], path: Path) -> None:
    nameless = sum(not isinstance(row.get("id"), str) for row in rows)
    if nameless:
        raise DataError(f"{path}: {nameless} of {len(rows)} rows have no id, so nobody knows which items they are of.")
    twice = [each for each, count in Counter(row["id"] for row in rows).items() if count > 1]
    if twice:
        shown = ", ".join(twice[:5]) + (f" and {len(twice) - 5} more" if len(twice) > 5 else "")
        raise DataError(
            f"{path}: {len(twice)} ids come more than once ({shown}), so their items would count more than others. "
            "Leave one row for each."
        )
