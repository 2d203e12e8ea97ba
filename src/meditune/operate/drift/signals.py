"""The signals of drift detection: their names and titles, and how their values are read from a request.

Signals about a question's meaning need the question's vector and the functions that the reference learned (`Shape`).
Missing values are skipped.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from meditune.data.quality.quality_filters import foreign_language
from meditune.errors import DataError
from meditune.files import numbered_jsonl
from meditune.operate.drift.e_detectors import Kernel, Value, Vectors, kernel
from meditune.store.overview import number

Vector = NDArray[np.float32]


@dataclass(frozen=True)
class Request:
    """One request as the detectors see it. Only `id` is required."""

    id: str
    question: str | None = None
    answer: str | None = None
    vector: Vector | None = None
    """The question's embedding, normalized to length 1; if it is None, it is computed before the detectors run."""
    outcome: str = ""
    """answered, abstained, escalated or declined; empty if unknown"""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """Facts as the server stores them: decision, confidence, reading_grade, tokens, sources, retrieval ..."""
    ratings: tuple[str, ...] | None = None
    """One "up" or "down" for each user who rated the answer; None while ratings may still come"""
    sequence: int = 0


def from_row(row: Mapping[str, Any], location: str, sequence: int = 0) -> Request:
    """Return the request in a row of `meditune answers export`, or in another object with a question.

    Raises DataError if a field has the wrong type or all are missing.
    """
    question, answer, outcome = row.get("question"), row.get("answer"), str(row.get("outcome") or "")
    facts, feedback = row.get("facts") or {}, row.get("feedback")
    for name, value in (("question", question), ("answer", answer)):
        if value is not None and not isinstance(value, str):
            raise DataError(f"{location}: {name} is {type(value).__name__}, not text.")
    if not isinstance(facts, Mapping):
        raise DataError(f"{location}: facts is {type(facts).__name__}, not an object.")
    if feedback is not None and not (isinstance(feedback, list) and all(isinstance(each, dict) for each in feedback)):
        raise DataError(f"{location}: feedback is not a list of objects with a rating.")
    if question is None and not facts and not outcome:
        raise DataError(f"{location}: has neither question, facts nor outcome. Each line needs at least one of them.")
    ratings = None if feedback is None else tuple(str(each.get("rating")) for each in feedback)
    id = row.get("id") or hashlib.sha256(f"{sequence}\n{question}".encode("utf-8", "surrogatepass")).hexdigest()[:16]
    return Request(str(id), question, answer, None, outcome, dict(facts), ratings, sequence)


def decision_of(facts: Mapping[str, Any]) -> str | None:
    """Return the decision (yes, no or maybe) in an answer of `/v1/ask` or in stored facts; None if there is none."""
    found = facts.get("decision")
    word = found.get("answer") if isinstance(found, Mapping) else found
    return word if isinstance(word, str) else None


def from_file(path: Path, after: int = 0) -> Iterator[Request]:
    """Yield the requests in a JSON Lines file, except the first `after`. Raises DataError for an invalid line.

    If an id occurs again, such as a session's id, the line's number is added to it, so that every line counts.
    """
    seen: set[str] = set()
    for sequence, (line, row) in enumerate(numbered_jsonl(path), start=1):
        id = str(row.get("id") or "")
        if sequence > after:
            request = from_row(row, f"{path}, line {line}", sequence)
            yield replace(request, id=f"{id}, line {line}") if id in seen else request
        if id:
            seen.add(id)


TOPICS = 16
DIRECTIONS = 8
ANCHORS = 800
NEAREST_NEIGHBOURS = 5
NAMING_WORDS = 3
_UNINFORMATIVE_WORDS = "know information want help need does like just read thank thanks"
MIN_QUESTIONS_PER_TOPIC = 5


@dataclass(frozen=True)
class Shape:
    """Functions that compute values from words and vectors; fixed when a reference is fitted."""

    words: NDArray[np.uint64]
    """Sorted hashes of the known words, so that the file contains no names"""
    centres: Vectors
    """(topics, size)"""
    topic_names: tuple[str, ...]
    mean: Vectors
    directions: Vectors
    """(DIRECTIONS, size), of length 1"""
    anchors: Vectors
    """(at most ANCHORS, size) vectors of known questions"""
    kernel: Kernel | None

    def unknown_share(self, words: Sequence[str]) -> float | None:
        """Return the share of the words that occur in no reference question, or None if there are no words."""
        if not words:
            return None
        hashes = np.fromiter(map(hashed_words, words), dtype=np.uint64, count=len(words))
        places = np.minimum(np.searchsorted(self.words, hashes), max(0, len(self.words) - 1))
        known = self.words[places] == hashes if len(self.words) else np.zeros(len(hashes), dtype=bool)
        return 1.0 - float(known.mean())

    def topic(self, vector: Vectors) -> str | None:
        """Return the name of the nearest topic, or None if there are no topics."""
        return self.topic_names[int((self.centres @ vector).argmax())] if len(self.centres) else None

    def distance(self, vector: Vectors) -> float | None:
        """Return 1 minus the mean cosine similarity to the nearest known questions, or None if too few are known."""
        if len(self.anchors) < NEAREST_NEIGHBOURS:
            return None
        near = np.partition(self.anchors @ vector, len(self.anchors) - NEAREST_NEIGHBOURS)[-NEAREST_NEIGHBOURS:]
        return 1.0 - float(near.mean())

    def placed(self, vector: Vectors) -> Vectors:
        """Return the coordinates (DIRECTIONS,) along the directions."""
        found: Vectors = self.directions @ (vector - self.mean)
        return found


