"""Paired comparison of measured models on the same items: statistics, changed items, and many models side by side."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np

from meditune.data.example import Example
from meditune.errors import DataError
from meditune.evaluate.metrics import METRICS, references_of, statistics_of, summarise
from meditune.evaluate.predictions import MeasuredModel, Predictions
from meditune.statistics import (
    Array,
    Metric,
    Statistics,
    bootstrap_p,
    exchange_p,
    holm,
    mcnemar,
    paired_counts,
    standard_gap,
    wilson,
)

BLOCK = 500
LEVEL = 0.05
FEWEST = 6
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
      are fewer than FEWEST groups, because draws of so few groups hardly vary. Their bootstrap's p is 1.
    - `effect`: delta over the standard deviation of one item's contribution, which is Cohen's d of paired differences
      (Cohen 1988, d_z), computed from the bootstrap's spread; None if the difference never varies.
    - `base_ci95`, `tuned_ci95`: each model's own interval; Wilson's (Wilson 1927) for shares of independent items.
    - `items`, `groups`: their numbers.
    - `gained`, `lost`: if each item is right or wrong, the number that only the tuned or only the base model got right.
    - `references`, for detector metrics, because detectors also mark some true answers: the result of `_References`,
      or None if the reference answers weren't graded. `better` is None unless the model with more marks is `beyond` the
      references; `difference` is its value without regard to them.

    Raises DataError if the models were measured on different items.
    """
    first, second = statistics_of(base), statistics_of(tuned)
    shared = [name for name in first if name in second]
    second |= {name: in_order(name, first[name], second[name]) for name in shared}
    marked, marked_of_tuned = references_of(base), references_of(tuned)
    found: dict[str, dict[str, Any]] = {}
    for names in _measured_alike(shared, first):
        clusters = clusters_of(first[names[0]].ids, groups or {})
        pairs = [_Pair(METRICS[name], first[name], second[name], clusters) for name in names]
        for pair in pairs:
            name = pair.metric.name
            pair.beside(marked.get(name), marked_of_tuned.get(name), resamples, seed)
        for drawn in draws(int(clusters.max()) + 1, resamples, seed):
            for pair in pairs:
                pair.draw(drawn)
        found |= {pair.metric.name: pair.result() for pair in pairs}
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


