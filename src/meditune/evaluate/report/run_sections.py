"""Sections of the report about the run: data sources, leakage, confidence, conditions, readability and subgroups."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from meditune.data.example import DECISIONS, read_examples
from meditune.data.leakage import described
from meditune.data.retrieved_passages import RETRIEVED_FILE, as_text, is_own, read
from meditune.evaluate.metrics import METRICS
from meditune.evaluate.predictions import path_of
from meditune.evaluate.report import plots
from meditune.evaluate.report.before_after import Row, forest
from meditune.evaluate.report.formatting import NOT_MEASURED, count, interval, label, number, signed
from meditune.files import read_jsonl
from meditune.readability import TARGET
from meditune.statistics import Metric

Pairs = list[tuple[str, str]]

_SHOWN_ELSEWHERE = {"sources", "dropped", "splits", "lengths", "sha256", "test_set", "recipe", "not_split"}


def sources(quality: dict[str, Any]) -> list[dict[str, Any]]:
    """Return each source with its licence, the number of rows read, and the rejected rows by reason."""
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
    """Return each split with its examples, groups, decisions and years."""
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
    """Return reasons and counts, the most frequent first, without counts of zero."""
    found = sorted((reasons or {}).items(), key=lambda pair: (-pair[1], pair[0]))
    return [(label(reason), count(number)) for reason, number in found if number]


def other(quality: dict[str, Any]) -> Pairs:
    """Return the values of the quality report that no other section shows, with their labels."""
    return [
        (label(key), count(value))
        for key, value in quality.items()
        if key not in _SHOWN_ELSEWHERE and isinstance(value, (int, float, str)) and not isinstance(value, bool)
    ]


def fitted(training: dict[str, Any]) -> Pairs:
    """Return how many training rows were shortened, cut or dropped to fit the token limit, if that is known."""
    wording = {
        "shortened": "Training examples with sources shortened to fit",
        "cut": "Reference answers cut to fit",
        "dropped": "Training examples dropped because the question didn't fit",
    }
    return [(text, count(training[key])) for key, text in wording.items() if training.get(key) is not None]


def leakage(report: dict[str, Any]) -> dict[str, Any]:
    """Return `found`, sentences for the banner, and `checked`, what the check covered; both empty in older reports."""
    checked = report.get("leakage") or {}
    return {"found": described(checked), "checked": _checked(checked) if checked else ""}


def _checked(checked: dict[str, Any]) -> str:
    model, items = checked["model"], count(checked["items"])
    looked = (
        f"Before the evaluation, the {items} {checked['split']} items were compared with {count(checked['training'])} "
        "training examples (group, question and context, identical or nearly so), and their prompts were searched for "
        "their answers and decisions."
    )
    if checked.get("index"):
        looked += f" The retrieval index ({checked['index']}) was also searched for their answers."
    if model["recorded"] is None and not model["run"]:
        return f"{looked} The earlier training data of {model['name']} are unknown, because it has no record of them."
    return f"{looked} They were also looked up in the record of the training data of {model['name']}."


MODELS = {"base": "Base model", "tuned": "Tuned model"}
METHODS = {
    "temperature": "Temperature scaling: one number sharpens or flattens all probabilities. Decisions don't change.",
    "batch": "Batch calibration: each label’s probability is divided by its mean on dev, so no label is favoured.",
    "prior": "Prior calibration: each label’s mean probability on dev is replaced by its frequency there.",
}
DECISION_METHODS = (
    ("By likelihood", ""),
    ("By likelihood, calibrated", "calibrated_"),
    ("Written", "written_"),
)


def confidence(report: dict[str, Any]) -> dict[str, Any]:
    """Return the content of confidence.html; parts that weren't measured are empty."""
    measured = {name: found for name, found in (report.get("decision") or {}).items() if name in MODELS and found}
    return {
        "plots": [pair for pair in (_plots(measured, ""), _plots(_calibrated(measured), ", calibrated")) if pair],
        "fits": [_fit(name, found["calibration"]) for name, found in measured.items() if "calibration" in found],
        "method": next((METHODS[f["calibration"]["method"]] for f in measured.values() if "calibration" in f), ""),
        "ways": _decision_methods(report, measured),
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
        text = f"temperature {number(fit['temperature'], 2)}"
    else:
        least = min(fit["bias"].values())
        factors = {label: math.exp(fit["bias"][label] - least) for label in DECISIONS}
        text = ", ".join(f"{label} × {number(value, 2 if value < 100 else 0)}" for label, value in factors.items())
    return MODELS[name], f"{text} (fitted on {fit['items']} dev decisions)"


def _decision_methods(report: dict[str, Any], measured: dict[str, Any]) -> list[dict[str, Any]]:
    """Return a row for each model and method of deciding; empty if there is only one method."""
    rows = []
    for title, prefix in DECISION_METHODS:
        for name in measured:
            figures = report.get(name) or {}
            if f"{prefix}accuracy" in figures:
                values = {key: figures.get(prefix + key) for key in ("accuracy", "macro_f1", "ece")}
                rows.append({"way": title, "model": MODELS[name]} | values)
    return rows if len(rows) > len(measured) else []


def _abstentions(measured: dict[str, Any]) -> list[dict[str, Any]]:
    """Return a row for each model and kind of confidence for which a threshold was searched."""
    return [
        {"model": MODELS[name] + (", calibrated" if kind == "calibrated" else "")} | found["abstention"][kind]
        for name, found in measured.items()
        for kind in ("raw", "calibrated")
        if kind in found.get("abstention", {})
    ]


MAX_EXAMPLES = 3
SUITES = "Medical suites"
"""The family of the metrics of public tests"""


def contexts(report: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Return the content of contexts.html; empty if only the given context was measured."""
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


def _rows(result: dict[str, Any]) -> list[dict[str, str]]:
    rows = []
    for name in result["given"]["figures"]:
        metric = METRICS[name]
        row = {"title": metric.title, "direction": metric.direction}
        for condition in ("closed", "given", "retrieved"):
            each = result.get(condition, {})
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
    """Return the first items with their retrieved passages and the tuned model's answers."""
    if not (folder / RETRIEVED_FILE).is_file():
        return []
    found = read(folder / RETRIEVED_FILE)
    rows = {kind: _by_id(folder, kind) for kind in ("retrieved", "retrieved_answer", "decision")}
    files = [folder / "data" / f"{split}.jsonl" for split in ("test", "dev")]
    items = {example.id: example for file in files if file.is_file() for example in read_examples(file)}
    examples = []
    for id in list(rows["retrieved_answer"] or rows["retrieved"])[:MAX_EXAMPLES]:
        answer = rows["retrieved_answer"].get(id, {})
        decided, given = rows["retrieved"].get(id), rows["decision"].get(id)
        room = answer.get("passages", len(found[id]["passages"])) if id in found else 0
        examples.append(
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
    return examples


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
"""Median grades of published texts, computed like those of answers (benchmarks/reading_grades.py)"""
TICKS = (0, 4, 6, 8, 12, 16, 20)
MAX_TERMS = 8


def reading(report: dict[str, Any]) -> dict[str, Any] | None:
    """Return strips, scale and the most common unexplained terms; None if no answers were written.

    Positions are from 0 to 100. `middle` is the range of half of the texts, `most` that of four fifths of them.
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
        {
            "name": title,
            "median": number(row["median"], 1),
            "place": place(row["median"]),
            "middle": (place(row["p25"]), place(row["p75"])),
            "most": (place(row["p10"]), place(row["p90"])),
            "inside": number(row["inside"], 0),
        }
        for title, row in measured.items()
    ]
    return {
        "strips": strips,
        "published": [
            {"name": name, "median": number(grade, 1), "place": place(grade), "most": None}
            for name, grade in MEDIANS.items()
        ],
        "ticks": [(tick, place(tick)) for tick in TICKS],
        "band": tuple(place(grade) for grade in TARGET),
        "empty": [(title, row["empty"]) for title, row in measured.items() if row["empty"]],
        "terms": [
            (title, [term for term, _ in found[key]["unexplained"][:MAX_TERMS]])
            for key, title in named[:2]
            if (found.get(key) or {}).get("unexplained")
        ],
    }


def suite_rows(report: dict[str, Any], table: Sequence[Row]) -> list[dict[str, Any]]:
    """Return a row for each score of a public test; empty if none was measured."""
    suites = report.get("suites") or {}
    rows = []
    for row in table:
        name = next((name for name in suites if row.metric.name.startswith(f"{name.replace('-', '_')}_")), None)
        if row.metric.family != SUITES or name is None:
            continue
        compared = (report.get("comparison") or {}).get(row.metric.name) or {}
        rows.append(
            {
                "title": row.metric.title,
                "direction": "higher is better" if row.metric.direction == "up" else "lower is better",
                "items": compared.get("items", suites[name]["items"]),
                "base": row.base,
                "tuned": row.tuned,
                "base_interval": row.base_interval,
                "tuned_interval": row.tuned_interval,
                "scoring": suites[name]["scoring"],
                "judge": _judge(suites[name].get("judge")),
            }
        )
    return rows


def _judge(judge: dict[str, Any] | None) -> str:
    if judge is None:
        return ""
    found = judge["agreement"]
    if found is None:
        return f"judge: {judge['name']}; its agreement with physicians is unknown"
    low, high = found["ci95"]
    kappa = "" if found["kappa"] is None else f"; kappa {found['kappa']:.2f}"
    return (
        f"judge: {judge['name']}; agrees with physicians on {number(found['agree'], 1)} % of {found['items']} labels "
        f"({number(low, 1)} to {number(high, 1)}{kappa})"
    )


GROUP_METRICS = (
    *("accuracy", "macro_f1", "perplexity", "rougeL", "bleu", "length_ratio"),
    *(metric.name for metric in METRICS.values() if metric.family == SUITES),
)
"""The metrics with a table by group, the first one expanded; report.json also contains the others"""


def tables(report: dict[str, Any]) -> list[dict[str, Any]]:
    """Return a table for each metric of GROUP_METRICS that was measured by subgroup."""
    found = (report.get("subgroups") or {}).get("metrics") or {}
    return [_table(METRICS[name], found[name]) for name in GROUP_METRICS if found.get(name)]


def _table(metric: Metric, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return a metric's groups as text; groups that are too small are only named."""
    digits, groups, small = metric.digits, [], []
    for row in rows:
        if "flags" not in row:
            small.append(f"{row['by']}: {row['group']} ({row['items']}; {number(row['tuned'], digits)})")
            continue
        groups.append(
            {
                "by": row["by"],
                "name": row["group"],
                "size": row["items"],
                "base": number(row.get("base"), digits),
                "tuned": number(row["tuned"], digits),
                "within": " to ".join(number(end, digits) for end in row["tuned_ci95"]),
                "others": number(row["others"], digits),
                "delta": signed(row["delta"], digits) if "delta" in row else "–",
                "change": interval(row["ci95"], digits) if "ci95" in row else "–",
                "forest": forest(metric, row["delta"], *row["ci95"]) if "ci95" in row else None,
                "flags": row["flags"],
            }
        )
    return {"metric": metric, "groups": groups, "ranked": len(groups), "small": small}
