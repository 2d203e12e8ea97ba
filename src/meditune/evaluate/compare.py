"""Paired comparison of measured models on the same items: statistics, changed items, many models."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, get_args

import numpy as np

from meditune import statistics as stats
from meditune.data.example import Example
from meditune.errors import DataError
from meditune.evaluate.faithfulness_and_similarity import WORDS
from meditune.evaluate.metrics import METRICS, references_of, statistics_of, summarize
from meditune.evaluate.metrics.written_answers import rouge
from meditune.evaluate.predictions import (
    KINDS,
    Kind,
    MeasuredModel,
    Predictions,
    TextKind,
    groups_of,
    list_ids,
)
from meditune.evidence.support_model import LEXICAL_DETECTOR
from meditune.statistics import Array, Metric, Statistics

COMMON_ITEMS: tuple[Kind, ...] = (
    *("faithfulness", "retrieved_faithfulness", "unconditional", "general", "technical", "rating"),
)
"""Kinds that are compared only on the items that both sides have: which answers have sources depends on the condition,
how many windows a text has, and which answers can be scored without a prompt, depends on the tokenizer, and experts may
rate only some of a model's answers"""
SAME_TOKENS: dict[str, Kind] = {
    "perplexity": "likelihood",
    "unconditional_perplexity": "unconditional",
    "closed_perplexity": "closed_likelihood",
    "retrieved_perplexity": "retrieved_likelihood",
    "general_perplexity": "general",
    "general_bits_per_byte": "general",
    "technical_perplexity": "technical",
}
"""Metrics that are comparable only over the same tokens or windows, and the predictions they are computed from"""
GRADES: dict[Kind, tuple[str, ...]] = {
    "faithfulness": ("faithfulness", "unsupported_sentences", "contradictions"),
    "retrieved_faithfulness": ("retrieved_faithfulness", "retrieved_unsupported_sentences"),
    "facts": ("facts_kept", "facts_contradicted"),
    "suite_k_qa_grades": ("k_qa_comprehensiveness", "k_qa_contradictions"),
    "suite_medicationqa_grades": ("medicationqa_coverage", "medicationqa_contradictions"),
    "suite_healthbench_grades": ("healthbench_score",),
}
"""Predictions with grades by a judge or the detector, and the metrics that are comparable only if it is the same"""
BY_RANK = ("aurc", "claim_auroc")
"""Metrics whose items count ranks of the model's own probabilities, so a permutation test can't swap them"""
ROUNDING = 1e-9
"""A spread of this size relative to the difference can be rounding error alone, from which no effect follows"""


def compare(
    base: Predictions, tuned: Predictions, resamples: int, seed: int, groups: Mapping[str, str] | None = None
) -> dict[str, dict[str, Any]]:
    """Return metric -> row of report.json's `comparison` (docs/reference/report.md), for the metrics of both models.

    Differences are tuned minus base. Intervals come from a paired bootstrap (Efron and Tibshirani 1993), in which items
    with the same group are drawn together, because they aren't independent. `groups` (id -> group) has the groups of
    test items; those of pairs are stored with the predictions. With fewer than FEW_GROUPS groups, `ci95` comes from
    Student's t distribution and the bootstrap's spread. `p` is two-sided. It comes from McNemar's exact test (McNemar
    1947) if each item is right or wrong and is a group of its own, from a paired permutation test if there are fewer
    than FEW_GROUPS groups, and else from the bootstrap. With fewer than FEW_GROUPS groups, a difference is significant
    only if p confirms it. `p_holm` is `claim_p` after Holm's correction (Holm 1979) for all metrics of the comparison.
    `effect` is Cohen's d_z (Cohen 1988), computed from the bootstrap's spread. With fewer than MIN_GROUPS groups,
    `better` is None, because bootstrap draws of so few groups hardly vary.

    A detector also marks some true answers. For its metrics, `better` is therefore None unless the worse model is
    significantly worse than its reference answers (`beyond`); `difference` is the value of `better` without this rule.

    Perplexities over different tokens aren't comparable, so their `better` is None, and `other_tokens` is True. The
    same holds for grades by different judges; `other_judges` then contains the judges' names, base first.

    Raises DataError if the models were measured on different items, or on items with different references.
    """
    run = PairedStatistics(base, tuned)
    found: dict[str, dict[str, Any]] = {}
    for names in measured_alike([run]):
        clusters = group_numbers(run.base[names[0]].ids, {**(groups or {}), **run.groups})
        compared: dict[str, list[Statistics]] = {}
        for name in names:
            compared[name] = [run.base[name], run.tuned[name]]
            if METRICS[name].detector:
                compared[name] += run.references_of_worse(METRICS[name])
        sums = [(side.figure, stats.by_cluster(side.items, clusters)) for sides in compared.values() for side in sides]
        drawn = iter(zip(sums, stats.bootstrap(sums, resamples, seed), strict=True))
        for name, sides in compared.items():
            models = [_Side(side, *next(drawn)) for side in sides]
            found[name] = _compared(METRICS[name], models, resamples, seed)
            if name in run.other_tokens:
                found[name] |= {"p": 1.0, "better": None, "other_tokens": True}
            if name in run.other_judges:
                found[name] |= {"p": 1.0, "better": None, "other_judges": run.other_judges[name]}
                found[name] |= {"difference": None} if METRICS[name].detector else {}
    return with_holm(found)


