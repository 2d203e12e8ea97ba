"""The report's before/after table, with one row per metric, and the report's verdict in at most three sentences."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from meditune.evaluate.compare import survives_correction
from meditune.evaluate.metrics import METRICS
from meditune.evaluate.report import formatting as text
from meditune.statistics import Metric

Mark = Literal["better", "hinted", "worse", "no significant change", "not measured"]
"""better, worse: significant; hinted: better, but not significant after correction for the number of metrics"""

HEADLINE = (
    *("preference_accuracy", "preference_margin", "accuracy", "macro_f1", "perplexity", "rougeL"),
    *("general_perplexity", "technical_perplexity"),
)
"""The metrics that come first in the verdict and the tiles"""


@dataclass(frozen=True)
class Row:
    """One metric before and after tuning, as text, with its verdict."""

    metric: Metric
    base: str
    tuned: str
    mark: Mark
    wrong_way: bool
    """True if the value got worse, significantly or not"""
    base_interval: str = ""
    tuned_interval: str = ""
    """The 95% interval of each model's value; empty if there is none"""
    delta: str = "–"
    interval: str = "–"
    p: str = "–"
    p_holm: str = "–"
    test: str = ""
    forest: tuple[float, float, float] | None = None
    """See `forest`; None if there is no comparison"""
    references: str = ""
    """A detector metric's value for the reference answers with its interval; empty if there is none"""
    within: bool = False
    """True if the models differ significantly, but not beyond the detector's marks in the reference answers"""

    @property
    def compared(self) -> bool:
        """Return True if both models were measured and compared."""
        return self.forest is not None


def rows(report: dict[str, Any]) -> list[Row]:
    """Return rows for all metrics that aren't optional or were measured, in the order of METRICS, then unknown ones."""
    base, tuned = report.get("base") or {}, report.get("tuned") or {}
    comparison, worse = report.get("comparison") or {}, report.get("worse") or []
    unknown = sorted((set(base) | set(tuned) | set(comparison)) - set(METRICS))
    asked = [metric for metric in METRICS.values() if not metric.optional or metric.name in {*base, *tuned}]
    metrics = [*asked, *(Metric(name, name, "up", 3, "") for name in unknown)]
    return [
        row_of(metric, base.get(metric.name), tuned.get(metric.name), comparison.get(metric.name), metric.name in worse)
        for metric in metrics
    ]


def headline(table: list[Row]) -> list[Row]:
    """Return the compared rows, key metrics first; a detail metric is included only if it got significantly worse."""
    order = {name: index for index, name in enumerate(HEADLINE)}
    chosen = [row for row in table if row.compared and (not row.metric.detail or row.mark == "worse")]
    return sorted(chosen, key=lambda row: order.get(row.metric.name, len(order)))


def row_of(
    metric: Metric, base: float | None, tuned: float | None, compared: dict[str, Any] | None, wrong_way: bool
) -> Row:
    """Return a metric's row from both models' values and their comparison (None if they weren't compared)."""
    digits = metric.digits
    before, after = text.number(base, digits), text.number(tuned, digits)
    if not compared or compared.get("ci95") is None:
        mark: Mark = "not measured" if text.NOT_MEASURED in (before, after) else "no significant change"
        return Row(metric, before, after, mark, wrong_way)
    beside = compared.get("references")
    return Row(
        metric,
        before,
        after,
        _mark(compared),
        wrong_way,
        text.bounds(compared.get("base_ci95"), digits),
        text.bounds(compared.get("tuned_ci95"), digits),
        text.signed(compared["delta"], digits),
        text.interval(compared["ci95"], digits),
        text.p_value(compared.get("p")),
        text.p_value(compared.get("p_holm")),
        compared.get("test", ""),
        forest(metric, compared["delta"], *compared["ci95"]),
        f"{text.number(beside['figure'], digits)} ({text.bounds(beside['ci95'], digits)})"
        if beside is not None
        else "",
        beside is not None and compared["difference"] is not None and not beside["beyond"],
    )


def _mark(compared: dict[str, Any]) -> Mark:
    better = compared.get("better")
    if better is None:
        return "no significant change"
    if not better:
        return "worse"
    return "better" if "p_holm" not in compared or survives_correction(compared) else "hinted"


def forest(metric: Metric, delta: float, low: float, high: float) -> tuple[float, float, float]:
    """Return a difference and the ends of its interval (low, difference, high) as positions on a line from 0 to 100.

    The position 50 is no change, and higher positions are better. Each difference has its own scale.
    """
    if metric.direction != "up":
        delta, low, high = -delta, -high, -low
    reach = max(abs(delta), abs(low), abs(high)) * 1.12 or 1.0
    low, point, high = (round(50 + 50 * value / reach, 2) for value in (low, delta, high))
    return low, point, high


NAMED = 4
"""Maximum number of metrics that a sentence names; further metrics are only counted"""


def verdict(report: dict[str, Any], table: list[Row]) -> list[str]:
    """Return up to three short sentences: what got significantly better, what got significantly worse, and a caveat."""
    compared = headline(table)
    place = "On the synthetic sample: " if (report.get("data") or {}).get("synthetic") else ""
    if not compared:
        return [text.capitalized(f"{place}nothing could be compared, because no metric was measured for both models.")]
    better, worse = (
        [f"{text.in_prose(row.metric.title)} ({row.base} → {row.tuned})" for row in compared if row.mark == mark]
        for mark in ("better", "worse")
    )
    unchanged = [text.in_prose(row.metric.title) for row in compared if row.mark not in ("better", "worse")]
    sentences = [
        place + (f"significantly better: {_named(better)}." if better else "no metric got significantly better."),
        (f"significantly worse: {_named(worse)}" if worse else "no metric got significantly worse")
        + (f"; no significant change: {_named(unchanged)}." if unchanged else "."),
        _caveat(report, compared),
    ]
    return [text.capitalized(sentence) for sentence in sentences if sentence]


def _named(names: list[str]) -> str:
    """Return the names as part of a sentence; if there are more than NAMED, the last ones are only counted."""
    if len(names) <= NAMED:
        return text.listed(names)
    return text.listed([*names[: NAMED - 1], f"{len(names) - NAMED + 1} more metrics"])


def _caveat(report: dict[str, Any], compared: list[Row]) -> str:
    parts = []
    accuracy = (report.get("tuned") or {}).get("accuracy")
    for baseline in report.get("baselines") or []:
        first, _, decision = baseline["name"].lower().partition(" ")
        if first == "always" and accuracy is not None and accuracy < baseline.get("accuracy", 0.0):
            parts.append(
                f"the tuned model's accuracy is below the {text.number(baseline['accuracy'], 1)}% that a "
                f"constant answer of “{decision}” would score"
            )
    if "training" in report and all(row.metric.name != "general_perplexity" for row in compared):
        parts.append("the run didn't measure whether the model forgot general English")
    return "; ".join(parts) + "." if parts else ""
