"""The report's sections on the confidence of decisions, on readability and on subgroups."""

from __future__ import annotations

import math
from typing import Any

from markupsafe import Markup

from meditune.data.example import DECISIONS
from meditune.evaluate.metrics import METRICS
from meditune.evaluate.report import plots
from meditune.evaluate.report.formatting import number
from meditune.readability import TARGET
from meditune.statistics import Metric

MODELS = {"base": "Base model", "tuned": "Tuned model"}


def confidence(report: dict[str, Any]) -> dict[str, Any]:
    """Return the content of confidence.html; parts that weren't measured are empty."""
    measured = {name: found for name, found in (report.get("decision") or {}).items() if name in MODELS and found}
    fits = {name: found["calibration"] for name, found in measured.items() if "calibration" in found}
    fitted = [found[key] for found in measured.values() for key in ("calibration", "abstention") if key in found]
    return {
        "folds": max((each.get("folds", 0) for each in fitted), default=0),
        "models": measured,
        "plots": [pair for pair in (_plots(measured, ""), _plots(fits, ", calibrated")) if pair],
        "fits": {name: _fit(fit) for name, fit in fits.items()},
        "method": next((fit["method"] for fit in fits.values()), ""),
        "has_other_methods": any(
            f"{prefix}_accuracy" in (report.get(name) or {})
            for name in measured
            for prefix in ("calibrated", "written")
        ),
        "target": next((f"{100 * f['abstention']['target']:g}" for f in measured.values() if "abstention" in f), ""),
        "abstentions": [
            {"model": MODELS[name] + (", calibrated" if kind == "calibrated" else "")} | found["abstention"][kind]
            for name, found in measured.items()
            for kind in ("raw", "calibrated")
            if kind in found.get("abstention", {})
        ],
    }


def _plots(measured: dict[str, Any], suffix: str) -> list[tuple[str, Markup]]:
    drawn = []
    kinds = (("reliability", plots.reliability_plot, "Reliability"), ("risk_coverage", plots.risk_plot, "Risk"))
    for key, draw, title in kinds:
        curves = {MODELS[name].split()[0]: found[key] for name, found in measured.items() if found.get(key)}
        if curves:
            drawn.append((title + suffix, draw(f"{key}-{len(suffix)}".replace("_", "-"), curves)))
    return drawn


def _fit(fit: dict[str, Any]) -> str:
    if fit["method"] == "temperature":
        text = f"temperature {number(fit['temperature'], 2)}"
    else:
        least = min(fit["bias"].values())
        factors = {label: math.exp(fit["bias"][label] - least) for label in DECISIONS}
        text = ", ".join(f"{label} × {number(value, 2 if value < 100 else 0)}" for label, value in factors.items())
        text = f"temperature {number(fit['temperature'], 2)}; {text}" if fit["method"] == "bcts" else text
    return f"{text} (fitted on {fit['items']} decisions)"


MEDIANS = {
    "MedlinePlus health topics": 7.6,
    "NHLBI": 8.6,
    "CancerGov": 9.0,
    "LiveQA reference answers": 13.2,
    "GARD": 14.2,
    "Genetics Home Reference": 14.3,
    "PubMedQA conclusions": 16.8,
}
"""Median grades of published texts, computed in the same way as those of answers (benchmarks/reading_grades.py)"""
TICKS = (0, 4, 6, 8, 12, 16, 20)
MAX_TERMS = 8


def reading(report: dict[str, Any]) -> dict[str, Any] | None:
    """Return the content of reading.html; None if no answers were written.

    Positions are from 0 to 100. `middle` is the range of the middle half of the texts, `most` the range of the middle
    four fifths.
    """
    found = report.get("readability") or {}
    named = (("base", "Base model"), ("tuned", "Tuned model"), ("references", "Reference answers"))
    measured = {title: found[key] for key, title in named if "median" in (found.get(key) or {})}
    if not measured:
        return None
    top: float = max(20.5, *(row["p90"] for row in measured.values()))

    def place(grade: float) -> float:
        return round(100 * min(max(grade, 0.0), top) / top, 2)

    strips = [
        row
        | {
            "name": title,
            "place": place(row["median"]),
            "middle": (place(row["p25"]), place(row["p75"])),
            "most": (place(row["p10"]), place(row["p90"])),
        }
        for title, row in measured.items()
    ]
    return {
        "strips": strips,
        "published": [
            {"name": name, "median": grade, "place": place(grade), "most": None} for name, grade in MEDIANS.items()
        ],
        "ticks": [(tick, place(tick)) for tick in TICKS],
        "band": tuple(place(grade) for grade in TARGET),
        "empty": [(title, found[key]["empty"]) for key, title in named if (found.get(key) or {}).get("empty")],
        "terms": [
            (title, [term for term, _ in found[key]["unexplained"][:MAX_TERMS]])
            for key, title in named[:2]
            if (found.get(key) or {}).get("unexplained")
        ],
    }


GROUP_METRICS = (
    *("accuracy", "macro_f1", "perplexity", "rougeL", "bleu", "length_ratio"),
    *(metric.name for metric in METRICS.values() if metric.family == "Medical suites"),
)
"""Metrics with a table by group in the report, where the first table is expanded; report.json has all metrics"""


def tables(report: dict[str, Any]) -> list[tuple[Metric, list[dict[str, Any]]]]:
    """Return each metric of GROUP_METRICS that was measured by subgroup, with its rows."""
    found = (report.get("subgroups") or {}).get("metrics") or {}
    return [(METRICS[name], found[name]) for name in GROUP_METRICS if found.get(name)]
