"""Figures as a reader sees them.

The templates of the report and of the pages beside it, and their style sheet.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

NOT_MEASURED = "not measured"
_UNITS = (("h", 3600), ("min", 60), ("s", 1))


def number(value: float | None, digits: int) -> str:
    """`value` with its metric's digits and a true minus sign; NOT_MEASURED where there is none."""
    if value is None or not math.isfinite(value):
        return NOT_MEASURED
    text = f"{abs(value):,.{digits}f}"
    return f"−{text}" if value < 0 and text.strip("0.,") else text


def signed(value: float, digits: int) -> str:
    """A difference: with its sign, unless it rounds to nothing."""
    text = number(value, digits)
    return text if text.startswith("−") or not text.strip("0.,") or value <= 0 else f"+{text}"


def interval(bounds: Sequence[float], digits: int) -> str:
    """An interval in words, "−0.02 to +0.11".

    An end that lies off zero but rounds to it gets more digits, so that "excludes zero" can be seen.
    """
    low, high = bounds
    while digits < 6 and any(bound and not number(bound, digits).strip("−0.,") for bound in (low, high)):
        digits += 1
    return f"{signed(low, digits)} to {signed(high, digits)}"


def p_value(value: float | None) -> str:
    """p with three digits; smaller ones as "< 0.001"."""
    if value is None or not math.isfinite(value):
        return "–"
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def duration(seconds: float) -> str:
    """The two largest units that matter: "1 h 12 min", "3 min 5 s", "0.4 s"."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    left, parts = round(seconds), []
    for unit, size in _UNITS:
        amount, left = divmod(left, size)
        if amount:
            parts.append(f"{amount} {unit}")
    return " ".join(parts[:2])


def listed(items: Sequence[str]) -> str:
    """Items as in a sentence: "a, b and c"."""
    return " and ".join([", ".join(items[:-1]), items[-1]] if len(items) > 1 else items)


def in_prose(title: str) -> str:
    """A metric's title inside a sentence: "Macro-F1" loses its capital, "BLEU" and "ROUGE-L" keep theirs."""
    return title if title[:2].isupper() else title[:1].lower() + title[1:]


def capitalized(sentence: str) -> str:
    """The sentence with a capital at its start."""
    return sentence[:1].upper() + sentence[1:]


def label(key: str) -> str:
    """A key of a file as words: "repeated_questions" -> "Repeated questions"."""
    return capitalized(key.replace("_", " "))


def count(value: Any) -> str:
    """A whole number with separators; other values as they are."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return str(value)
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:,.2f}"


def web_address(text: Any) -> str | None:
    """`text` where it's a plain web address, the address of an "arXiv:" number in it, or None.

    Anything else ("javascript:...") must not become a link.
    """
    if not isinstance(text, str):
        return None
    if re.fullmatch(r"https?://[^\s<>\"']+", text):
        return text
    found = re.search(r"arXiv:(\d{4}\.\d{4,5})", text)
    return f"https://arxiv.org/abs/{found[1]}" if found else None


HERE = Path(__file__).parent


def environment() -> Any:
    """The templates of this folder, with the filters that they use."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {
        "number": number,
        "count": count,
        "duration": duration,
        "label": label,
        "listed": listed,
        "link": web_address,
    }
    return environment


def style() -> Markup:
    """The style sheet of every page here."""
    return Markup("".join((HERE / name).read_text(encoding="utf-8") for name in ("style.css", "diversity.css")))
