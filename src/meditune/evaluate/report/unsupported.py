"""What the sources don't bear out: the worst answers with the places marked, and how often each kind was found."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from meditune.data.example import Example, Passage
from meditune.evaluate.faithfulness import WORDS, overview, overview_of_references
from meditune.evaluate.measured import examples_of
from meditune.evaluate.predictions import KINDS, path_of, read
from meditune.files import read_jsonl

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
    """A stretch of an answer; `kind` is empty where nothing stands against it."""

    text: str
    kind: str = ""
    note: int = 0
    """Number of its note"""


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
    """The section's content; empty where no answer was graded."""
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
    """The tuned model's answers with the lowest scores among those with marks."""
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
            continue  # inside a place that is marked already
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
