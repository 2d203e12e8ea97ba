"""Where answers lie on the scale of school grades, as rows for the page."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from meditune.evaluate.report.wording import number
from meditune.readability.grades import TARGET

MEDIANS = {
    "MedlinePlus health topics": 7.6,
    "NHLBI": 8.6,
    "CancerGov": 9.0,
    "LiveQA reference answers": 13.2,
    "GARD": 14.2,
    "Genetics Home Reference": 14.3,
    "PubMedQA conclusions": 16.8,
}
"""Median grades of published texts, counted as answers are: benchmarks/reading_grades.py."""
TICKS = (0, 4, 6, 8, 12, 16, 20)
SHOWN_TERMS = 8


@dataclass(frozen=True)
class Strip:
    """One row of the scale; places are from 0 to 100."""

    name: str
    median: str
    place: float
    middle: tuple[float, float] | None = None
    """Where half of the texts are; None where only the median is known."""
    most: tuple[float, float] | None = None
    """Where four fifths of them are"""
    inside: str = ""
    """Percentage within the target"""
    empty: int = 0


def reading(report: dict[str, Any]) -> dict[str, Any] | None:
    """Strips, scale and the commonest unexplained terms; None where no answers were written."""
    found = report.get("readability") or {}
    named = (("base", "Base model"), ("tuned", "Tuned model"), ("references", "Reference answers"))
    measured = {title: found[key] for key, title in named if "median" in (found.get(key) or {})}
    if not measured:
        return None
    top: float = max(20.5, *(row["p90"] for row in measured.values()))

    def place(grade: float) -> float:
        return round(100 * min(max(grade, 0.0), top) / top, 2)

    strips = [
        Strip(
            title,
            number(row["median"], 1),
            place(row["median"]),
            (place(row["p25"]), place(row["p75"])),
            (place(row["p10"]), place(row["p90"])),
            number(row["inside"], 0),
            row["empty"],
        )
        for title, row in measured.items()
    ]
    return {
        "strips": strips,
        "published": [Strip(name, number(grade, 1), place(grade)) for name, grade in MEDIANS.items()],
        "ticks": [(tick, place(tick)) for tick in TICKS],
        "band": tuple(place(grade) for grade in TARGET),
        "empty": [(strip.name, strip.empty) for strip in strips if strip.empty],
        "terms": [
            (title, [term for term, _ in found[key]["unexplained"][:SHOWN_TERMS]])
            for key, title in named[:2]
            if (found.get(key) or {}).get("unexplained")
        ],
    }