@dataclass
class _Pair:
    """One metric of both models, summed by cluster, with the bootstrap draws so far."""

    metric: Metric
    base: Statistics
    tuned: Statistics
    clusters: Any
    """(n,) number of each item's cluster"""
    figures: list[tuple[Array, Array]] = field(default_factory=list)
    references: _References | None = None

    def __post_init__(self) -> None:
        self.sums = tuple(by_cluster(each.items, self.clusters) for each in (self.base, self.tuned))

    def beside(self, base: Statistics | None, tuned: Statistics | None, resamples: int, seed: int) -> None:
        """Compare the model with more marks with its references, or with the other model's if it has none."""
        if not self.metric.detector:
            return
        wrong = is_wrong(self.metric, float(standard_gap(self.metric, self.tuned.value(), self.base.value())))
        side, name = (self.tuned, "tuned") if wrong else (self.base, "base")
        found = [each for each in ((tuned, base) if wrong else (base, tuned)) if each and {*each.ids} == {*side.ids}]
        if found:
            ordered = in_order(self.metric.name, side, found[0])
            sums = self.sums[1 if wrong else 0], by_cluster(ordered.items, self.clusters)
            self.references = _References(self.metric, name, side, sums, resamples, seed)

    def draw(self, drawn: Array) -> None:
        """Compute both models' values on draws (b, clusters)."""
        if self.references:
            self.references.draw(drawn)
        base, tuned = (each.figure(drawn @ sums) for each, sums in zip((self.base, self.tuned), self.sums, strict=True))
        self.figures.append((base, tuned))

    def result(self) -> dict[str, Any]:
        base, tuned = (np.concatenate(column) for column in zip(*self.figures, strict=True))
        deltas = standard_gap(self.metric, tuned, base)
        deltas = deltas[np.isfinite(deltas)]
        low, high = _interval(deltas)
        good_low, good_high = (low, high) if self.metric.direction == "up" else (-high, -low)
        delta = float(standard_gap(self.metric, self.tuned.value(), self.base.value()))
        count, items = self.sums[0].shape[0], len(self.base.ids)
        few = count < FEWEST
        spread = float(deltas.std()) * count**0.5
        row = {
            "delta": delta,
            "ci95": [low, high],
            "p": 1.0 if few else bootstrap_p(deltas),
            "better": None if few else True if good_low > 0 else False if good_high < 0 else None,
            "test": "paired bootstrap",
            "effect": delta / spread if spread > 0 else None,
            "base_ci95": _interval(base),
            "tuned_ci95": _interval(tuned),
            "items": items,
            "groups": count,
        }
        if self.metric.detector:
            row |= {"references": self.references.result(few) if self.references else None, "difference": row["better"]}
            if not (row["references"] and row["references"]["beyond"]):
                row["better"] = None
        if not self.metric.share:
            return row
        was, now = (paired_counts(each) for each in (self.base, self.tuned))
        gained, lost = int((now & ~was).sum()), int((was & ~now).sum())
        if self.metric.direction == "down":
            gained, lost = lost, gained
        row |= {"gained": gained, "lost": lost}
        if count == items:
            row |= {"p": mcnemar(gained, lost), "test": "McNemar, exact"}
            row |= {"base_ci95": wilson(int(was.sum()), items), "tuned_ci95": wilson(int(now.sum()), items)}
        return row


