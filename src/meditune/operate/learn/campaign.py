"""What was chosen as a set that `meditune annotate` serves, and such sets read again."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from meditune.data.decisions import fingerprint
from meditune.data.example import Example
from meditune.data.sources import SOURCES
from meditune.errors import DataError
from meditune.evaluate.measured import groups_of
from meditune.files import holds
from meditune.operate.learn.candidate import Candidate, NothingToAskError
from meditune.operate.learn.queue import Chosen
from meditune.review.axes import DECISION, VERDICT
from meditune.review.ratingset import KEY, check_sharing, read_key_as, write_set
from meditune.review.tasks import VALIDATE

FORM = "label"
SAMPLE = "queue"
"""What the set's results say of how its rows were chosen"""
_CORRECTION, _COMMENT = "A user's correction", "A user's comment"


@dataclass(frozen=True)
class Sharing:
    """How experts share the work; each sees all unless `raters` says otherwise."""

    raters: int | None = None
    overlap: int | None = None
    """How many of them judge each row; two unless given"""


def make(chosen: Sequence[Chosen], folder: Path, made_from: dict[str, Any], sharing: Sharing | None = None) -> None:
    """Leave a set of what was chosen in `folder`, in that order, whole or not at all.

    `made_from` says how it was chosen; a folder that holds just that already is left as it is. Raises
    DataError where nothing was chosen, MedituneError where the folder holds something else.
    """
    if not chosen:
        raise NothingToAskError(f"{folder}: nothing was chosen, so there is nothing to ask experts.")
    sharing = sharing or Sharing()
    check_sharing(sharing.raters, sharing.overlap)
    settings: dict[str, Any] = {
        "task": VALIDATE.name,
        "axes": FORM,
        "raters": sharing.raters,
        "overlap": sharing.overlap or (min(2, sharing.raters) if sharing.raters else None),
        "everyone": [],
        "ranked": True,
    }
    rows = [[each.candidate.id, fingerprint(each.candidate.example)] for each in chosen]
    asked = made_from | {"sample": SAMPLE, "raters": sharing.raters, "overlap": sharing.overlap, "rows": rows}
    if holds(folder, KEY, asked):
        return
    items: list[dict[str, Any]] = []
    key: dict[str, Any] = {}
    for each in chosen:
        id, example = secrets.token_hex(6), each.candidate.example
        items.append({"id": id, "asked": secrets.token_hex(4), **_shown(each.candidate)})
        key[id] = {
            "example": example.id,
            "group": groups_of({example.id: example})[example.id],
            "source": example.source,
            "sha256": fingerprint(example),
            "origins": ["row"],
            "stratum": "",
            "score": round(each.score, 3),
            "reasons": dict(each.reasons),
            "expected": [],
            "row": example.model_dump(mode="json"),
        }
    write_set(folder, settings, items, key, asked)


def examples(folder: Path) -> dict[str, Example]:
    """By item, the examples that a set was made of. Raises DataError where it isn't a set of `meditune learn queue`."""
    found = read_key_as(folder, lambda row: row.get("row"))[0]
    if not all(found.values()):
        raise DataError(f"{folder} is no queue of `meditune learn queue`, whose rows are kept with it.")
    return {item: Example.model_validate(row) for item, row in found.items()}


def _shown(candidate: Candidate) -> dict[str, Any]:
    """What the page shows: of an answer also what users said, which is no part of the row that is learnt."""
    example = candidate.example
    link = str(example.meta.get("url") or "")
    said = [
        {"label": label, "text": text}
        for word in candidate.words
        for label, text in ((_CORRECTION, word.correction), (_COMMENT, word.comment))
        if text
    ]
    return {
        "question": example.question,
        "context": [*said, *(passage.model_dump(mode="json") for passage in example.context)],
        "answer": example.answer,
        "decision": example.decision or "",
        "source": _source(candidate),
        "link": link if link.startswith(("https://", "http://")) else "",
        "axes": _axes(candidate),
    }


def _source(candidate: Candidate) -> str:
    example = candidate.example
    if candidate.origin == "answer":
        return f"an answer that was given by {example.meta['model']}"
    named = str(example.meta.get("source") or example.source)
    return SOURCES[named].title if named in SOURCES else named


def _axes(candidate: Candidate) -> list[str]:
    """A verdict needs an answer; a decision is asked for where somebody has one, or there is nothing else to ask."""
    example = candidate.example
    decides = bool(example.decision or candidate.opinions or not example.answer)
    return [*([DECISION.name] if decides else []), *([VERDICT.name] if example.answer else [])]
