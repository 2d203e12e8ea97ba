"""Rules that detect an emergency in a message, and the answer to it: whom to call, and what to do until help comes.

The patterns of signs.yaml detect signs of danger, including misspelled ones, but not signs that are denied, asked about
in general, or long past.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import cache, lru_cache
from typing import Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, field_validator

from meditune.assistant.message_clauses import Clause, clauses, phrase_pattern, plain, texts_of, windows
from meditune.errors import DataError
from meditune.readability import per_million

NEAR = 60
"""The number of words within which signs belong together"""
KNOWN = 1.0
"""A word with at least this frequency, per million words, isn't treated as a misspelling"""
_GAP = r"(?:\\S+ ){0,4}?"


@lru_cache(maxsize=256)
def signs_in(message: str) -> tuple[frozenset[str], ...]:
    """Return the signs in a message, one set for each stretch of text within which signs belong together."""
    found = clauses(message, spelled)
    recurs = phrase_pattern("recurs").search(plain(message))
    signs = {id(clause): frozenset(_in(clause)) if clause.happening or recurs else frozenset() for clause in found}
    return tuple(frozenset().union(*(signs[id(clause)] for clause in stretch)) for stretch in windows(found, NEAR))


def _in(clause: Clause) -> Iterable[str]:
    for name, patterns in _patterns().items():
        if any(not _denied(clause, match) for pattern in patterns for match in pattern.finditer(clause.text)):
            yield name


def _denied(clause: Clause, match: re.Match[str]) -> bool:
    denial = rf"{phrase_pattern('denial').pattern}(?P<between>(?: \S+){{0,9}})$"
    begin = max(0, match.start() - 80, *(stop for stop in clause.stops if stop < match.start()))
    before = re.search(denial, clause.text[begin : match.start()].rstrip())
    return bool(before and not phrase_pattern("denial_ends").search(before["between"]))


def spelled(word: str) -> str:
    """Return a rare word's correction if it resembles a word of the patterns, else the word itself."""
    return _slip(word) if len(word) >= 5 and word.isalpha() else word


@lru_cache(maxsize=8192)
def _slip(word: str) -> str:
    from rapidfuzz.distance import OSA

    known = _vocabulary()
    if word in known or word in _requested() or per_million(word) >= KNOWN:
        return word
    most = 1 if len(word) < 8 else 2
    # Of equally near words, one with the same ending is meant: "overdosd" is "overdosed", not "overdose".
    near = [
        (OSA.distance(word, other, score_cutoff=most), other[-1] != word[-1], other)
        for other in known
        if other[0] == word[0]
    ]
    best = min(near, default=(most + 1, True, word))
    return best[2] if best[0] <= most else word


@cache
def _patterns() -> dict[str, tuple[re.Pattern[str], ...]]:
    texts = texts_of("signs")
    words = texts["words"]
    return {name: tuple(compiled(each, words) for each in patterns) for name, patterns in texts["signs"].items()}


def compiled(pattern: str, words: Mapping[str, str]) -> re.Pattern[str]:
    """Return a pattern with its shortcuts expanded. Raises DataError if it uses an undefined word list."""

    def put(match: re.Match[str]) -> str:
        if match[1] not in words:
            raise DataError(f"The pattern {pattern!r} uses @{match[1]}, but `words` doesn't define {match[1]}.")
        return words[match[1]]

    written = re.sub(r"@(\w+)", put, pattern)
    written = re.sub(r"(?<=\w)\*", r"\\w*", written)
    written = re.sub(r"(?<!\w)_ ", _GAP, written)
    return re.compile(rf"\b(?:{written})(?!\w)")


@cache
def _vocabulary() -> frozenset[str]:
    text = " ".join(
        [
            *texts_of("signs")["words"].values(),
            *(each for group in texts_of("signs")["signs"].values() for each in group),
        ]
    )
    found: set[str] = set()
    for word, star in re.findall(r"([a-z]{4,})(\*?)", re.sub(r"\\\w|@\w+", " ", text)):
        found |= _inflected(word) if star else {word}
    return frozenset(word for word in found if len(word) >= 5)


def _inflected(start: str) -> set[str]:
    """Return the forms of a word that begin like a pattern such as "stop*", with a doubled consonant where usual."""
    found = {start, f"{start}s", f"{start}ness"}
    for ending in ("ing", "ed"):
        forms = start + ending, start + start[-1] + ending
        found.add(max(forms, key=per_million))
    return found


