"""Rules for requests that get a bounded answer or none: doses, diagnoses, harmful requests, other topics."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from meditune.assistant import emergencies
from meditune.assistant.message_clauses import WORD, plain, texts_of
from meditune.data.quality.quality_filters import is_health_word
from meditune.evidence.lexical_features import kind_of
from meditune.retrieve.prompt_injection import is_override
from meditune.text import sentences

SHORT = 25
"""The maximum number of words of a message that can be declined only because of its words from another field"""
MAX_SEARCH_WORDS = 7
"""The maximum number of words of a search, in contrast to a sentence"""
_ALSO = re.compile(
    r"(?:cigarette|alcohol|erecti|spastic|crav|pubert|toddler|sids|libido|hygien|caffein|nicotin|disabil)\w*"
)
"""Health words, in addition to those of quality control"""
_FOR_OTHERS = re.compile(
    r"\b(?:give|giving|put|putting|test|testing|treat|treating|inject|slip|sneak|crush|infect\w*|make|making|hide|swap|"
    r"stop|stopping) (?:(?!without|so)\w+ ){0,3}?(?:my|him|her|them|his|their|someone|somebody|people)\b"
)
"""Phrases about testing, treating or giving something to other people"""
_PERSONAL = re.compile(
    r"\b(?:i|i am|me|my|mine|he|his|she|her|him|we|our|baby|child|son|daughter|toddler|kid|boy|girl|year old|month old"
    r"|kg|mother|father|wife|husband|mum|mom|dad|grand\w+|little one)\b"
)


@dataclass(frozen=True)
class HarmfulRequest:
    """A kind of harmful request, with the patterns that detect it and its answer."""

    name: str
    patterns: tuple[re.Pattern[str], ...]
    answer: str


def harmful_request(message: str) -> HarmfulRequest | None:
    """Return the kind of harmful request in a message; None if there is none."""
    words = _words(message)
    return next((each for each in _unsafe() if any(pattern.search(words) for pattern in each.patterns)), None)


def harmful_request_named(name: str) -> HarmfulRequest:
    """Return the kind of harmful request with this name."""
    return next(each for each in _unsafe() if each.name == name)


def is_confidential_care(message: str) -> bool:
    """Return whether the sender wants confidential care for themselves."""
    words = _words(message)
    return any(pattern.search(words) for pattern in _patterns("confidential")) and not _FOR_OTHERS.search(words)


def is_clinical_extraction(message: str) -> bool:
    """Return whether a message is a few search words about the extraction of teeth, cataracts, babies or DNA.

    The classifier was trained on sentences, and takes such searches ("DNA extraction kit") for the making of drugs.
    """
    words = _words(message)
    is_search = len(words.split()) <= MAX_SEARCH_WORDS
    about = any(each.search(words) for each in _patterns("clinical_extraction"))
    return is_search and about and not any(each.search(words) for each in _patterns("not_clinical_extraction"))


def asks_dose(message: str) -> bool:
    """Return whether a message asks how much of a medicine to take or give."""
    words = _words(message)
    if any(pattern.search(words) for pattern in _patterns("surely_dose")):
        return True
    is_search = len(words.split()) <= MAX_SEARCH_WORDS and not is_clinical_extraction(message)
    if is_search and _names_medicine(words) and any(pattern.search(words) for pattern in _patterns("dose_search")):
        return True
    return any(pattern.search(words) for pattern in _patterns("dose")) and _names_drug(message)


def asks_diagnosis(message: str) -> bool:
    """Return whether a message asks what disease someone has."""
    words = _words(message)
    return bool(_PERSONAL.search(words)) and any(pattern.search(words) for pattern in _patterns("diagnosis"))


def is_outside(message: str) -> bool:
    """Return whether a message is clearly not about health: it contains words of another field, but no health words."""
    words = WORD.findall(plain(message))
    text = " ".join(words)
    if len(words) > SHORT and not _is_surely_outside(text):
        return False  # long messages contain words of many fields
    if not any(pattern.search(text) for pattern in _patterns("outside")) or _names_drug(message):
        return False
    return _is_surely_outside(text) or not any(is_health_word(word) or _ALSO.fullmatch(word) for word in words)


def without_instructions(message: str) -> tuple[str, int]:
    """Return the message without sentences that instruct the model, and the number of those sentences.

    The message is empty if it consists only of such sentences.
    """
    every = [sentence for line in message.splitlines() for sentence in sentences(line)]
    remaining = [sentence for sentence in every if not is_override(sentence)]
    return (message, 0) if len(remaining) == len(every) else (" ".join(remaining), len(every) - len(remaining))


def _is_surely_outside(text: str) -> bool:
    return any(pattern.search(text) for pattern in _patterns("surely_outside"))


def _names_drug(message: str) -> bool:
    words = _words(message)
    named = emergencies.compiled("(dose*|dosage|@amount)", texts_of("requests")["words"]).search(words)
    return bool(named) or _names_medicine(words)


def _names_medicine(words: str) -> bool:
    named = emergencies.compiled("@drug", texts_of("requests")["words"]).search(words)
    return bool(named) or any(kind_of(word) == "drug" for word in words.split())


def _words(message: str) -> str:
    return " ".join(emergencies.spelled(word) for word in WORD.findall(plain(message)))


@cache
def _unsafe() -> tuple[HarmfulRequest, ...]:
    return tuple(
        HarmfulRequest(each["name"], _compiled(each["patterns"]), each["answer"])
        for each in texts_of("requests")["unsafe"]
    )


@cache
def _patterns(name: str) -> tuple[re.Pattern[str], ...]:
    return _compiled(texts_of("requests")[name])


def _compiled(patterns: Sequence[str]) -> tuple[re.Pattern[str], ...]:
    return tuple(emergencies.compiled(each.strip(), texts_of("requests")["words"]) for each in patterns)
