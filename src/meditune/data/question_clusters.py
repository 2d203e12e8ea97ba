"""Clusters of questions by topic, each named by its most characteristic words, and a map of the questions.

The topic of a question is its focus if the source names one, otherwise the question itself.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from meditune.data.diversity import focus, shannon
from meditune.data.example import Example
from meditune.data.read_sources import is_restricted

Vectors = NDArray[np.float32]
Embed = Callable[[Sequence[str]], Vectors]
"""Texts to (n, size) vectors of length 1"""

MAX_QUESTIONS = 4000
"""Number of questions that are clustered, a seeded sample of each set"""
MAX_MAP_POINTS = 1500
WORDS = 3
_UNINFORMATIVE_WORDS = (
    *("does", "patients", "patient", "use", "using", "study"),
    *("effect", "need", "know", "help", "like"),
)
NEIGHBOURS = 30
"""Perplexity of the map (van der Maaten and Hinton 2008): approximately the number of neighbours preserved"""


@dataclass(frozen=True)
class SurveyQuestion:
    """A question and the set that it belongs to."""

    example: Example
    where: str
    """"train", "test", or "before" where sets are compared"""


def chosen(sets: dict[str, Sequence[Example]], seed: int) -> list[SurveyQuestion]:
    """Return a seeded sample of at most MAX_QUESTIONS examples, in proportion to the sets' sizes."""
    total = sum(map(len, sets.values()))
    share = min(1.0, MAX_QUESTIONS / max(1, total))
    found = []
    for name, examples in sets.items():
        count = max(min(len(examples), 1), int(share * len(examples)))
        indices = random.Random(f"{seed}/clusters/{name}").sample(range(len(examples)), count)
        found += [SurveyQuestion(examples[index], name) for index in sorted(indices)]
    return found


def clusters(questions: Sequence[SurveyQuestion], embed: Embed, count: int, seed: int) -> dict[str, Any]:
    """Return `clusters`, `effective`, `vendi` and `points`.

    A cluster (k-means) has its `name`, its number of `questions` (total, by `source` and by `where`), and the question
    nearest to its centre as `example`. `effective` is exp of the entropy of their sizes; `vendi` is the Vendi score of
    each set, the effective number of questions that differ in meaning (Friedman and Dieng 2022, arXiv:2210.02410).
    `points` are places on the map (t-SNE), scaled to 0 to 1, of at most MAX_MAP_POINTS questions.
    """
    from sklearn.cluster import KMeans

    about = [", ".join(focus(each.example)) or each.example.question for each in questions]
    vectors = embed(about)
    count = min(count, len(questions))
    fitted = KMeans(count, n_init=4, random_state=seed).fit(vectors)
    labels = [int(label) for label in fitted.labels_]
    names = _names(about, labels, count)
    rows: list[dict[str, Any]] = []
    for cluster in range(count):
        members = [index for index, label in enumerate(labels) if label == cluster]
        nearest = min(
            members, key=lambda index: float(np.linalg.norm(vectors[index] - fitted.cluster_centers_[cluster]))
        )
        rows.append(
            {
                "cluster": cluster,
                "name": names[cluster],
                "questions": len(members),
                "source": dict(Counter(questions[index].example.source for index in members)),
                "where": dict(Counter(questions[index].where for index in members)),
                "example": _shown(questions[nearest].example),
            }
        )
    rows.sort(key=lambda row: -row["questions"])
    sets = dict.fromkeys(each.where for each in questions)
    return {
        "questions": len(questions),
        "clusters": rows,
        "effective": round(shannon(Counter(map(str, labels))), 2),
        "vendi": {name: round(vendi(vectors[[each.where == name for each in questions]]), 1) for name in sets},
        "points": _map(questions, vectors, labels, seed),
    }


def vendi(vectors: Vectors) -> float:
    """Return exp of the entropy of the eigenvalues of the vectors' mean outer product (those of the cosine matrix)."""
    values = np.linalg.eigvalsh(vectors.astype(np.float64).T @ vectors / len(vectors))
    return shannon({str(index): float(value) for index, value in enumerate(values) if value > 1e-12})


def _names(texts: Sequence[str], labels: Sequence[int], count: int) -> list[str]:
    """Name each cluster by words that are frequent in it and rare elsewhere (class-based TF-IDF, Grootendorst 2022,
    arXiv:2203.05794)."""
    from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS, CountVectorizer

    said_often = [*ENGLISH_STOP_WORDS, *_UNINFORMATIVE_WORDS]
    vectorizer = CountVectorizer(stop_words=said_often, token_pattern=r"(?u)\b[^\W\d_][\w-]{2,}\b", binary=True)
    try:
        table = vectorizer.fit_transform(texts)
    except ValueError:
        # scikit-learn raises this if the texts contain only stop words.
        return [f"cluster {cluster + 1}" for cluster in range(count)]
    words = vectorizer.get_feature_names_out()
    held = np.array([np.asarray(table[np.array(labels) == cluster].sum(axis=0))[0] for cluster in range(count)])
    sizes = np.maximum(np.bincount(labels, minlength=count), 1)[:, None]
    weights = held / sizes * np.log(1 + held.sum() / count / np.maximum(held.sum(axis=0), 1))
    return [_distinctive_words(words, row) or f"cluster {cluster + 1}" for cluster, row in enumerate(weights)]


def _distinctive_words(words: Sequence[str], weights: NDArray[np.float64]) -> str:
    found: list[str] = []
    for index in np.argsort(-weights, kind="stable")[:50]:
        word = str(words[index])
        if weights[index] > 0 and not any(word[:5] == other[:5] for other in found):
            found.append(word)
        if len(found) == WORDS:
            break
    return ", ".join(found)


def _map(
    questions: Sequence[SurveyQuestion], vectors: Vectors, labels: Sequence[int], seed: int
) -> list[dict[str, Any]]:
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    drawn = sorted(random.Random(f"{seed}/map").sample(range(len(questions)), min(MAX_MAP_POINTS, len(questions))))
    if len(drawn) < 4:
        return []
    flat = PCA(min(50, len(drawn) - 1, vectors.shape[1]), random_state=seed).fit_transform(vectors[drawn])
    nearby = min(NEIGHBOURS, (len(drawn) - 1) / 3)
    places = TSNE(2, perplexity=nearby, init="pca", random_state=seed).fit_transform(flat)
    low, high = places.min(axis=0), places.max(axis=0)
    places = (places - low) / np.maximum(high - low, 1e-9)
    return [
        {
            "x": round(float(x), 4),
            "y": round(float(y), 4),
            "cluster": labels[index],
            "source": questions[index].example.source,
            "where": questions[index].where,
            "question": _shown(questions[index].example),
        }
        for index, (x, y) in zip(drawn, places, strict=True)
    ]


def _shown(example: Example) -> str:
    """Return the shortened question; empty for restricted text, which must stay in the data's folder."""
    if is_restricted(example):
        return ""
    text = " ".join(example.question.split())
    return text if len(text) <= 120 else text[:119] + "…"
