"""What a passage's title says: which topic it is about, by which names, and what it tells of it.

MedQuAD's titles are made of templates ("What are the symptoms of Diabetes ? (Also called: Sugar disease)"; Ben Abacha
and Demner-Fushman 2019, https://doi.org/10.1186/s12859-019-3119-4). Any other title is a topic's name as it stands.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

_WORDINGS = {
    "symptoms": ("what are the symptoms of X", "what are the signs and symptoms of X", "what are the symptoms for X"),
    "treatment": ("what are the treatments for X", "is there any treatment for X", "how can X be treated"),
    "inheritance": ("is X inherited",),
    "frequency": ("how many people are affected by X", "how common is X"),
    "genetic changes": ("what are the genetic changes related to X",),
    "causes": ("what causes X",),
    "exams and tests": ("how to diagnose X", "how is X diagnosed"),
    "research": ("what research (or clinical trials) is being done for X", "what research is being done for X"),
    "outlook": ("what is the outlook for X", "what is the prognosis for X", "what to expect for X"),
    "susceptibility": ("who is at risk for X",),
    "considerations": (
        "what to do for X",
        "what to do in case of emergency or overdose of X",
        "what to do in case of X",
        "do i need to see a doctor for X",
    ),
    "prevention": ("how to prevent X", "how can X be prevented"),
    "stages": ("what are the stages of X",),
    "complications": ("what are the complications of X", "are there complications from X"),
    "support groups": ("where to find support for people with X",),
    "side effects": ("what are the side effects or risks of X", "what are the side effects of X"),
    "usage": (
        "who should get X and why is it prescribed",
        "who should get X",
        "why get vaccinated with X",
        "how effective is X",
        "what is the action of X and how does it work",
    ),
    "dosage": ("how should X be used and what is the dosage", "what is the dosage of X"),
    "missed dose": ("what should i do if i forget a dose of X",),
    "storage and disposal": ("what should i know about storage and disposal of X",),
    "precautions": (
        "who should not get X",
        "what important warning or information should i know about X",
        "are there safety concerns or special precautions about X",
        "what special dietary instructions should i follow with X",
    ),
    "interactions": (
        "are there interactions between X and other medications",
        "are there interactions between X and herbs and supplements",
        "are there interactions between X and foods",
    ),
    "brand names": ("what are the brand names of X", "what are the brand names of combination products of X"),
    "information": (
        "do you have information about X",
        "what other information should i know about X",
        "how can i learn more about X",
        "what is (are) X",
        "what is X",
        "what are X",
    ),
}
"""Kinds of question, most named as in MedQuAD, in the words of its titles; the first that fits counts"""
_TEMPLATES = tuple(
    (re.compile(re.escape(wording).replace("X", "(?P<topic>.+?)") + r"\s*[?.]?", re.IGNORECASE), kind)
    for kind, wordings in _WORDINGS.items()
    for wording in wordings
)
_ALSO = re.compile(r"\(Also called:(?P<names>.*?)\)?\s*$", re.IGNORECASE)
KINDS = tuple(_WORDINGS)


@dataclass(frozen=True)
class Title:
    """A title taken apart."""

    topic: str
    names: tuple[str, ...]
    """All that the topic is called, `topic` first"""
    kind: str
    """What is told of it, one of KINDS; empty where the title doesn't say"""


@lru_cache(maxsize=65536)
def read(title: str) -> Title:
    """The title's topic, its names and the kind of question that the passage answers."""
    also = _ALSO.search(title)
    plain = " ".join((title[: also.start()] if also else title).split())
    others = [name.strip() for name in also["names"].split(";")] if also else []
    for pattern, kind in _TEMPLATES:
        found = pattern.fullmatch(plain)
        if found:
            return Title(found["topic"], _once([found["topic"], *others]), kind)
    return Title(plain, _once([plain, *others]), "")


def _once(names: Sequence[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name for name in names if name))
