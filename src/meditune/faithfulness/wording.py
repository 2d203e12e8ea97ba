"""What turns a finding round in English prose: numbers, negations and directions."""

from __future__ import annotations

import re

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
