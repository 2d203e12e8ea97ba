"""Metrics by subgroup: groups that are worse than the others, and groups that got worse through tuning."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from meditune import statistics as stats
from meditune.data.example import TRAITS, Example
from meditune.evaluate.compare import group_numbers
from meditune.evaluate.metrics import METRICS, references_of, statistics_of
from meditune.evaluate.predictions import Predictions, groups_of
from meditune.statistics import Array, Metric, Statistics

MIN_GROUP_SIZE = 10
"""Minimum size of a group; smaller groups are listed, but neither ranked nor tested, nor are groups with items of fewer
than MIN_GROUPS (statistics.py) documents"""


def subgroups(examples: Sequence[Example], base: Predictions | None, tuned: Predictions, seed: int) -> dict[str, Any]:
    """Return report.json's `subgroups` (docs/reference/report.md): the groups of each metric, from worst to best.

    `flags` contains "below the others" or "got worse" if the corresponding difference is significant after Holm's
    correction (Holm 1979) over all groups of the metric; for a detector metric, `tuned` must also be significantly
    worse than the group's references. A group is left out if it contains all items, or if the metric is undefined for
    the group or for the other items.

    For percentages of items, intervals are Wilson's (1927), and p comes from Fisher's and McNemar's exact tests. For
    other metrics, and if several items are about one document, intervals are percentiles of a bootstrap over all
    documents, and p comes from Student's t distribution of the difference divided by its bootstrap standard error; the
    degrees of freedom are the number of documents in the group minus 1 or, for a comparison with the other items, the
    smaller of the two numbers of documents minus 1. With fewer than MIN_GROUPS other documents, this p is 1.
    """
    known = {example.id: example for example in examples}
    documents = groups_of(known)
    found, before = statistics_of(tuned), statistics_of(base) if base else {}
    marked = references_of(tuned)
    drawn: dict[tuple[str, ...], _Draws] = {}
    metrics: dict[str, list[dict[str, Any]]] = {}
    for name, statistics in found.items():
        ids = statistics.ids
        if not set(ids) <= known.keys() or (name in before and before[name].ids != ids):
            continue
        if ids not in drawn:
            drawn[ids] = _Draws.of(group_numbers(ids, documents), seed)
        groups = _groups([known[each] for each in ids])
        rows = [
            {"by": by, "group": group} | row
            for (by, group), mask in groups.items()
            if not mask.all() and not (by == "reference decision" and _is_f1(name))
            if (row := _row(METRICS[name], before.get(name), statistics, mask, drawn[ids]))
        ]
        if METRICS[name].detector:
            for row in (row for row in rows if "p_others" in row):
                row |= _compare_with_references(
                    METRICS[name], statistics, marked.get(name), groups[row["by"], row["group"]], drawn[ids], seed
                )
        if rows:
            metrics[name] = _ranked(METRICS[name], rows)
    return {"least": MIN_GROUP_SIZE, "resamples": stats.RESAMPLES, "level": stats.LEVEL, "metrics": metrics}


@dataclass(frozen=True)
class _Draws:
    """The documents of n items, and bootstrap draws of them."""

    documents: Any  # (n,) numbers
    counts: Array  # (resamples, n): how often a draw contains each item

    @classmethod
    def of(cls, documents: Any, seed: int) -> _Draws:
        drawn = np.concatenate(list(stats.draws(int(documents.max()) + 1, stats.RESAMPLES, seed)))
        return cls(documents, drawn[:, documents])

    @property
    def are_items(self) -> bool:
        """Return whether each item is about a document of its own."""
        return len(np.unique(self.documents)) == len(self.documents)


def _is_f1(metric: str) -> bool:
    """Return whether a metric is an F1, which is meaningless for items that all have the same reference decision."""
    return metric.endswith("macro_f1") or metric.startswith("f1_")


def _groups(examples: Sequence[Example]) -> dict[tuple[str, str], NDArray[np.bool_]]:
    masks = {}
    for by, trait in TRAITS.items():
        found = [trait(example) for example in examples]
        for group in dict.fromkeys(group for groups in found for group in sorted(groups)):
            masks[by, group] = np.array([group in groups for groups in found])
    return masks


def _row(
    metric: Metric, base: Statistics | None, tuned: Statistics, mask: NDArray[np.bool_], drawn: _Draws
) -> dict[str, Any]:
    row: dict[str, Any] = {"items": int(mask.sum()), "tuned": _figure(tuned, mask)}
    if not np.isfinite([row["tuned"], _figure(tuned, ~mask)]).all():
        # The metric is undefined, for example because all answers are empty.
        return {}
    if base and not np.isfinite(_figure(base, mask)):
        base = None
    if base:
        row |= {
            "base": _figure(base, mask),
            "delta": float(stats.standard_gap(metric, _figure(tuned, mask), _figure(base, mask))),
        }
    documents, of_others = (len(np.unique(drawn.documents[side])) for side in (mask, ~mask))
    if row["items"] < MIN_GROUP_SIZE or documents < stats.MIN_GROUPS:
        return row
    counts = drawn.counts
    counts = counts[(counts[:, mask].sum(axis=1) > 0) & (counts[:, ~mask].sum(axis=1) > 0)]
    own, rest = _figures(tuned, mask, counts), _figures(tuned, ~mask, counts)
    was = _figures(base, mask, counts) if base else np.zeros(len(counts))
    known = np.isfinite(own) & np.isfinite(rest) & np.isfinite(was)
    own, rest, was = own[known], rest[known], was[known]
    row |= {"others": _figure(tuned, ~mask), "tuned_ci95": stats.percentile_interval(own)}
    behind = _higher_is_better(metric, row["tuned"]) - _higher_is_better(metric, row["others"])
    se, df = float(np.std(_higher_is_better(metric, own) - _higher_is_better(metric, rest))), documents - 1
    enough = of_others >= stats.MIN_GROUPS
    row["p_others"] = stats.student_p(behind, se, min(df, of_others - 1)) if enough else 1.0
    if base:
        change = stats.standard_gap(metric, own, was)
        row |= {"base_ci95": stats.percentile_interval(was), "ci95": stats.percentile_interval(change)}
        row["p"] = stats.student_p(row["delta"], float(np.std(change)), df)
    if metric.share and drawn.are_items:
        row |= _exact(base, tuned, mask)
    return row


def _compare_with_references(
    metric: Metric,
    tuned: Statistics,
    references: Statistics | None,
    mask: NDArray[np.bool_],
    drawn: _Draws,
    seed: int,
) -> dict[str, Any]:
    """Return the value for the group's references and p, which is 1 if `tuned` isn't worse or can't be compared."""
    figure = _figure(references, mask) if references and references.ids == tuned.ids else np.nan
    if references is None or not np.isfinite(figure):
        return {"p_references": 1.0}
    clusters = stats.clusters_of(drawn.documents[mask].tolist())
    own, known = (stats.by_cluster(each.items[mask], clusters) for each in (tuned, references))
    p = stats.permutation_p(own, known, tuned.figure, stats.random_swaps(len(own), stats.RESAMPLES, seed))
    behind = _higher_is_better(metric, _figure(tuned, mask)) < _higher_is_better(metric, figure)
    return {"references": figure, "p_references": p if behind else 1.0}


