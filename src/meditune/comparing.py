"""`meditune compare`: measured models side by side, what changed, and whether a policy is met."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import Any

from meditune.errors import GateError, MedituneError
from meditune.evaluate.compare import caveats
from meditune.evaluate.gate import Policy, check, load_policy
from meditune.evaluate.measured import Measured, measured
from meditune.evaluate.side_by_side import changed, side_by_side
from meditune.files import write_json, write_jsonl


def policy(path: Path | None) -> Policy | None:
    """The policy in that file, if one is named."""
    return load_policy(path) if path else None


def compare(names: Sequence[str], resamples: int, seed: int, held_to: Policy | None) -> dict[str, Any]:
    """Each model beside the first: side_by_side's keys; `changes` (name -> items that changed); with a policy `gate`;
    `leakage`, what the checks before measuring found; `remarks`.

    `gate` has for each model its checks, as `metric`, `rule`, `passed`, `why`.
    """
    if len(names) < 2:
        raise MedituneError("One model can't be compared. Give two folders or more: meditune compare A B")
    first, *others = (measured(name) for name in names)
    result = side_by_side([first, *others], resamples, seed)
    said = (caveats(each["comparison"]) for each in result["comparisons"].values())
    result["remarks"] = [*passages_remark([first, *others]), *dict.fromkeys(chain.from_iterable(said))]
    result["leakage"] = [model.leakage for model in (first, *others) if model.leakage]
    result["changes"] = {other.name: changed(first, other) for other in others}
    if held_to:
        rows, figures = result["comparisons"], result["figures"]
        result["gate"] = {
            name: [asdict(each) for each in check(held_to, rows[name]["comparison"], figures[name])] for name in rows
        }
    return result


def passages_remark(models: Sequence[Measured]) -> list[str]:
    """A sentence where models with retrieved passages didn't get the same ones."""
    served = [model for model in models if model.passages]
    differing = [model.name for model in served if model.passages != served[0].passages]
    if not differing:
        return []
    return [f"{', '.join(differing)} had other passages than {served[0].name}, so what differs is in part the search."]


def write(result: dict[str, Any], figures: Path | None, changes: Path | None) -> None:
    """The comparison without its items, and the items with the `model` that changed, into the files named."""
    if figures:
        write_json(figures, {key: value for key, value in result.items() if key != "changes"})
    if changes:
        write_jsonl(changes, ({"model": name} | row for name, rows in result["changes"].items() for row in rows))


def refuse_failed(result: dict[str, Any]) -> None:
    """Raise GateError that names every rule of the policy that a model doesn't meet."""
    failed = [
        f"{name}: {each['metric']} is not {each['rule'].replace('_', ' ')} ({each['why']})"
        for name, checks in result.get("gate", {}).items()
        for each in checks
        if not each["passed"]
    ]
    if failed:
        raise GateError("The policy isn't met. " + "; ".join(failed) + ".")
