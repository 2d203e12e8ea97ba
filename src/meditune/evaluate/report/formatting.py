"""Formatting of numbers and names for readers, and rendering of HTML pages with their templates and style sheet."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from markupsafe import Markup

from meditune.files import replace_file

NOT_MEASURED = "not measured"
_UNITS = (("h", 3600), ("min", 60), ("s", 1))


def number(value: float | None, digits: int) -> str:
    """Return `value` with `digits` decimals and a true minus sign, or NOT_MEASURED if it is None or not finite."""
    if value is None or not math.isfinite(value):
        return NOT_MEASURED
    text = f"{abs(value):,.{digits}f}"
    return f"−{text}" if value < 0 and text.strip("0.,") else text


def signed(value: float, digits: int) -> str:
    """Return a difference with its sign, unless it rounds to zero."""
    text = number(value, digits)
    return text if text.startswith("−") or not text.strip("0.,") or value <= 0 else f"+{text}"


def interval(bounds: Sequence[float], digits: int) -> str:
    """Return an interval as text, such as "−0.02 to +0.11"; a nonzero bound that rounds to zero gets more digits."""
    low, high = bounds
    while digits < 6 and any(bound and not number(bound, digits).strip("−0.,") for bound in (low, high)):
        digits += 1
    return f"{signed(low, digits)} to {signed(high, digits)}"


def bounds(ends: Sequence[float] | None, digits: int) -> str:
    """Return the interval of a value as text, such as "0.12 to 0.34"; empty without an interval."""
    return f"{number(ends[0], digits)} to {number(ends[1], digits)}" if ends else ""


def p_value(value: float | None) -> str:
    """Return p with three decimals, or "< 0.001"."""
    if value is None or not math.isfinite(value):
        return "–"
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def duration(seconds: float) -> str:
    """Return a duration in its two largest units: "1 h 12 min", "3 min 5 s", "0.4 s"."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    left, parts = round(seconds), []
    for unit, size in _UNITS:
        amount, left = divmod(left, size)
        if amount:
            parts.append(f"{amount} {unit}")
    return " ".join(parts[:2])


def listed(items: Sequence[str]) -> str:
    """Return the items joined as in a sentence: "a, b and c"."""
    return " and ".join([", ".join(items[:-1]), items[-1]] if len(items) > 1 else items)


def in_prose(title: str) -> str:
    """Return a metric's title for use inside a sentence: "Macro-F1" loses its capital, "BLEU" and "MedQA" don't."""
    begin = re.split(r"[ -]", title, maxsplit=1)[0]
    is_name = title[:2].isupper() or any(map(str.isupper, begin[1:]))
    return title if is_name else title[:1].lower() + title[1:]


def capitalized(sentence: str) -> str:
    """Return the sentence with its first letter in uppercase."""
    return sentence[:1].upper() + sentence[1:]


def label(key: str) -> str:
    """Return a key of a file as words: "repeated_questions" -> "Repeated questions"."""
    return capitalized(key.replace("_", " "))


def count(value: Any) -> str:
    """Return a number with thousands separators, and any other value as text."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return str(value)
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:,.2f}"


def counted(reasons: dict[str, Any] | None) -> list[tuple[str, Any]]:
    """Return reasons and counts, the most frequent first, without counts of zero."""
    found = sorted((reasons or {}).items(), key=lambda pair: (-pair[1], pair[0]))
    return [(label(reason), number) for reason, number in found if number]


def web_address(text: Any) -> str | None:
    """Return `text` if it is a web address, else the address of an "arXiv:" id in `text`, else None."""
    if not isinstance(text, str):
        return None
    if re.fullmatch(r"https?://[^\s<>\"']+", text):
        return text
    found = re.search(r"arXiv:(\d{4}\.\d{4,5})", text)
    return f"https://arxiv.org/abs/{found[1]}" if found else None


HERE = Path(__file__).parent


def write_page(path: Path, template: str, **context: Any) -> None:
    """Write a page to `path`, from one of the templates in this folder."""
    with replace_file(path) as stream:
        stream.write(_templates().get_template(template).render(style=style(), **context))


@cache
def _templates() -> Any:
    """Return the environment of the templates, which are compiled once per process."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    filters = (number, signed, interval, bounds, count, counted, duration, listed)
    environment.filters |= {each.__name__: each for each in filters} | {"link": web_address}
    return environment


def style() -> Markup:
    """Return the style sheet that all pages share."""
    return Markup("".join((HERE / name).read_text(encoding="utf-8") for name in ("style.css", "diversity.css")))