class PairedStatistics:
    """Per-item statistics of both models, with the items in the same order, and of their reference answers."""

    def __init__(self, base: Predictions, tuned: Predictions) -> None:
        """Raise DataError if the models were measured on different items, or on items with different references."""
        _refuse_other_references(base, tuned)
        self.other_tokens = {name for name, kind in SAME_TOKENS.items() if _tokens_differ(kind, base, tuned)}
        self.other_judges = {
            name: judges
            for kind, names in GRADES.items()
            for name in names
            if all(judges := [_judges(name, kind, base), _judges(name, kind, tuned)]) and judges[0] != judges[1]
        }
        base, tuned = _with_common_items(base, tuned), _with_common_items(tuned, base)
        self.base, self.tuned = statistics_of(base), statistics_of(tuned)
        self.shared = [name for name in self.base if name in self.tuned]
        self.tuned |= {name: in_order(name, self.base[name], self.tuned[name]) for name in self.shared}
        self.references = {"base": references_of(base), "tuned": references_of(tuned)}
        self.groups = {row["id"]: row["group"] for row in base.preference if "group" in row}
        """Groups of the pairs: several pairs can be about one question"""

    def references_of_worse(self, metric: Metric) -> list[Statistics]:
        """Return [statistics of the worse model's references, or else of the other's]; [] if neither were graded."""
        base, tuned = self.base[metric.name], self.tuned[metric.name]
        worse = stats.is_wrong(metric, float(stats.standard_gap(metric, tuned.value(), base.value())))
        order = ("tuned", "base") if worse else ("base", "tuned")
        graded = [self.references[model].get(metric.name) for model in order]
        found = [each for each in graded if each and {*each.ids} >= {*base.ids}]
        return [_of_items(each, base.ids) for each in found[:1]]


def _with_common_items(own: Predictions, other: Predictions) -> Predictions:
    """Return `own`, in the kinds COMMON_ITEMS without the items that `other` lacks."""
    rows = {kind: getattr(own, kind) for kind in KINDS}
    for kind in COMMON_ITEMS:
        common = {row["id"] for row in getattr(other, kind)}
        # Windows of another edition of a text have other ids; `in_order` refuses them.
        refused = rows[kind] if kind in get_args(TextKind) else []
        rows[kind] = [row for row in rows[kind] if row["id"] in common] or refused
    return Predictions(**rows)


def _refuse_other_references(base: Predictions, tuned: Predictions) -> None:
    """Raise DataError if rows of the same kind and id have different references, so that the id means two items."""
    for kind in KINDS:
        known = {row["id"]: row["reference"] for row in getattr(base, kind) if "reference" in row}
        other = [row["id"] for row in getattr(tuned, kind) if row.get("reference") != known.get(row["id"])]
        differing = [each for each in other if each in known]
        if differing:
            raise DataError(
                f"{len(differing)} items have the same id but different reference answers ({list_ids(differing)}), so "
                "the models can't be compared. Evaluate both on the same version of the data."
            )


