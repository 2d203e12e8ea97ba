"""The release gate: compares a new version with its parent, with separate policies for old and new test items.

A run that the user trained is compared with the served version on the test items of both.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from meditune.data.example import Example
from meditune.evaluate.compare import NothingInCommonError, side_by_side
from meditune.evaluate.metrics import METRICS
from meditune.evaluate.predictions import KINDS, MeasuredModel, Predictions, measured_model
from meditune.evaluate.quality_gate import Policy, check

OLD, NEW, TEST = "old", "new", "test"
LOSS = 0.05
GUARDRAIL_METRICS = ("accuracy", "macro_f1", "rougeL", "faithfulness", "general_choice", "safety_rate")
BETTER = ("perplexity", "accuracy")
"""The first of these metrics that was measured must improve on the new items."""
LIKELIHOODS = ("perplexity", "general_perplexity")
"""Metrics measured on so many tokens that even tiny changes are significant, so they may get worse within a margin"""
MIN_GROUPS = 20
"""Minimum number of groups of new items; with fewer groups, chance decides too often"""
WITHOUT_ITEMS = ("general", "technical", "choice", "safety")


def judge(
    run: Path, new: Collection[str], policies: tuple[Policy | None, Policy | None], resamples: int, seed: int
) -> dict[str, Any]:
    """Compare the base and the tuned model of a finished run on its old and its new test items.

    `new` contains the ids of the new items. `policies` contains the policy for the old items and the policy for the new
    items; None stands for the default policy. Return `passed` and `on`. For the keys "old" and "new", `on` contains
    `items` (their number), `figures` (metrics), `comparison`, `policy`, `checks` and `unjudged`: the reason why the
    items can't be judged, or "".
    """
    sides = [measured_model(f"{run}:{side}") for side in ("base", "tuned")]
    on: dict[str, Any] = {}
    for name, policy in zip((OLD, NEW), policies, strict=True):
        first, second = (_part(side, new, name == NEW) for side in sides)
        try:
            result = side_by_side([first, second], resamples, seed)
        except NothingInCommonError:
            # None of these items has a decision, and none of their answers is scored.
            result = {"base": {}, "tuned": {}, "comparison": {}}
        on[name] = _judged(name, len(first.examples), result, policy)
    return _verdict(on)


def judge_added(version: Path, run: Path, policy: Policy, resamples: int = 10_000, seed: int = 17) -> dict[str, Any]:
    """Compare a finished run with a version, both measured on the same test items, and check the policy.

    Return `passed` and `on` like `judge`, with the key "test" for all test items. Raises DataError if the test items
    differ.
    """
    sides = [measured_model(str(folder)) for folder in (version, run)]
    result = side_by_side(sides, resamples, seed)
    return _verdict({TEST: _judged(TEST, len(sides[0].examples), result, policy)})


def _judged(name: str, items: int, result: Mapping[str, Any], policy: Policy | None) -> dict[str, Any]:
    """Return the entry of `on` for the items called `name`, whose comparison is `result`."""
    held = policy or usual(name, result["comparison"], result["base"])
    checks = check(held, result["comparison"], result["tuned"])
    deciding = [result["comparison"][metric] for metric in held.better if metric in result["comparison"]]
    groups = min((each["groups"] for each in deciding), default=0)
    return {
        "items": items,
        "figures": {"before": result["base"], "after": result["tuned"]},
        "comparison": result["comparison"],
        "policy": held.model_dump(exclude_defaults=True),
        "checks": [asdict(each) for each in checks],
        "unjudged": unjudged(name, groups, held, policy is not None),
    }


def _verdict(on: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    passed = all(not judged["unjudged"] and all(each["passed"] for each in judged["checks"]) for judged in on.values())
    return {"passed": passed, "on": on}


def unjudged(items: str, groups: int, policy: Policy, is_own: bool) -> str:
    """Return why the policy cannot be applied, or "". Improvements are measured on `groups` groups."""
    if not any(policy.model_dump().values()):
        return f"The policy has no rule for the {items} items, so they cannot be judged."
    if is_own or items == OLD:
        return ""
    if not policy.better:
        return (
            "Neither answer likelihoods nor decisions were measured on the new items, so an improvement cannot be "
            "detected."
        )
    if groups < MIN_GROUPS:
        return (
            f"{METRICS[policy.better[0]].title} was measured on new items of {groups} groups, but {MIN_GROUPS} are "
            "needed for a decision. Gather more data, hold out a larger share (--held-out), or score more answers "
            "(--set evaluate.answers=N). Your own policy (--gate-new) can accept fewer groups, but its rules that "
            "compare the versions need 6."
        )
    return ""


def usual(items: str, comparison: Mapping[str, Any], before: Mapping[str, float]) -> Policy:
    """Return the default policy: no guardrail metric gets worse, and on new items, perplexity or accuracy improves."""
    rules: dict[str, Any] = {"not_worse": [name for name in GUARDRAIL_METRICS if name in comparison]}
    likely = [name for name in LIKELIHOODS if name in comparison]
    if items == OLD:
        rules["within"] = {name: round(LOSS * before[name], 3) for name in likely}
    else:
        rules["better"] = [name for name in BETTER if name in comparison][:1]
    return Policy.model_validate(rules)


def lines(judged: Mapping[str, Any]) -> list[str]:
    """Return the results of the checks as terminal lines."""
    found = []
    for items, row in judged["on"].items():
        found.append(f"On {row['items']:,} {items} items:")
        if row["unjudged"]:
            found.append(f"  {row['unjudged']}")
        for each in row["checks"]:
            name = each["metric"]
            before, after = (row["figures"][side].get(name) for side in ("before", "after"))
            digits = METRICS[name].digits
            figures = "" if before is None or after is None else f"{before:.{digits}f} -> {after:.{digits}f}, "
            mark = "ok    " if each["passed"] else "FAILED"
            found.append(f"  {mark} {name}: {figures}{each['rule'].replace('_', ' ')}: {each['why']}")
    return found


def _part(model: MeasuredModel, new: Collection[str], is_new: bool) -> MeasuredModel:
    """Return the measurements on the new items (`is_new`), or those on all other items."""

    def is_selected(id: str) -> bool:
        return (id in new) == is_new

    examples: dict[str, Example] = {id: each for id, each in model.examples.items() if is_selected(id)}
    selected: dict[str, Any] = {}
    for kind in KINDS:
        rows = getattr(model.predictions, kind)
        if kind in WITHOUT_ITEMS:
            selected[kind] = [] if is_new else rows
        elif kind not in ("calibration", "dev_decision", "preference"):
            selected[kind] = [row for row in rows if is_selected(row["id"])]
    selected["no_reference"] = [id for id in model.predictions.no_reference if is_selected(id)]
    return replace(model, examples=examples, predictions=Predictions(**selected))
