"""What quality control found in the data, as a section of the report and as a page of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from meditune.evaluate.report.wording import count, number

WIDTH, HEIGHT = 100, 42
"""Of the plot of near duplicates by threshold, in its own units."""
NAMES = {
    "drop": "left out",
    "mend": "mended",
    "flag": "flagged",
    "group": "moved into one group",
    "merge": "merged",
    "keep": "kept",
    "off": "off",
}


def quality_section(quality: dict[str, Any]) -> dict[str, Any] | None:
    """What the template shows of quality.json; None where no quality control was done."""
    audit = quality.get("audit")
    if not audit:
        return None
    rules = [{"name": name.replace("_", " "), **_rule(row)} for name, row in audit["rules"].items()]
    return {
        "rows": count(audit["rows"]),
        "dropped": count(audit["dropped"]),
        "changed": count(audit["changed"]),
        "rules": rules,
        "shown": [rule for rule in rules if rule["examples"]],
        "alike": number(audit["alike"], 2),
        "thresholds": _bars(audit["near_duplicates"], audit["alike"]),
        "shared": _shared(quality.get("shared") or {}),
    }


def render_quality(folder: Path) -> Path:
    """Write `audit.html` into an audit's folder, one file that opens anywhere, offline; returns its path."""
    from meditune import __version__
    from meditune.evaluate.report import facts
    from meditune.evaluate.report.template import environment, style
    from meditune.files import read_json, replacing

    quality = read_json(folder / "quality.json")
    page = (
        environment()
        .get_template("quality_page.html")
        .render(
            style=style(),
            title=quality["recipe"],
            version=__version__,
            synthetic=quality["synthetic"],
            not_split=quality["not_split"],
            sources=facts.sources(quality),
            quality=quality_section(quality),
        )
    )
    path = folder / "audit.html"
    with replacing(path) as stream:
        stream.write(page)
    return path


def _rule(row: dict[str, Any]) -> dict[str, Any]:
    done = [f"{count(times)} {NAMES.get(action, action)}" for action, times in row["done"].items()]
    return {
        "meaning": row["meaning"],
        "action": NAMES.get(row["action"], row["action"]),
        "rows": count(row["rows"]),
        "share": f"{number(100 * row['share'], 1)} %",
        "done": ", ".join(done) or "nothing found",
        "examples": row["examples"],
    }


def _bars(thresholds: list[dict[str, Any]], chosen: float) -> list[dict[str, Any]]:
    """Number of pairs from each threshold on, with its bar's place and height."""
    most = max((each["pairs"] for each in thresholds), default=0)
    step = WIDTH / max(len(thresholds), 1)
    return [
        {
            "alike": number(each["alike"], 2),
            "pairs": count(each["pairs"]),
            "left": round(at * step + step * 0.15, 2),
            "width": round(step * 0.7, 2),
            "height": round(HEIGHT * each["pairs"] / most, 2) if most else 0,
            "chosen": abs(each["alike"] - chosen) < 1e-9,
        }
        for at, each in enumerate(thresholds)
    ]


def _shared(shared: dict[str, dict[str, int]]) -> list[tuple[str, list[tuple[str, str]]]]:
    return [(pair, [(trait, count(number_)) for trait, number_ in row.items()]) for pair, row in shared.items()]