class _References:
    """A comparison of the reference answers with the model that has more of a detector's marks.

    `figure` is the references' value, with its `ci95`; `of` names the model; `excess` is that model's value minus the
    references', with its `excess_ci95` from the same draws; `p` is the p-value of no difference
    (statistics.exchange_p); `beyond` is True if the model has significantly more marks.
    """

    def __init__(
        self, metric: Metric, of: str, side: Statistics, sums: tuple[Array, Array], resamples: int, seed: int
    ) -> None:
        """Prepare the comparison; `sums` are the model's and the references' statistics by cluster."""
        self.metric, self.of, self.figure, self.sums = metric, of, side.figure, sums
        self.drawn: list[tuple[Array, Array]] = []
        swaps = np.random.default_rng([seed, 1]).integers(0, 2, (resamples, len(sums[0]))).astype(np.float64)
        self.p = exchange_p(*sums, side.figure, swaps)

    def draw(self, drawn: Array) -> None:
        """Compute the model's and the references' values on draws (b, clusters)."""
        model, references = (self.figure(drawn @ each) for each in self.sums)
        self.drawn.append((model, references))

    def result(self, few: bool) -> dict[str, Any]:
        """Return the fields above; with `few` groups, `beyond` is False."""
        model, references = (np.concatenate(column) for column in zip(*self.drawn, strict=True))
        own, figure = (float(self.figure(each.sum(axis=0))) for each in self.sums)
        return {
            "figure": figure,
            "ci95": _interval(references),
            "of": self.of,
            "excess": own - figure,
            "excess_ci95": _interval(model - references),
            "p": 1.0 if few else self.p,
            "beyond": not few and self.p < LEVEL and is_wrong(self.metric, own - figure),
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
    titles = [METRICS[name].title for name, row in comparison.items() if row["groups"] < FEWEST]
    if not titles:
        return []
    return [f"No change can be significant with fewer than {FEWEST} groups of items. Metrics: {', '.join(titles)}."]


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


def is_wrong(metric: Metric, delta: float) -> bool:
    """Return True if a difference is a change for the worse."""
    return delta < 0 if metric.direction == "up" else delta > 0


def _measured_alike(names: Sequence[str], statistics: Mapping[str, Statistics]) -> list[list[str]]:
    """Return the names grouped by equal items; metrics with the same items share their draws."""
    found: dict[tuple[str, ...], list[str]] = {}
    for name in names:
        found.setdefault(statistics[name].ids, []).append(name)
    return list(found.values())


def clusters_of(ids: Sequence[str], groups: Mapping[str, str]) -> Any:
    """Return (n,) the number of each item's group; an item without a group forms a group of its own."""
    numbers: dict[tuple[bool, str], int] = {}
    keys = [(each in groups, groups.get(each, each)) for each in ids]
    return np.array([numbers.setdefault(key, len(numbers)) for key in keys])


def by_cluster(items: Array, clusters: Any, count: int | None = None) -> Array:
    """Return (count, k) sums of (n, k) items by cluster; `count` is the number of clusters by default."""
    sums = np.zeros((count or int(clusters.max()) + 1, items.shape[1]))
    np.add.at(sums, clusters, items)
    return sums


def draws(count: int, resamples: int, seed: int) -> Iterator[Array]:
    """Yield blocks (b, count) of how often each of `count` clusters was drawn."""
    generator = np.random.default_rng(seed)
    for start in range(0, resamples, BLOCK):
        size = min(BLOCK, resamples - start)
        yield generator.multinomial(count, np.full(count, 1 / count), size=size).astype(np.float64)


def _interval(figures: Array) -> list[float]:
    low, high = np.nanpercentile(figures, [2.5, 97.5])
    return [float(low), float(high)]


Change = dict[str, Any]


def changes(base: Predictions, tuned: Predictions, examples: Mapping[str, Example]) -> list[Change]:
    """Return each item for which the two models' predictions differ, the greatest loss first, the greatest gain last.

    Each row has `id`, `kind` (decision or answer), `question` (empty if unknown), `reference`, the predictions of
    `base` and `tuned`, `change` (lost, gained, or neither), and `delta`: for a decision 1 if it became correct, -1 if
    it became wrong, else 0; for an answer the difference in ROUGE-L.
    """
    found = [
        _row("decision", first, second, examples, int(_is_right(second)) - int(_is_right(first)))
        for first, second in _pairs(base.decision, tuned.decision)
    ]
    found += [
        _row("answer", first, second, examples, _rouge(second) - _rouge(first))
        for first, second in _pairs(base.answer, tuned.answer)
    ]
    return sorted(found, key=lambda row: (row["delta"], row["kind"], row["id"]))


def count_changes(found: list[Change]) -> dict[str, dict[str, int]]:
    """Return for each kind of prediction the number of changed items that were lost, gained, or neither."""
    counts: dict[str, dict[str, int]] = {}
    for row in found:
        of_kind = counts.setdefault(row["kind"], {"lost": 0, "gained": 0, "neither": 0})
        of_kind[row["change"]] += 1
    return counts


def _pairs(base: list[dict[str, Any]], tuned: list[dict[str, Any]]) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    later = {row["id"]: row for row in tuned}
    both = [(row, later[row["id"]]) for row in base if row["id"] in later]
    return [(first, second) for first, second in both if first["prediction"] != second["prediction"]]


def _row(
    kind: str, base: dict[str, Any], tuned: dict[str, Any], examples: Mapping[str, Example], delta: float
) -> Change:
    example = examples.get(base["id"])
    return {
        "id": base["id"],
        "kind": kind,
        "question": example.question if example else "",
        "reference": base["reference"],
        "base": base["prediction"],
        "tuned": tuned["prediction"],
        "change": "gained" if delta > 0 else "lost" if delta < 0 else "neither",
        "delta": delta,
    }


def _is_right(row: dict[str, Any]) -> bool:
    return bool(row["prediction"] == row["reference"])


def _rouge(row: dict[str, Any]) -> float:
    return rouge(row["reference"], row["prediction"])


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
