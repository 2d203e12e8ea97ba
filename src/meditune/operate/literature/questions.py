"""Titles as questions, and the decision that goes with a statement.

Jin et al. 2019 (https://arxiv.org/abs/1909.06146, section 3) took titles that are questions as they are, without a
decision, and turned statements whose verb is in the present tense (NP-VBP/VBZ) into questions by moving "is" or "are"
to the front, or putting "do" or "does" there; the decision was yes, or no where the verb is negated. They found the
verbs with a parser. Here a list of verbs stands in for it, and a title is left alone wherever that might be wrong; and
a decision is only given where the conclusion doesn't weaken or contradict it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from meditune.faithfulness.words import rarity
from meditune.phi import words

FEWEST, MOST = 4, 40
"""Words of a statement"""


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_PLAIN = _words(
    "abolish accelerate activate aggravate alleviate alter ameliorate attenuate confer contribute correlate depend "
    "determine deteriorate differ diminish enhance exacerbate exert exhibit facilitate impair improve induce inhibit "
    "interact maintain mediate modify modulate persist potentiate predict prevent prolong promote protect provide "
    "reduce regulate relieve remain require restore reveal stimulate suppress worsen"
)
_ALSO_NOUNS = _words("benefit cause decrease delay harm increase influence lead result shorten support trigger")
"""Verbs whose forms may be nouns, too ("causes of", "increases in"): what follows tells."""
_BASES = _PLAIN | _ALSO_NOUNS
_SINGULAR = {
    f"{base}es" if base.endswith("sh") else f"{base[:-1]}ies" if base.endswith("fy") else f"{base}s": base
    for base in _BASES
}
_FINITE = _words("is are was were has have had does do did") | {
    form for form, base in _SINGULAR.items() if base in _PLAIN
}
_NOT_AFTER_NOUNS = _words("of and or for from by on with as at during after among , ; in to")
_GOES_WITH = {"result": "in", "lead": "to"}
_COPULAS = _words("is are")
_CLAUSE = _words("that which who whose whom when while if because although though whether how why what where")
_UNSURE = _words("may might can could should would will must cannot appears appear seems seem likely")
_DENIES = _words("no not nor neither never fails fail failed lacks lack but however yet only")
_BEFORE = _words("the a an of in on for to with and or by from at as between")
"""No subject ends with one."""
_PLURALS = _words("children people patients men women bacteria data mice criteria teeth feet media")
_NO_PLURALS = _words("diabetes herpes measles mumps rabies ascites scabies")
_WORD = re.compile(r"\w[\w'’/+-]*|[,;:?]")
_DENIED = re.compile(
    r"\b(?:no|not|nor|neither|never|lacks?|lacked|failed|fails?|cannot|unable|absence)\b|n't\b", re.IGNORECASE
)
_TURNS = re.compile(r"\b(?:without|despite|however|but|although|though|whereas|while|only|except)\b", re.IGNORECASE)
_HEDGED = re.compile(
    r"\b(?:may|might|could|possibl[ey]|perhaps|potential(?:ly)?|unclear|uncertain|inconclusive|insufficient|limited|"
    r"seems?|appears?)\b|"
    r"\b(?:further|more|additional|larger|future)\b[^.]{0,60}\b(?:research|stud(?:y|ies)|trials?|evidence|investigation)",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Asked:
    """A question made of a title."""

    question: str
    decision: Literal["yes", "no"] | None
    """What the title answers, where it was a statement"""
    was_question: bool


def of_title(title: str, written: str = "") -> Asked | None:
    """The question of a title; None where it is neither a question nor surely a statement.

    `written` is the article's text, which shows whether a title's first word is written small elsewhere.
    """
    text = " ".join(title.split())
    if "?" in text:
        asked = text[: text.rindex("?") + 1]
        return Asked(asked, None, True) if len(asked.split()) >= FEWEST else None
    statement = text.rstrip(". ").partition(": ")[0]
    places = [(found[0], found.start(), found.end()) for found in _WORD.finditer(statement)]
    lower = [word.casefold() for word, _, _ in places]
    if not FEWEST <= len(places) <= MOST or _CLAUSE.intersection(lower) or _UNSURE.intersection(lower):
        return None
    verb = _verb(lower)
    if verb is None:
        return None
    at, length, front, base, denied = verb
    others = {*lower[:at], *lower[at + length :]}
    if others & (_DENIES | _FINITE):
        return None
    subject = _small(statement[: places[at][1]].strip(), written)
    rest = statement[places[at + length - 1][2] :].strip()
    if not rest:
        return None
    return Asked(
        f"{front} {' '.join(part for part in (subject, base, rest) if part)}?", "no" if denied else "yes", False
    )


def borne_out(decision: Literal["yes", "no"], conclusion: str) -> bool:
    """Whether a conclusion neither weakens nor contradicts a title's statement: nothing is denied in it where the title
    says yes, something is where it says no, and nothing is left open.
    """
    if _HEDGED.search(conclusion):
        return False
    if decision == "no":
        return bool(_DENIED.search(conclusion))
    return not _DENIED.search(conclusion) and not _TURNS.search(conclusion)


Verb = tuple[int, int, str, str, bool]
"""Index of the first word, number of words, what comes to the front, the verb that stays, whether it is negated"""


def _verb(said: list[str]) -> Verb | None:
    """The only verb that is finite; None where there is none or more than one."""
    found: list[Verb] = []
    for at in range(1, len(said)):
        verb = _at(said, at)
        if verb and (not found or at >= found[-1][0] + found[-1][1]):
            found.append(verb)
    return found[0] if len(found) == 1 else None


def _at(said: list[str], at: int) -> Verb | None:
    word, before, after = said[at], said[at - 1], said[at + 1] if at + 1 < len(said) else ""
    if before in _BEFORE or before in ",;:":
        return None
    if word in _COPULAS:
        denied = after == "not"
        return (at, 2 if denied else 1, word.capitalize(), "", denied)
    if word in ("does", "do") and after == "not" and at + 2 < len(said) and said[at + 2] in _BASES:
        return (at, 3, word.capitalize(), said[at + 2], True)
    plural = _is_plural(before)
    base = _SINGULAR.get(word) if not plural else None
    if base is None and word in _BASES and (plural or "and" in said[:at]):
        base = word
    if base is None or (base in _ALSO_NOUNS and after in _NOT_AFTER_NOUNS and _GOES_WITH.get(base) != after):
        return None
    return (at, 1, "Does" if word in _SINGULAR else "Do", base, False)


def _is_plural(word: str) -> bool:
    return word in _PLURALS or (
        word.endswith("s") and not word.endswith(("ss", "is", "us")) and word not in _NO_PLURALS
    )


def _small(subject: str, written: str) -> str:
    """The subject with its first word small, where the text writes it so or it is an English word and no name."""
    first, separator, rest = subject.partition(" ")
    small = first[:1].lower() + first[1:]
    is_word = small.isalpha() and small.islower() and rarity(small) < 1
    is_name = small in words.EPONYMS | words.PLACES | words.CITIES or words.is_name(small)
    if (is_word and not is_name) or re.search(rf"\b{re.escape(small)}\b", written):
        return f"{small}{separator}{rest}"
    return subject
