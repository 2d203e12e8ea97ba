"""The data-set card that lies beside the prepared splits, in the hub's format."""

from __future__ import annotations

from typing import Any

from meditune.data.sources import SOURCES
from meditune.recipe import Recipe


def data_card(recipe: Recipe, quality: dict[str, Any]) -> str:
    """Markdown with the hub's YAML head: sources, licences, splits, what was left out."""
    lines = [
        "---",
        "language: en",
        "task_categories: [question-answering, text-generation]",
        "tags: [medical, meditune]",
        "---",
        "",
        f"# Data of the run {recipe.name}",
        "",
    ]
    if quality["synthetic"]:
        lines += [
            "**Synthetic sample: every study is invented. No figure measured on it is about medicine.**",
            "",
        ]
    lines += ["| source | licence | read | refused |", "|---|---|---|---|"]
    for name, row in quality["sources"].items():
        title = SOURCES[name].title if name in SOURCES else "your own files"
        lines.append(f"| {name}: {title} | {row['licence']} | {row['read']:,} | {sum(row['rejected'].values()):,} |")
    lines += ["", "| split | examples | groups | yes / no / maybe |", "|---|---|---|---|"]
    for name, row in quality["splits"].items():
        decisions = " / ".join(str(row["decisions"].get(label, 0)) for label in ("yes", "no", "maybe"))
        lines.append(f"| {name} | {row['examples']:,} | {row['groups']:,} | {decisions} |")
    lines += [
        "",
        f"Test set: {quality['test_set']}. {_leakage(quality)}",
        f"Seed {recipe.seed}; development share {recipe.data.dev_share}.",
        "",
        *_audit(quality),
        f"Questions asked more than once: {quality['repeated_questions']}. Refused rows with their reasons: "
        "`rejected.jsonl`. Every row that quality control dropped, changed or flagged: `ledger.parquet`.",
        "",
    ]
    return "\n".join(lines)


def _audit(quality: dict[str, Any]) -> list[str]:
    """What quality control found, and that the splits have nothing in common."""
    audit = quality["audit"]
    rows = [
        f"| {name.replace('_', ' ')} | {row['rows']:,} | {row['share']:.1%} | "
        f"{', '.join(f'{count:,} {action}' for action, count in row['done'].items())} |"
        for name, row in audit["rules"].items()
        if row["rows"]
    ]
    shared = {
        trait: sum(pair[trait] for pair in quality["shared"].values()) for trait in ("ids", "groups", "questions")
    }
    return [
        f"Quality control looked at {audit['rows']:,} rows, left out {audit['dropped']:,} and changed "
        f"{audit['changed']:,}. Shared by two splits: "
        f"{', '.join(f'{count:,} {trait}' for trait, count in shared.items())}.",
        "",
        "| rule | rows | share | what was done |",
        "|---|---|---|---|",
        *(rows or ["| none found anything | | | |"]),
        "",
    ]


def _leakage(quality: dict[str, Any]) -> str:
    found = {kind: row["items"] for kind, row in quality["leakage"]["found"].items()}
    if found:
        named = ", ".join(f"{kind} ({items})" for kind, items in found.items())
        return f"**Leakage was found, and allowed by the recipe: {named}.**"
    split = quality["leakage"]["split"]
    return f"No group, no question and no context of the {split} items is in the training data, nor nearly."
