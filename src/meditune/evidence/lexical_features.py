"""Features of words in medical English, which the detector compares.

A word has a stem and a weight by information content. Words that can reverse a finding are negations, directions
("increase"), limits ("above 5") and advice ("stop"). Names (drugs, diseases, procedures, abbreviations, proper names)
are recognized by their shape.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, lru_cache
from math import log
from pathlib import Path
from typing import Literal

from meditune.evidence.quantities import AMOUNT, amount
from meditune.files import package_lines, package_table
from meditune.text import LETTERED

_TOKEN = re.compile(r"\d+(?:[.,]\d+)*|[^\W\d_][^\W_]*(?:['’][^\W\d_]+)?")
_STAGED = "(?:(?<=type )|(?<=class )|(?<=stage )|(?<=phase )|(?<=grade ))"
_LOWER_LETTER = (
    r"(?:[b-hj-z](?![.-]\w)"
    r"|a(?=[.,;:)/]|$| (?:and|or|is|are|was|were|can|may|has|causes?|spreads?|virus|infection|vaccin\w+|deficien\w+)\b)"
    rf"|i{{2,3}}|vi{{1,3}}|ix|{_STAGED}iv"
    rf"|{_STAGED}i(?=$| (?:diabet|collagen|interferon|hypersensi|reaction|disorder|error|trial|and\b|or\b|to\b)))"
)
"""A lowercase letter or numeral, but neither the article in "hepatitis a few" nor the pronoun in "factor i saw" """
_LETTER = rf"(?:[IVX]{{1,4}}[A-Ca-c]?|[A-Z]|\d(?![.,]?\d)|{_LOWER_LETTER})\b(?!['’(])"
_LETTERS = re.compile(
    r"\b(?![Ff]actors? I (?!(?:deficien|level|is|was|and|or|concentrate|inhibit|activity)\w*\b)[a-z])"
    rf"(?P<word>(?i:{LETTERED.pattern}))s?(?:(?P<bracket> \()| virus(?:es)? |[ -])"
    rf"(?P<letters>{_LETTER}(?:(?:, (?:and |or )?|[/–-]| and | or | to ){_LETTER})*)(?(bracket)\))"
)  # "hepatitis A", "types I and II", "grade 3", "vitamins (A and D)", but not "the risk factor I found"
_NUMERALS = ("i", "ii", "iii", "iv", "v", "vi", "vii", "viii", "ix", "x")
_ROMAN = {numeral: str(value) for value, numeral in enumerate(_NUMERALS, start=1)}
_SHORT = re.compile(r"['’](?:s|re|ve|ll|d|m)$")
_LISTS = package_table(Path(__file__).with_name("word_lists.yaml"))
_FUNCTION_WORDS = frozenset(_LISTS["function_words"].split())
_REPORTING = frozenset(_LISTS["reporting_words"].split())
_ENDINGS = tuple(sorted(_LISTS["endings"].split(), key=len, reverse=True))


@dataclass(frozen=True)
class Token:
    """A word or number in a text, with its position."""

    text: str
    start: int
    end: int
    of: str = ""
    """The word that a letter or numeral belongs to: "hepatitis" for the A in "hepatitis A"; empty for other words"""

    @property
    def stem(self) -> str:
        """The stem by which words are compared; for a letter or numeral, preceded by the stem of its word."""
        low = self.text.lower()
        return f"{stem(self.of)} {_ROMAN.get(low, low)}" if self.of else stem(self.text)

    @property
    def weight(self) -> float:
        """The information weight; 1 for a letter that belongs to a word, because it names another thing."""
        return 1.0 if self.of else information_weight(self.text)

    @property
    def is_number(self) -> bool:
        """Return whether the token is a number in digits."""
        return self.text[0].isdigit()


def tokens(text: str) -> list[Token]:
    """Return the words and numbers in a text, in order; a hyphen separates two words."""
    of = {
        letter.start(): match["word"]
        for match in _LETTERS.finditer(text)
        for letter in re.compile(_LETTER).finditer(text, *match.span("letters"))
    }
    return [Token(match[0], match.start(), match.end(), of.get(match.start(), "")) for match in _TOKEN.finditer(text)]


@lru_cache(maxsize=65536)
def stem(word: str) -> str:
    """Return the word in lowercase and without its ending; synonyms share one stem."""
    return _synonyms().get(plain := _bare(word.lower()), plain)


@lru_cache(maxsize=65536)
def information_weight(word: str) -> float:
    """Return a word's information weight, 0 to 1.

    The weight is 0 for function words and 0.1 for words that can report any finding ("results"). For other words, it
    grows with rarity from 0.25 to 1.
    """
    low = _SHORT.sub("", word.lower())
    if low in _FUNCTION_WORDS or (len(low) < 3 and low.islower() and not word.isupper()):
        return 0.0
    if low in _REPORTING:
        return 0.1
    return 0.25 + 0.75 * rarity(low)


@lru_cache(maxsize=65536)
def rarity(word: str) -> float:
    """Return a rarity from 0 (the most common English words) to 1 (not in common.txt), by the rank in common.txt."""
    ranks = _ranks()
    low = word.lower()
    rank = min(ranks.get(form, len(ranks)) for form in (low, low.removesuffix("s"), low.removesuffix("es")))
    return max(0.0, log((rank + 1) / 100) / log((len(ranks) + 1) / 100))


@cache
def _ranks() -> dict[str, int]:
    words = (word for line in package_lines(Path(__file__).with_name("common.txt")) for word in line.split())
    return {word: rank for rank, word in enumerate(words)}


@cache
def _synonyms() -> dict[str, str]:
    found: dict[str, str] = {}
    for group in _LISTS["synonyms"]:
        words = group.split()
        for word in words:
            found.setdefault(_bare(word), _bare(words[0]))
    return found


def _bare(low: str) -> str:
    low = _SHORT.sub("", low).replace("aemi", "emi").replace("oede", "ede").replace("our", "or")
    for ending in _ENDINGS:
        if low.endswith(ending) and len(low) - len(ending) >= 4:
            low = low[: -len(ending)]
            break
    return low[:-1] if low.endswith(("duct", "e")) and len(low) > 4 else low


NUMBER = re.compile(r"(?<![\w.,-])\d+(?:,\d{3})*(?:\.\d+)?(?!\w)")
AUXILIARY = r"is|are|was|were|do|does|did|can|could|may|might|must|should|has|have|had|will|would"
NEGATED = re.compile(
    rf"\b(?:(?P<plain>{AUXILIARY})(?: not\b|n't\b|n’t\b)|cannot\b|can['’]t\b|no(?= [a-z]))", re.IGNORECASE
)
"""A negation that can be removed; the group `plain` is the auxiliary verb without the negation, if there is one"""
NEGATABLE = re.compile(rf"\b(?:{AUXILIARY})\b(?! not\b|['’]t)", re.IGNORECASE)
"""An auxiliary verb that can be negated"""
NEGATIVE = re.compile(
    r"\b(?:not|no|none|never|neither|nor|without|cannot|lack(?:s|ed|ing)?|fail(?:s|ed)?|absence)\b|n['’]t\b",
    re.IGNORECASE,
)
"""A word that negates a sentence"""
_PAIRS = [(pair.partition("/")[0], pair.partition("/")[2]) for pair in _LISTS["opposites"].split()]
OPPOSITE = dict(_PAIRS) | {second: first for first, second in _PAIRS}
"""Direction word -> its opposite, which reverses a finding"""
DIRECTION = re.compile(rf"\b(?:{'|'.join(sorted(OPPOSITE, key=len, reverse=True))})\b", re.IGNORECASE)
_SIDE = {
    word: (axis, side)
    for axis, sides in enumerate(_LISTS["opposite_groups"])
    for side, text in enumerate(sides)
    for word in text.split()
}
_GROUPED = re.compile(rf"\b(?:{'|'.join(sorted(_SIDE, key=len, reverse=True))})\b", re.IGNORECASE)
_LIMIT = re.compile(
    r"\b(?:(?P<above>above|over|exceeding|at least|(?:more|greater|higher|older) than)|"
    r"(?P<below>below|under|at most|up to|(?:less|fewer|lower|younger) than))\b"
    rf"(?: (?:the )?(?:age )?(?:of )?(?P<number>{AMOUNT})\b)?",
    re.IGNORECASE,
)
_REACH = 60
"""Number of characters before a word in which a negation of that word is searched for"""
_DENIED = re.compile(r"(?:\b(?:not|never|no|cannot|without)|n['’]t)(?: \w+){0,3} $", re.IGNORECASE)
_ADVISED_AGAINST = re.compile(r"\b(?:avoid|stop|discontinu|contraindicat|against)\w*(?: \w+){0,3} $", re.IGNORECASE)


@dataclass(frozen=True)
class Direction:
    """A word that gives a finding or a piece of advice its direction, with the word's position."""

    start: int
    end: int
    direction: str
    """A code that words of the same direction share"""
    opposite: str
    """The code of the words of the opposite direction"""
    only_turned: bool = False
    """True for words of opposite groups and limits, which count only if the sources clearly say the opposite"""