@cache
def _requested() -> frozenset[str]:
    """Return the words of requests.yaml, such as names of medicines, which aren't misspelled signs of danger."""
    texts = texts_of("requests")
    patterns = [*texts["words"].values(), *texts["dose"]]
    return frozenset(re.findall(r"[a-z]{5,}", " ".join(patterns)))


Help = Literal["emergency", "poison", "crisis"]


class Numbers(BaseModel):
    """The emergency numbers of one country."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    emergency: str
    poison: str
    crisis: str


class Rule(NamedTuple):
    """A combination of signs that is an emergency."""

    needs: frozenset[str]
    excludes: frozenset[str]

    def is_met(self, seen: frozenset[str]) -> bool:
        """Return whether all required signs are present, and no excluded sign is."""
        return self.needs <= seen and not self.excludes & seen


class EmergencyKind(BaseModel):
    """A kind of emergency, with its rules and its answer; an entry of emergencies.yaml."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(alias="kind")
    title: str
    help: Help
    rules: tuple[Rule, ...]
    opening: str
    then: tuple[str, ...]

    @field_validator("rules", mode="before")
    @classmethod
    def _parsed(cls, texts: list[str]) -> list[Rule]:
        return [_rule(text) for text in texts]

    def answer(self, numbers: Numbers) -> str:
        """Return the answer to a message about this emergency."""
        call = f"Call {numbers.emergency} now, or have someone call, or go to the nearest emergency department."
        if self.help == "crisis":
            call = (
                f"Call {numbers.crisis} now. If there is danger right now, call {numbers.emergency} or go to the "
                "nearest emergency department."
            )
        if self.help == "poison":
            call = (
                f"Call {numbers.emergency} now if anyone is drowsy, has trouble breathing or has collapsed. Otherwise "
                f"call {numbers.poison} right now, or go to the nearest emergency department; do so even without "
                "symptoms."
            )
        first = (self.opening, call) if self.help == "crisis" else (call, self.opening)
        then = (f"- {line.format(**numbers.model_dump())}" for line in self.then)
        return "\n".join((*first, *then))


def emergency(message: str) -> EmergencyKind | None:
    """Return the most urgent kind of emergency in a message; None if there is none."""
    stretches = signs_in(message)
    for kind in emergency_kinds():
        if any(rule.is_met(seen) for seen in stretches for rule in kind.rules):
            return kind
    return None


def mentions_emergency(message: str) -> bool:
    """Return whether a message mentions an emergency, even if nobody in it seems to have one."""
    seen = frozenset(sign for clause in clauses(message, spelled) for sign in _in(clause))
    return any(rule.is_met(seen) for kind in emergency_kinds() for rule in kind.rules)


def emergency_named(name: str) -> EmergencyKind:
    """Return the kind of emergency with this name."""
    return next(kind for kind in emergency_kinds() if kind.name == name)


@cache
def emergency_kinds() -> tuple[EmergencyKind, ...]:
    """Return all kinds of emergencies, the most urgent first. Raises DataError if a rule names an unknown sign."""
    return tuple(map(EmergencyKind.model_validate, texts_of("emergencies")))


def emergency_numbers(country: str = "") -> Numbers:
    """Return the emergency numbers of a country (ISO 3166, such as GB); without a country, texts that apply everywhere.

    Raises DataError if the country is unknown.
    """
    known = texts_of("numbers")
    if country.upper() not in known:
        raise DataError(
            f"Meditune has no emergency numbers for country {country!r}. Known countries: "
            f"{', '.join(filter(None, known))}."
        )
    return Numbers.model_validate(known[country.upper()])


def _rule(text: str) -> Rule:
    """Parse the names of signs; a minus precedes each excluded sign. Raises DataError if a sign is unknown."""
    needs = frozenset(part for part in text.split() if not part.startswith("-"))
    excludes = frozenset(part[1:] for part in text.split() if part.startswith("-"))
    unknown = (needs | excludes) - _patterns().keys()
    if unknown:
        raise DataError(f"emergencies.yaml: {text!r} names signs that signs.yaml doesn't define: {', '.join(unknown)}.")
    return Rule(needs, excludes)
