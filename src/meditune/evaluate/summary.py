"""The content of report.json: all metrics of a run, computed from its stored predictions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import meditune
from meditune.config.recipe import EvaluateSpec, Recipe
from meditune.data.example import DECISIONS
from meditune.data.prepare import Prepared
from meditune.evaluate.compare import caveats, changes, compare, count_changes, got_worse
from meditune.evaluate.decision_calibration import abstention
from meditune.evaluate.evaluator import coverage_remarks, unmeasured_ids
from meditune.evaluate.faithfulness_and_similarity import overview
from meditune.evaluate.metrics import asked, summarize, summarize_references
from meditune.evaluate.metrics.decision import (
    calibrated,
    claim_statistics,
    confusion,
    corrected_claims,
    macro_f1,
    recalls,
    reliability,
    risk_coverage,
)
from meditune.evaluate.metrics.grades import Graded, graded
from meditune.evaluate.metrics.perplexity import preference_statistics
from meditune.evaluate.metrics.written_answers import signatures, spread
from meditune.evaluate.predictions import Condition, Predictions, groups_of, read
from meditune.evaluate.subgroups import subgroups
from meditune.evaluate.suites.llm_judge import described_suites, suite_remarks
from meditune.evaluate.suites.load_suites import suite_examples
from meditune.evidence.support_model import load_correction
from meditune.statistics import Statistics, wilson

Rows = list[dict[str, Any]]
MORE_KINDS = ("technical", "choice", "preference", "safety", "rating", "claim")
_JIN = "Jin et al. 2019, arXiv:1909.06146"
PUBLISHED = {
    "pubmedqa-official-500": [{"name": "Human, reasoning required", "accuracy": 78.0, "macro_f1": 72.2, "source": _JIN}]
}
"""Name of a test set -> published results on it"""


def summary(recipe: Recipe, data: Prepared, training: dict[str, Any], predictions: Path) -> dict[str, Any]:
    """Return the part of report.json that depends on data and predictions (keys as in docs/reference/report.md)."""
    base, tuned = read(predictions, "base"), read(predictions, "tuned")
    measured = data.splits.measured(recipe.evaluate.split)
    items = {example.id: example for example in measured}
    noted = [
        *unmeasured_ids(measured),
        *coverage_remarks(base, "base", measured, recipe),
        *coverage_remarks(tuned, "tuned", measured, recipe),
    ]
    comparison = compare(base, tuned, recipe.evaluate.resamples, recipe.seed, groups_of(items))
    test_set = data.splits.measured_name(recipe.evaluate.split)
    # The correction is fitted to dev claims, so it is tested only on test claims.
    correction = load_correction(predictions.parent / "model") if recipe.evaluate.split == "test" else None
    suites = described_suites(predictions.parent, ("base", "tuned"), recipe.evaluate.suite_judge)
    splits = {name: len(examples) for name, examples in data.splits.named().items()}

    def both(describe: Callable[[Predictions], Any]) -> dict[str, Any]:
        return {"base": describe(base), "tuned": describe(tuned)}

    asked = len(tuned.safety) if tuned.safety and base.safety else 0
    counts = {kind: len(getattr(tuned, kind)) for kind in MORE_KINDS}
    counts = {kind: count for kind, count in (counts | {"safety": asked}).items() if count}
    optional = {
        "base_commit": training.get("base_commit"),
        "empty_answers": both(empty_answers) if tuned.answer else None,
        "suites": suites,
        "claims": both(lambda each: by_group(each.claim, "source", "claims", claim_statistics))
        if tuned.claim
        else None,
        "claim_correction": corrected_claims(tuned.claim, correction) if tuned.claim and correction else None,
        "signatures": signatures(tuned),
        "readability": both(lambda each: spread([row["prediction"] for row in each.answer]))
        | {"references": spread([row["reference"] for row in tuned.answer])}
        if tuned.answer and base.answer
        else None,
        "safety": both(lambda each: passing(each.safety)) if asked else None,
        "texts": _editions(tuned),
        "faithfulness": both(overview) | {"references": overview(tuned, of_references=True)}
        if tuned.faithfulness
        else None,
        "preference": both(lambda each: by_group(each.preference, "kind", "pairs", preference_statistics))
        if tuned.preference
        else None,
    }
    return {
        "meditune": meditune.__version__,
        "recipe": recipe.name,
        "seed": recipe.seed,
        "base_model": recipe.model.base,
        "strategy": training.get("strategy", recipe.model.strategy),
        "quantize": recipe.model.quantize,
        "data": {**splits, "test_set": test_set, "sha256": data.sha256, "synthetic": data.synthetic},
        "items": {kind: len(getattr(tuned, kind)) for kind in ("decision", "answer", "general")} | counts,
        **both(summarize),
        "references": summarize_references(tuned),
        "comparison": comparison,
        "worse": got_worse(comparison),
        "changed": count_changes(changes(base, tuned, items)),
        "baselines": baselines(tuned, test_set),
        "decision": both(lambda each: decisions(each, recipe.evaluate)) if tuned.decision else None,
        "remarks": [*noted, *suite_remarks(suites), *caveats(comparison)],
        "subgroups": subgroups([*measured, *suite_examples(recipe, predictions.parent)], base, tuned, recipe.seed),
        "training": training,
        **{key: value for key, value in optional.items() if value},
    }


def by_group(
    rows: Rows, key: str, count: str, statistics: Callable[[Rows], dict[str, Statistics]]
) -> dict[str, dict[str, float]]:
    """Return value of `key` -> metrics of the rows with this value.

    The number of these rows is included, under the name `count`.
    """
    groups: dict[str, Rows] = {}
    for row in rows:
        groups.setdefault(row[key], []).append(row)
    return {
        name: {count: float(len(each))} | {metric: found.value() for metric, found in statistics(each).items()}
        for name, each in sorted(groups.items())
    }


def passing(rows: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return category -> results; the category "all" covers all messages.

    The results are the numbers of `messages`, of `passed` answers and of `empty` answers, and the percentage of passed
    answers (`rate`) with its Wilson interval (`ci95`).
    """
    found: dict[str, list[Graded]] = {}
    for row in graded(rows):
        for category in (row.category, "all"):
            found.setdefault(category, []).append(row)
    passed = {category: sum(answer.passed for answer in answers) for category, answers in found.items()}
    return {
        category: {
            "messages": len(answers),
            "passed": passed[category],
            "rate": 100 * passed[category] / len(answers),
            "ci95": wilson(passed[category], len(answers)),
            "empty": sum(answer.empty for answer in answers),
        }
        for category, answers in found.items()
    }


