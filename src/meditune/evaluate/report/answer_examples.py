"""Sections of the report with answers: worked examples picked by rule, unsupported statements, the safety battery."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any, Literal

from meditune.data.example import Example, Passage
from meditune.evaluate.answer_grading import WORDS, overview, overview_of_references
from meditune.evaluate.compare import rouge
from meditune.evaluate.predictions import KINDS, Kind, examples_of, path_of, read
from meditune.evaluate.report.formatting import number, web_address
from meditune.evaluate.safety_battery import CATEGORIES, message_of, passed
from meditune.evaluate.safety_battery import TITLES as SAFETY_TITLES
from meditune.files import read_jsonl

Sort = Literal["lost", "gained", "usual"]
LOST, GAINED, ALL = 4, 3, 10


@dataclass(frozen=True)
class Side:
    """One model's answer and decision; None if it wasn't asked."""

    answer: str | None
    decision: str | None
    right: bool
    rouge: float | None
    """ROUGE-L F1 with the reference answer"""


@dataclass(frozen=True)
class WorkedExample:
    """One test question with both models' answers."""

    id: str
    sort: Sort
    question: str
    context: tuple[Passage, ...]
    url: str | None
    answer: str
    decision: str | None
    base: Side
    tuned: Side

    @property
    def change(self) -> tuple[int, float]:
        """Return whether the decision became correct (1), wrong (-1) or neither (0), and tuned minus base ROUGE-L."""
        flip = int(self.tuned.right) - int(self.base.right)
        return flip, (self.tuned.rouge or 0.0) - (self.base.rouge or 0.0)


def worked_examples(folder: Path) -> tuple[list[WorkedExample], int]:
    """Return the chosen examples, worst first, and the number of items they were chosen from.

    All items that both models answered (or decided, if there are no answers) are ordered by `WorkedExample.change`,
    ties by id. The examples are up to LOST items from the bottom that lost, up to GAINED items from the top that
    gained, and the items nearest the median up to a total of ALL.
    """
    answers = {model: _by_id(folder, model, "answer") for model in ("base", "tuned")}
    decisions = {model: _by_id(folder, model, "decision") for model in ("base", "tuned")}
    asked = answers if answers["base"] and answers["tuned"] else decisions
    examples = examples_of(folder)
    pool = [_worked(id, examples.get(id), answers, decisions) for id in asked["base"] if id in asked["tuned"]]
    pool.sort(key=lambda item: (item.change, item.id))
    return _chosen(pool), len(pool)


def _chosen(pool: list[WorkedExample]) -> list[WorkedExample]:
    lost = [item for item in pool if item.change < (0, 0.0)][:LOST]
    gained = [item for item in pool if item.change > (0, 0.0)][::-1][:GAINED]
    taken = {item.id for item in (*lost, *gained)}
    middle = (len(pool) - 1) / 2
    near = sorted(range(len(pool)), key=lambda index: (abs(index - middle), index))
    usual = [pool[index] for index in near if pool[index].id not in taken][: ALL - len(taken)]
    return [
        *(_as(item, "lost") for item in lost),
        *(_as(item, "gained") for item in gained),
        *(_as(item, "usual") for item in usual),
    ]


def _as(item: WorkedExample, sort: Sort) -> WorkedExample:
    return WorkedExample(**{**vars(item), "sort": sort})


def _worked(
    id: str,
    example: Example | None,
    answers: dict[str, dict[str, dict[str, Any]]],
    decisions: dict[str, dict[str, dict[str, Any]]],
) -> WorkedExample:
    said, chose = answers["tuned"].get(id, {}), decisions["tuned"].get(id, {})
    return WorkedExample(
        id=id,
        sort="usual",
        question=example.question if example else id,
        context=example.context if example else (),
        url=web_address(example.meta.get("url")) if example else None,
        answer=example.answer if example else said.get("reference", ""),
        decision=example.decision if example else chose.get("reference"),
        base=_side(answers["base"].get(id), decisions["base"].get(id)),
        tuned=_side(answers["tuned"].get(id), decisions["tuned"].get(id)),
    )


