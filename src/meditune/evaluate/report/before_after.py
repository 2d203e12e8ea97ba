"""The before/after table: one row per metric, judged by its interval.

What the run showed, in two sentences that say no more than the intervals do.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from meditune.evaluate.compare import survives_correction
from meditune.evaluate.metrics import METRICS, family_of
from meditune.evaluate.report.formatting import (
    NOT_MEASURED,
    capitalized,
    in_prose,
    interval,
    listed,
    number,
    p_value,
    signed,
)
from meditune.statistics import Metric

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
    return "better" if "p_holm" not in compared or survives_correction(compared) else "hinted"


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


SPELLED_OUT = 3
"""So many figures stand in a sentence; the others are named, ..."""
NAMED = 4
"""... and of more than so many the rest is counted."""


def verdict(report: dict[str, Any], table: list[Row]) -> list[str]:
    """First what got better, with figures and intervals; then what didn't, or got worse."""
    compared = headline(table)
    place = "On the synthetic sample, " if (report.get("data") or {}).get("synthetic") else ""
    if not compared:
        return [
            capitalized(f"{place}nothing could be compared: no figure was measured for both models."),
            "Whether tuning helped is unknown.",
        ]
    return [capitalized(place + _gains(compared, bool(place))), capitalized(_rest(report, compared))]


def below_always(report: dict[str, Any]) -> tuple[str, float, float] | None:
    """The decision, the tuned accuracy, and what giving that decision every time scores, where that is more."""
    accuracy = (report.get("tuned") or {}).get("accuracy")
    for baseline in report.get("baselines") or []:
        first, _, decision = baseline["name"].lower().partition(" ")
        if first == "always" and accuracy is not None and accuracy < baseline.get("accuracy", 0.0):
            return decision, accuracy, baseline["accuracy"]
    return None


def moved(row: Row) -> str:
    """A row's figures as a clause."""
    name, change = in_prose(row.metric.title), f"({row.delta}, 95\u00a0% interval {row.interval})"
    if row.metric.direction == "one":
        verb = "moved away from" if row.wrong_way else "came closer to"
        return (
            f"{name} {verb} 1, from {row.base} to {row.tuned} (distance from 1: {row.delta}, {change.split(', ', 1)[1]}"
        )
    if row.base == row.tuned:
        return f"{name} stayed near {row.base} {change}"
    return f"{name} {'rose' if row.rose else 'fell'} from {row.base} to {row.tuned} {change}"


def named(titles: list[str]) -> str:
    """The titles as in a sentence, the last ones only counted where they are many."""
    if len(titles) <= NAMED:
        return listed(titles)
    return listed([*titles[: NAMED - 1], f"{len(titles) - NAMED + 1} more figures"])


def _gains(compared: list[Row], placed: bool) -> str:
    better = [row for row in compared if row.mark == "better"]
    if not better:
        return "tuning wasn't shown to improve any of the figures."
    text = ("" if placed else "After tuning, ") + listed([moved(row) for row in better[:SPELLED_OUT]])
    others = named([in_prose(row.metric.title) for row in better[SPELLED_OUT:]])
    return f"{text}; {others} improved too." if others else f"{text}."


def _rest(report: dict[str, Any], compared: list[Row]) -> str:
    parts = []
    worse = [row for row in compared if row.mark == "worse"]
    if worse:
        told = listed([moved(row) for row in worse[:SPELLED_OUT]])
        others = [in_prose(row.metric.title) for row in worse[SPELLED_OUT:]]
        more = f", as did {listed(others)}" if others else ""
        parts.append(f"on the other side, {told}, which is worse{more}")
    always = below_always(report)
    if always:
        decision, accuracy, level = always
        parts.append(
            f"with an accuracy of {number(accuracy, 1)}\u00a0% the tuned model is still below the "
            f"{number(level, 1)}\u00a0% that answering “{decision}” every time would score"
        )
    hinted = [in_prose(row.metric.title) for row in compared if row.mark == "hinted"]
    if hinted:
        parts.append(
            f"the interval of {listed(hinted)} lies on the better side too, but with so many metrics tested that may "
            "be chance"
        )
    unsure = [in_prose(row.metric.title) for row in compared if row.mark == "not shown"]
    if unsure:
        parts.append(f"for {named(unsure)}, no change was shown in either direction")
    if not worse:
        parts.append("no figure was shown to be worse")
    if all(row.metric.name != "general_perplexity" for row in compared):
        parts.append("whether the model forgot general English wasn't measured")
    return "; ".join(parts) + "."