def _exact(base: Statistics | None, tuned: Statistics, mask: NDArray[np.bool_]) -> dict[str, Any]:
    """Return Wilson's intervals and the p-values of Fisher's and McNemar's exact tests, for a percentage of items."""
    now = stats.paired_counts(tuned)
    own, rest = ((int((now & side).sum()), int((~now & side).sum())) for side in (mask, ~mask))
    found: dict[str, Any] = {"tuned_ci95": stats.wilson(int(now[mask].sum()), int(mask.sum()))}
    found["p_others"] = stats.fisher(own, rest)
    if base:
        was = stats.paired_counts(base)
        found["base_ci95"] = stats.wilson(int(was[mask].sum()), int(mask.sum()))
        found["p"] = stats.mcnemar(int((now & ~was & mask).sum()), int((was & ~now & mask).sum()))
    return found


def _ranked(metric: Metric, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the rows with flags after Holm's correction, from the worst group to the best; small groups come last."""
    large = [row for row in rows if "p_others" in row]
    for row in large:
        row["flags"] = []
    for key, flag in (("p_others", "below the others"), ("p", "got worse")):
        tested = [row for row in large if key in row]
        corrected = stats.holm({n: max(row[key], row.get("p_references", 0.0)) for n, row in enumerate(tested)})
        for number, row in enumerate(tested):
            row[f"{key}_holm"] = adjusted = corrected[number]
            was = row["others"] if key == "p_others" else row["base"]
            if _higher_is_better(metric, row["tuned"]) < _higher_is_better(metric, was) and adjusted < stats.LEVEL:
                row["flags"].append(flag)
    small = [row for row in rows if "p_others" not in row]
    return [*sorted(large, key=lambda row: float(_higher_is_better(metric, row["tuned"]))), *small]


def _figure(statistics: Statistics, mask: NDArray[np.bool_]) -> float:
    return float(statistics.figure(statistics.items[mask].sum(axis=0)))


def _figures(statistics: Statistics, mask: NDArray[np.bool_], counts: Array) -> Array:
    """Return the metric's value for the masked items on each bootstrap draw."""
    return statistics.figure(counts[:, mask] @ statistics.items[mask])


def _higher_is_better(metric: Metric, value: Any) -> Any:
    """Return the value with its sign changed, if necessary, so that higher is better."""
    return value if metric.direction == "up" else -value if metric.direction == "down" else -np.abs(value - 1)
