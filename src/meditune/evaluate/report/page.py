"""Rendering of `report.html` from a finished run's folder: one file that works offline."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from markupsafe import Markup

from meditune.config.data_options import PromptFormat
from meditune.data.example import DECISIONS
from meditune.errors import DataError
from meditune.evaluate.report import data_sections, formatting, plots, run_sections
from meditune.evaluate.report.answer_examples import safety, unsupported, worked_examples
from meditune.evaluate.report.before_after import headline, rows, verdict
from meditune.evaluate.report.data_sections import quality_section
from meditune.evaluate.report.formatting import write_page
from meditune.evaluate.report.run_sections import confidence, contexts, leakage, reading, suite_rows, tables
from meditune.files import read_json, read_jsonl
from meditune.prompts import LIMITS

TILES = 4


def render(folder: Path) -> Path:
    """Write `report.html` to a finished run's folder and return its path.

    The page says which other files are missing. Raises DataError if the folder has no `report.json`.
    """
    if not (folder / "report.json").is_file():
        raise DataError(
            f"{folder} contains no report.json, so there is nothing to report. Finish the run first: "
            f"meditune run RECIPE --output {folder}"
        )
    path = folder / "report.html"
    write_page(path, "template.html", **_context(folder))
    return path


def _context(folder: Path) -> dict[str, Any]:
    report = read_json(folder / "report.json")
    quality = _optional(folder / "data" / "quality.json")
    table = rows(report)
    training = report.get("training") or {}
    examples, pool = worked_examples(folder)
    recipe = folder / "recipe.yaml"
    recipe_text = recipe.read_text(encoding="utf-8") if recipe.is_file() else ""
    return {
        "report": report,
        "data": report.get("data") or {},
        "training": training,
        "items": report.get("items") or {},
        "versions": {"meditune": report["meditune"], **(report.get("versions") or {})},
        "machine": report.get("machine") or {},
        "stages": report.get("stages") or {},
        "baselines": report.get("baselines") or [],
        "synthetic": bool((report.get("data") or {}).get("synthetic")),
        "leakage": leakage(report),
        "subgroups": tables(report),
        "table": table,
        "shares": any(row.metric.share and row.compared for row in table),
        "tiles": headline(table)[:TILES],
        "review": data_sections.review_rows(report.get("review")),
        "verdict": verdict(report, table),
        "worse": [row for row in table if row.compared and (row.mark == "worse" or row.wrong_way)],
        "decisions": DECISIONS,
        "confusions": report.get("decision") or {},
        "confidence": confidence(report),
        "contexts": contexts(report, folder),
        "curves": _curves(folder),
        "histograms": _histograms(quality, _optional(folder / "tokens.json"), _prompt_room(recipe_text)),
        "examples": examples,
        "pool": pool,
        "unsupported": unsupported(folder),
        "suites": suite_rows(report, table),
        "suite_licences": [(each["title"], each["licence"]) for each in (report.get("suites") or {}).values()],
        "reading": reading(report),
        "safety": safety(report, folder),
        "sources": run_sections.sources(quality),
        "splits": run_sections.splits(quality),
        "dropped": run_sections.counted(quality.get("dropped")),
        "quality": quality_section(quality),
        "other": run_sections.other(quality),
        "rebalanced": quality.get("rebalanced"),
        "diversity": data_sections.diversity_section(quality.get("diversity")),
        "fitted": run_sections.fitted(training),
        "recipe_text": recipe_text,
        "limits": LIMITS,
    }


def _optional(path: Path) -> dict[str, Any]:
    found = read_json(path) if path.is_file() else {}
    return found if isinstance(found, dict) else {}


def _curves(folder: Path) -> list[tuple[str, Markup]]:
    path = folder / "training.jsonl"
    steps = read_jsonl(path) if path.is_file() else []
    if not steps:
        return []
    loss = ("Loss (thin: each step; thick: running mean)", plots.loss_curve(steps))
    # An API reports no learning rate.
    return [loss, ("Learning rate", plots.rate_curve(steps))] if "learning_rate" in steps[0] else [loss]


def _histograms(quality: dict[str, Any], tokens: dict[str, Any], max_tokens: int | None) -> list[tuple[str, Markup]]:
    found = [
        (f"{formatting.label(part)}, words", plots.bins_plot(f"words-{part}", "words", measured["words"]))
        for part, measured in (quality.get("lengths") or {}).items()
        if part in ("question", "context", "answer") and measured.get("words")
    ]
    train = tokens.get("train") or {}
    if train.get("prompt"):
        plot = plots.lengths_plot("tokens-prompt", "tokens", train["prompt"], max_tokens)
        found.append(("Training prompt, tokens", plot))
    if train.get("target"):
        plot = plots.lengths_plot("tokens-target", "tokens", train["target"])
        found.append(("Training target, tokens", plot))
    return found


def _prompt_room(recipe_text: str) -> int | None:
    """Return the number of tokens that the recipe leaves for the prompt; None if it doesn't say."""
    import yaml

    options = (yaml.safe_load(recipe_text) or {}).get("prompt")
    if not options:
        return None
    form = PromptFormat.model_validate(options)
    return form.max_tokens - form.answer_room