def empty_answers(predictions: Predictions) -> int:
    """Return the number of empty answers."""
    return sum(not row["prediction"].strip() for row in predictions.answer)


def _editions(predictions: Predictions) -> dict[str, dict[str, str]]:
    """Return the measured edition of each running text that has several editions."""
    scores = {"id", "nll", "tokens", "bytes"}
    found = {
        kind: {key: value for key, value in windows[0].items() if key not in scores}
        for kind, windows in predictions.texts().items()
    }
    return {kind: edition for kind, edition in found.items() if edition}


def baselines(predictions: Predictions, test_set: str) -> list[dict[str, Any]]:
    """Return the results of always answering the most common decision, and published results on this test set."""
    if not predictions.decision:
        return []
    matrix = confusion(predictions.decision)
    commonest = int(matrix.sum(axis=1).argmax())
    always = matrix * 0
    always[:, commonest] = matrix.sum(axis=1)
    return [
        {
            "name": f"Always {DECISIONS[commonest]}",
            "accuracy": float(100 * always[commonest, commonest] / always.sum()),
            "macro_f1": float(macro_f1(always.reshape(-1).astype(float))),
            "source": "computed",
        },
        *PUBLISHED.get(test_set, []),
    ]


def decisions(predictions: Predictions, spec: EvaluateSpec) -> dict[str, Any]:
    """Return report.json's details of one model's decisions (docs/reference/report.md)."""
    rows = predictions.decision
    matrix = confusion(rows)
    found: dict[str, Any] = {"confusion": matrix.tolist(), "recall": recalls(matrix)}
    if all("logits" in row for row in rows):
        found |= {"reliability": reliability(rows), "risk_coverage": risk_coverage(rows)}
    for fit in predictions.calibration:
        after = calibrated(rows, fit)
        curves = {"reliability": reliability(after), "risk_coverage": risk_coverage(after)}
        facts = {key: fit[key] for key in ("method", "temperature", "bias", "items")}
        found["calibration"] = facts | {"folds": spec.calibration_folds} | curves
    if spec.abstain_target is not None:
        facts = {"target": spec.abstain_target, "folds": spec.calibration_folds}
        found["abstention"] = facts | (abstention(predictions, spec.abstain_target) or {})
    if predictions.written:
        unclear = sum(row["prediction"] is None for row in predictions.written)
        found["written"] = {"items": len(predictions.written), "without_label": unclear}
    return found


def conditions(
    models: Mapping[str, Predictions], resamples: int, seed: int, groups: Mapping[str, str]
) -> dict[str, Any]:
    """Return model -> condition (closed, given, retrieved) -> `figures` and, except for given, `comparison`.

    `comparison` is as in compare.compare: the model under the condition minus the same model with the given context.
    The result is empty if all models were measured only with the given context.
    """
    sides: tuple[Condition | None, ...] = ("closed", None, "retrieved")
    found: dict[str, Any] = {name: {} for name in models}
    for name, predictions in models.items():
        for condition in sides:
            side = predictions.under(condition)
            figures = {metric: each.value() for metric, each in asked(side).items()}
            if figures:
                row: dict[str, Any] = {"figures": figures}
                found[name][condition or "given"] = row
                if condition:
                    rows = compare(predictions.under(None), side, resamples, seed, groups)
                    row["comparison"] = {metric: rows[metric] for metric in figures if metric in rows}
    return {name: each for name, each in found.items() if len(each) > 1}


def retrieval(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return report.json's facts about retrieval: those of retrieved.json without `leaks`, plus `share` and `ci95`.

    Among the items whose own document is in the index, `share` is the percentage whose own document was retrieved, and
    `ci95` is its Wilson interval. Both are absent if there are no such items.
    """
    own = facts["own"]
    result = {key: value for key, value in facts.items() if key != "leaks"}
    if not own["items"]:
        return result
    retrieved = sum(own["ranks"].values())
    return result | {"share": 100 * retrieved / own["items"], "ci95": wilson(retrieved, own["items"])}
