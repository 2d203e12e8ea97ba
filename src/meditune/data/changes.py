"""What a rule of the recipe did to one example."""

from __future__ import annotations

from typing import NamedTuple


class Change(NamedTuple):
    """One example that a rule dropped or changed."""

    id: str
    rule: str
    """The recipe's key: data.max_reading_grade"""
    action: str
    """dropped, or what else was done: answer removed"""
    before: str
    """What was changed, as it was; empty where the example was dropped whole"""
    after: str
    source: str
    detail: str
    """Why, in words"""
