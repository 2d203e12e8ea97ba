"""What raters said of the answers, as a section of the report and as a page of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from meditune.evaluate.metrics.metric import Metric
from meditune.evaluate.report.table import Row, row_of
from meditune.evaluate.report.wording import number

OVERALL = "Over all lines"
DISPUTES = 10
"""So many disputed answers are shown."""
TITLES = {"base": "Base", "tuned": "Tuned", "reference": "Reference"}


def section(results: dict[str, Any] | None) -> dict[str, Any] | None:
    """What the template shows of the ratings' results; None where there are none."""
    if not results or not results["ratings"]:
        return None
    return {
        "facts": results,
        "rows": [_row(OVERALL, "", results["overall"])]
        + [_row(axis["title"], axis["question"], axis) for axis in results["axes"].values()],
        "axes": [_shares(axis) for axis in results["axes"].values()],
        "agreement": [_agreement(axis) for axis in results["axes"].values()],
        "disputed": results["disputed"][:DISPUTES],
        "titles": TITLES,
    }


def _row(title: str, meaning: str, axis: dict[str, Any]) -> dict[str, Any]:
    """Scores of each origin, and tuned against base as the report's table has it."""
    origins = axis["origins"]
    base, tuned, reference = (origins.get(name) or {} for name in TITLES)
    metric = Metric(title, title, "up", 1, meaning)
    compared = axis["difference"]
    row: Row = row_of(metric, base.get("score"), tuned.get("score"), compared, False)
    return {
        "row": row,
        "own": {name: _interval(figures.get("ci95")) for name, figures in origins.items()},
        "reference": number(reference.get("score"), 1),
    }


def _shares(axis: dict[str, Any]) -> dict[str, Any]:
    """How often each option was chosen, as shares of those who could judge."""
    rows = []
    for name, figures in axis["origins"].items():
        total = sum(figures["counts"])
        rows.append(
            {
                "name": TITLES.get(name, name),
                "cells": [(count, count / total if total else 0.0) for count in figures["counts"]],
                "cannot": figures["cannot"],
            }
        )
    return {"title": axis["title"], "options": axis["options"], "rows": rows}


def _agreement(axis: dict[str, Any]) -> dict[str, Any]:
    found = axis["agreement"]
    return {
        "title": axis["title"],
        "level": axis["level"],
        "cells": [
            (name, _figure(figure), _interval((figure or {}).get("ci95")), (figure or {}).get("items", 0))
            for name, figure in (("Krippendorff's alpha", found["alpha"]), ("Fleiss' kappa", found["fleiss"]))
        ],
        "pairs": ", ".join(
            f"{' and '.join(pair['raters'])}: {_figure(pair)} ({pair['items']})" for pair in found["cohen"]
        ),
    }


def _figure(figure: dict[str, Any] | None) -> str:
    return "–" if not figure or figure["value"] is None else number(figure["value"], 2)


def _interval(bounds: Any) -> str:
    if not bounds:
        return ""
    digits = 1 if max(map(abs, bounds)) > 1 else 2
    return f"{number(bounds[0], digits)} to {number(bounds[1], digits)}"


def render_review(results: dict[str, Any], path: Path) -> None:
    """Write the results as one HTML file that opens anywhere, offline."""
    from meditune.evaluate.report.template import environment, style
    from meditune.files import replacing

    page = (
        environment().get_template("review_page.html").render(style=style(), review=section(results), results=results)
    )
    with replacing(path) as stream:
        stream.write(page)
