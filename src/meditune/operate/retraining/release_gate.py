"""A new version beside the one that it came from, on the old items and on the new ones, held to a policy for each."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from meditune.data.example import Example
from meditune.evaluate.compare import NothingInCommonError, side_by_side
from meditune.evaluate.gate import Policy, check
from meditune.evaluate.metrics import METRICS
from meditune.evaluate.predictions import MeasuredModel, Predictions, measured_model

OLD, NEW = "old", "new"
LOSS = 0.05
"""Share of a perplexity that may be lost on what was known before"""
WATCHED = ("accuracy", "macro_f1", "rougeL", "faithfulness", "general_choice", "safety_rate")
"""Mustn't get worse, where they are measured"""
BETTER = ("perplexity", "accuracy")
"""The first of them that is measured must have got better on new items"""
LIKELIHOODS = ("perplexity", "general_perplexity")
"""Of so many tokens that the smallest change is a sure one: they have a margin instead"""
FEWEST = 20
"""Groups of new items: an interval over fewer of them, which are drawn again and again, is narrow by chance"""
WITHOUT_ITEMS = ("general", "technical", "choice", "safety")
"""Predictions that belong to no test item"""


@dataclass(frozen=True)
class Gates:
    """Policies of the user's own; None: by `usual`."""

    old: Policy | None = None
    new: Policy | None = None


def judge(run: Path, new: Collection[str], gates: Gates, resamples: int, seed: int) -> dict[str, Any]:
    """Base and tuned model of a finished run compared on its old and its new test items.

    Returns `passed`, and `on`: for old and new items how many there are, `figures` of both, `comparison` and `checks`,
    and where too little was measured to judge by, `unjudged`: that in a sentence. Then it didn't pass.
    """
    sides = [measured_model(f"{run}:{side}") for side in ("base", "tuned")]
    on: dict[str, Any] = {}
    for name, policy in ((OLD, gates.old), (NEW, gates.new)):
        first, second = (_part(side, new, name == NEW) for side in sides)
        try:
            result = side_by_side([first, second], resamples, seed)
        except NothingInCommonError:
            # None of the new items has a decision, and none is among those whose answers are scored.
            result = {"base": {}, "tuned": {}, "comparison": {}}
        held = policy or usual(name, result["comparison"], result["base"])
        checks = check(held, result["comparison"], result["tuned"])
        on[name] = {
            "items": len(first.examples),
            "figures": {"before": result["base"], "after": result["tuned"]},
            "comparison": result["comparison"],
            "policy": held.model_dump(exclude_defaults=True),
            "checks": [asdict(each) for each in checks],
            "unjudged": unjudged(name, _groups(held, result["comparison"]), held, policy is not None),
        }
    passed = all(not judged["unjudged"] and all(each["passed"] for each in judged["checks"]) for judged in on.values())
    return {"passed": passed, "on": on}


def _groups(policy: Policy, comparison: Mapping[str, Any]) -> int:
    """Of how many groups those items are on which the policy's metrics that must be better were measured."""
    return min((comparison[name]["groups"] for name in policy.better if name in comparison), default=0)


def unjudged(items: str, groups: int, policy: Policy, is_own: bool) -> str:
    """Why the policy can't tell a better model from one that is lucky, in a sentence; empty where it can.

    `groups` are those of the items by which "better" is told. Of a user's own policy only that it holds a rule.
    """
    if not any(policy.model_dump().values()):
        return f"No rule holds for the {items} items, so they can't be judged."
    if is_own or items == OLD:
        return ""
    if not policy.better:
        return "Neither likelihoods of answers nor decisions were measured on the new items, so better can't be told."
    if groups < FEWEST:
        return (
            f"{METRICS[policy.better[0]].title} was measured on new items of {groups} groups, and {FEWEST} are needed "
            "to judge by. Gather more, hold out more (--held-out), or score more answers (--set evaluate.answers=N); a "
            "policy of your own judges fewer (--gate-new)."
        )
    return ""


def usual(items: str, comparison: Mapping[str, Any], before: Mapping[str, float]) -> Policy:
    """What a new version must be where the user says nothing: no worse anywhere, and better at what is new.

    A rule names only what was measured. On new items the answers that experts gave must have become likelier; where
    they gave decisions only, more of those must be right.
    """
    said: dict[str, Any] = {"not_worse": [name for name in WATCHED if name in comparison]}
    likely = [name for name in LIKELIHOODS if name in comparison]
    if items == OLD:
        said["within"] = {name: round(LOSS * before[name], 3) for name in likely}
    else:
        said["better"] = [name for name in BETTER if name in comparison][:1]
    return Policy.model_validate(said)


def lines(judged: Mapping[str, Any]) -> list[str]:
    """The figures that decided, in words."""
    said = []
    for items, row in judged["on"].items():
        said.append(f"On {row['items']:,} {items} items:")
        if row["unjudged"]:
            said.append(f"  {row['unjudged']}")
        for each in row["checks"]:
            name = each["metric"]
            before, after = (row["figures"][side].get(name) for side in ("before", "after"))
            digits = METRICS[name].digits
            figures = "" if before is None or after is None else f"{before:.{digits}f} -> {after:.{digits}f}, "
            mark = "ok    " if each["passed"] else "FAILED"
            said.append(f"  {mark} {name}: {figures}{each['rule'].replace('_', ' ')}: {each['why']}")
    return said


def _part(side: MeasuredModel, new: Collection[str], is_new: bool) -> MeasuredModel:
    """What was measured on the new items, or on all others."""

    def wanted(id: str) -> bool:
        return (id in new) == is_new

    examples: dict[str, Example] = {id: each for id, each in side.examples.items() if wanted(id)}
    kept: dict[str, Any] = {}
    for field in fields(Predictions):
        rows = getattr(side.predictions, field.name)
        if field.name in WITHOUT_ITEMS:
            kept[field.name] = [] if is_new else rows
        elif field.name == "no_reference":
            kept[field.name] = [id for id in rows if wanted(id)]
        elif field.name in ("calibration", "dev_decision", "preference"):
            kept[field.name] = []
        else:
            kept[field.name] = [row for row in rows if wanted(row["id"])]
    return replace(side, examples=examples, predictions=Predictions(**kept))
