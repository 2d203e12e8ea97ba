"""A policy that a new model must meet: what mustn't have got worse, what must be better, and by figures of its own.

    not_worse: all                       # no interval wholly on the bad side; or a list of metrics
    better: [accuracy]                   # the interval lies wholly on the good side
    within: {macro_f1: 2}                # not inferior: the interval holds no loss of more than this
    at_least: {accuracy: 55.2}           # the new model's own figure
    at_most: {general_perplexity: 30}

Intervals are the uncorrected 95 % ones: a gate is to warn, so it takes no credit from the number of metrics. For the
same reason `not_worse` ignores what a detector marks in the reference answers; `better` needs a change beyond that.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError

from meditune.errors import RecipeError
from meditune.evaluate.compare import shown
from meditune.evaluate.metrics import METRICS
from meditune.files import read_text
from meditune.recipe import Spec
from meditune.recipes.document import Document, Key, UnreadableError


class Policy(Spec):
    """What a model must be, beside the one it is to replace."""

    not_worse: Literal["all"] | list[str] = Field(
        default_factory=list, description="Metrics whose interval mustn't lie wholly on the bad side."
    )
    better: list[str] = Field(
        default_factory=list, description="Metrics whose interval must lie wholly on the good side."
    )
    within: dict[str, float] = Field(
        default_factory=dict, description="Metrics whose interval mustn't reach a loss of more than this."
    )
    at_least: dict[str, float] = Field(default_factory=dict, description="Figures of the new model: not below this.")
    at_most: dict[str, float] = Field(default_factory=dict, description="Figures of the new model: not above this.")


_RULES = ", ".join(Policy.model_fields)


@dataclass(frozen=True)
class Check:
    """One rule on one metric."""

    metric: str
    rule: str
    passed: bool
    why: str
    """With the figures that decided"""


def load_policy(path: Path) -> Policy:
    """The policy in a YAML file. Raises RecipeError that lists every problem with its line."""
    try:
        document = Document(read_text(path))
    except UnreadableError as error:
        raise RecipeError(f"{path}, line {error.line}: {error.why}.") from error
    problems = [(line, ".".join(map(str, key)), text) for key, line, text in document.problems]
    policy = Policy()
    if not isinstance(document.value, dict) or not document.value:
        raise RecipeError(f"{path}: expected rules: {_RULES}.")
    try:
        policy = Policy.model_validate(document.value)
    except ValidationError as error:
        problems += [_problem(document, each["loc"], each["msg"]) for each in error.errors()]
    for key, name in _named(document.value):
        if name not in METRICS:
            near = difflib.get_close_matches(name, METRICS, n=1)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(METRICS)}"
            problems.append((document.lines.get(key, 1), str(key[0]), f"no metric {name!r}; {hint}"))
    if problems:
        lines = (f"{path}, line {line}: {name}: {text}" for line, name, text in sorted(problems))
        raise RecipeError("\n".join(dict.fromkeys(lines)))
    return policy


def _named(rules: dict[str, Any]) -> Iterator[tuple[Key, str]]:
    """Every metric that is named, with its place."""
    for rule in Policy.model_fields:
        value = rules.get(rule)
        if isinstance(value, list):
            yield from (((rule, number), name) for number, name in enumerate(value) if isinstance(name, str))
        elif isinstance(value, dict):
            yield from (((rule, name), name) for name in value)


def check(policy: Policy, comparison: dict[str, dict[str, Any]], figures: dict[str, float]) -> list[Check]:
    """Every rule of the policy on a comparison with the old model and the new model's figures.

    A metric that a rule names and that wasn't measured fails.
    """
    checks = []
    for name in comparison if policy.not_worse == "all" else policy.not_worse:
        checks.append(_compared(name, "not_worse", comparison, lambda row, _: shown(row) is not False))
    for name in policy.better:
        checks.append(_compared(name, "better", comparison, lambda row, _: row["better"] is True))
    for name, margin in policy.within.items():
        checks.append(_compared(name, f"within {margin:g}", comparison, _no_loss_of(margin)))
    for name, bound in policy.at_least.items():
        checks.append(_own(name, f"at_least {bound:g}", figures, lambda value, bound=bound: value >= bound))
    for name, bound in policy.at_most.items():
        checks.append(_own(name, f"at_most {bound:g}", figures, lambda value, bound=bound: value <= bound))
    return checks


def _no_loss_of(margin: float) -> Any:
    def holds(row: dict[str, Any], direction: str) -> bool:
        low, high = row["ci95"]
        return bool(low > -margin if direction == "up" else high < margin)

    return holds


def _compared(name: str, rule: str, comparison: dict[str, dict[str, Any]], holds: Any) -> Check:
    if name not in comparison:
        return Check(name, rule, False, "not measured for both models")
    row, digits = comparison[name], METRICS[name].digits
    low, high = row["ci95"]
    why = f"{row['delta']:+.{digits}f}, 95 % interval {low:+.{digits}f} to {high:+.{digits}f}"
    return Check(name, rule, holds(row, METRICS[name].direction), why)


def _own(name: str, rule: str, figures: dict[str, float], holds: Any) -> Check:
    if name not in figures:
        return Check(name, rule, False, "not measured")
    return Check(name, rule, bool(holds(figures[name])), f"{figures[name]:.{METRICS[name].digits}f}")


def _problem(document: Document, location: tuple[Any, ...], text: str) -> tuple[int, str, str]:
    """Line, rule and what is wrong."""
    key = tuple(part for part in location if part not in {"literal['all']", "list[str]"})
    while key and key not in document.lines:
        key = key[:-1]
    if "Extra inputs" in text:
        near = difflib.get_close_matches(str(location[0]), Policy.model_fields, n=1)
        text = f"no such rule; did you mean {near[0]}?" if near else f"no such rule; there are {_RULES}"
    return document.lines.get(key, 1), str(location[0]), text[:1].lower() + text[1:]
