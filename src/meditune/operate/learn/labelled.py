"""What experts said of a campaign, as rows to train on: a file that a recipe's `own` source reads."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from meditune.data.decisions import KEPT
from meditune.data.example import Decision, Example
from meditune.errors import DataError
from meditune.files import write_jsonl
from meditune.operate.learn.campaign import examples
from meditune.phi.masking import mask
from meditune.review.annotate.checked import read_checked
from meditune.review.annotate.resolve import Labelled, Resolved, resolve, resolve_decisions

NOT_JUDGED, NOTHING = "not judged yet", "experts left neither an answer nor a decision"


@dataclass(frozen=True)
class Rows:
    """The training rows of a campaign."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    """id, question, context, answer, decision, group, and how each came to be"""
    left_out: dict[str, int] = field(default_factory=dict)
    """Why -> how many items gave no row"""


def rows(folder: Path, without: Sequence[str] = (), without_careless: bool = False) -> Rows:
    """What can be learnt from a campaign as far as it is judged.

    An answer is taught where experts found it correct or wrote a better one, which is masked; an incomplete, wrong,
    unsafe or off-topic one that nobody mended isn't. A decision is taught where experts gave it, or found the answer
    beside it correct. Raises DataError where `folder` is no campaign of `meditune learn queue`.
    """
    known = examples(folder)
    checked = read_checked(folder, without, without_careless)
    verdicts, open_verdicts = resolve(checked.rated)
    labels, open_labels = resolve_decisions(checked.rated)
    found: list[dict[str, Any]] = []
    left_out: Counter[str] = Counter()
    for item, example in known.items():
        verdict, label = verdicts.get(item), labels.get(item)
        answer, decision = _taught(example, verdict, label)
        if answer or decision:
            found.append(_row(example, answer, decision, verdict, label, checked.rated.set.shuffle))
        else:
            why = open_verdicts.get(item) or open_labels.get(item)
            left_out[why or (NOTHING if verdict or label else NOT_JUDGED)] += 1
    return Rows(found, dict(left_out))


def write(folder: Path, path: Path, without: Sequence[str] = (), without_careless: bool = False) -> Rows:
    """Write the training rows of a campaign to `path`, whole or not at all, and return them.

    Raises DataError where nothing can be learnt yet.
    """
    found = rows(folder, without, without_careless)
    if not found.rows:
        why = ", ".join(f"{count} {reason}" for reason, count in found.left_out.items())
        raise DataError(f"{folder}: nothing to learn ({why}). Let experts judge it: meditune annotate serve {folder}")
    write_jsonl(path, found.rows, private=True)
    return found


def _taught(example: Example, verdict: Resolved | None, label: Labelled | None) -> tuple[str, Decision | None]:
    """The answer and the decision that a row teaches; either may be missing."""
    answer, decision = "", None
    if verdict:
        answer = mask(verdict.answer) if verdict.answer else example.answer if verdict.verdict == "correct" else ""
        decision = example.decision if verdict.verdict in KEPT else None
    elif label and not example.answer:
        answer = mask(label.answer)
    return answer, label.decision if label else decision


def _row(
    example: Example,
    answer: str,
    decision: Decision | None,
    verdict: Resolved | None,
    label: Labelled | None,
    campaign: str,
) -> dict[str, Any]:
    said = [each for each in (verdict, label) if each]
    return {
        "id": example.id,
        "question": example.question,
        "context": [passage.model_dump(mode="json") for passage in example.context],
        "answer": answer,
        "decision": decision or "",
        "group": example.group,
        "meta": {
            **example.meta,
            "expert": {
                "verdict": verdict.verdict if verdict else None,
                "rewritten": bool(answer) and answer != example.answer,
                "raters": sorted({code for each in said for code in each.raters}),
                "settled": any(each.settled for each in said),
                "when": max(each.when for each in said),
                "campaign": campaign,
            },
        },
    }