def learn_shape(texts: Sequence[str], vectors: Vectors, vocabulary: Sequence[Sequence[str]], seed: int) -> Shape:
    """Return the functions learned from questions.

    `texts` (n) and `vectors` (n, size) may be empty; `vocabulary` contains the words of each question.
    """
    rng = np.random.default_rng(seed)
    known = sorted({hashed_words(word) for words in vocabulary for word in words})
    words = np.array(known, dtype=np.uint64)
    size = vectors.shape[1] if vectors.ndim == 2 else 0
    if len(vectors) < 2 * NEAREST_NEIGHBOURS:
        none = np.zeros((0, size), dtype=np.float32)
        return Shape(words, none, (), np.zeros(size, dtype=np.float32), none, none, None)
    centres, names = _topics(texts, vectors, seed)
    mean = vectors.mean(axis=0)
    axes = np.linalg.svd(vectors - mean, full_matrices=False)[2][:DIRECTIONS]
    anchors = vectors[rng.choice(len(vectors), min(ANCHORS, len(vectors)), replace=False)]
    return Shape(words, centres, names, mean, axes.astype(np.float32), anchors, kernel(vectors, rng))


def _topics(texts: Sequence[str], vectors: Vectors, seed: int) -> tuple[Vectors, tuple[str, ...]]:
    from sklearn.cluster import KMeans

    count = min(TOPICS, max(2, len(vectors) // MIN_QUESTIONS_PER_TOPIC))
    fitted = KMeans(count, n_init=3, random_state=seed).fit(vectors)
    centres = fitted.cluster_centers_.astype(np.float32)
    centres /= np.maximum(np.linalg.norm(centres, axis=1, keepdims=True), 1e-9)
    labels = (vectors @ centres.T).argmax(axis=1)
    names = topic_names(texts, labels, count) if len(texts) == len(vectors) else [""] * count
    return centres, tuple(f"{place + 1}: {name}" if name else f"{place + 1}" for place, name in enumerate(names))


def topic_names(texts: Sequence[str], labels: NDArray[np.int64], count: int) -> list[str]:
    """Return a name for each group of texts.

    A name consists of words that distinguish the group from the others and occur in several of its texts. It may be
    empty.
    """
    from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

    dull = ENGLISH_STOP_WORDS.union(_UNINFORMATIVE_WORDS.split())
    found: list[Counter[str]] = [Counter() for _ in range(count)]
    for text, label in zip(texts, labels, strict=True):
        found[label].update({w for w in text.casefold().split() if w.isalpha() and len(w) > 2 and w not in dull})
    total: Counter[str] = sum(found, Counter())
    names = []
    for counts in found:
        telling = sorted(counts, key=lambda word: (-(counts[word] ** 2) / total[word], word))
        names.append(", ".join([word for word in telling if counts[word] > 2][:NAMING_WORDS]))
    return names


@lru_cache(maxsize=65536)
def hashed_words(word: str) -> int:
    """Return a 64-bit hash of a word, ignoring case."""
    return int.from_bytes(hashlib.blake2b(word.casefold().encode("utf-8", "surrogatepass"), digest_size=8).digest())


Kind = Literal["number", "category"]

_WORD = re.compile(r"[^\W_]+(?:['’\-][^\W_]+)*")
_SCRIPTS = {
    "Cyrillic": re.compile("[\u0400-\u052f]"),
    "Arabic": re.compile("[\u0600-\u06ff]"),
    "Han or kana": re.compile("[\u3040-\u9fff]"),
    "Hangul": re.compile("[\uac00-\ud7af]"),
}
READ = 2000
_OTHER_THAN_LATIN = re.compile("[\u0370-\uffff]")


@dataclass(frozen=True)
class Signal:
    """A monitored property of requests."""

    name: str
    about: Literal["inputs", "retrieval", "outputs", "outcomes"]
    kind: Kind
    title: str
    rise_word: str
    fall_word: str

    def read(self, request: Request, shape: Shape) -> Sequence[Value]:
        """Return the signal's value for a request, or one value per direction, in a sequence; None if it is unknown."""
        if self.name == "directions":
            vector = request.vector
            return [None] * len(shape.directions) if vector is None else shape.placed(vector).tolist()
        return (_value(self.name, request, shape),)


def words(text: str) -> list[str]:
    """Return the words of a text."""
    return _WORD.findall(text)


def _value(name: str, request: Request, shape: Shape) -> Value:
    question, vector, facts, ratings = request.question, request.vector, request.facts, request.ratings
    match name:
        case "length":
            return None if question is None else float(len(words(question)))
        case "language":
            return None if question is None else language(question)
        case "unknown_words":
            return None if question is None else shape.unknown_share(words(question))
        case "topics":
            return None if vector is None else shape.topic(vector)
        case "novelty":
            return None if vector is None else shape.distance(vector)
        case "unanswerable":
            # Emergencies are answered without a search.
            if "sources" not in facts or request.outcome in ("escalated", "declined"):
                return None
            found = len(facts["sources"]) if isinstance(facts["sources"], list) else facts["sources"]
            return "found" if found and request.outcome != "abstained" else "nothing found"
        case "answer_length":
            if request.answer is not None:
                return float(len(words(request.answer)))
            tokens = facts.get("tokens")
            return number(tokens.get("completion") if isinstance(tokens, dict) else facts.get("completion_tokens"))
        case "reading_grade":
            given = number(facts.get("reading_grade"))
            if given is not None or not request.answer:
                return given
            from meditune.readability import counted

            counts = counted(request.answer[:READ])
            return float(counts.grade) if counts.words else None
        case "outcome":
            return request.outcome or None
        case "decision":
            return decision_of(facts)
        case "support":
            sentences, supported = number(facts.get("sentences")), number(facts.get("supported"))
            return supported / sentences if sentences and supported is not None else None
        case "calibration":
            confidence = number(facts.get("confidence"))
            return None if confidence is None or not ratings else _share_up(ratings) - confidence
        case "feedback":
            return None if ratings is None else "rated" if ratings else "not rated"
        case "ratings":
            return ("up" if _share_up(ratings) > 0.5 else "down") if ratings else None
        case _:  # retrieval, confidence
            return number(facts.get(name))


def _share_up(ratings: Sequence[str]) -> float:
    return sum(each == "up" for each in ratings) / len(ratings)


@lru_cache(maxsize=1024)
def language(text: str) -> str:
    """Return a text's script if it isn't Latin, else its language (ISO 639-1), or `en` if the language is unclear."""
    if len(_OTHER_THAN_LATIN.findall(text)) * 3 > len(text):
        return next(
            (name for name, signs in _SCRIPTS.items() if len(signs.findall(text)) * 3 > len(text)), "other script"
        )
    return foreign_language(text, ("en",)) or "en"


SIGNALS: tuple[Signal, ...] = (
    Signal("length", "inputs", "number", "Words in a question", "longer", "shorter"),
    Signal("language", "inputs", "category", "Language of questions", "more", "less"),
    Signal("unknown_words", "inputs", "number", "Share of words not in the reference", "more", "fewer"),
    Signal("topics", "inputs", "category", "Topics of questions", "more", "fewer"),
    Signal("novelty", "inputs", "number", "Distance to the nearest known questions", "farther", "nearer"),
    Signal("directions", "inputs", "number", "Vectors along the main directions", "higher", "lower"),
    Signal("retrieval", "retrieval", "number", "Similarity of the best passage", "better", "worse"),
    Signal("unanswerable", "retrieval", "category", "Questions without a passage", "more", "fewer"),
    Signal("answer_length", "outputs", "number", "Length of answers", "longer", "shorter"),
    Signal("reading_grade", "outputs", "number", "Reading grade of answers", "harder", "easier"),
    Signal("outcome", "outputs", "category", "Answered, abstained, escalated, declined", "more", "fewer"),
    Signal("decision", "outputs", "category", "Decisions (yes, no, maybe)", "more", "fewer"),
    Signal("support", "outputs", "number", "Share of sentences that passages support", "more", "less"),
    Signal("confidence", "outputs", "number", "Confidence in decisions", "surer", "less sure"),
    Signal("calibration", "outputs", "number", "Rating minus confidence", "underconfident", "overconfident"),
    Signal("feedback", "outcomes", "category", "Share of answers that are rated", "more", "fewer"),
    Signal("ratings", "outcomes", "category", "Ratings up and down", "more", "fewer"),
)
MEANING = "meaning"
"""The signal that compares whole blocks of vectors (`e_detectors.py`)"""
BY_NAME = {signal.name: signal for signal in SIGNALS}
DESCRIBED = BY_NAME | {MEANING: Signal(MEANING, "inputs", "number", "Questions' vectors as a whole (MMD)", "", "")}
