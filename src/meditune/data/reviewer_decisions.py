"""Reviewers' decisions about rows of the data, which are applied when the data are prepared."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field

from meditune.data.example import Example, read_records
from meditune.data.quality.ledger import Entry
from meditune.data.splits import Splits
from meditune.errors import DataError
from meditune.files import sha256

Verdict = Literal["correct", "incomplete", "wrong", "unsafe", "off-topic"]
VERDICTS: tuple[Verdict, ...] = get_args(Verdict)
KEPT_VERDICTS: frozenset[Verdict] = frozenset(("correct", "incomplete"))
"""Verdicts with which a row stays; with any other verdict, it is dropped unless a rater corrected its answer"""
RULE = "decisions"
MAX_LISTED_IDS = 3


class RowDecision(BaseModel):
    """A line of a decisions file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str = Field(min_length=1)
    verdict: Verdict
    answer: str = ""
    raters: tuple[str, ...] = ()
    """Codes of the raters in the annotation set"""
    settled: bool = False
    """True if an adjudicator made the final decision"""
    when: str = ""
    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    """`fingerprint` of the row that was judged"""
    set: str = ""


@dataclass
class AppliedDecisions:
    """The effect of decisions on the data."""

    facts: dict[str, Any] = field(default_factory=dict)
    """Entry of quality.json; empty if the recipe names no decisions"""
    entries: list[Entry] = field(default_factory=list)
    """Ledger entries, one for each decision about an existing row: drop, replace, validate, flag or leave"""


def fingerprint(example: Example) -> str:
    """Return the SHA-256 of the texts that a rater judges: question, passages, answer, decision and earlier turns."""
    passages = [[passage.label, passage.text] for passage in example.context]
    judged: list[object] = [example.question, passages, example.answer, example.decision]
    if example.turns:
        judged.append([[turn.role, turn.text] for turn in example.turns])
    return hashlib.sha256(json.dumps(judged, ensure_ascii=False).encode()).hexdigest()


def read_decisions(path: Path) -> dict[str, RowDecision]:
    """Return the decisions by Example id. Raises DataError for an invalid or repeated decision."""
    found: dict[str, RowDecision] = {}
    for decided in read_records(path, RowDecision):
        if found.setdefault(decided.id, decided) is not decided:
            raise DataError(f"{path}: {decided.id} has several decisions. Keep only one of the lines.")
    return found


def was_validated(example: Example) -> bool:
    """Return True if `apply` applied a decision to the row; a user's own column `validated` contains something else."""
    mark = example.meta.get("validated")
    return isinstance(mark, Mapping) and "verdict" in mark


def apply(path: str | None, splits: Splits) -> tuple[Splits, AppliedDecisions]:
    """Return the splits with the reviewers' decisions applied, and the changes made; test items are never changed.

    Raises DataError if a row has changed since it was judged, or a split has no rows left.
    """
    if path is None:
        return splits, AppliedDecisions()
    file = Path(path)
    decisions = read_decisions(file)
    rows = [example for example in (*splits.train, *splits.dev) if example.id in decisions]
    stale = [example.id for example in rows if decisions[example.id].sha256 != fingerprint(example)]
    if stale:
        more = f" and {len(stale) - MAX_LISTED_IDS} more" if len(stale) > MAX_LISTED_IDS else ""
        raise DataError(
            f"{file}: the question, context, answer or decision of {', '.join(stale[:MAX_LISTED_IDS])}{more} has "
            "changed since reviewers judged the row, so their verdict may no longer apply. Have these rows judged "
            "again (meditune annotate create), or remove the lines with these ids from the file."
        )
    applied = AppliedDecisions()
    changed = {
        name: list(_decided(examples, decisions, applied.entries))
        for name, examples in (("train", splits.train), ("dev", splits.dev))
    }
    for name, left in changed.items():
        if not left:
            raise DataError(f"{file}: these decisions leave no rows in the {name} split. Add more data to the recipe.")
    applied.entries += [
        _entry(example, decisions[example.id], "leave", example, "a test item; test items are never changed")
        for example in splits.test
        if example.id in decisions
    ]
    applied.facts = {
        "file": file.name,
        "sha256": sha256(file),
        "actions": dict(Counter(entry.action for entry in applied.entries)),
        "verdicts": dict(Counter(decisions[entry.before.id].verdict for entry in applied.entries)),
        "not_in_the_data": len(decisions) - len(applied.entries),
    }
    return replace(splits, train=changed["train"], dev=changed["dev"]), applied


def refuse_other(path: str | None, quality: Mapping[str, Any], folder: Path) -> None:
    """Raise DataError if the decisions file has changed since the data in `folder` were prepared with it."""
    if path is None or not Path(path).is_file():
        return
    if quality.get("decisions", {}).get("sha256") != sha256(Path(path)):
        raise DataError(
            f"{path} has changed since the data in {folder} were prepared with it. Choose another --output for the new "
            "decisions, or restore the earlier version of the file."
        )


def _decided(
    examples: Iterable[Example], decisions: Mapping[str, RowDecision], entries: list[Entry]
) -> Iterator[Example]:
    for example in examples:
        result: Example | None = example
        if decided := decisions.get(example.id):
            action, result = _outcome(example, decided)
            entries.append(_entry(example, decided, action, result))
        if result is not None:
            yield result


def _outcome(example: Example, row_decision: RowDecision) -> tuple[str, Example | None]:
    """Return the action and the resulting row; None if the row is dropped.

    A row with a corrected answer stays, whatever the verdict. If the verdict isn't in KEPT_VERDICTS, the row's decision
    (yes, no or maybe) is removed, because it was judged with the original answer and raters can't edit it on the page.
    """
    mark = {"validated": {"verdict": row_decision.verdict, "was": fingerprint(example)}}
    if row_decision.answer and row_decision.answer != example.answer:
        decision = example.decision if row_decision.verdict in KEPT_VERDICTS else None
        update = {"answer": row_decision.answer, "decision": decision, "meta": example.meta | mark}
        return "replace", example.model_copy(update=update)
    if row_decision.verdict == "correct":
        return "validate", example.model_copy(update={"meta": example.meta | mark})
    if row_decision.verdict == "incomplete":
        return "flag", example.model_copy(update={"meta": example.meta | mark})
    return "drop", None


def _entry(example: Example, row_decision: RowDecision, action: str, after: Example | None, reason: str = "") -> Entry:
    by = ", ".join(row_decision.raters) + (", settled" if row_decision.settled else "")
    detail = f"{row_decision.verdict} ({by}; set {row_decision.set}; {row_decision.when})"
    return Entry(RULE, action, example, after, f"{detail}: {reason}" if reason else detail)
