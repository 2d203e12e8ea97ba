"""Topics: the topic of a passage's title, and the topics that a text names by any of their names.

MedQuAD's titles follow templates ("What are the symptoms of Diabetes ? (Also called: Sugar disease)"; Ben Abacha and
Demner-Fushman 2019, https://doi.org/10.1186/s12859-019-3119-4); any other title is a topic. Titles, and MedQuAD's
synonyms and UMLS concepts, form a thesaurus. Names are matched word by word, the longest first, so that "type 2
diabetes" doesn't also match diabetes. A word that is neither in the topics nor English is replaced by the most similar
word of the topics.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

import yaml

from meditune.data.readers.medquad import parse_xml, texts, xml_files

QUESTION_KINDS: dict[str, dict[str, list[str]]] = yaml.safe_load(
    Path(__file__).with_name("question_kinds.yaml").read_text(encoding="utf-8")
)
_TEMPLATES = tuple(
    (re.compile(re.escape(wording).replace("X", "(?P<topic>.+?)") + r"\s*[?.]?", re.IGNORECASE), kind)
    for kind, wordings in QUESTION_KINDS["titles"].items()
    for wording in wordings
)
_ALSO = re.compile(r"\(Also called:(?P<names>.*?)\)?\s*$", re.IGNORECASE)
KINDS = tuple(QUESTION_KINDS["titles"])


@dataclass(frozen=True)
class Title:
    """A parsed title."""

    topic: str
    names: tuple[str, ...]  # All names of the topic, `topic` first
    kind: str  # The kind of question that the passage answers, one of KINDS; empty if the title doesn't show it


@lru_cache(maxsize=65536)
def read(title: str) -> Title:
    """Return the title's topic, its names and the kind of question that the passage answers."""
    also = _ALSO.search(title)
    plain = " ".join((title[: also.start()] if also else title).split())
    others = [name.strip() for name in also["names"].split(";")] if also else []
    matches = ((pattern.fullmatch(plain), kind) for pattern, kind in _TEMPLATES)
    topic, kind = next(((found["topic"], kind) for found, kind in matches if found), (plain, ""))
    return Title(topic, tuple(dict.fromkeys(filter(None, [topic, *others]))), kind)


MAX_NAME_WORDS = 8  # Maximum number of words in a name
KNOWN = 3.0  # Minimum Zipf frequency (log10 of occurrences in 10^9 words) of a word that isn't a misspelling
MIN_TYPO_LETTERS = 5  # Minimum length of a word in which one letter may be wrong
TWO_TYPO_LETTERS = 8  # Minimum length of a word in which two letters may be wrong
RARER = 1.0  # Zipf difference by which the intended word may be rarer, as misspellings occur in the counts, too
MIN_ACRONYM_WORDS, MAX_ACRONYM_TOPICS = 3, 4  # Minimum words of a name with an acronym; maximum topics that share it
_WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)?")
_BRACKETS = re.compile(r"\(([^()]*)\)")
TOO_COMMON = 4.8  # Zipf frequency at which a single word ("doctor", "health") is too common for a name


@dataclass(frozen=True)
class Mention:
    """A name in a text."""

    name: str  # In the index's spelling, in lowercase
    topics: frozenset[str]  # All topics with that name
    start: int  # Its position in words of the text
    weight: float  # How informative the name is: more for rare words and for more words

    @property
    def topic(self) -> str:
        """The topic whose name is most similar to this name; of several, the shortest."""
        own_words = set(self.name.split())
        return min(self.topics, key=lambda name: (-len(own_words & set(words(name))), len(name), name))


class Synonyms:
    """Topics by their names."""

    def __init__(self, groups: Iterable[Sequence[str]]) -> None:
        """Each of the `groups` has the names of one topic, the topic itself first. A topic may occur several times."""
        self._topics: dict[tuple[str, ...], set[str]] = defaultdict(set)
        self._names: dict[str, set[str]] = defaultdict(set)
        initials: dict[str, set[str]] = defaultdict(set)
        for group in groups:
            topic = key(group[0])
            for written in group:
                for name in _variants(written):
                    parts = tuple(words(name))
                    # A single letter, a number or a very common word is not informative.
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
        """Return all names of a topic in lowercase; none if it is unknown."""
        return frozenset(self._names.get(key(topic), ()))

    def find(self, text: str) -> list[Mention]:
        """Return the names in a text, in order. A name within a longer name doesn't count."""
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
        """Return the text with misspellings corrected, followed by at most `max_synonyms` other names of its topics."""
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
    """Return a topic's name as it is in `Mention.topics`."""
    return " ".join(topic.casefold().strip(" ?").split())


def _variants(name: str) -> list[str]:
    """Return the variants of a name: as written, or without and within brackets; and "A - B" as "B A", too."""
    variants = [name]
    inner = _BRACKETS.findall(name)
    if inner:
        variants = [_BRACKETS.sub(" ", name), *inner]
    head, dash, tail = variants[0].partition(" - ")
    if dash:
        variants.append(f"{tail} {head}")
    return variants


def words(text: str) -> list[str]:
    """Return the words in lowercase, without possessive and plural endings."""
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
    """Return how informative a word is, from 0 for the most common to 7 for unknown ones."""
    return max(0.0, 7.0 - _frequency(word))


def _nearest(word: str, candidates: Sequence[str]) -> str | None:
    """Return the candidate at the smallest edit distance (letters missing, added, changed, swapped), if near enough."""
    from rapidfuzz.distance import OSA
    from rapidfuzz.process import extract

    allowed = 2 if len(word) >= TWO_TYPO_LETTERS else 1
    found = extract(word, candidates, scorer=OSA.distance, score_cutoff=allowed, limit=5)
    best = min(found, key=lambda each: (each[1], -_frequency(each[0])), default=None)
    return best[0] if best and _frequency(best[0]) >= _frequency(word) - RARER else None


MAX_CONCEPT_TOPICS = 4
"""Topics of a concept that has more topics than this are its aspects ("Heart failure - tests"), not its names."""


def of_medquad(path: Path) -> Iterator[tuple[str, ...]]:
    """Yield for each document its topic with all its names, the topic first. Unreadable files are skipped.

    All 11,274 documents count, also those without answers. Documents with the same single concept are about the same
    topic. Raises DataError if there are no XML files.
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
