"""What a model wrote, before anyone sees it: sentences that may not be shown, and why."""

from __future__ import annotations

import re
from typing import Literal

from meditune.retrieve.untrusted import is_order

Kept = Literal["amount", "order", "reassurance", "no source"]
"""Why a sentence isn't shown"""
REASONS: dict[Kept, str] = {
    "amount": "names an amount of a medicine that nothing vouches for here",
    "order": "isn't about health",
    "reassurance": "says that no help is needed, which no source does",
    "no source": "isn't borne out by any passage found",
}
_NUMBER = r"(?:\d+(?:[.,]\d+)?|one|two|three|four|five|six|eight|ten|half an?)"
_AMOUNT = re.compile(
    rf"\b{_NUMBER}\s*(?:-|–|to|or)?\s*{_NUMBER}?\s*"
    r"(?:mg|mcg|µg|micrograms?|milligrams?|ml|millilit(?:er|re)s?|drops?|tablets?|pills?|capsules?|teaspoons?|tablespoons?"
    r"|tsp|tbsp|units?|iu|puffs?|sprays?|patch(?:es)?|doses?)\b|\b\d+(?:[.,]\d+)?\s*(?:mg|mcg|g)\s*/\s*(?:kg|day|d)\b"
    r"|\b\d+(?:[.,]\d+)?\s*(?:grams?|g)\b(?=[^.]{0,40}\b(?:day|daily|dose|hours|twice|times)\b)",
    re.IGNORECASE,
)
_REASSURES = re.compile(
    r"\b(?:no need (?:to|for)|(?:do not|don't|does not|doesn't) need(?: to)?|needn't|not necessary to)\W+"
    r"(?:\w+\W+){0,3}?(?:see|call|go|worry|ambulance|doctor|hospital|emergency|medical|treatment)\b"
    r"|\b(?:nothing (?:serious|to worry)|not (?:a medical|an) emergency|sleep it off|will go away on its own)\b",
    re.IGNORECASE,
)


def names_amount(sentence: str) -> bool:
    """Whether a sentence says how much of a medicine."""
    return bool(_AMOUNT.search(sentence))


def kept_back(sentence: str, supported: bool, searched: bool, no_amounts: bool) -> Kept | None:
    """Why a sentence isn't shown; None where it may be.

    `supported`: a passage bears it out; `searched`: there are passages at all; `no_amounts`: the question was for one.
    """
    if is_order(sentence):
        return "order"
    if names_amount(sentence) and (no_amounts or not supported):
        return "amount"
    if _REASSURES.search(sentence) and not supported:
        return "reassurance"
    return "no source" if searched and not supported else None
