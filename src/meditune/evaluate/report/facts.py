"""Where the data came from, what was dropped, and what training saw, as rows for the page."""

from __future__ import annotations

from typing import Any

from meditune.data.example import DECISIONS
from meditune.evaluate.report.wording import count, label

Pairs = list[tuple[str, str]]

_SHOWN_ELSEWHERE = {"sources", "dropped", "splits", "lengths", "sha256", "test_set", "recipe", "not_split"}


def sources(quality: dict[str, Any]) -> list[dict[str, Any]]:
    """Each source with its licence, what was read, and what was rejected and why."""
    return [
        {
            "name": name,
            "read": count(facts.get("read", "–")),
            "licence": facts.get("licence") or "not stated",
            "rejected": counted(facts.get("rejected")),
        }
        for name, facts in (quality.get("sources") or {}).items()
    ]


def splits(quality: dict[str, Any]) -> list[dict[str, str]]:
    """Each split with its examples, groups and decisions."""
    return [
        {
            "name": name,
            "examples": count(facts.get("examples", "–")),
            "groups": count(facts.get("groups", "–")),
            "decisions": ", ".join(
                f"{count(facts['decisions'][decision])} {decision}"
                for decision in DECISIONS
                if decision in (facts.get("decisions") or {})
            )
            or "none",
            "years": "–".join(str(year) for year in facts.get("years") or []) or "not stated",
        }
        for name, facts in (quality.get("splits") or {}).items()
    ]


def counted(reasons: dict[str, Any] | None) -> Pairs:
    """Reasons and counts, the most frequent first, without those that never happened."""
    found = sorted((reasons or {}).items(), key=lambda pair: (-pair[1], pair[0]))
    return [(label(reason), count(number)) for reason, number in found if number]


def other(quality: dict[str, Any]) -> Pairs:
    """Every further number of the quality report, as it is named there."""
    return [
        (label(key), count(value))
        for key, value in quality.items()
        if key not in _SHOWN_ELSEWHERE and isinstance(value, (int, float, str)) and not isinstance(value, bool)
    ]


def fitted(training: dict[str, Any]) -> Pairs:
    """What had to give for the training rows to fit the token limit; none of it where it isn't known."""
    wording = {
        "shortened": "Training examples whose sources were shortened to fit",
        "cut": "Reference answers cut to fit",
        "dropped": "Training examples left out because the question didn't fit",
    }
    return [(text, count(training[key])) for key, text in wording.items() if training.get(key) is not None]
