"""What a reference learns of its first half, so that the second is ranked by it: words, topics, directions."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from meditune.operate.drift.permutation import Kernel, kernel

Vectors = NDArray[np.float32]

TOPICS = 16
DIRECTIONS = 8
ANCHORS = 800
NEAREST = 5
NAMING_WORDS = 3
_SAY_LITTLE = {"know", "information", "want", "help", "need", "does", "like", "just", "read", "thank", "thanks"}
LEAST_FOR_TOPICS = 5
"""Questions to a topic, on average; with fewer there are fewer topics"""


@dataclass(frozen=True)
class Shape:
    """Fixed functions from words and vectors to figures."""

    words: NDArray[np.uint64]
    """Hashes of the known words, sorted; hashes, so that the file holds no names"""
    centres: Vectors
    """(topics, size)"""
    topic_names: tuple[str, ...]
    mean: Vectors
    """(size,)"""
    directions: Vectors
    """(DIRECTIONS, size), of length 1"""
    anchors: Vectors
    """(at most ANCHORS, size) known questions"""
    kernel: Kernel | None

    def unknown_share(self, words: Sequence[str]) -> float | None:
        """The share of the words that no reference question had; None without words."""
        if not words:
            return None
        hashes = np.fromiter(map(hashed, words), dtype=np.uint64, count=len(words))
        places = np.minimum(np.searchsorted(self.words, hashes), max(0, len(self.words) - 1))
        known = self.words[places] == hashes if len(self.words) else np.zeros(len(hashes), dtype=bool)
        return 1.0 - float(known.mean())

    def topic(self, vector: Vectors) -> str | None:
        """The name of the nearest topic; None where there are none."""
        return self.topic_names[int((self.centres @ vector).argmax())] if len(self.centres) else None

    def distance(self, vector: Vectors) -> float | None:
        """One less the mean cosine to the nearest known questions."""
        if len(self.anchors) < NEAREST:
            return None
        near = np.partition(self.anchors @ vector, len(self.anchors) - NEAREST)[-NEAREST:]
        return 1.0 - float(near.mean())

    def placed(self, vector: Vectors) -> Vectors:
        """(DIRECTIONS,) where it is along the directions."""
        found: Vectors = self.directions @ (vector - self.mean)
        return found


def learned(texts: Sequence[str], vectors: Vectors, vocabulary: Sequence[Sequence[str]], seed: int) -> Shape:
    """The shape of questions: texts with their vectors (n, size), both may be empty, and the words of each."""
    rng = np.random.default_rng(seed)
    known = sorted({hashed(word) for words in vocabulary for word in words})
    words = np.array(known, dtype=np.uint64)
    size = vectors.shape[1] if vectors.ndim == 2 else 0
    if len(vectors) < 2 * NEAREST:
        none = np.zeros((0, size), dtype=np.float32)
        return Shape(words, none, (), np.zeros(size, dtype=np.float32), none, none, None)
    centres, names = _topics(texts, vectors, seed)
    mean = vectors.mean(axis=0)
    axes = np.linalg.svd(vectors - mean, full_matrices=False)[2][:DIRECTIONS]
    anchors = vectors[rng.choice(len(vectors), min(ANCHORS, len(vectors)), replace=False)]
    return Shape(words, centres, names, mean, axes.astype(np.float32), anchors, kernel(vectors, rng))


def _topics(texts: Sequence[str], vectors: Vectors, seed: int) -> tuple[Vectors, tuple[str, ...]]:
    from sklearn.cluster import KMeans

    count = min(TOPICS, max(2, len(vectors) // LEAST_FOR_TOPICS))
    fitted = KMeans(count, n_init=3, random_state=seed).fit(vectors)
    centres = fitted.cluster_centers_.astype(np.float32)
    centres /= np.maximum(np.linalg.norm(centres, axis=1, keepdims=True), 1e-9)
    labels = (vectors @ centres.T).argmax(axis=1)
    names = named(texts, labels, count) if len(texts) == len(vectors) else [""] * count
    return centres, tuple(f"{place + 1}: {name}" if name else f"{place + 1}" for place, name in enumerate(names))


def named(texts: Sequence[str], labels: NDArray[np.int64], count: int) -> list[str]:
    """The words that tell each group of texts from the others, of those that several of its texts have."""
    from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

    dull = ENGLISH_STOP_WORDS | _SAY_LITTLE
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
def hashed(word: str) -> int:
    """64 bits of a word, whatever its case."""
    return int.from_bytes(hashlib.blake2b(word.casefold().encode("utf-8", "surrogatepass"), digest_size=8).digest())
