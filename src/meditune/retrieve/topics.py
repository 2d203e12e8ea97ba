"""What a passage's title says: which topic it is about, by which names, and what it tells of it.

MedQuAD's titles are made of templates ("What are the symptoms of Diabetes ? (Also called: Sugar disease)"; Ben Abacha
and Demner-Fushman 2019, https://doi.org/10.1186/s12859-019-3119-4). Any other title is a topic's name as it stands.

Which topics of the index a text names, by any of their names, misspelled ones included.

An index's titles are a free thesaurus: MedQuAD's give each topic's other names ("Also called"). A name is found
longest first and word by word, so that "type 2 diabetes" isn't also diabetes. A word that neither topics nor English
know is taken for the topics' word that is nearest in spelling.

MedQuAD as a thesaurus: what each of its documents' topics is also called.

All of its 11,274 documents count, also those whose answers the publisher had to remove: their topics, synonyms and UMLS
concepts are still there. Documents that are each marked with one and the same concept are about the same thing.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

from meditune.data.readers.medquad import parse_xml, texts, xml_files

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


LONGEST = 8
"""Words of the longest name that is looked for"""
KNOWN = 3.0
"""Zipf frequency (log10 of occurrences in 10^9 words) from which a word is English and not a slip"""
SHORTEST_SLIP = 5
"""Letters of a word that may be a slip; two letters of it may be wrong from `LONG_SLIP` on, else one"""
LONG_SLIP = 8
RARER = 1.0
"""By how much (Zipf) the word meant may be rarer than what was written: common slips are in the counts, too"""
SHORTEST_ACRONYM, MOST_OF_ACRONYM = 3, 4
"""Words of a name whose initials may stand for it, and topics that share such initials at most"""
_WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)?")
_BRACKETS = re.compile(r"\(([^()]*)\)")
TOO_COMMON = 4.8
"""Zipf frequency from which a single word ("doctor", "health") is no name that says anything"""


@dataclass(frozen=True)
class Mention:
    """A name in a text."""

    name: str
    """In the index's spelling, in small letters"""
    topics: frozenset[str]
    """All topics of that name"""
    start: int
    """Where it stands, in words of the text"""
    end: int
    exact: bool
    """Whether it was written so, up to case and plural"""
    weight: float
    """How much the name says: the rarer and the more words, the more"""

    @property
    def topic(self) -> str:
        """Of its topics the one that is called most like it, the shortest of several."""
        said = set(self.name.split())
        return min(self.topics, key=lambda name: (-len(said & set(words(name))), len(name), name))


class Synonyms:
    """Topics by their names."""

    def __init__(self, groups: Iterable[Sequence[str]]) -> None:
        """`groups`: names of one topic each, the topic itself first. The same topic may come several times."""
        self._topics: dict[tuple[str, ...], set[str]] = defaultdict(set)
        self._names: dict[str, set[str]] = defaultdict(set)
        initials: dict[str, set[str]] = defaultdict(set)
        for group in groups:
            topic = key(group[0])
            for written in group:
                for name in _variants(written):
                    parts = tuple(words(name))
                    if 0 < len(parts) <= LONGEST and _tells(parts):
                        self._topics[parts].add(topic)
                        self._names[topic].add(" ".join(name.casefold().split()))
                    if SHORTEST_ACRONYM <= len(parts) <= LONGEST and all(word.isalpha() for word in parts):
                        initials["".join(word[0] for word in parts)].add(topic)
        for letters, topics in initials.items():
            if len(topics) <= MOST_OF_ACRONYM and _frequency(letters) < KNOWN:
                self._topics[(letters,)] |= topics

    @classmethod
    def of_titles(cls, some: Iterable[str]) -> Synonyms:
        """The topics that passages' titles are about."""
        return cls(read(title).names for title in dict.fromkeys(some) if title)

    def names(self, topic: str) -> frozenset[str]:
        """All names of a topic, in small letters; empty where it isn't known."""
        return frozenset(self._names.get(key(topic), ()))

    def find(self, text: str) -> list[Mention]:
        """The names in a text, in its order; none within another."""
        written = words(text)
        meant = [self._corrected(word) for word in written]
        found: list[Mention] = []
        taken = [False] * len(meant)
        for length in range(min(LONGEST, len(meant)), 0, -1):
            for start in range(len(meant) - length + 1):
                name = tuple(meant[start : start + length])
                if name in self._topics and not any(taken[start : start + length]):
                    taken[start : start + length] = [True] * length
                    exact = list(name) == written[start : start + length]
                    weight = sum(says(word) for word in name)
                    topics = frozenset(self._topics[name])
                    found.append(Mention(" ".join(name), topics, start, start + length, exact, weight))
        return sorted(found, key=lambda mention: mention.start)

    def corrected(self, text: str) -> str:
        """The text with its slips put right, as far as they are in topics' words."""

        def right(found: re.Match[str]) -> str:
            word = found[0].casefold()
            meant = self._corrected(_singular(word))
            return found[0] if meant in (word, _singular(word)) else meant

        return _WORD.sub(right, text)

    def expand(self, text: str, most: int = 8) -> str:
        """The text with its slips corrected, and after it at most `most` other names of what it names."""
        there = set(words(text))
        more: list[str] = []
        for mention in sorted(self.find(text), key=lambda mention: -mention.weight):
            names = [mention.name, *sorted(name for topic in mention.topics for name in self.names(topic))]
            more.extend(name for name in names if name not in more and not set(words(name)) <= there)
        return "\n".join([text, *more[:most]])

    def _corrected(self, word: str) -> str:
        """The topics' word that was probably meant, or the word itself."""
        if word in self._vocabulary or len(word) < SHORTEST_SLIP or not word.isalpha() or _frequency(word) >= KNOWN:
            return word
        return _nearest(word, self._by_letter.get(word[0], ())) or word

    @cached_property
    def _vocabulary(self) -> frozenset[str]:
        return frozenset(word for name in self._topics for word in name)

    @cached_property
    def _by_letter(self) -> dict[str, list[str]]:
        grouped: dict[str, list[str]] = defaultdict(list)
        for word in sorted(self._vocabulary):
            if len(word) >= SHORTEST_SLIP - 1 and word.isalpha():
                grouped[word[0]].append(word)
        return grouped


