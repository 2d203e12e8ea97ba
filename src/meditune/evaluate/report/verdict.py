"""What the run showed, in two sentences that say no more than the intervals do."""

from __future__ import annotations

from typing import Any

from meditune.evaluate.report.table import Row, headline
from meditune.evaluate.report.wording import in_prose, listed, number, opened

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
            opened(f"{place}nothing could be compared: no figure was measured for both models."),
            "Whether tuning helped is unknown.",
        ]
    return [opened(place + _gains(compared, bool(place))), opened(_rest(report, compared))]


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