def directions(text: str) -> Iterator[Direction]:
    """Yield the words in a text that give it a direction; limits are opposites only if their numbers are equal.

    Negated limits and words of opposite groups are left out, such as "not recommended" and "avoid using".
    """
    for match in DIRECTION.finditer(text):
        yield Direction(match.start(), match.end(), stem(match[0]), stem(OPPOSITE[match[0].lower()]))
    for match in _GROUPED.finditer(text):
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
            stated, opposite = sides if match["above"] else sides[::-1]
            yield Direction(match.start(), match.start() + len(word), stated, opposite, only_turned=True)


def value(number: str) -> float:
    """Return the value of a number that matches NUMBER."""
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
"""A phrase that reports no difference, no effect or no association"""


NameKind = Literal["drug", "disease", "procedure", "abbreviation", "name"]

_HEAD = re.compile(r"[ -](?:disease|syndrome|disorder|fever|palsy|virus|infection|deficiency|anomaly)s?\b", re.I)
_NAME_ENDINGS: dict[NameKind, str] = {
    "disease": _LISTS["disease_endings"],
    "drug": _LISTS["drug_endings"],
    "procedure": _LISTS["procedure_endings"],
}
_SHAPES = {
    kind: re.compile(rf"\w{{2,}}(?:{'|'.join(endings.split())})s?", re.I) for kind, endings in _NAME_ENDINGS.items()
}
_WHOLE: dict[NameKind, frozenset[str]] = {
    "disease": frozenset(_LISTS["diseases"].split()),
    "drug": frozenset(_LISTS["drugs"].split()),
}
STANDS_FOR = {
    letters: [[stem(word) for word in words.split()] for words in meanings]
    for letters, meanings in _LISTS["abbreviations"].items()
}
"""An abbreviation of two letters in lowercase -> the stems of the words that it can stand for"""
_CAPITALS = re.compile(r"(?:[A-Z][a-z]?[\d/-]*){2,}s?")
DEFINED = re.compile(r"\(\s*([A-Za-z][\w/-]{1,9})\s*[;,)]")
COMMON = 0.75
"""Minimum rarity of a word that counts as a name because of its ending; "examine" and "promise" are too common"""
_ORDINARY = "cholesterol diploma diplomas aroma aromas chromosome telephone microphone saxophone"


