"""The report's sections with answers: worked examples chosen by rule, unsupported statements, the safety test set."""

from __future__ import annotations

from itertools import zip_longest
from pathlib import Path
from typing import Any, get_args

from meditune.data.example import Example, read_examples
from meditune.data.retrieved_passages import RETRIEVED_FILE, as_text, is_own
from meditune.data.retrieved_passages import read as read_retrieved
from meditune.evaluate.faithfulness_and_similarity import WORDS, overview
from meditune.evaluate.metrics.written_answers import rouge
from meditune.evaluate.predictions import KINDS, Kind, examples_of, path_of, read
from meditune.evaluate.report.formatting import web_address
from meditune.evaluate.safety_battery import CATEGORIES, message_of, passed
from meditune.evaluate.safety_battery import TITLES as SAFETY_TITLES
from meditune.evidence.lexical_detector import SpanKind
from meditune.files import read_jsonl

MAX_LOST, MAX_GAINED, MAX_EXAMPLES = 4, 3, 10
Rows = dict[str, dict[str, Any]]
"""Stored rows by id"""


def worked_examples(folder: Path) -> tuple[list[dict[str, Any]], int]:
    """Return the chosen examples and the number of items they were chosen from.

    The items that both models answered (or decided, if there are no answers) are sorted by the change in the decision,
    then by the change in ROUGE-L, then by id. The examples are up to MAX_LOST of the greatest losses, then up to
    MAX_GAINED of the greatest gains, and then the items nearest the median, up to MAX_EXAMPLES in all. `sort` is
    "lost", "gained" or "usual".
    """
    answers, decisions = (
        [_by_id(folder, model, kind) for model in ("base", "tuned")] for kind in ("answer", "decision")
    )
    asked = answers if all(answers) else decisions
    examples = examples_of(folder)
    pool = [_worked_example(id, examples.get(id), answers, decisions) for id in asked[0] if id in asked[1]]
    pool.sort(key=lambda item: (item["change"], item["id"]))
    lost = [item for item in pool if item["change"] < (0, 0.0)][:MAX_LOST]
    gained = [item for item in pool if item["change"] > (0, 0.0)][::-1][:MAX_GAINED]
    taken = {item["id"] for item in (*lost, *gained)}
    middle = (len(pool) - 1) / 2
    near = sorted(range(len(pool)), key=lambda index: (abs(index - middle), index))
    usual = [pool[index] for index in near if pool[index]["id"] not in taken][: MAX_EXAMPLES - len(taken)]
    chosen = [*((item, "lost") for item in lost), *((item, "gained") for item in gained)]
    return [item | {"sort": sort} for item, sort in (*chosen, *((item, "usual") for item in usual))], len(pool)


def _worked_example(id: str, example: Example | None, answers: list[Rows], decisions: list[Rows]) -> dict[str, Any]:
    base, tuned = (_side(answers[model].get(id), decisions[model].get(id)) for model in (0, 1))
    flip = int(tuned["right"]) - int(base["right"])
    return {
        "id": id,
        "question": example.question if example else id,
        "context": example.context if example else (),
        "url": web_address(example.meta.get("url")) if example else None,
        "answer": example.answer if example else answers[1].get(id, {}).get("reference", ""),
        "decision": example.decision if example else decisions[1].get(id, {}).get("reference"),
        "base": base,
        "tuned": tuned,
        "change": (flip, (tuned["rouge"] or 0.0) - (base["rouge"] or 0.0)),
    }


def _side(answer: dict[str, Any] | None, decision: dict[str, Any] | None) -> dict[str, Any]:
    """Return one model's answer with its ROUGE-L F1, and its decision; None if these weren't measured."""
    return {
        "answer": answer["prediction"] if answer else None,
        "decision": (decision["prediction"] or "none of the three") if decision else None,
        "right": bool(decision and decision["prediction"] == decision["reference"]),
        "rouge": rouge(answer) if answer else None,
    }


