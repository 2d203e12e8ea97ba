"""The before/after table: one row per metric, judged by its interval."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from meditune.evaluate.metrics import METRICS, Metric
from meditune.evaluate.report.wording import NOT_MEASURED, interval, number, p_value, signed

Mark = Literal["better", "worse", "not shown", "not measured"]

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
    base: str
    tuned: str
    delta: str
    interval: str
    p: str
    test: str
    mark: Mark
    wrong_way: bool
    """The figure moved the wrong way, shown or not."""
    forest: Forest | None
    rose: bool
    """The tuned figure is above the base's."""

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
        _row(metric, base.get(metric.name), tuned.get(metric.name), comparison.get(metric.name), metric.name in worse)
        for metric in metrics
    ]


def headline(table: list[Row]) -> list[Row]:
    """Compared rows, the most telling first."""
    order = {name: index for index, name in enumerate(HEADLINE)}
    return sorted((row for row in table if row.compared), key=lambda row: order.get(row.metric.name, len(order)))


def _row(
    metric: Metric, base: float | None, tuned: float | None, compared: dict[str, Any] | None, wrong_way: bool
) -> Row:
    before, after = number(base, metric.digits), number(tuned, metric.digits)
    rose = (tuned or 0.0) > (base or 0.0)
    if compared is None or compared.get("ci95") is None:
        mark: Mark = "not measured" if NOT_MEASURED in (before, after) else "not shown"
        return Row(metric, before, after, "–", "–", "–", "", mark, wrong_way, None, rose)
    better = compared.get("better")
    return Row(
        metric,
        before,
        after,
        signed(compared["delta"], metric.digits),
        interval(compared["ci95"], metric.digits),
        p_value(compared.get("p")),
        compared.get("test", ""),
        "better" if better is True else "worse" if better is False else "not shown",
        wrong_way,
        forest(metric, compared["delta"], *compared["ci95"]),
        rose,
    )


def forest(metric: Metric, delta: float, low: float, high: float) -> Forest:
    """A difference and its interval, turned so that better lies to the right, on a scale of its own."""
    if metric.direction != "up":
        delta, low, high = -delta, -high, -low
    reach = max(abs(delta), abs(low), abs(high)) * 1.12 or 1.0
    low, point, high = (round(50 + 50 * value / reach, 2) for value in (low, delta, high))
    return Forest(low, point, high)
