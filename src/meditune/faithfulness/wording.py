"""What turns a finding round in English prose: numbers, negations and directions."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from meditune.faithfulness.numbers import AMOUNT, amount
from meditune.faithfulness.words import stem

NUMBER = re.compile(r"(?<![\w.,-])\d+(?:,\d{3})*(?:\.\d+)?(?!\w)")
AUXILIARY = r"is|are|was|were|do|does|did|can|could|may|might|must|should|has|have|had|will|would"
NEGATED = re.compile(
    rf"\b(?:(?P<plain>{AUXILIARY})(?: not\b|n't\b|n’t\b)|cannot\b|can['’]t\b|no(?= [a-z]))", re.IGNORECASE
)
"""A negation that can be taken away; `plain` is the auxiliary verb without it, where there is one"""
NEGATABLE = re.compile(rf"\b(?:{AUXILIARY})\b(?! not\b|['’]t)", re.IGNORECASE)
"""An auxiliary verb that can be negated"""
NEGATIVE = re.compile(
    r"\b(?:not|no|none|never|neither|nor|without|cannot|lack(?:s|ed|ing)?|fail(?:s|ed)?|absence)\b|n['’]t\b",
    re.IGNORECASE,
)
"""A word by which a sentence denies something"""
_OPPOSITES = (
    "increase/decrease increases/decreases increased/decreased increasing/decreasing higher/lower high/low more/less "
    "greater/smaller better/worse improve/worsen improves/worsens improved/worsened improving/worsening "
    "improvement/deterioration reduce/raise reduces/raises reduced/raised reducing/raising reduction/rise rose/fell "
    "positive/negative positively/negatively effective/ineffective safe/unsafe beneficial/harmful superior/inferior "
    "longer/shorter long/short early/late earlier/later before/after significant/insignificant "
    "significantly/insignificantly likely/unlikely feasible/infeasible useful/useless helps/harms help/harm "
    "strong/weak common/rare frequent/infrequent necessary/unnecessary appropriate/inappropriate "
    "adequate/inadequate sufficient/insufficient reliable/unreliable accurate/inaccurate similar/different"
)
_PAIRS = [(pair.partition("/")[0], pair.partition("/")[2]) for pair in _OPPOSITES.split()]
OPPOSITE = dict(_PAIRS) | {second: first for first, second in _PAIRS}
"""Direction words, each with the one that turns a finding round"""
DIRECTION = re.compile(rf"\b(?:{'|'.join(sorted(OPPOSITE, key=len, reverse=True))})\b", re.IGNORECASE)
_SIDES = (
    ("start starts started starting begin begins beginning began continue continues continued continuing keep",
     "stop stops stopped stopping discontinue discontinues discontinued discontinuing"),
    ("use uses used give gives given giving take takes taken indicated recommend recommends recommended",
     "avoid avoids avoided avoiding contraindicated"),
)  # fmt: skip
"""Words of advice of which any of one side turns round any of the other; meditune.data.preference.corrupt puts none of
them for another."""
_SIDE = {
    word: (axis, side) for axis, sides in enumerate(_SIDES) for side, text in enumerate(sides) for word in text.split()
}
_ADVICE = re.compile(rf"\b(?:{'|'.join(sorted(_SIDE, key=len, reverse=True))})\b", re.IGNORECASE)
_LIMIT = re.compile(
    r"\b(?:(?P<above>above|over|exceeding|at least|(?:more|greater|higher|older) than)|"
    r"(?P<below>below|under|at most|up to|(?:less|fewer|lower|younger) than))\b"
    rf"(?: (?:the )?(?:age )?(?:of )?(?P<number>{AMOUNT})\b)?",
    re.IGNORECASE,
)
_REACH = 60
"""Characters before a word in which it may be denied"""
_DENIED = re.compile(r"(?:\b(?:not|never|no|cannot|without)|n['’]t)(?: \w+){0,3} $", re.IGNORECASE)
_ADVISED_AGAINST = re.compile(r"\b(?:avoid|stop|discontinu|contraindicat|against)\w*(?: \w+){0,3} $", re.IGNORECASE)


@dataclass(frozen=True)
class Direction:
    """A word that turns a finding or an advice round, where it stands."""

    start: int
    end: int
    said: str
    """The same for words that say the same"""
    opposite: str
    """`said` of the words that say the opposite"""
    only_turned: bool = False
    """Whether it says something only where it is clearly turned, as words of advice and limits do"""


def directions(text: str) -> Iterator[Direction]:
    """Those of a text, and its limits, which are turned only beside the same number. Words of advice are left out where
    they are denied: "not recommended", "avoid using".
    """
    for match in DIRECTION.finditer(text):
        yield Direction(match.start(), match.end(), stem(match[0]), stem(OPPOSITE[match[0].lower()]))
    for match in _ADVICE.finditer(text):
        axis, side = _SIDE[match[0].lower()]
        before = text[max(0, match.start() - _REACH) : match.start()]
        if not _DENIED.search(before) and (side or not _ADVISED_AGAINST.search(before)):
            yield Direction(match.start(), match.end(), f"{axis}/{side}", f"{axis}/{1 - side}", only_turned=True)
    for match in _LIMIT.finditer(text):
        word = match["above"] or match["below"]
        if not match["number"] and word.lower() not in ("above", "below"):
            continue
        if not _DENIED.search(text[max(0, match.start() - _REACH) : match.start()]):
            value = amount(match["number"]) if match["number"] else ""
            sides = (f"above {value}", f"below {value}")
            said, opposite = sides if match["above"] else sides[::-1]
            yield Direction(match.start(), match.start() + len(word), said, opposite, only_turned=True)


def value(number: str) -> float:
    """The value of a match of NUMBER."""
    return float(number.replace(",", ""))


_WHAT = (
    *(r"significan\w+", r"differen\w+", r"associat\w+", r"correlat\w+", r"relation\w*", r"change\w*"),
    *("effect", "evidence", "benefit", r"improve\w*", r"increase\w*"),
)
NULL_FINDING = re.compile(
    rf"\b(?:no|not|without)\b(?:\s+\w+){{0,3}}\s+(?:{'|'.join(_WHAT)})|\b(?:did|do|does|was|were) not\b|"
    r"\b(?:similar\w*|comparable|equal|equally|unchanged|identical|failed to|nonsignificant)\b|"
    r"\bp\s*(?:>|=\s*(?:0?\.[1-9]|0?\.0[5-9]))",
    re.IGNORECASE,
)
"""A finding that there is no difference, no effect or no association"""
