"""Requests that get an answer with limits, or none: doses, diagnoses, what is unsafe, what isn't about health."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from meditune.assistant import emergencies
from meditune.assistant.message_clauses import WORD, plain
from meditune.data.quality.rules import is_health_word
from meditune.retrieve.prompt_injection import is_override
from meditune.text import sentences

HERE = Path(__file__).parent
SHORT = 25
"""Words of a message that may be declined for words of another field"""
_ALSO = re.compile(
    r"(?:cigarette|alcohol|erecti|spastic|crav|pubert|toddler|sids|libido|hygien|caffein|nicotin|disabil)\w*"
)
"""Words of health beside those of quality control"""
_FOR_OTHERS = re.compile(
    r"\b(?:give|giving|put|putting|test|testing|treat|treating|inject|slip|sneak|crush|infect\w*|make|making|hide|swap|"
    r"stop|stopping) (?:(?!without|so)\w+ ){0,3}?(?:my|him|her|them|his|their|someone|somebody|people)\b"
)
"""Others are tested, treated or given something"""
_PERSONAL = re.compile(
    r"\b(?:i|i am|me|my|mine|he|his|she|her|him|we|our|baby|child|son|daughter|toddler|kid|boy|girl|year old|month old"
    r"|kg|mother|father|wife|husband|mum|mom|dad|grand\w+|little one)\b"
)


@dataclass(frozen=True)
class HarmfulRequest:
    """Something that isn't explained, and why."""

    name: str
    patterns: tuple[re.Pattern[str], ...]
    answer: str


def harmful_request(message: str) -> HarmfulRequest | None:
    """What the message asks for that would do harm; None where it asks for nothing of the kind."""
    words = _words(message)
    return next((each for each in _unsafe() if any(pattern.search(words) for pattern in each.patterns)), None)


def harmful_request_named(name: str) -> HarmfulRequest:
    """Return the kind of unsafe request of that name."""
    return next(each for each in _unsafe() if each.name == name)


def is_confidential_care(message: str) -> bool:
    """Return whether somebody wants care of their own without others hearing of it."""
    words = _words(message)
    return any(pattern.search(words) for pattern in _patterns("confidential")) and not _FOR_OTHERS.search(words)


def asks_dose(message: str) -> bool:
    """Whether somebody wants to know how much of a medicine to take or give."""
    return any(pattern.search(_words(message)) for pattern in _patterns("dose")) and _names_drug(message)


def asks_diagnosis(message: str) -> bool:
    """Whether somebody wants to know what they or another one have."""
    words = _words(message)
    return bool(_PERSONAL.search(words)) and any(pattern.search(words) for pattern in _patterns("diagnosis"))


def is_outside(message: str) -> bool:
    """Whether a message is surely about something else than health: words of another field, and none of health."""
    words = WORD.findall(plain(message))
    text = " ".join(words)
    if len(words) > SHORT and not _surely(text):
        return False  # a long message has words of many fields
    outside = any(pattern.search(text) for pattern in _patterns("outside"))
    return outside and not (_names_drug(message) or (any(map(_is_health_word, words)) and not _surely(text)))


def without_instructions(message: str) -> tuple[str, int]:
    """The message without sentences that tell the model how to behave, and how many those were.

    A message that is nothing but such sentences is left empty.
    """
    said = [sentence for line in message.splitlines() for sentence in sentences(line)]
    kept = [sentence for sentence in said if not is_override(sentence)]
    return (message, 0) if len(kept) == len(said) else (" ".join(kept), len(said) - len(kept))


def _is_health_word(word: str) -> bool:
    return is_health_word(word) or bool(_ALSO.fullmatch(word))


def _surely(text: str) -> bool:
    return any(pattern.search(text) for pattern in _patterns("surely_outside"))


def _names_drug(message: str) -> bool:
    return bool(_drug().search(_words(message)))


def _words(message: str) -> str:
    return " ".join(emergencies.spelled(word) for word in WORD.findall(plain(message)))


@cache
def _unsafe() -> tuple[HarmfulRequest, ...]:
    texts = _texts()
    return tuple(
        HarmfulRequest(
            each["name"],
            tuple(emergencies.compiled(p.strip(), texts["words"]) for p in each["patterns"]),
            each["answer"],
        )
        for each in texts["unsafe"]
    )


@cache
def _patterns(name: str) -> tuple[re.Pattern[str], ...]:
    words: Mapping[str, str] = _texts()["words"]
    return tuple(emergencies.compiled(each.strip(), words) for each in _texts()[name])


@cache
def _drug() -> re.Pattern[str]:
    return emergencies.compiled("(@drug|dose*|dosage|@amount)", _texts()["words"])


@cache
def _texts() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((HERE / "requests.yaml").read_text(encoding="utf-8"))
    return loaded