def _tokens_differ(kind: Kind, base: Predictions, tuned: Predictions) -> bool:
    """Return whether the two models scored different numbers of tokens or bytes.

    Windows have the same number of tokens for every tokenizer, so only their bytes show that they are different texts.
    """
    rows = getattr(base, kind), getattr(tuned, kind)
    keys = [key for key in ("tokens", "bytes") if all(key in row for side in rows for row in side)]
    first, second = ({row["id"]: [row[key] for key in keys] for row in side} for side in rows)
    return any(first[id] != second[id] for id in first.keys() & second.keys())


def _judges(metric: str, kind: Kind, predictions: Predictions) -> str:
    """Return the name of the judge that decided the metric; empty if it is unknown.

    If a judge can't tell contradictions, the detector decided them.
    """
    rows = [row for row in getattr(predictions, kind) if row.get("by")]
    if metric == "contradictions" and not any("contradicting" in each for row in rows for each in row["sentences"]):
        return LEXICAL_DETECTOR if rows else ""
    return ", ".join(sorted({_judge(row["by"]) for row in rows}))


def _judge(name: str) -> str:
    """Return a judge's name, in which a folder has one form only, however the recipe specifies it."""
    if name == WORDS:
        return LEXICAL_DETECTOR
    kind, colon, place = name.rpartition(":")
    folder = Path(place).expanduser()
    return kind + colon + (str(folder.resolve()) if folder.is_dir() else place.rstrip("/"))


def measured_alike(runs: Sequence[PairedStatistics]) -> list[list[str]]:
    """Return the metrics that all runs have, grouped by their items; metrics in a group share bootstrap draws."""
    found: dict[tuple[tuple[str, ...], ...], list[str]] = {}
    for name in METRICS:
        if all(name in run.shared for run in runs):
            found.setdefault(tuple(run.base[name].ids for run in runs), []).append(name)
    return list(found.values())


