"""Paired comparison of measured models on the same items: statistics, changed items, and many models side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np

from meditune.data.example import Example
from meditune.errors import DataError
from meditune.evaluate.metrics import METRICS, references_of, statistics_of, summarise
from meditune.evaluate.predictions import MeasuredModel, Predictions
from meditune.statistics import (
    LEVEL,
    Array,
    Metric,
    Statistics,
    better,
    bootstrap,
    bootstrap_p,
    by_cluster,
    clusters_of,
    holm,
    is_wrong,
    mcnemar,
    paired_counts,
    percentile_interval,
    permutation_p,
    random_swaps,
    standard_gap,
    wilson,
)

MIN_GROUPS = 6
"""Minimum number of groups for a significant difference: at random, five of five groups agree in one case of 16"""


def compare(
    base: Predictions, tuned: Predictions, resamples: int, seed: int, groups: Mapping[str, str] | None = None
) -> dict[str, dict[str, Any]]:
    """Return for every metric of both models the difference and its significance:

    - `delta`: tuned - base; for a metric whose best value is 1 (length_ratio), the difference of the distances from 1.
    - `ci95`: the percentile interval of a paired bootstrap (Efron and Tibshirani 1993). Items with the same group in
      `groups` (id -> group) are drawn together, because they aren't independent of each other.
    - `p`, two-sided: from McNemar's exact test (McNemar 1947) if each item is right or wrong, else from the bootstrap;
      `test` names the test. `p_holm`: `claim_p`, corrected by Holm's procedure (Holm 1979) over all metrics here.
    - `better`: True or False if the interval excludes 0 on the good or the bad side; None if it doesn't, or if there
      are fewer than MIN_GROUPS groups, because draws of so few groups hardly vary. In that case, the bootstrap's p is
      1.
    - `effect`: delta over the standard deviation of one item's contribution, which is Cohen's d of paired differences
      (Cohen 1988, d_z), computed from the bootstrap's spread; None if the difference never varies.
    - `base_ci95`, `tuned_ci95`: each model's own interval; Wilson's (Wilson 1927) for shares of independent items.
    - `items`, `groups`: their numbers.
    - `gained`, `lost`: if each item is right or wrong, the number that only the tuned or only the base model got right.
    - `references`, for detector metrics, because detectors also mark some true answers: the result of
      `_compare_with_references`, or None if the reference answers weren't graded. `better` is None unless the model
      with more marks is `beyond` the references; `difference` is what `better` would be without regard to the
      references.

    Raises DataError if the models were measured on different items.
    """
    first, second = statistics_of(base), statistics_of(tuned)
    shared = [name for name in first if name in second]
    second |= {name: in_order(name, first[name], second[name]) for name in shared}
    marked, marked_of_tuned = references_of(base), references_of(tuned)
    found: dict[str, dict[str, Any]] = {}
    for names in _measured_alike(shared, first):
        clusters = group_numbers(first[names[0]].ids, groups or {})
        compared: dict[str, list[Statistics]] = {}
        for name in names:
            compared[name] = [first[name], second[name]]
            if METRICS[name].detector:
                graded = marked.get(name), marked_of_tuned.get(name)
                compared[name] += _references(METRICS[name], (first[name], second[name]), graded)
        sums = [(side.figure, by_cluster(side.items, clusters)) for sides in compared.values() for side in sides]
        drawn = iter(zip(sums, bootstrap(sums, resamples, seed), strict=True))
        for name, sides in compared.items():
            models = [_Side(side, *next(drawn)) for side in sides]
            found[name] = _compared(METRICS[name], models, resamples, seed)
    adjusted = holm({name: claim_p(row) for name, row in found.items()})
    return {name: found[name] | {"p_holm": adjusted[name]} for name in shared}


def claim_p(row: Mapping[str, Any]) -> float:
    """Return the p of a claimed change.

    For detector metrics, both the change and the excess over the references must be significant, so this is the larger
    of the two p (an intersection-union test, Berger 1982).
    """
    if "references" not in row:
        return float(row["p"])
    return max(float(row["p"]), float(row["references"]["p"])) if row["references"] else 1.0


def is_significant(row: Mapping[str, Any]) -> bool | None:
    """Return True or False if the interval is entirely on the good or the bad side, without regard to references."""
    found: bool | None = row.get("difference", row["better"])
    return found


def in_order(name: str, first: Statistics, second: Statistics) -> Statistics:
    """Return `second` with its items in the order of `first`. Raises DataError if they don't have the same items."""
    if first.ids == second.ids:
        return second
    place = {each: index for index, each in enumerate(second.ids)}
    lacking = [each for each in first.ids if each not in place]
    further = sorted(place.keys() - set(first.ids))
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
    return Statistics(first.ids, second.items[[place[each] for each in first.ids]], second.figure)


