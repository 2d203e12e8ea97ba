"""Where the data came from, what was dropped, and what training saw, as rows for the page.

What the check for leakage found, for the page: a banner where the recipe owned up to it, a sentence in any case.

How sure the models are of their decisions, as plots and rows for the page.

Closed book, given context and retrieved passages side by side, as rows for the page.

Where answers lie on the scale of school grades, as rows for the page.

Figures by subgroup for the page: for each telling metric a table, worst groups first.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from meditune.data.example import DECISIONS, read_examples
from meditune.data.leakage import described
from meditune.data.retrieved_passages import FOUND, as_text, is_own, read
from meditune.evaluate.metrics import METRICS
from meditune.evaluate.predictions import path_of
from meditune.evaluate.report import plots
from meditune.evaluate.report.before_after import Forest, forest
from meditune.evaluate.report.formatting import NOT_MEASURED, count, interval, label, number, signed
from meditune.files import read_jsonl
from meditune.readability import TARGET
from meditune.statistics import Metric

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


def leakage(report: dict[str, Any]) -> dict[str, Any]:
    """`found`, sentences for the banner, and `checked`, what was looked at, in sentences; empty in older reports."""
    checked = report.get("leakage") or {}
    return {"found": described(checked), "checked": _checked(checked) if checked else ""}


def _checked(checked: dict[str, Any]) -> str:
    model, items = checked["model"], count(checked["items"])
    looked = (
        f"Before measuring, the {items} {checked['split']} items were compared with {count(checked['training'])} "
        "training examples (group, question and context, the same or nearly) and searched for their own answers and "
        "decisions."
    )
    if checked.get("index"):
        looked += f" What is searched for passages ({checked['index']}) was searched for their answers, too."
    if model["recorded"] is None and not model["run"]:
        return f"{looked} What {model['name']} was trained on before isn't known: it keeps no record."
    return f"{looked} They were also looked up in the record of what {model['name']} was trained on."


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


SHOWN = 3


def contexts(report: dict[str, Any], folder: Path) -> dict[str, Any]:
    """What contexts.html shows; empty where only the given context was measured."""
    models = report.get("conditions") or {}
    if not models:
        return {}
    return {
        "closed": any("closed" in found for found in models.values()),
        "retrieved": any("retrieved" in found for found in models.values()),
        "models": [(MODELS.get(name, name), _rows(found)) for name, found in models.items()],
        "search": report.get("retrieval"),
        "ranks": _ranks(report.get("retrieval") or {}),
        "examples": _examples(folder),
    }


def _rows(found: dict[str, Any]) -> list[dict[str, str]]:
    rows = []
    for name in found["given"]["figures"]:
        metric = METRICS[name]
        row = {"title": metric.title, "direction": metric.direction}
        for condition in ("closed", "given", "retrieved"):
            each = found.get(condition, {})
            figure = number(each.get("figures", {}).get(name), metric.digits)
            row[condition] = "–" if figure == NOT_MEASURED else figure
            compared = each.get("comparison", {}).get(name)
            row[f"{condition}_delta"] = (
                f"{signed(compared['delta'], metric.digits)} ({interval(compared['ci95'], metric.digits)})"
                if compared
                else ""
            )
        rows.append(row)
    return rows


def _ranks(search: dict[str, Any]) -> list[tuple[str, int]]:
    own = search.get("own") or {}
    if not own.get("items"):
        return []
    found = [(f"at rank {rank}", count) for rank, count in own["ranks"].items()]
    return [*found, ("not found", own["items"] - sum(own["ranks"].values()))]


def _examples(folder: Path) -> list[dict[str, Any]]:
    """The first items with what was found for them, and what the tuned model made of it."""
    if not (folder / FOUND).is_file():
        return []
    found = read(folder / FOUND)
    said = {kind: _by_id(folder, kind) for kind in ("retrieved", "retrieved_answer", "decision")}
    files = [folder / "data" / f"{split}.jsonl" for split in ("test", "dev")]
    items = {example.id: example for file in files if file.is_file() for example in read_examples(file)}
    shown = []
    for id in list(said["retrieved_answer"] or said["retrieved"])[:SHOWN]:
        answer = said["retrieved_answer"].get(id, {})
        decided, given = said["retrieved"].get(id), said["decision"].get(id)
        room = answer.get("passages", len(found[id]["passages"])) if id in found else 0
        shown.append(
            {
                "question": items[id].question if id in items else id,
                "passages": [
                    passage | {"text": as_text(passage), "shown": place < room, "own": is_own(passage, id)}
                    for place, passage in enumerate(found.get(id, {}).get("passages", []))
                ],
                "answer": answer.get("prediction"),
                "decision": decided and decided["prediction"],
                "given": given and given["prediction"],
                "reference": decided and decided["reference"],
            }
        )
    return shown


def _by_id(folder: Path, kind: Any) -> dict[str, dict[str, Any]]:
    path = path_of(folder / "predictions", "tuned", kind)
    return {row["id"]: row for row in read_jsonl(path)} if path.is_file() else {}


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


GROUPS_SHOWN = ("accuracy", "macro_f1", "perplexity", "rougeL", "bleu", "length_ratio")
"""The first of them stands open; the others' figures are in report.json."""


@dataclass(frozen=True)
class Group:
    """One group's figures as text; groups that are too small have no intervals."""

    by: str
    name: str
    items: int
    base: str
    tuned: str
    within: str
    others: str
    delta: str
    change: str
    forest: Forest | None
    flags: list[str]


@dataclass(frozen=True)
class Table:
    """A metric's groups."""

    metric: Metric
    groups: list[Group]
    ranked: int
    small: list[str]


def tables(report: dict[str, Any]) -> list[Table]:
    """A table for each metric of SHOWN that was measured by subgroup."""
    found = (report.get("subgroups") or {}).get("metrics") or {}
    return [_table(METRICS[name], found[name]) for name in GROUPS_SHOWN if found.get(name)]


def _table(metric: Metric, rows: list[dict[str, Any]]) -> Table:
    large = [row for row in rows if "flags" in row]
    small = [
        f"{row['by']}: {row['group']} ({row['items']}; {number(row['tuned'], metric.digits)})"
        for row in rows
        if "flags" not in row
    ]
    return Table(metric, [_group(metric, row) for row in large], len(large), small)


def _group(metric: Metric, row: dict[str, Any]) -> Group:
    digits = metric.digits
    return Group(
        by=row["by"],
        name=row["group"],
        items=row["items"],
        base=number(row.get("base"), digits),
        tuned=number(row["tuned"], digits),
        within=" to ".join(number(end, digits) for end in row["tuned_ci95"]),
        others=number(row["others"], digits),
        delta=signed(row["delta"], digits) if "delta" in row else "–",
        change=interval(row["ci95"], digits) if "ci95" in row else "–",
        forest=forest(metric, row["delta"], *row["ci95"]) if "ci95" in row else None,
        flags=row["flags"],
    )