def _by_id(folder: Path, model: str, kind: Kind) -> Rows:
    path = path_of(folder / "predictions", model, kind)
    return {row["id"]: row for row in read_jsonl(path)} if path.is_file() else {}


MAX_RETRIEVED = 3
RETRIEVED: tuple[Kind, ...] = ("retrieved", "retrieved_answer", "decision")


def retrieved_examples(folder: Path) -> list[dict[str, Any]]:
    """Return the first MAX_RETRIEVED items with their retrieved passages and the tuned model's answers."""
    if not (folder / RETRIEVED_FILE).is_file():
        return []
    found = read_retrieved(folder / RETRIEVED_FILE)
    rows = {kind: _by_id(folder, "tuned", kind) for kind in RETRIEVED}
    files = [folder / "data" / f"{split}.jsonl" for split in ("test", "dev")]
    items = {example.id: example for file in files if file.is_file() for example in read_examples(file)}
    examples = []
    for id in list(rows["retrieved_answer"] or rows["retrieved"])[:MAX_RETRIEVED]:
        answer = rows["retrieved_answer"].get(id, {})
        decided, given = rows["retrieved"].get(id), rows["decision"].get(id)
        room = answer.get("passages", len(found[id]["passages"])) if id in found else 0
        examples.append(
            {
                "question": items[id].question if id in items else id,
                "passages": [
                    passage | {"text": as_text(passage), "shown": place < room, "own": is_own(passage, id)}
                    for place, passage in enumerate(found.get(id, {}).get("passages", []))
                ],
                "answer": answer.get("prediction"),
                "decision": decided and decided["prediction"],
                "given": given and given["prediction"],
                "reference": decided and decided["reference"],
            }
        )
    return examples


MAX_UNSUPPORTED = 6
MODELS = (("base", "Base model"), ("tuned", "Tuned model"))
REFERENCES = ("references", "Reference answers")
TITLES = {kind: "no support" if kind == "unsupported" else kind for kind in get_args(SpanKind)}


def unsupported(folder: Path) -> dict[str, Any]:
    """Return the content of unsupported.html; empty if no answer was graded."""
    place = folder / "predictions"
    stored = [name for name, _ in MODELS if any(path_of(place, name, kind).is_file() for kind in KINDS)]
    found = {name: overview(read(place, name)) for name in stored}
    if not any(each["graded"] for each in found.values()):
        return {}
    references = overview(read(place, stored[-1]), of_references=True)
    if references["graded"]:
        found[REFERENCES[0]] = references
    kinds = [kind for kind in TITLES if any(each["spans"].get(kind) for each in found.values())]
    return {
        "models": [(title, found[name]) for name, title in (*MODELS, REFERENCES) if name in found],
        "by": _judges({title: found[name]["by"] for name, title in (*MODELS, REFERENCES) if name in found}),
        "kinds": [(kind, TITLES[kind], [found[name]["spans"].get(kind, 0) for name in found]) for kind in kinds],
        "worst": _lowest_scores(folder),
    }


def _judges(by: dict[str, str | None]) -> list[str]:
    """Return the names of the judges other than the detector. If the graders differ, each name has what it graded."""
    graders = dict.fromkeys(each for each in by.values() if each)
    graded = {name: ", ".join(title.lower() for title, each in by.items() if each == name) for name in graders}
    return [name if len(graders) == 1 else f"{name} ({graded[name]})" for name in graders if name != WORDS]


def _lowest_scores(folder: Path) -> list[dict[str, Any]]:
    """Return the tuned model's marked answers with the lowest scores."""
    answers = _by_id(folder, "tuned", "answer")
    graded = _by_id(folder, "tuned", "faithfulness").values()
    rows = [row for row in graded if row["spans"] and row["score"] is not None and row["id"] in answers]
    rows.sort(key=lambda row: (row["score"], row["id"]))
    examples = examples_of(folder)
    return [_marked(row, answers[row["id"]]["prediction"], examples.get(row["id"])) for row in rows[:MAX_UNSUPPORTED]]


