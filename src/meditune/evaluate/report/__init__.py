"""The HTML report of a finished run: verdict, tables, plots and worked examples in one file that works offline."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from markupsafe import Markup

from meditune.config.data_options import PromptFormat
from meditune.data.example import DECISIONS
from meditune.data.leakage import described
from meditune.errors import DataError
from meditune.evaluate.metrics import METRICS
from meditune.evaluate.report import plots
from meditune.evaluate.report.answer_examples import retrieved_examples, safety, unsupported, worked_examples
from meditune.evaluate.report.before_after import forest, headline, rows, verdict
from meditune.evaluate.report.data_sections import diversity_section, review_rows
from meditune.evaluate.report.formatting import count, label, write_page
from meditune.evaluate.report.run_sections import confidence, reading, tables
from meditune.files import read_json, read_jsonl
from meditune.prompts import LIMITS
from meditune.statistics import FEW_GROUPS

TILES = 4
_SHOWN_ELSEWHERE = {"sources", "dropped", "splits", "lengths", "sha256", "test_set", "recipe", "not_split"}


def render(folder: Path) -> Path:
    """Write `report.html` to a finished run's folder and return the file's path.

    Sections whose files are missing are left out, or state that nothing was measured. Raises DataError if the folder
    contains no `report.json`.
    """
    if not (folder / "report.json").is_file():
        raise DataError(
            f"{folder} contains no report.json, so there is nothing to report. Finish the run first: "
            f"meditune run RECIPE --output {folder}"
        )
    report, quality = read_json(folder / "report.json"), _optional(folder / "data" / "quality.json")
    table = rows(report)
    examples, pool = worked_examples(folder)
    recipe = folder / "recipe.yaml"
    recipe_text = recipe.read_text(encoding="utf-8") if recipe.is_file() else ""
    path = folder / "report.html"
    write_page(
        path,
        "template.html",
        report=report,
        quality=quality,
        leaks=described(report.get("leakage") or {}),
        subgroups=tables(report),
        table=table,
        tiles=headline(table)[:TILES],
        review=report.get("review"),
        review_rows=review_rows(report.get("review")),
        verdict=verdict(report, table),
        worse=[row for row in table if row.compared and (row.mark == "worse" or row.wrong_way)],
        decisions=DECISIONS,
        metrics=METRICS,
        forest=forest,
        few_groups=any(1 < row.get("groups", 0) < FEW_GROUPS for row in (report.get("comparison") or {}).values()),
        confidence=confidence(report),
        curves=_curves(folder),
        histograms=_histograms(quality, _optional(folder / "tokens.json"), recipe_text),
        examples=examples,
        pool=pool,
        retrieved_examples=retrieved_examples(folder),
        unsupported=unsupported(folder),
        reading=reading(report),
        safety=safety(report, folder),
        other=[
            (label(key), count(value))
            for key, value in quality.items()
            if key not in _SHOWN_ELSEWHERE and isinstance(value, (int, float, str)) and not isinstance(value, bool)
        ],
        rebalanced=quality.get("rebalanced"),
        diversity=diversity_section(quality.get("diversity")),
        recipe_text=recipe_text,
        limits=LIMITS,
    )
    return path


def _optional(path: Path) -> dict[str, Any]:
    return dict(read_json(path)) if path.is_file() else {}


def _curves(folder: Path) -> list[tuple[str, Markup]]:
    path = folder / "training.jsonl"
    steps = read_jsonl(path) if path.is_file() else []
    if not steps:
        return []
    loss = ("Loss (thin: each step; thick: running mean)", plots.loss_curve(steps))
    # An API reports no learning rate.
    return [loss, ("Learning rate", plots.rate_curve(steps))] if "learning_rate" in steps[0] else [loss]


def _histograms(quality: dict[str, Any], tokens: dict[str, Any], recipe_text: str) -> list[tuple[str, Markup]]:
    found = [
        (f"{label(part)}, words", plots.bins_plot(f"words-{part}", "words", measured["words"]))
        for part, measured in (quality.get("lengths") or {}).items()
        if part in ("question", "context", "answer") and measured.get("words")
    ]
    train = tokens.get("train") or {}
    if train.get("prompt"):
        options = (yaml.safe_load(recipe_text) or {}).get("prompt")
        form = PromptFormat.model_validate(options) if options else None
        room = form.max_tokens - form.answer_room if form else None
        plot = plots.lengths_plot("tokens-prompt", train["prompt"], room)
        found.append(("Training prompt, tokens", plot))
    if train.get("target"):
        found.append(("Training target, tokens", plots.lengths_plot("tokens-target", train["target"])))
    return found