def _side(answer: dict[str, Any] | None, decision: dict[str, Any] | None) -> Side:
    return Side(
        answer=answer["prediction"] if answer else None,
        decision=(decision["prediction"] or "none of the three") if decision else None,
        right=bool(decision and decision["prediction"] == decision["reference"]),
        rouge=rouge(answer["reference"], answer["prediction"]) if answer else None,
    )


def _by_id(folder: Path, model: str, kind: Kind) -> dict[str, dict[str, Any]]:
    path = path_of(folder / "predictions", model, kind)
    return {row["id"]: row for row in read_jsonl(path)} if path.is_file() else {}


SHOWN = 6
MODELS = (("base", "Base model"), ("tuned", "Tuned model"))
REFERENCES = ("references", "Reference answers")
TITLES = {
    "number": "number",
    "unit": "unit",
    "name": "name",
    "negation": "negation",
    "direction": "direction",
    "unsupported": "no support",
}


@dataclass(frozen=True)
class Piece:
    """A piece of an answer; `kind` is empty if the piece isn't marked."""

    text: str
    kind: str = ""
    note: int = 0
    """Number of the note that explains the mark"""


@dataclass(frozen=True)
class Marked:
    """One answer of the tuned model with its marks and their notes."""

    id: str
    question: str
    score: float
    pieces: list[Piece]
    notes: list[dict[str, Any]]
    context: tuple[Passage, ...]


def unsupported(folder: Path) -> dict[str, Any]:
    """Return the section's content; empty if no answer was graded."""
    place = folder / "predictions"
    stored = [name for name, _ in MODELS if any(path_of(place, name, kind).is_file() for kind in KINDS)]
    found = {name: overview(read(place, name)) for name in stored}
    if not any(each["graded"] for each in found.values()):
        return {}
    references = overview_of_references(read(place, stored[-1]))
    if references["graded"]:
        found[REFERENCES[0]] = references
    kinds = [kind for kind in TITLES if any(each["spans"].get(kind) for each in found.values())]
    return {
        "models": [(title, found[name]) for name, title in (*MODELS, REFERENCES) if name in found],
        "by": next(each["by"] for each in found.values() if each["by"]),
        "by_words": all(each["by"] in (WORDS, None) for each in found.values()),
        "kinds": [(kind, TITLES[kind], [found[name]["spans"].get(kind, 0) for name in found]) for kind in kinds],
        "worst": _worst(folder),
    }


def _worst(folder: Path) -> list[Marked]:
    """Return the tuned model's answers with marks that have the lowest scores."""
    graded, written = (path_of(folder / "predictions", "tuned", kind) for kind in ("faithfulness", "answer"))
    if not (graded.is_file() and written.is_file()):
        return []
    answers = {row["id"]: row["prediction"] for row in read_jsonl(written)}
    rows = [row for row in read_jsonl(graded) if row["spans"] and row["score"] is not None and row["id"] in answers]
    rows.sort(key=lambda row: (row["score"], row["id"]))
    examples = examples_of(folder)
    return [_marked(row, answers[row["id"]], examples.get(row["id"])) for row in rows[:SHOWN]]


def _marked(row: dict[str, Any], answer: str, example: Example | None) -> Marked:
    pieces: list[Piece] = []
    notes: list[dict[str, Any]] = []
    numbers: dict[tuple[str, str], int] = {}
    at = 0
    for span in sorted(row["spans"], key=lambda span: (span["start"], -span["end"])):
        if span["start"] < at:
            continue  # inside a span that is already marked
        key = (span["why"], span["source"])
        if key not in numbers:
            numbers[key] = len(numbers) + 1
            said = answer[span["start"] : span["end"]]
            notes.append(span | {"number": numbers[key], "said": said, "title": TITLES.get(span["kind"], span["kind"])})
        pieces.append(Piece(answer[at : span["start"]]))
        pieces.append(Piece(answer[span["start"] : span["end"]], span["kind"], numbers[key]))
        at = span["end"]
    pieces.append(Piece(answer[at:]))
    question, context = (example.question, example.context) if example else (row["id"], ())
    return Marked(row["id"], question, row["score"], [piece for piece in pieces if piece.text], notes, context)


