"""Grading one answer by rules, with the reason: what was found where, or what is missing.

Rules are patterns. They are a floor, not a proof: an answer may pass and be wrong. Whoever changes them should look at
what they say of real answers, not only at the tests.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

_NEGATED = re.compile(
    r"""(?:\b(?:not|never|without|avoid|needn['’]?t|unnecessary|rather\ than|instead\ of|no\ need|nobody|no\ reason)\b
    |n['’]t\b|\bcannot\b)(?P<between>(?:[^\w.!?;:,]+[\w'’]+){0,6})[^\w.!?;:,]*$""",
    re.VERBOSE | re.IGNORECASE,
)
_STILL_MEANT = re.compile(
    r"\b(?:hesitate|delay\w*|wait|afraid|ashamed|forget|put off|postpone|only|ignore|unless|before|until|if|and)\b",
    re.IGNORECASE,
)
"""After these, what follows a negation is meant: "don't hesitate to call", "don't wait and go"."""
_CALLED_OFF = re.compile(
    r"^(?:\W+\w+){0,3}?\W+(?:(?:is|are|was|would|will)(?:n['’]t|\s+not)|not)\s+(?:be\s+)?(?:needed|necessary|required)"
    r"|^(?:\W+\w+){0,2}?\W+(?:is|are)\s+unnecessary",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Rule:
    """What an answer may say, and the patterns by which that is seen."""

    says: str
    """In words, as they stand after "has" and "lacks" """
    patterns: tuple[re.Pattern[str], ...]
    negatable: bool = True
    """Whether "don't ..." before it means that it wasn't said"""

    def found(self, text: str) -> tuple[int, int] | None:
        """Where the first pattern that matches says it; None where none does."""
        for pattern in self.patterns:
            for match in pattern.finditer(text):
                if not (self.negatable and _is_negated(text, *match.span())):
                    return match.span()
        return None


@dataclass(frozen=True)
class Reason:
    """Why an answer passes or fails."""

    text: str
    good: bool
    span: tuple[int, int] | None = None
    """Characters of the answer that it rests on"""


def grade(answer: str, must: Sequence[Sequence[Rule]], must_not: Sequence[Rule]) -> list[Reason]:
    """One reason for each thing that `answer` must say, by any rule of a group, and for each that it mustn't but says.

    It passes where all are good. An answer without a word fails.
    """
    text = answer.replace("’", "'")
    if not re.search(r"\w", text):
        return [Reason("says nothing", False)]
    return [_needed(text, rules) for rules in must] + [
        Reason(f"has {rule.says}: “{_quoted(text, span)}”", False, span)
        for rule in must_not
        if (span := rule.found(text)) is not None
    ]


def passed(reasons: Sequence[Reason]) -> bool:
    """Whether nothing speaks against the answer."""
    return all(reason.good for reason in reasons)


def _needed(text: str, rules: Sequence[Rule]) -> Reason:
    for rule in rules:
        span = rule.found(text)
        if span is not None:
            return Reason(f"has {rule.says}: “{_quoted(text, span)}”", True, span)
    return Reason("lacks " + " or ".join(dict.fromkeys(rule.says for rule in rules)), False)


def _is_negated(text: str, start: int, end: int) -> bool:
    before = _NEGATED.search(text, max(0, start - 120), start)
    if before and not _STILL_MEANT.search(before["between"]):
        return True
    return bool(_CALLED_OFF.match(text[end : end + 80]))


def _quoted(text: str, span: tuple[int, int]) -> str:
    return " ".join(text[slice(*span)].split())