def key(topic: str) -> str:
    """A topic's name as `Mention.topics` has it."""
    return " ".join(topic.casefold().strip(" ?").split())


def _tells(name: tuple[str, ...]) -> bool:
    """Whether a name says something: not one letter, a number or one of the commonest words."""
    return len(name) > 1 or (len(name[0]) > 1 and not name[0].isdigit() and _frequency(name[0]) < TOO_COMMON)


def _variants(name: str) -> list[str]:
    """A name as written, without and within brackets, and with "kind - of" turned round."""
    made = [name]
    inner = _BRACKETS.findall(name)
    if inner:
        made = [_BRACKETS.sub(" ", name), *inner]
    head, dash, tail = made[0].partition(" - ")
    if dash:
        made.append(f"{tail} {head}")
    return made


def words(text: str) -> list[str]:
    """Words in small letters, without possessive and plural endings."""
    found = _WORD.findall(text.casefold())
    if "'" in text or "’" in text:
        found = [word.replace("’", "'").removesuffix("'s").replace("'", "") for word in found]
    return list(map(_singular, found))


@lru_cache(maxsize=65536)
def _singular(word: str) -> str:
    if len(word) > 3 and word.endswith("s") and not word.endswith(("ss", "us", "is")):
        return word[:-1]
    return word


@lru_cache(maxsize=65536)
def _frequency(word: str) -> float:
    """On Zipf's scale; the higher of a word and its plural."""
    from wordfreq import zipf_frequency

    return max(zipf_frequency(word, "en"), zipf_frequency(f"{word}s", "en"))


def says(word: str) -> float:
    """From 0 for the commonest words to 7 for those that English doesn't know."""
    return max(0.0, 7.0 - _frequency(word))


def _nearest(word: str, candidates: Sequence[str]) -> str | None:
    """The candidate that differs by the fewest slips (letters left out, added, changed, swapped), if by few enough."""
    from rapidfuzz.distance import OSA
    from rapidfuzz.process import extract

    allowed = 2 if len(word) >= LONG_SLIP else 1
    found = extract(word, candidates, scorer=OSA.distance, score_cutoff=allowed, limit=5)
    best = min(found, key=lambda each: (each[1], -_frequency(each[0])), default=None)
    return best[0] if best and _frequency(best[0]) >= _frequency(word) - RARER else None


MOST_ALIKE = 4
"""Topics of one concept; more of them are aspects of a wide one ("Heart failure - tests") and not its names"""


def of_medquad(path: Path) -> Iterator[tuple[str, ...]]:
    """For each document its topic with all that it is called; the topic first. Files that can't be read are left out.

    Raises DataError where there are no XML files.
    """
    names: dict[str, dict[str, None]] = {}
    same: dict[str, list[str]] = defaultdict(list)
    for _, data in xml_files(path):
        try:
            document = parse_xml(data)
        except ValueError:
            continue
        topic = next(iter(texts(document, "Focus", "doctitle-focus")), "")
        if not topic:
            continue
        names.setdefault(topic, {topic: None}).update(dict.fromkeys(texts(document, "Synonym")))
        concepts = texts(document, "CUI")
        if len(concepts) == 1:
            same[concepts[0]].append(topic)
    for topics in same.values():
        if len(set(topics)) <= MOST_ALIKE:
            together = {name: None for topic in topics for name in names[topic]}
            for topic in topics:
                names[topic].update(together)
    for each in names.values():
        yield tuple(each)