SAFETY_ALL = "all"
SAFETY_SHOWN = 8


@dataclass(frozen=True)
class Cell:
    """The share of a model's answers that pass, with its interval."""

    share: str
    interval: str


@dataclass(frozen=True)
class Row:
    """A category, or all categories together."""

    title: str
    messages: int
    base: Cell
    tuned: Cell


@dataclass(frozen=True)
class SafetyAnswer:
    """One model's answer with its verdict and the reasons."""

    passed: bool
    pieces: tuple[tuple[str, bool], ...]
    """The answer in pieces, and whether a reason refers to the piece"""
    reasons: tuple[tuple[str, bool], ...]


@dataclass(frozen=True)
class SafetyMessage:
    """One message with both models' answers."""

    category: str
    message: str
    expected: str
    base: SafetyAnswer
    tuned: SafetyAnswer


def safety(report: dict[str, Any], folder: Path) -> dict[str, Any] | None:
    """Return rows and examples; None if the battery wasn't run on both models."""
    found = report.get("safety") or {}
    if not found.get("base") or not found.get("tuned"):
        return None
    titles = {**SAFETY_TITLES, SAFETY_ALL: "All"}
    table = [
        Row(
            titles[category],
            found["tuned"][category]["messages"],
            _cell(found["base"][category]),
            _cell(found["tuned"][category]),
        )
        for category in (*CATEGORIES, SAFETY_ALL)
        if category in found["tuned"]
    ]
    pool = _asked(folder)
    empty = [found[model][SAFETY_ALL]["empty"] for model in ("base", "tuned")]
    return {"table": table, "empty": empty, "examples": worst(pool), "pool": len(pool)}


def worst(pool: list[SafetyMessage]) -> list[SafetyMessage]:
    """Return up to SAFETY_SHOWN failed messages, from each category in turn.

    Messages that only the tuned model fails come first, then those that both fail, then those that only the base fails.
    """

    def order(item: SafetyMessage) -> int:
        return 0 if item.base.passed else 2 if item.tuned.passed else 1

    failed = [item for item in pool if not (item.base.passed and item.tuned.passed)]
    queues = [
        sorted((item for item in failed if item.category == title), key=order) for title in SAFETY_TITLES.values()
    ]
    return [item for turn in zip_longest(*queues) for item in turn if item is not None][:SAFETY_SHOWN]


def _asked(folder: Path) -> list[SafetyMessage]:
    paths = {model: path_of(folder / "predictions", model, "safety") for model in ("base", "tuned")}
    if not all(path.is_file() for path in paths.values()):
        return []
    base, tuned = ({row["id"]: row for row in read_jsonl(path)} for path in paths.values())
    return [
        SafetyMessage(
            SAFETY_TITLES[message_of(row).category],
            row["message"],
            message_of(row).expected,
            _said(row),
            _said(tuned[id]),
        )
        for id, row in base.items()
        if id in tuned
    ]


def _said(row: dict[str, Any]) -> SafetyAnswer:
    reasons = message_of(row).grade(row["prediction"])
    spans = sorted(reason.span for reason in reasons if reason.span)
    return SafetyAnswer(
        passed(reasons),
        tuple(_pieces(row["prediction"], spans)),
        tuple((reason.text, reason.good) for reason in reasons),
    )


def _pieces(text: str, spans: list[tuple[int, int]]) -> list[tuple[str, bool]]:
    pieces, at = [], 0
    for start, end in spans:
        if start >= at:
            pieces += [(text[at:start], False), (text[start:end], True)]
            at = end
    return [piece for piece in [*pieces, (text[at:], False)] if piece[0]]


def _cell(counts: dict[str, Any]) -> Cell:
    low, high = counts["ci95"]
    return Cell(number(counts["rate"], 1), f"{number(low, 1)} to {number(high, 1)}")
