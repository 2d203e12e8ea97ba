"""What makes a row of others' data unusable, whatever it should become."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

CHARACTERS = 1_000_000
"""A row with more is no question and answer; a long novel has about as many."""
DEPTH = 50

SURROGATES = "half a character (a lone surrogate), which can't be written as UTF-8"
ZEROS = "a NUL character, as damaged files have"
TOO_DEEP = f"lists and objects more than {DEPTH} deep"
TOO_LONG = f"over {CHARACTERS:,} characters (a quote that isn't closed?)"


def damage(row: object) -> str:
    """Why the texts in a row (a text, or lists and objects of them) can't be used; empty where they can."""
    characters = 0
    waiting: list[tuple[object, int]] = [(row, 0)]
    while waiting:
        value, depth = waiting.pop()
        if isinstance(value, str):
            characters += len(value)
            if characters > CHARACTERS:
                return TOO_LONG
            if "\0" in value:
                return ZEROS
            if not is_writable(value):
                return SURROGATES
        elif isinstance(value, Mapping | list | tuple):
            if depth == DEPTH:
                return TOO_DEEP
            if isinstance(value, Mapping):
                waiting += [(key, depth + 1) for key in value]
                waiting += [(each, depth + 1) for each in value.values()]
            else:
                waiting += [(each, depth + 1) for each in value]
    return ""


def is_writable(text: str) -> bool:
    """Whether the text can be written as UTF-8, which half a character (a lone surrogate) can't."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def plain(value: Any) -> Any:
    """The value as JSON can hold it: NaN and Infinity become None, bytes their UTF-8 text or else their number."""
    if isinstance(value, Mapping):
        return {str(key): plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            return f"({len(value):,} bytes)"
    return value