def _marked(row: dict[str, Any], answer: str, example: Example | None) -> dict[str, Any]:
    """Return an answer in pieces (the `kind` of an unmarked piece is empty) and the notes that explain the marks."""
    pieces: list[dict[str, Any]] = []
    notes: list[dict[str, Any]] = []
    numbers: dict[tuple[str, str], int] = {}
    at = 0
    for span in sorted(row["spans"], key=lambda span: (span["start"], -span["end"])):
        if span["start"] < at:
            continue  # inside a span that is already marked
        key, text = (span["why"], span["source"]), answer[span["start"] : span["end"]]
        if key not in numbers:
            numbers[key] = len(numbers) + 1
            notes.append(span | {"number": numbers[key], "text": text, "title": TITLES.get(span["kind"], span["kind"])})
        pieces.append({"text": answer[at : span["start"]], "kind": ""})
        pieces.append({"text": text, "kind": span["kind"], "note": numbers[key]})
        at = span["end"]
    pieces.append({"text": answer[at:], "kind": ""})
    return {
        "id": row["id"],
        "question": example.question if example else row["id"],
        "score": row["score"],
        "pieces": [piece for piece in pieces if piece["text"]],
        "notes": notes,
        "context": example.context if example else (),
    }


SAFETY_ALL = "all"
MAX_SAFETY_EXAMPLES = 8


def safety(report: dict[str, Any], folder: Path) -> dict[str, Any] | None:
    """Return the content of safety.html; None if the safety test wasn't run on both models."""
    found = report.get("safety") or {}
    if not found.get("base") or not found.get("tuned"):
        return None
    titles = {**SAFETY_TITLES, SAFETY_ALL: "All"}
    table = [
        {"title": titles[category], "base": found["base"][category], "tuned": found["tuned"][category]}
        for category in (*CATEGORIES, SAFETY_ALL)
        if category in found["tuned"]
    ]
    base, tuned = (_by_id(folder, model, "safety") for model in ("base", "tuned"))
    pool = [
        {
            "category": SAFETY_TITLES[message_of(row).category],
            "message": row["message"],
            "expected": message_of(row).expected,
            "base": _graded_answer(row),
            "tuned": _graded_answer(tuned[id]),
        }
        for id, row in base.items()
        if id in tuned
    ]
    return {"table": table, "examples": _worst(pool), "pool": len(pool)}


def _worst(pool: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return up to MAX_SAFETY_EXAMPLES failed messages, from each category in turn.

    Within a category, messages that only the tuned model fails come first, then messages that both models fail, then
    messages that only the base model fails.
    """
    failed = [item for item in pool if not (item["base"]["passed"] and item["tuned"]["passed"])]
    failed.sort(key=lambda item: 0 if item["base"]["passed"] else 2 if item["tuned"]["passed"] else 1)
    queues = [[item for item in failed if item["category"] == title] for title in SAFETY_TITLES.values()]
    return [item for turn in zip_longest(*queues) for item in turn if item is not None][:MAX_SAFETY_EXAMPLES]


def _graded_answer(row: dict[str, Any]) -> dict[str, Any]:
    """Return whether an answer passes, the reasons, and its text in pieces: (text, whether a reason is based on it)."""
    reasons, text = message_of(row).grade(row["prediction"]), row["prediction"]
    pieces, at = [], 0
    for start, end in sorted(reason.span for reason in reasons if reason.span):
        if start >= at:
            pieces += [(text[at:start], False), (text[start:end], True)]
            at = end
    return {
        "passed": passed(reasons),
        "pieces": [piece for piece in [*pieces, (text[at:], False)] if piece[0]],
        "reasons": [(reason.text, reason.passed) for reason in reasons],
    }
