"""`meditune compare`: measured models side by side, and the check of a policy that a new model must meet.

    not_worse: all                       # all metrics, or a list: must not be significantly worse
    better: [accuracy]                   # must be significantly better
    within: {macro_f1: 2}                # not inferior: the interval excludes a loss of more than this
    at_least: {accuracy: 55.2}           # the new model's own value
    at_most: {general_perplexity: 30}

The gate doesn't correct for the number of metrics, so that it warns too often rather than too rarely. For the same
reason, `not_worse` ignores a detector's marks in the reference answers. `better`, however, requires a change beyond
these marks, and a p-value below 0.05. With too few groups of items to judge a change, `not_worse` fails if the
value is worse, and `better` and `within` always fail. The three rules also fail for perplexities and general
bits per byte if the models' tokenizers differ, and for grades by different judges; `not_worse: all` leaves such metrics
out.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import chain
from operator import ge, le
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError

from meditune.config.data_options import Spec
from meditune.config.recipe import SuiteName
from meditune.config.recipe_keys import Document, Key, UnreadableError
from meditune.errors import GateError, MedituneError, RecipeError
from meditune.evaluate.compare import caveats, changes, is_significant, side_by_side
from meditune.evaluate.metrics import METRICS
from meditune.evaluate.predictions import GRADES_OF, MeasuredModel, measured_model
from meditune.evaluate.suites.llm_judge import suite_remarks
from meditune.evaluate.suites.load_suites import SUITES
from meditune.files import read_json, read_text, write_json, write_jsonl
from meditune.statistics import LEVEL, MIN_GROUPS, is_wrong


class Policy(Spec):
    """Requirements for a new model, relative to the model that it is to replace."""

    not_worse: Literal["all"] | list[str] = Field(
        default_factory=list, description="Metrics that must not be significantly worse (uncorrected interval)."
    )
    better: list[str] = Field(
        default_factory=list, description="Metrics that must be significantly better (uncorrected interval)."
    )
    within: dict[str, float] = Field(
        default_factory=dict, description="Metric -> loss; the interval must exclude every greater loss."
    )
    at_least: dict[str, float] = Field(default_factory=dict, description="Minimum values of the new model's metrics.")
    at_most: dict[str, float] = Field(default_factory=dict, description="Maximum values of the new model's metrics.")


_RULES = ", ".join(Policy.model_fields)


@dataclass(frozen=True)
class Check:
    """The result of one rule for one metric."""

    metric: str
    rule: str
    passed: bool
    why: str
    """The values that the result depends on"""


def load_policy(path: Path) -> Policy:
    """Return the policy in a YAML file. Raises a RecipeError that lists all problems with their lines."""
    try:
        document = Document(read_text(path))
    except UnreadableError as error:
        raise RecipeError(f"{path}, line {error.line}: {error.why}.") from error
    problems = [(line, ".".join(map(str, key)), text) for key, line, text in document.problems]
    policy = Policy()
    if not isinstance(document.value, dict) or not document.value:
        raise RecipeError(f"{path}: the policy has no rules. Use one or more of: {_RULES}.")
    try:
        policy = Policy.model_validate(document.value)
    except ValidationError as error:
        problems += [_problem(document, each["loc"], each["msg"]) for each in error.errors()]
    for key, name in _named(document.value):
        if name not in METRICS:
            near = difflib.get_close_matches(name, METRICS, n=1)
            hint = f"did you mean {near[0]}?" if near else f"use one of {', '.join(METRICS)}"
            problems.append((document.lines.get(key, 1), str(key[0]), f"unknown metric {name!r}; {hint}"))
    if problems:
        lines = (f"{path}, line {line}: {name}: {text}" for line, name, text in sorted(problems))
        raise RecipeError("\n".join(dict.fromkeys(lines)))
    if not any(policy.model_dump().values()):
        raise RecipeError(f"{path}: the rules name no metrics. Name one or more, for example: better: [accuracy].")
    return policy


def _named(rules: dict[str, Any]) -> Iterator[tuple[Key, str]]:
    """Yield every metric that the rules name, with its key in the YAML document."""
    for rule in Policy.model_fields:
        value = rules.get(rule)
        if isinstance(value, list):
            yield from (((rule, number), name) for number, name in enumerate(value) if isinstance(name, str))
        elif isinstance(value, dict):
            yield from (((rule, name), name) for name in value)


def check(policy: Policy, comparison: dict[str, dict[str, Any]], figures: dict[str, float]) -> list[Check]:
    """Return the check of every rule, on the comparison with the old model or on the new model's own values.

    A rule fails if its metric wasn't measured.
    """

    def compared(name: str, rule: str, holds: Callable[[dict[str, Any]], bool]) -> Check:
        if name not in comparison:
            return Check(name, rule, False, "not measured for both models")
        row, digits = comparison[name], METRICS[name].digits
        few = row["groups"] < MIN_GROUPS
        if few and (rule != "not_worse" or is_wrong(METRICS[name], row["delta"])):
            return Check(name, rule, False, f"too few groups of items to compare: {row['groups']}, needs {MIN_GROUPS}")
        if row.get("other_tokens"):
            return Check(name, rule, False, "not comparable: the models read different tokens")
        if "other_judges" in row:
            judges = " and ".join(row["other_judges"])
            return Check(name, rule, False, f"not comparable: graded by different judges, {judges}")
        low, high = row["ci95"]
        why = f"{row['delta']:+.{digits}f}, 95% interval {low:+.{digits}f} to {high:+.{digits}f}"
        return Check(name, rule, holds(row), why)

    def own(name: str, rule: str, holds: Callable[[float], bool]) -> Check:
        if name not in figures:
            return Check(name, rule, False, "not measured")
        return Check(name, rule, holds(figures[name]), f"{figures[name]:.{METRICS[name].digits}f}")

    def loses_less(name: str, margin: float, row: dict[str, Any]) -> bool:
        low, high = row["ci95"]
        return bool(low > -margin if METRICS[name].direction == "up" else high < margin)

    comparable = [name for name, row in comparison.items() if not {"other_tokens", "other_judges"} & row.keys()]
    return [
        *(
            compared(name, "not_worse", lambda row: is_significant(row) is not False)
            for name in (comparable if policy.not_worse == "all" else policy.not_worse)
        ),
        *(compared(name, "better", lambda row: row["better"] is True and row["p"] < LEVEL) for name in policy.better),
        *(
            compared(name, f"within {margin:g}", partial(loses_less, name, margin))
            for name, margin in policy.within.items()
        ),
        *(own(name, f"at_least {bound:g}", partial(le, bound)) for name, bound in policy.at_least.items()),
        *(own(name, f"at_most {bound:g}", partial(ge, bound)) for name, bound in policy.at_most.items()),
    ]


def _problem(document: Document, location: tuple[Any, ...], text: str) -> tuple[int, str, str]:
    """Return the line, the rule and the message of a validation error."""
    key = tuple(part for part in location if part not in {"literal['all']", "list[str]"})
    while key and key not in document.lines:
        key = key[:-1]
    if "Extra inputs" in text:
        near = difflib.get_close_matches(str(location[0]), Policy.model_fields, n=1)
        text = f"unknown rule; did you mean {near[0]}?" if near else f"unknown rule; use one of {_RULES}"
    return document.lines.get(key, 1), str(location[0]), text[:1].lower() + text[1:]


def policy(path: Path | None) -> Policy | None:
    """Return the policy in the file, or None if `path` is None."""
    return load_policy(path) if path else None


def compare(names: Sequence[str], resamples: int, seed: int, policy: Policy | None) -> dict[str, Any]:
    """Return the comparison of each further model with the first one.

    The result has the keys of `side_by_side`, and `changes` (name -> changed items), `leakage` (the findings of the
    leakage checks before the evaluations) and `remarks`. With a policy, it also has `gate` (name -> checks, with
    `metric`, `rule`, `passed` and `why`).
    """
    if len(names) < 2:
        raise MedituneError("A comparison needs two or more models. Name their folders: meditune compare A B")
    first, *others = models = [measured_model(name) for name in names]
    result = side_by_side(models, resamples, seed) | {"remarks": []}
    remarks = (caveats(each["comparison"]) for each in result["comparisons"].values())
    served = [model for model in models if model.passages]
    differing = [model.name for model in served if model.passages != served[0].passages]
    if differing:
        passages = f"{', '.join(differing)} had different passages from {served[0].name}"
        result["remarks"].append(f"{passages}, so part of the difference is due to retrieval.")
    result["remarks"] += dict.fromkeys(chain.from_iterable(remarks))
    result["remarks"] += _judge_remarks(models)
    result["leakage"] = [model.leakage for model in models if model.leakage]
    result["changes"] = {
        other.name: changes(first.predictions, other.predictions, first.examples | other.examples) for other in others
    }
    if policy:
        rows, figures = result["comparisons"], result["figures"]
        result["gate"] = {
            name: [asdict(each) for each in check(policy, rows[name]["comparison"], figures[name])] for name in rows
        }
    return result


def _judge_remarks(models: Sequence[MeasuredModel]) -> Iterator[str]:
    """Yield a sentence about each judge that graded answers: how often it agrees with physicians.

    The sentence begins with the models whose answers the judge graded, unless it graded those of all models.
    """
    graded: dict[str, list[str]] = {}
    for model in models:
        for name, facts in _recorded_suites(model.folder).items():
            kind = GRADES_OF.get(SUITES[name].kind) if name in SUITES else None
            if kind and getattr(model.predictions, kind):
                for sentence in suite_remarks({name: facts}):
                    graded.setdefault(sentence, []).append(model.name)
    for sentence, names in graded.items():
        yield sentence if len(names) == len(models) else f"{', '.join(names)}: {sentence}"


def _recorded_suites(folder: Path | None) -> dict[SuiteName, Any]:
    """Return the `suites` of report.json or evaluation.json; empty if the folder contains neither."""
    paths = [folder / name for name in ("report.json", "evaluation.json")] if folder else []
    path = next((path for path in paths if path.is_file()), None)
    found: dict[SuiteName, Any] = read_json(path).get("suites") or {} if path else {}
    return found


def write(result: dict[str, Any], figures: Path | None, changes: Path | None) -> None:
    """Write the comparison without `changes` to one file, and the changed items with their `model` to the other."""
    if figures:
        write_json(figures, {key: value for key, value in result.items() if key != "changes"})
    if changes:
        write_jsonl(changes, ({"model": name} | row for name, rows in result["changes"].items() for row in rows))


def refuse_failed(result: dict[str, Any]) -> None:
    """Raise GateError, which lists every rule that isn't met, if any model breaks a rule."""
    failed = [
        f"{name}: {each['metric']} must be {each['rule'].replace('_', ' ')} ({each['why']})"
        for name, checks in result.get("gate", {}).items()
        for each in checks
        if not each["passed"]
    ]
    if failed:
        raise GateError("The policy isn't met. " + "; ".join(failed) + ".")
