"""Closed book, given context and retrieved passages side by side, as rows for the page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from meditune.data.example import read_examples
from meditune.data.retrieved import FOUND, as_text, is_own, read
from meditune.evaluate.metrics import METRICS
from meditune.evaluate.predictions import path_of
from meditune.evaluate.report.wording import NOT_MEASURED, interval, number, signed
from meditune.files import read_jsonl

MODELS = {"base": "Base model", "tuned": "Tuned model"}
SHOWN = 3


def contexts(report: dict[str, Any], folder: Path) -> dict[str, Any]:
    """What contexts.html shows; empty where only the given context was measured."""
    models = report.get("conditions") or {}
    if not models:
        return {}
    return {
        "closed": any("closed" in found for found in models.values()),
        "retrieved": any("retrieved" in found for found in models.values()),
        "models": [(MODELS.get(name, name), _rows(found)) for name, found in models.items()],
        "search": report.get("retrieval"),
        "ranks": _ranks(report.get("retrieval") or {}),
        "examples": _examples(folder),
    }


def _rows(found: dict[str, Any]) -> list[dict[str, str]]:
    rows = []
    for name in found["given"]["figures"]:
        metric = METRICS[name]
        row = {"title": metric.title, "direction": metric.direction}
        for condition in ("closed", "given", "retrieved"):
            each = found.get(condition, {})
            figure = number(each.get("figures", {}).get(name), metric.digits)
            row[condition] = "–" if figure == NOT_MEASURED else figure
            compared = each.get("comparison", {}).get(name)
            row[f"{condition}_delta"] = (
                f"{signed(compared['delta'], metric.digits)} ({interval(compared['ci95'], metric.digits)})"
                if compared
                else ""
            )
        rows.append(row)
    return rows


def _ranks(search: dict[str, Any]) -> list[tuple[str, int]]:
    own = search.get("own") or {}
    if not own.get("items"):
        return []
    found = [(f"at rank {rank}", count) for rank, count in own["ranks"].items()]
    return [*found, ("not found", own["items"] - sum(own["ranks"].values()))]


def _examples(folder: Path) -> list[dict[str, Any]]:
    """The first items with what was found for them, and what the tuned model made of it."""
    if not (folder / FOUND).is_file():
        return []
    found = read(folder / FOUND)
    said = {kind: _by_id(folder, kind) for kind in ("retrieved", "retrieved_answer", "decision")}
    files = [folder / "data" / f"{split}.jsonl" for split in ("test", "dev")]
    items = {example.id: example for file in files if file.is_file() for example in read_examples(file)}
    shown = []
    for id in list(said["retrieved_answer"] or said["retrieved"])[:SHOWN]:
        answer = said["retrieved_answer"].get(id, {})
        decided, given = said["retrieved"].get(id), said["decision"].get(id)
        room = answer.get("passages", len(found[id]["passages"])) if id in found else 0
        shown.append(
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
    return shown


def _by_id(folder: Path, kind: Any) -> dict[str, dict[str, Any]]:
    path = path_of(folder / "predictions", "tuned", kind)
    return {row["id"]: row for row in read_jsonl(path)} if path.is_file() else {}
