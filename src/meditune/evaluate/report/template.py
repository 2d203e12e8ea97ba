"""The templates of the report and of the pages beside it, and their style sheet."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from markupsafe import Markup

from meditune.evaluate.report import wording

HERE = Path(__file__).parent


def environment() -> Any:
    """The templates of this folder, with the filters that they use."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {
        "number": wording.number,
        "count": wording.count,
        "duration": wording.duration,
        "label": wording.label,
        "listed": wording.listed,
        "link": wording.web_address,
    }
    return environment


def style() -> Markup:
    """The style sheet of every page here."""
    return Markup("".join((HERE / name).read_text(encoding="utf-8") for name in ("style.css", "diversity.css")))