def _references(
    metric: Metric, models: tuple[Statistics, Statistics], graded: tuple[Statistics | None, Statistics | None]
) -> list[Statistics]:
    """Return the references' statistics of the model with more marks, or of the other model if it has none.

    Both arguments are (base, tuned).
    """
    base, tuned = models
    worse = int(is_wrong(metric, float(standard_gap(metric, tuned.value(), base.value()))))
    found = [each for each in (graded[worse], graded[1 - worse]) if each and {*each.ids} == {*models[worse].ids}]
    return [in_order(metric.name, models[worse], each) for each in found[:1]]


class _Side:
    """A metric's statistics of one model or of the references, summed by cluster, with its values on all draws."""

    def __init__(self, statistics: Statistics, sums: tuple[Any, Array], resampled: Array) -> None:
        self.statistics, self.sums, self.drawn = statistics, sums[1], resampled
        self.value = statistics.value()


def _compared(metric: Metric, sides: Sequence[_Side], resamples: int, seed: int) -> dict[str, Any]:
    """Return the result for one metric, except `p_holm`; `sides` are base, tuned and, if graded, the references."""
    base, tuned = sides[:2]
    deltas = standard_gap(metric, tuned.drawn, base.drawn)
    deltas = deltas[np.isfinite(deltas)]
    low, high = percentile_interval(deltas) or [np.nan, np.nan]
    delta = float(standard_gap(metric, tuned.value, base.value))
    count, items = len(base.sums), len(base.statistics.ids)
    few = count < MIN_GROUPS
    spread = float(deltas.std()) * count**0.5
    row: dict[str, Any] = {
        "delta": delta,
        "ci95": [low, high],
        "p": 1.0 if few else bootstrap_p(deltas),
        "better": None if few else better(low, high, metric.direction),
        "test": "paired bootstrap",
        "effect": delta / spread if spread > 0 else None,
        "base_ci95": percentile_interval(base.drawn),
        "tuned_ci95": percentile_interval(tuned.drawn),
        "items": items,
        "groups": count,
    }
    if metric.detector:
        of = "tuned" if is_wrong(metric, delta) else "base"
        side = tuned if of == "tuned" else base
        beside = (
            _compare_with_references(metric, side, sides[2], few, resamples, seed) | {"of": of}
            if len(sides) > 2
            else None
        )
        row |= {"references": beside, "difference": row["better"]}
        if not (beside and beside["beyond"]):
            row["better"] = None
    if metric.share:
        was, now = (paired_counts(each.statistics) for each in (base, tuned))
        gained, lost = int((now & ~was).sum()), int((was & ~now).sum())
        if metric.direction == "down":
            gained, lost = lost, gained
        row |= {"gained": gained, "lost": lost}
        if count == items:
            row |= {"p": mcnemar(gained, lost), "test": "McNemar, exact"}
            row |= {"base_ci95": wilson(int(was.sum()), items), "tuned_ci95": wilson(int(now.sum()), items)}
    return row