@dataclass(frozen=True)
class Name:
    """A name with its position."""

    text: str
    kind: NameKind
    start: int
    end: int


def names(text: str) -> Iterator[Name]:
    """Yield the names in a text, in order; each name is a single word."""
    shouted = sum(char.isupper() for char in text) > 0.5 * sum(char.isalpha() for char in text)
    for token in tokens(text):
        before = text[: token.start].rstrip("\"'([ ")
        kind = kind_of(token.text, first=not before or before[-1] in ".!?:")
        if not kind and rarity(token.text) > 0.6 and _HEAD.match(text, token.end):
            kind = "disease"
        if kind and not (shouted and kind in ("abbreviation", "name")):
            yield Name(token.text, kind, token.start, token.end)


def kind_of(word: str, first: bool = False) -> NameKind | None:
    """Return the kind of name that a word's shape indicates, or None.

    With `first`, the word begins a sentence, so its capital letter is ignored.
    """
    if word.isdigit() or len(word) < 2:
        return None
    if sum(char.isupper() for char in word) > 1 and _CAPITALS.fullmatch(word):
        return "abbreviation"
    low = word.lower()
    for kind, words in _WHOLE.items():
        if low in words or low.removesuffix("s") in words:
            return kind
    if len(word) > 5 and rarity(word) >= COMMON and low not in _ORDINARY.split():
        for kind, shape in _SHAPES.items():
            if shape.fullmatch(word):
                return kind
    if word[0].isupper() and not first and len(word) > 2 and rarity(word) > 0.3:
        return "name"
    return None