def with_holm(found: Mapping[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return the rows in the order of METRICS, with the additional key `p_holm`."""
    adjusted = stats.holm({name: claim_p(row) for name, row in found.items()})
    return {name: found[name] | {"p_holm": adjusted[name]} for name in METRICS if name in found}


def claim_p(row: Mapping[str, Any]) -> float:
    """Return the p-value of a claimed change.

    For detector metrics, both the change and the excess over the references must be significant, so the result is the
    larger of their two p-values (an intersection-union test, Berger 1982), or 1 without graded references.
    """
    if "references" not in row:
        return float(row["p"])
    return max(float(row["p"]), float(row["references"]["p"])) if row["references"] else 1.0


def is_significant(row: Mapping[str, Any]) -> bool | None:
    """Return True if the change is significantly better, False if significantly worse, else None; ignore references."""
    found: bool | None = row.get("difference", row["better"])
    return found


def in_order(name: str, first: Statistics, second: Statistics) -> Statistics:
    """Return `second` with its items in the order of `first`. Raises DataError if they don't have the same items."""
    if first.ids == second.ids:
        return second
    lacking = sorted({*first.ids} - {*second.ids})
    further = sorted({*second.ids} - {*first.ids})
    if lacking or further:
        sides = [
            f"{len(ids)} only in the {side} ({', '.join(ids[:3])}{' ...' if len(ids) > 3 else ''})"
            for side, ids in (("first", lacking), ("second", further))
            if ids
        ]
        raise DataError(
            f"The two models' {name} was measured on different items, so it can't be compared: "
            f"{', '.join(sides)}. Evaluate both with the same recipe and seed, and the same version of Python."
        )
    return _of_items(second, first.ids)


def _of_items(statistics: Statistics, ids: Sequence[str]) -> Statistics:
    """Return the statistics of the items `ids`, in this order."""
    place = {each: index for index, each in enumerate(statistics.ids)}
    return Statistics(tuple(ids), statistics.items[[place[each] for each in ids]], statistics.figure)


class _Side:
    """A metric of one model or of the references: per-item statistics, sums by cluster, and values on all draws."""

    def __init__(self, statistics: Statistics, sums: tuple[Any, Array], resampled: Array) -> None:
        self.statistics, self.sums, self.drawn = statistics, sums[1], resampled
        self.value = statistics.value()


def _compared(metric: Metric, sides: Sequence[_Side], resamples: int, seed: int) -> dict[str, Any]:
    """Return one metric's row without `p_holm`; `sides` are base, tuned and, if they were graded, the references."""
    base, tuned = sides[:2]
    deltas = stats.standard_gap(metric, tuned.drawn, base.drawn)
    deltas = deltas[np.isfinite(deltas)]
    low, high = stats.percentile_interval(deltas) or [np.nan, np.nan]
    delta = float(stats.standard_gap(metric, tuned.value, base.value))
    count, items = len(base.sums), len(base.statistics.ids)
    few = count < stats.MIN_GROUPS
    spread = float(deltas.std()) * count**0.5
    if 1 < count < stats.FEW_GROUPS:
        low, high = stats.student_interval(delta, spread / (count - 1) ** 0.5, count - 1)
        if "percent" in metric.meaning:  # a percentage can't change by more than 100 points
            low, high = max(low, -100.0), min(high, 100.0)
    row: dict[str, Any] = {
        "delta": delta,
        "ci95": [low, high],
        "p": 1.0 if few else stats.bootstrap_p(deltas),
        "better": None if few else stats.better(low, high, metric.direction),
        "test": "paired bootstrap",
        "effect": delta / spread if spread > ROUNDING * max(1.0, abs(delta)) and count > 1 else None,
        "base_ci95": stats.percentile_interval(base.drawn),
        "tuned_ci95": stats.percentile_interval(tuned.drawn),
        "items": items,
        "groups": count,
    }
    if metric.share:
        was, now = (stats.paired_counts(each.statistics) for each in (base, tuned))
        gained, lost = int((now & ~was).sum()), int((was & ~now).sum())
        if metric.direction == "down":
            gained, lost = lost, gained
        row |= {"gained": gained, "lost": lost}
        if count == items:
            row |= {"p": stats.mcnemar(gained, lost), "test": "McNemar, exact"}
            row |= {"base_ci95": stats.wilson(int(was.sum()), items), "tuned_ci95": stats.wilson(int(now.sum()), items)}
    if stats.MIN_GROUPS <= count < stats.FEW_GROUPS:
        if row["test"] == "paired bootstrap" and metric.name in BY_RANK:
            row["p"] = max(row["p"], 2.0 ** (1 - count))  # the smallest p-value of a permutation test
        elif row["test"] == "paired bootstrap":
            swaps = stats.random_swaps(count, resamples, [seed, 2])
            p = stats.permutation_p(base.sums, tuned.sums, partial(_distance, metric, base.statistics.figure), swaps)
            row |= {"p": p, "test": "paired permutation"}
        row["better"] = row["better"] if row["p"] < stats.LEVEL else None
    if metric.detector:
        of = "tuned" if stats.is_wrong(metric, delta) else "base"
        side = tuned if of == "tuned" else base
        beside = (
            _compare_with_references(metric, side, sides[2], few, resamples, seed) | {"of": of}
            if len(sides) > 2
            else None
        )
        row |= {"references": beside, "difference": row["better"]}
        if not (beside and beside["beyond"]):
            row["better"] = None
    return row


def _distance(metric: Metric, figure: Callable[[Array], Array], sums: Array) -> Array:
    """Return values whose differences are those of `standard_gap`."""
    found: Array = stats.standard_gap(metric, figure(sums), 1.0)
    return found


def _compare_with_references(
    metric: Metric, model: _Side, references: _Side, too_few: bool, resamples: int, seed: int
) -> dict[str, Any]:
    """Return the comparison of the worse model with its reference answers, for a detector metric.

    `beyond` is True if the model is significantly worse than the reference answers, by a permutation test.
    """
    swaps = stats.random_swaps(len(model.sums), resamples, [seed, 1])
    p = 1.0 if too_few else stats.permutation_p(model.sums, references.sums, model.statistics.figure, swaps)
    own, figure = (float(model.statistics.figure(each.sums.sum(axis=0))) for each in (model, references))
    return {
        "figure": figure,
        "ci95": stats.percentile_interval(references.drawn),
        "excess": own - figure,
        "excess_ci95": stats.percentile_interval(model.drawn - references.drawn),
        "p": p,
        "beyond": p < stats.LEVEL and stats.is_wrong(metric, own - figure),
    }


def caveats(comparison: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return a sentence about each kind of change that the comparison can't claim, with the reason."""
    few = [METRICS[name].title for name, row in comparison.items() if row["groups"] < stats.MIN_GROUPS]
    ungraded = [
        METRICS[name].title
        for name, row in comparison.items()
        if row.get("references", row) is None and "other_judges" not in row
    ]
    found = []
    everything = len(few) == len(comparison) > 1
    if few:
        found.append(
            f"No change can be significant with fewer than {stats.MIN_GROUPS} groups of items. "
            + (f"This concerns all {len(few)} metrics." if everything else f"Metrics: {', '.join(few)}.")
        )
    retokenized = [name for name, row in comparison.items() if row.get("other_tokens")]
    answers, windows = (
        [METRICS[name].title for name in retokenized if (SAME_TOKENS[name] in get_args(TextKind)) == in_windows]
        for in_windows in (False, True)
    )
    if answers:
        found.append(
            f"No change is claimed for {', '.join(answers)}, because the models read different numbers of tokens "
            "for the same texts (other tokenizers, or answers cut at other lengths). Compare bits per byte instead."
        )
    if windows:
        found.append(
            f"No change is claimed for {', '.join(windows)}, because the models read different windows of the text "
            "(other tokenizers, or another number of tokens). Compare general knowledge (evaluate.choices) instead."
        )
    judged: dict[tuple[str, ...], list[str]] = {}
    for name, row in comparison.items():
        if "other_judges" in row:
            judged.setdefault(tuple(row["other_judges"]), []).append(METRICS[name].title)
    for judges, titles in judged.items():
        base, tuned = ("the lexical detector" if each == LEXICAL_DETECTOR else each for each in judges)
        found.append(
            f"No change is claimed for {', '.join(titles)}, because {base} graded the first model's answers, and "
            f"{tuned} graded the other's. Evaluate both models with the same judge."
        )
    if ungraded:
        found.append(
            f"No change is claimed for {', '.join(ungraded)}, because the detector's marks in the reference answers "
            "aren't stored. To add them, run `meditune report RUN` for a run, or `meditune evaluate` for an evaluation."
        )
    for name, row in comparison.items():
        beside = row.get("references")
        if beside and row["difference"] is not None and not beside["beyond"]:
            digits = METRICS[name].digits
            low, high = beside["ci95"]
            found.append(
                f"{METRICS[name].title}: no change is claimed. The detector's value for the reference answers is "
                f"{beside['figure']:.{digits}f} (95% interval {low:.{digits}f} to {high:.{digits}f}), and the "
                f"{beside['of']} model isn't significantly worse than that."
            )
    return found


def survives_correction(row: dict[str, Any]) -> bool:
    """Return True if a metric's difference is significant after correction for the number of metrics."""
    return bool(row["p_holm"] < stats.LEVEL)


def got_worse(comparison: dict[str, dict[str, Any]]) -> list[str]:
    """Return the names of the metrics that got worse, whether or not the interval excludes 0.

    A change that rounds to 0 counts only if it is significantly worse.
    """
    worse = []
    for name, row in comparison.items():
        metric = METRICS[name]
        if stats.is_wrong(metric, row["delta"]) and (
            is_significant(row) is False or round(row["delta"], metric.digits) != 0
        ):
            worse.append(name)
    return worse


def group_numbers(ids: Sequence[str], groups: Mapping[str, str]) -> Any:
    """Return the numbers (n,) of the items' groups; an item without a group forms a group of its own."""
    return stats.clusters_of([(each in groups, groups.get(each, each)) for each in ids])


Change = dict[str, Any]


def changes(base: Predictions, tuned: Predictions, examples: Mapping[str, Example]) -> list[Change]:
    """Return the items for which the two models' predictions differ, from the greatest loss to the greatest gain.

    `change` is lost, gained or neither; `delta` is 1, 0 or -1 for a decision, and the difference in ROUGE-L for an
    answer.
    """

    def quality(kind: str, row: dict[str, Any]) -> float:
        if kind == "decision":
            return int(row["prediction"] == row["reference"])
        return rouge(row)

    found = []
    for kind in ("decision", "answer"):
        later = {row["id"]: row for row in getattr(tuned, kind)}
        for before in getattr(base, kind):
            after, example = later.get(before["id"]), examples.get(before["id"])
            if after is None or before["prediction"] == after["prediction"]:
                continue
            delta = quality(kind, after) - quality(kind, before)
            found.append(
                {
                    "id": before["id"],
                    "kind": kind,
                    "question": example.question if example else "",
                    "reference": before["reference"],
                    "base": before["prediction"],
                    "tuned": after["prediction"],
                    "change": "gained" if delta > 0 else "lost" if delta < 0 else "neither",
                    "delta": delta,
                }
            )
    return sorted(found, key=lambda row: (row["delta"], row["kind"], row["id"]))


def count_changes(changes: list[Change]) -> dict[str, dict[str, int]]:
    """Return kind of prediction -> the numbers of changed items that were `lost`, `gained` or `neither`."""
    counts: dict[str, dict[str, int]] = {}
    for row in changes:
        of_kind = counts.setdefault(row["kind"], {"lost": 0, "gained": 0, "neither": 0})
        of_kind[row["change"]] += 1
    return counts


class NothingInCommonError(DataError):
    """Raised if two models have no metric in common."""


def _refuse_other_questions(first: Mapping[str, Example], second: Mapping[str, Example]) -> None:
    """Raise DataError if the same id stands for different questions."""
    differing = [id for id, each in second.items() if id in first and first[id].question != each.question]
    if differing:
        raise DataError(
            f"{len(differing)} items have the same id but different questions ({list_ids(differing)}), so the models "
            "can't be compared. Evaluate both on the same version of the data."
        )


def side_by_side(models: Sequence[MeasuredModel], resamples: int, seed: int) -> dict[str, Any]:
    """Return `models` (names), `figures` (name -> metric -> value) and `comparisons` (name -> `comparison`, `worse`).

    Each further model is compared with the first one as in `compare`, but Holm's correction covers all metrics of all
    comparisons. For two models, the result also has `base`, `tuned`, `comparison` and `worse`, as in report.json.

    Raises DataError if two models were measured on different items or questions, and NothingInCommonError if they share
    no metric.
    """
    first, *others = models
    names = [model.name for model in models]
    if len(set(names)) < len(names):
        raise DataError(f"The same model is named twice: {', '.join(names)}. Name different models.")
    found = {}
    for other in others:
        try:
            _refuse_other_questions(first.examples, other.examples)
            found[other.name] = compare(
                first.predictions, other.predictions, resamples, seed, groups_of(first.examples | other.examples)
            )
        except DataError as error:
            raise DataError(f"{first.name} and {other.name}: {error}") from error
        if not found[other.name]:
            raise NothingInCommonError(
                f"{first.name} and {other.name} have no metric in common, so there is nothing to compare."
            )
    adjusted = stats.holm(
        {f"{name}\n{metric}": claim_p(row) for name, rows in found.items() for metric, row in rows.items()}
    )
    comparisons = {}
    for name, rows in found.items():
        corrected = {metric: row | {"p_holm": adjusted[f"{name}\n{metric}"]} for metric, row in rows.items()}
        comparisons[name] = {"comparison": corrected, "worse": got_worse(corrected)}
    figures = {model.name: summarize(model.predictions) for model in models}
    result: dict[str, Any] = {"models": names, "figures": figures, "comparisons": comparisons}
    if len(others) == 1:
        only = others[0].name
        result |= {"base": figures[first.name], "tuned": figures[only], **comparisons[only]}
    return result