def _compare_with_references(
    metric: Metric, model: _Side, references: _Side, too_few: bool, resamples: int, seed: int
) -> dict[str, Any]:
    """Return the comparison of the model that has more of a detector's marks with its reference answers.

    `figure` is the references' value, with its `ci95`; `excess` is the model's value minus the references', with its
    `excess_ci95` from the same draws; `p` is the p-value of no difference (statistics.permutation_p), 1 with `too_few`
    groups; `beyond` is True if the model has significantly more marks.
    """
    swaps = random_swaps(len(model.sums), resamples, [seed, 1])
    p = 1.0 if too_few else permutation_p(model.sums, references.sums, model.statistics.figure, swaps)
    own, figure = (float(model.statistics.figure(each.sums.sum(axis=0))) for each in (model, references))
    return {
        "figure": figure,
        "ci95": percentile_interval(references.drawn),
        "excess": own - figure,
        "excess_ci95": percentile_interval(model.drawn - references.drawn),
        "p": p,
        "beyond": p < LEVEL and is_wrong(metric, own - figure),
    }


def caveats(comparison: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return sentences about changes that the comparison can't claim, with the reasons."""
    return [*too_few(comparison), *_without_references(comparison), *_within_references(comparison)]


def _without_references(comparison: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return a sentence about the detector metrics without graded references, if there are any."""
    titles = [METRICS[name].title for name, row in comparison.items() if row.get("references", row) is None]
    if not titles:
        return []
    return [
        f"No change is claimed for {', '.join(titles)}, because the detector's marks in the reference answers aren't "
        "stored. To add them, use `meditune report RUN` for a run and `meditune evaluate` for an evaluation."
    ]


def _within_references(comparison: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return a sentence for each detector metric that changed, but not beyond the marks in the reference answers."""
    found = []
    for name, row in comparison.items():
        beside = row.get("references")
        if beside and row["difference"] is not None and not beside["beyond"]:
            digits = METRICS[name].digits
            low, high = beside["ci95"]
            found.append(
                f"{METRICS[name].title}: no change is claimed. The detector's value for the reference answers is "
                f"{beside['figure']:.{digits}f} (95 % interval {low:.{digits}f} to {high:.{digits}f}), and the "
                f"{beside['of']} model isn't significantly worse than that."
            )
    return found


def too_few(comparison: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return a sentence about the metrics that were measured on too few groups to compare, if there are any."""
    titles = [METRICS[name].title for name, row in comparison.items() if row["groups"] < MIN_GROUPS]
    if not titles:
        return []
    return [f"No change can be significant with fewer than {MIN_GROUPS} groups of items. Metrics: {', '.join(titles)}."]


def survives_correction(row: dict[str, Any]) -> bool:
    """Return True if a metric's difference is significant after correction for the number of metrics."""
    return bool(row["p_holm"] < LEVEL)


def got_worse(comparison: dict[str, dict[str, Any]]) -> list[str]:
    """Return the names of the metrics that got worse, whether or not the interval excludes 0.

    A change that rounds to 0 counts only if it is significantly worse.
    """
    worse = []
    for name, row in comparison.items():
        metric = METRICS[name]
        if is_wrong(metric, row["delta"]) and (is_significant(row) is False or round(row["delta"], metric.digits) != 0):
            worse.append(name)
    return worse


def group_numbers(ids: Sequence[str], groups: Mapping[str, str]) -> Any:
    """Return (n,) the number of each item's group; an item without a group forms a group of its own."""
    return clusters_of([(each in groups, groups.get(each, each)) for each in ids])


def _measured_alike(names: Sequence[str], statistics: Mapping[str, Statistics]) -> list[list[str]]:
    """Return the names grouped by equal items; metrics with the same items share their draws."""
    found: dict[tuple[str, ...], list[str]] = {}
    for name in names:
        found.setdefault(statistics[name].ids, []).append(name)
    return list(found.values())


Change = dict[str, Any]


def changes(base: Predictions, tuned: Predictions, examples: Mapping[str, Example]) -> list[Change]:
    """Return each item for which the two models' predictions differ, the greatest loss first, the greatest gain last.

    Each row has `id`, `kind` (decision or answer), `question` (empty if unknown), `reference`, the predictions of
    `base` and `tuned`, `change` (lost, gained, or neither), and `delta`: for a decision 1 if it became correct, -1 if
    it became wrong, else 0; for an answer the difference in ROUGE-L.
    """
    found = []
    for kind in ("decision", "answer"):
        later = {row["id"]: row for row in getattr(tuned, kind)}
        for before in getattr(base, kind):
            after, example = later.get(before["id"]), examples.get(before["id"])
            if after is None or before["prediction"] == after["prediction"]:
                continue
            delta = _quality(kind, after) - _quality(kind, before)
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


def _quality(kind: str, row: Mapping[str, Any]) -> float:
    """Return whether a decision is correct, 0 or 1, or the ROUGE-L of an answer."""
    if kind == "decision":
        return int(row["prediction"] == row["reference"])
    return rouge(row["reference"], row["prediction"])


def count_changes(changes: list[Change]) -> dict[str, dict[str, int]]:
    """Return for each kind of prediction the number of changed items that were lost, gained, or neither."""
    counts: dict[str, dict[str, int]] = {}
    for row in changes:
        of_kind = counts.setdefault(row["kind"], {"lost": 0, "gained": 0, "neither": 0})
        of_kind[row["change"]] += 1
    return counts


def rouge(reference: str, prediction: str) -> float:
    """Return the ROUGE-L F1 of one answer, with stemming."""
    return float(_scorer().score(reference, prediction)["rougeL"].fmeasure)


@cache
def _scorer() -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rougeL"], use_stemmer=True)


class NothingInCommonError(DataError):
    """Raised if two models have no metric in common."""


def side_by_side(models: Sequence[MeasuredModel], resamples: int, seed: int) -> dict[str, Any]:
    """Return `models` (names), `figures` (name -> metric -> value), `comparisons` (name -> `comparison` and `worse`).

    Every further model is compared with the first, with rows as in `compare`, but Holm's correction covers all metrics
    of all comparisons; `worse` names the metrics that got worse. For two models, the result also has `base`, `tuned`,
    `comparison` and `worse`, as in report.json.

    Raises DataError if models were measured on different items, and NothingInCommonError if two models have no metric
    in common.
    """
    first, *others = models
    names = [model.name for model in models]
    if len(set(names)) < len(names):
        raise DataError(f"The same model is named twice: {', '.join(names)}. Name different models.")
    found = {}
    for other in others:
        try:
            found[other.name] = compare(
                first.predictions, other.predictions, resamples, seed, first.groups() | other.groups()
            )
        except DataError as error:
            raise DataError(f"{first.name} and {other.name}: {error}") from error
        if not found[other.name]:
            raise NothingInCommonError(
                f"{first.name} and {other.name} have no metric in common, so there is nothing to compare."
            )
    adjusted = holm({f"{name}\n{metric}": claim_p(row) for name, rows in found.items() for metric, row in rows.items()})
    comparisons = {}
    for name, rows in found.items():
        corrected = {metric: row | {"p_holm": adjusted[f"{name}\n{metric}"]} for metric, row in rows.items()}
        comparisons[name] = {"comparison": corrected, "worse": got_worse(corrected)}
    figures = {model.name: summarise(model.predictions) for model in models}
    result: dict[str, Any] = {"models": names, "figures": figures, "comparisons": comparisons}
    if len(others) == 1:
        only = others[0].name
        result |= {"base": figures[first.name], "tuned": figures[only], **comparisons[only]}
    return result


def changed_metrics(first: MeasuredModel, second: MeasuredModel) -> list[Change]:
    """Return the items that the second model answers differently from the first, the greatest loss first."""
    return changes(first.predictions, second.predictions, first.examples | second.examples)
