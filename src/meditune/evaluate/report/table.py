"""The before/after table: one row per metric, judged by its interval."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from meditune.evaluate.compare import survives
from meditune.evaluate.metrics import METRICS, Metric, family_of
from meditune.evaluate.report.wording import NOT_MEASURED, interval, number, p_value, signed

Mark = Literal["better", "hinted", "worse", "not shown", "not measured"]
"""hinted: the interval lies on the better side, but for the number of metrics tested it may do so by chance."""

HEADLINE = (
    "preference_accuracy",
    "preference_margin",
    "accuracy",
    "macro_f1",
    "perplexity",
    "rougeL",
    "general_perplexity",
    "technical_perplexity",
)
"""What the verdict and the tiles look at first."""


@dataclass(frozen=True)
class Forest:
    """A difference and its interval on a line from 0 to 100: no change is at 50, better lies to the right."""

    low: float
    point: float
    high: float


@dataclass(frozen=True)
class Row:
    """One metric before and after, as text, with what the interval shows."""

    metric: Metric
    family: str
    base: str
    tuned: str
    base_interval: str
    tuned_interval: str
    """Each model's own 95 % interval; empty where there is none"""
    delta: str
    interval: str
    p: str
    p_holm: str
    test: str
    mark: Mark
    wrong_way: bool
    """The figure moved the wrong way, shown or not."""
    forest: Forest | None
    rose: bool
    """The tuned figure is above the base's."""
    references: str = ""
    """A detector metric's figure of the reference answers with its interval; empty where there is none"""
    within: bool = False
    """The figures differ significantly, but not beyond what the detector marks in the reference answers."""

    @property
    def compared(self) -> bool:
        """Both models were measured and compared."""
        return self.forest is not None


def rows(report: dict[str, Any]) -> list[Row]:
    """Every metric in the order of METRICS, measured or not; then those that METRICS doesn't know.

    Optional ones are there only if they were measured.
    """
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
    """Compared rows, the most telling first; details only where they got worse."""
    order = {name: index for index, name in enumerate(HEADLINE)}
    told = [row for row in table if row.compared and (not row.metric.detail or row.mark == "worse")]
    return sorted(told, key=lambda row: order.get(row.metric.name, len(order)))


def row_of(
    metric: Metric, base: float | None, tuned: float | None, compared: dict[str, Any] | None, wrong_way: bool
) -> Row:
    """A figure of both models and their comparison (None where there is none) as a row."""
    before, after = number(base, metric.digits), number(tuned, metric.digits)
    rose = (tuned or 0.0) > (base or 0.0)
    measured = compared if compared and compared.get("ci95") is not None else None
    return Row(
        metric,
        family_of(metric.name),
        before,
        after,
        _own(measured, "base_ci95", metric.digits),
        _own(measured, "tuned_ci95", metric.digits),
        signed(measured["delta"], metric.digits) if measured else "–",
        interval(measured["ci95"], metric.digits) if measured else "–",
        p_value(measured.get("p")) if measured else "–",
        p_value(measured.get("p_holm")) if measured else "–",
        measured.get("test", "") if measured else "",
        _mark(measured) if measured else "not measured" if NOT_MEASURED in (before, after) else "not shown",
        wrong_way,
        forest(metric, measured["delta"], *measured["ci95"]) if measured else None,
        rose,
        *_beside(measured or {}, metric.digits),
    )


def _beside(compared: dict[str, Any], digits: int) -> tuple[str, bool]:
    """The references' figure as text, and whether a significant difference isn't beyond it."""
    found = compared.get("references")
    if not found:
        return "", False
    bounds = f"{number(found['ci95'][0], digits)} to {number(found['ci95'][1], digits)}"
    within = compared["difference"] is not None and not found["beyond"]
    return f"{number(found['figure'], digits)} ({bounds})", within


def _mark(compared: dict[str, Any]) -> Mark:
    better = compared.get("better")
    if better is None:
        return "not shown"
    if not better:
        return "worse"
    return "better" if "p_holm" not in compared or survives(compared) else "hinted"


def _own(compared: dict[str, Any] | None, side: str, digits: int) -> str:
    bounds = (compared or {}).get(side)
    return f"{number(bounds[0], digits)} to {number(bounds[1], digits)}" if bounds else ""


def forest(metric: Metric, delta: float, low: float, high: float) -> Forest:
    """A difference and its interval, turned so that better lies to the right, on a scale of its own."""
    if metric.direction != "up":
        delta, low, high = -delta, -high, -low
    reach = max(abs(delta), abs(low), abs(high)) * 1.12 or 1.0
    low, point, high = (round(50 + 50 * value / reach, 2) for value in (low, delta, high))
    return Forest(low, point, high)
