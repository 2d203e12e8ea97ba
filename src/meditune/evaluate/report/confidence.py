"""How sure the models are of their decisions, as plots and rows for the page."""

from __future__ import annotations

import math
from typing import Any

from markupsafe import Markup

from meditune.data.example import DECISIONS
from meditune.evaluate.report import plots
from meditune.evaluate.report.wording import number

MODELS = {"base": "Base model", "tuned": "Tuned model"}
METHODS = {
    "temperature": "Temperature scaling: one number that makes all probabilities sharper or flatter. Decisions stay.",
    "batch": "Batch calibration: each label’s mean probability on dev is divided out, so that none is leaned to.",
    "prior": "Prior calibration: each label’s mean probability on dev gives way to how often the label is right there.",
}
WAYS = (
    ("Given the context", ""),
    ("Given the context, calibrated", "calibrated_"),
    ("Written in words", "written_"),
)


def confidence(report: dict[str, Any]) -> dict[str, Any]:
    """What confidence.html shows; of what wasn't measured, nothing."""
    measured = {name: found for name, found in (report.get("decision") or {}).items() if name in MODELS and found}
    return {
        "plots": [pair for pair in (_plots(measured, ""), _plots(_calibrated(measured), ", calibrated")) if pair],
        "fits": [_fit(name, found["calibration"]) for name, found in measured.items() if "calibration" in found],
        "method": next((METHODS[f["calibration"]["method"]] for f in measured.values() if "calibration" in f), ""),
        "ways": _ways(report, measured),
        "target": next((f"{100 * f['abstention']['target']:g}" for f in measured.values() if "abstention" in f), ""),
        "abstentions": _abstentions(measured),
        "unclear": [
            (MODELS[name], found["written"]["without_label"], found["written"]["items"])
            for name, found in measured.items()
            if found.get("written", {}).get("without_label")
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


def _calibrated(measured: dict[str, Any]) -> dict[str, Any]:
    return {name: found["calibration"] for name, found in measured.items() if "calibration" in found}


def _fit(name: str, fit: dict[str, Any]) -> tuple[str, str]:
    if fit["method"] == "temperature":
        said = f"temperature {number(fit['temperature'], 2)}"
    else:
        least = min(fit["bias"].values())
        factors = {label: math.exp(fit["bias"][label] - least) for label in DECISIONS}
        said = ", ".join(f"{label} × {number(value, 2 if value < 100 else 0)}" for label, value in factors.items())
    return MODELS[name], f"{said} (fitted on {fit['items']} dev decisions)"


def _ways(report: dict[str, Any], measured: dict[str, Any]) -> list[dict[str, Any]]:
    """A row for each model and way of deciding; none where there is but one way."""
    rows = []
    for title, prefix in WAYS:
        for name in measured:
            figures = report.get(name) or {}
            if f"{prefix}accuracy" in figures:
                shown = {key: figures.get(prefix + key) for key in ("accuracy", "macro_f1", "ece")}
                rows.append({"way": title, "model": MODELS[name]} | shown)
    return rows if len(rows) > len(measured) else []


def _abstentions(measured: dict[str, Any]) -> list[dict[str, Any]]:
    """A row for each model and kind of confidence that a threshold was sought for."""
    return [
        {"model": MODELS[name] + (", calibrated" if kind == "calibrated" else "")} | found["abstention"][kind]
        for name, found in measured.items()
        for kind in ("raw", "calibrated")
        if kind in found.get("abstention", {})
    ]
