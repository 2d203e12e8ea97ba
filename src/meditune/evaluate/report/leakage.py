"""What the check for leakage found, for the page: a banner where the recipe owned up to it, a sentence in any case."""

from __future__ import annotations

from typing import Any

from meditune.data.leakage import said
from meditune.evaluate.report.wording import count


def leakage(report: dict[str, Any]) -> dict[str, Any]:
    """`found`, sentences for the banner, and `checked`, what was looked at, in sentences; empty in older reports."""
    checked = report.get("leakage") or {}
    return {"found": said(checked), "checked": _checked(checked) if checked else ""}


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
