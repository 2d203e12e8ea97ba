"""Topics: the topic of a passage's title, and the topics that a text mentions under any of their names.

MedQuAD's titles follow templates, such as "What are the symptoms of Diabetes ? (Also called: Sugar disease)" (Ben
Abacha and Demner-Fushman 2019, https://doi.org/10.1186/s12859-019-3119-4). Any other title is itself a topic. The
titles, MedQuAD's synonyms and its UMLS concepts form a thesaurus. Names are matched word by word, the longest names
first, so that "type 2 diabetes" doesn't also match "diabetes". A word that is neither part of a topic's name nor common
in English is replaced with the most similar word of the names.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

from meditune.data.readers.medquad import parse_xml, texts, xml_files
from meditune.files import package_table

QUESTION_KINDS: dict[str, dict[str, list[str]]] = package_table(Path(__file__).with_name("question_kinds.yaml"))
_TEMPLATES = tuple(
    (re.compile(re.escape(wording).replace("X", "(?P<topic>.+?)") + r"\s*[?.]?", re.IGNORECASE), kind)
    for kind, wordings in QUESTION_KINDS["titles"].items()
    for wording in wordings
)
_ALSO = re.compile(r"\(Also called:(?P<names>.*?)\)?\s*$", re.IGNORECASE)


@dataclass(frozen=True)
class Title:
    """A parsed title."""

    topic: str
    names: tuple[str, ...]  # All names of the topic, `topic` first
    kind: str  # The kind of question that the passage answers, as in question_kinds.yaml; empty if unknown


@lru_cache(maxsize=65536)
def read(title: str) -> Title:
    """Return the title's topic, the topic's names, and the kind of question that the passage answers."""
    also = _ALSO.search(title)
    plain = " ".join((title[: also.start()] if also else title).split())
    others = [name.strip() for name in also["names"].split(";")] if also else []
    matches = ((pattern.fullmatch(plain), kind) for pattern, kind in _TEMPLATES)
    topic, kind = next(((found["topic"], kind) for found, kind in matches if found), (plain, ""))
    return Title(topic, tuple(dict.fromkeys(filter(None, [topic, *others]))), kind)


MAX_NAME_WORDS = 8  # Maximum number of words in a name
KNOWN = 3.0  # Zipf frequency (log10 of occurrences in 10^9 words) from which a word isn't a misspelling
MIN_TYPO_LETTERS = 5  # Minimum length of a word in which one letter may be wrong
TWO_TYPO_LETTERS = 8  # Minimum length of a word in which two letters may be wrong
RARER = 1.0  # Zipf difference by which the intended word may be rarer, since the counts include misspellings
MIN_ACRONYM_WORDS, MAX_ACRONYM_TOPICS = 3, 4  # Minimum words of a name for an acronym; maximum topics per acronym
_WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)?")
_BRACKETS = re.compile(r"\(([^()]*)\)")
TOO_COMMON = 4.8  # Zipf frequency from which a single word ("doctor", "health") is too common to be a name


@dataclass(frozen=True)
class Mention:
    """A topic's name that occurs in a text."""

    name: str  # In the index's spelling, in lowercase
    topics: frozenset[str]  # All topics with this name
    start: int  # Position (0-based) of the name's first word among the words of the text
    weight: float  # How informative the name is; higher for rare words and for many words

    @property
    def topic(self) -> str:
        """The topic that has the most words in common with this name; if there are several, the shortest one."""
        own_words = set(self.name.split())
        return min(self.topics, key=lambda name: (-len(own_words & set(words(name))), len(name), name))


