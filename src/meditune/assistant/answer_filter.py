"""The checks of each sentence that a model generated, before anyone sees it."""

from __future__ import annotations

import re
import unicodedata
from typing import Literal

from meditune.retrieve.prompt_injection import is_instruction

Kept = Literal["amount", "order", "reassurance", "no source"]
"""The reason why a sentence isn't shown"""
REASONS: dict[Kept, str] = {
    "amount": "names an amount of a medicine that can't be verified here",
    "order": "isn't about health",
    "reassurance": "says that no help is needed, but no source says so",
    "no source": "isn't supported by any passage found",
}
_ONES = "one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|(?:thir|four|fif|six|seven|eigh|nine)teen"
_TENS = (
    "(?:twenty|thirty|forty|fifty|sixty|seventy|eighty|ninety)(?:[ -](?:one|two|three|four|five|six|seven|eight|nine))?"
)
_NUMBER = (
    rf"(?:\d+(?:[.,/⁄]\d+)*|(?:{_ONES}|{_TENS})(?: (?:hundred|thousand))?|half"
    r"|(?:a|one) (?:hundred|thousand|quarter|third)|(?:a )?couple|(?:a )?few|several)"
)
_RANGE = rf"{_NUMBER}(?:\s*(?:-|–|to|or)\s*{_NUMBER})?"
_UNIT = (
    r"(?:mgs?|mcgs?|[µμu]gs?|(?:micro|milli)?gram(?:me)?s?|gm?s?|mls?|cc|millilit(?:er|re)s?|meq|mmol(?!\s*/)"
    r"|i\.?u|(?:international )?units?|drops?|tablets?|tabs?|pills?|capsules?|caplets?|gelcaps?|lozenges?|pastilles?"
    r"|suppositor(?:y|ies)|pessar(?:y|ies)|sachets?|ampoules?|vials?|inhalations?|puffs?|sprays?|patch(?:es)?|injections?"
    r"|doses?|(?:tea|table|dessert)?spoon(?:ful)?s?|spoonsful|tsps?|tbsps?)\b"
)
_BETWEEN = (
    r"(?:[\s-]+(?:of|an?|the|these|those|your|more|extra|regular|adult|small|large|whole|full|level|strength))*[\s-]*"
)
_HOW_OFTEN = (
    rf"(?:(?:every|each) (?:{_RANGE}|other)?[\s-]*(?:hours?|hrs?|h|days?|weeks?|morning|evening|night)\b"
    rf"|(?:once|twice|{_RANGE}\s*times) (?:daily|weekly|(?:an?|per|each|every) (?:day|week|night))\b)"
)
_AMOUNT = re.compile(
    rf"(?<![\w.,]){_RANGE}{_BETWEEN}{_UNIT}|(?<![\w.,]){_RANGE},? {_HOW_OFTEN}"
    rf"|\b(?:take|taking|give|giving|swallow|use|inject|have|chew|insert|suck|add)\b[^.]{{0,30}}?\b(?:an?|another)\s+{_UNIT}"
    rf"|\b(?:an?|another)\s+{_UNIT}[^.]{{0,40}}?{_HOW_OFTEN}",
    re.IGNORECASE,
)
_OFTEN = re.compile(rf"\b{_HOW_OFTEN}", re.IGNORECASE)
_REASSURES = re.compile(
    r"\b(?:no need (?:to|for)|(?:do not|don't|does not|doesn't) need(?: to)?|needn't|not necessary to)\W+"
    r"(?:\w+\W+){0,3}?(?:see|call|go|worry|ambulance|doctor|hospital|emergency|medical|treatment)\b"
    r"|\b(?:nothing (?:serious|to worry)|not (?:a medical|an) emergency|sleep it off|will go away on its own)\b",
    re.IGNORECASE,
)


def names_amount(sentence: str) -> bool:
    """Return whether a sentence names an amount of a medicine."""
    return bool(_AMOUNT.search(unicodedata.normalize("NFKC", sentence)))


def says_how_often(sentence: str) -> bool:
    """Return whether a sentence says how often something is taken or done."""
    return bool(_OFTEN.search(unicodedata.normalize("NFKC", sentence)))


def withheld(sentence: str, supported: bool, searched: bool, no_amounts: bool) -> Kept | None:
    """Return why a sentence must not be shown; None if it may be.

    `supported`: a passage supports the sentence; `searched`: an index was searched; `no_amounts`: the user asked for a
    dose, so the answer must not name amounts.
    """
    if is_instruction(sentence):
        return "order"
    if (names_amount(sentence) and (no_amounts or not supported)) or (no_amounts and says_how_often(sentence)):
        return "amount"
    if _REASSURES.search(sentence) and not supported:
        return "reassurance"
    return "no source" if searched and not supported else None