class Synonyms:
    """A thesaurus, which finds topics by any of their names."""

    def __init__(self, groups: Iterable[Sequence[str]]) -> None:
        """Each group contains the names of one topic, the topic itself first. A topic may have several groups."""
        self._topics: dict[tuple[str, ...], set[str]] = defaultdict(set)
        self._names: dict[str, set[str]] = defaultdict(set)
        initials: dict[str, set[str]] = defaultdict(set)
        for group in groups:
            topic = key(group[0])
            for written in group:
                for name in _variants(written):
                    parts = tuple(words(name))
                    # A name that is a single letter, a number or a very common word is not informative.
                    says_nothing = len(parts) == 1 and (
                        len(parts[0]) == 1 or parts[0].isdigit() or _frequency(parts[0]) >= TOO_COMMON
                    )
                    if 0 < len(parts) <= MAX_NAME_WORDS and not says_nothing:
                        self._topics[parts].add(topic)
                        self._names[topic].add(" ".join(name.casefold().split()))
                    if MIN_ACRONYM_WORDS <= len(parts) <= MAX_NAME_WORDS and all(word.isalpha() for word in parts):
                        initials["".join(word[0] for word in parts)].add(topic)
        for letters, topics in initials.items():
            if len(topics) <= MAX_ACRONYM_TOPICS and _frequency(letters) < KNOWN:
                self._topics[(letters,)] |= topics

    def names(self, topic: str) -> frozenset[str]:
        """Return all names of a topic in lowercase; an empty set if the topic is unknown."""
        return frozenset(self._names.get(key(topic), ()))

    def find(self, text: str) -> list[Mention]:
        """Return the topics' names in a text, in order. A name inside a longer name doesn't count."""
        meant = [self._corrected(word) for word in words(text)]
        found: list[Mention] = []
        taken = [False] * len(meant)
        for length in range(min(MAX_NAME_WORDS, len(meant)), 0, -1):
            for start in range(len(meant) - length + 1):
                name = tuple(meant[start : start + length])
                if name in self._topics and not any(taken[start : start + length]):
                    taken[start : start + length] = [True] * length
                    weight = sum(says(word) for word in name)
                    found.append(Mention(" ".join(name), frozenset(self._topics[name]), start, weight))
        return sorted(found, key=lambda mention: mention.start)

    def corrected(self, text: str) -> str:
        """Return the text with misspelled topic words corrected."""

        def right(match: re.Match[str]) -> str:
            word = match[0].casefold()
            meant = self._corrected(_singular(word))
            return match[0] if meant in (word, _singular(word)) else meant

        return _WORD.sub(right, text)

    def expand(self, text: str, max_synonyms: int = 8) -> str:
        """Return the text, followed by at most `max_synonyms` names of its topics that aren't in it, one per line.

        The correct spelling of a misspelled name is one of these names.
        """
        text_words = set(words(text))
        more: list[str] = []
        for mention in sorted(self.find(text), key=lambda mention: -mention.weight):
            names = [mention.name, *sorted(name for topic in mention.topics for name in self.names(topic))]
            more.extend(name for name in names if name not in more and not set(words(name)) <= text_words)
        return "\n".join([text, *more[:max_synonyms]])

    def _corrected(self, word: str) -> str:
        if word in self._vocabulary or len(word) < MIN_TYPO_LETTERS or not word.isalpha() or _frequency(word) >= KNOWN:
            return word
        return _nearest(word, self._by_letter.get(word[0], ())) or word

    @cached_property
    def _vocabulary(self) -> frozenset[str]:
        return frozenset(word for name in self._topics for word in name)

    @cached_property
    def _by_letter(self) -> dict[str, list[str]]:
        grouped: dict[str, list[str]] = defaultdict(list)
        for word in sorted(self._vocabulary):
            if len(word) >= MIN_TYPO_LETTERS - 1 and word.isalpha():
                grouped[word[0]].append(word)
        return grouped


def key(topic: str) -> str:
    """Return a topic's name in the normalized form that `Mention.topics` contains."""
    return " ".join(topic.casefold().strip(" ?").split())


def _variants(name: str) -> list[str]:
    """Return a name's variants: without brackets, the text in each bracket and, for "A - B", also "B A"."""
    variants = [name]
    inner = _BRACKETS.findall(name)
    if inner:
        variants = [_BRACKETS.sub(" ", name), *inner]
    head, dash, tail = variants[0].partition(" - ")
    if dash:
        variants.append(f"{tail} {head}")
    return variants


def words(text: str) -> list[str]:
    """Return the text's words in lowercase, without possessive and plural endings."""
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
    """Return the Zipf frequency of a word or its plural, whichever is higher."""
    from wordfreq import zipf_frequency

    return max(zipf_frequency(word, "en"), zipf_frequency(f"{word}s", "en"))


def says(word: str) -> float:
    """Return how informative a word is, from 0 for the most common words to 7 for unknown words."""
    return max(0.0, 7.0 - _frequency(word))


def _nearest(word: str, candidates: Sequence[str]) -> str | None:
    """Return the candidate with the smallest edit distance (OSA), or None if none is close and common enough."""
    from rapidfuzz.distance import OSA
    from rapidfuzz.process import extract

    allowed = 2 if len(word) >= TWO_TYPO_LETTERS else 1
    found = extract(word, candidates, scorer=OSA.distance, score_cutoff=allowed, limit=5)
    best = min(found, key=lambda each: (each[1], -_frequency(each[0])), default=None)
    return best[0] if best and _frequency(best[0]) >= _frequency(word) - RARER else None


MAX_CONCEPT_TOPICS = 4
"""Maximum number of topics of one UMLS concept that count as its names. If a concept has more topics, these are aspects
of the concept ("Heart failure - tests")."""


def of_medquad(path: Path) -> Iterator[tuple[str, ...]]:
    """Yield each topic's names, the topic itself first. Unreadable files are skipped.

    All 11,274 documents count, including those without answers. Documents whose only UMLS concept is the same are about
    the same topic. Raises DataError if there are no XML files.
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
        if len(set(topics)) <= MAX_CONCEPT_TOPICS:
            together = {name: None for topic in topics for name in names[topic]}
            for topic in topics:
                names[topic].update(together)
    for each in names.values():
        yield tuple(each)
