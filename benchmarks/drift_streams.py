"""Streams of real questions for `drift.py`, with no, sudden, gradual or seasonal change and a server's simulated notes.

Questions and answers are from PubMedQA, MedQuAD and LiveQA, each question once. Retrieval searches 1,000 MedQuAD
questions that are in no stream. Decisions, outcomes, confidence, support and ratings are sampled, because no model's
answers to all of these questions are available; the results for these signals show how well changes of the sampled
sizes are detected.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from meditune.data.example import Example
from meditune.data.readers import liveqa, medquad, pubmedqa
from meditune.data.readers.tables import Rejects
from meditune.models.sentence_encoder import load_encoder
from meditune.operate.drift.signals import Request
from meditune.readability import counted

INDEX = 1000
REFERENCE = 3000
FOUND_FROM = 0.6
ANSWER = 1000
BEFORE, AFTER = 0, 1


@dataclass(frozen=True)
class Pool:
    """All questions, each with its source."""

    requests: list[Request]
    source: NDArray[np.str_]
    part: NDArray[np.str_]


def pool(cache: Path | None) -> Pool:
    """Return each distinct question once, in the sources' order, with its vector and reading grade."""
    folder = Path(os.environ["MEDITUNE_DATA"])
    readers = (("pubmedqa", pubmedqa.read), ("medquad", medquad.read), ("liveqa", liveqa.read))
    found: dict[str, tuple[str, str, Example]] = {}
    for source, read in readers:
        for example in read(folder / source, Rejects()):
            text = " ".join(example.question.split())
            if text:
                found.setdefault(text.casefold(), (source, str(example.meta.get("collection", "")), example))
    rows = list(found.values())
    texts = [" ".join(example.question.split()) for _, _, example in rows]
    if cache and cache.exists():
        vectors = np.load(cache)
    else:
        vectors = load_encoder().encode(texts)
        if cache:
            np.save(cache, vectors)
    assert len(vectors) == len(texts), f"{cache} holds vectors of other questions. Remove the file."
    requests = []
    for place, (text, (_, _, example)) in enumerate(zip(texts, rows, strict=True)):
        answer = example.answer[:ANSWER]
        counts = counted(answer)
        facts = {"reading_grade": float(counts.grade)} if counts.words else {}
        requests.append(Request(str(place), text, answer, vectors[place].astype(np.float32), facts=facts))
    return Pool(requests, np.array([source for source, _, _ in rows]), np.array([part for _, part, _ in rows]))


@dataclass(frozen=True)
class Stream:
    """A reference, the requests after it, and the position of the change."""

    name: str
    reference: list[Request]
    requests: list[Request]
    change: int | None
    """Position of the first changed request; None without a change"""
    said: str


def streams(of: Pool, seed: int, undrifted: int) -> dict[str, Stream]:
    """Return all kinds of streams, made from one shuffling of the questions."""
    rng = np.random.default_rng(seed)
    shuffled = {name: rng.permutation(np.flatnonzero(of.source == name)) for name in np.unique(of.source)}
    cancer = of.part[shuffled["medquad"]] == "1_CancerGov_QA"
    medquad_ = shuffled["medquad"]
    index = np.stack([of.requests[place].vector for place in medquad_[:INDEX]])  # type: ignore[misc]
    reference, rest = medquad_[INDEX : INDEX + REFERENCE], medquad_[INDEX + REFERENCE :]

    def made(places: NDArray[np.int64], states: NDArray[np.int64] | int = BEFORE) -> list[Request]:
        told = np.broadcast_to(np.asarray(states), len(places))
        return [_noted(of.requests[p], index, int(s), rng) for p, s in zip(places, told, strict=True)]

    def stream(
        name: str,
        places: NDArray[np.int64],
        change: int | None,
        said: str,
        states: NDArray[np.int64] | int = BEFORE,
        own: NDArray[np.int64] = reference,
    ) -> Stream:
        return Stream(name, made(own), made(places, states), change, said)

    def mixed(share: NDArray[np.float64], other: NDArray[np.int64]) -> NDArray[np.int64]:
        chosen = rng.random(len(share)) < share
        found, taken = rest[: len(share)].copy(), other[: int(chosen.sum())]
        chosen &= np.cumsum(chosen) <= len(taken)
        found[chosen] = taken[: int(chosen.sum())]
        return found

    live, papers = shuffled["liveqa"], shuffled["pubmedqa"]
    both = rng.permutation(np.concatenate([live, papers]))
    lead = 500
    before, ramp = np.zeros(lead), np.minimum(1, np.arange(1500) / 1000)
    season = 0.25 * (1 - np.cos(2 * np.pi * np.arange(4000) / 2000))
    known = medquad_[INDEX:][~cancer[INDEX:]]
    about_cancer = medquad_[INDEX:][cancer[INDEX:]]
    new_topic = known[REFERENCE : REFERENCE + lead + 1000].copy()
    swapped = lead + np.flatnonzero(rng.random(1000) < 0.2)
    new_topic[swapped] = about_cancer[: len(swapped)]
    found = [
        stream("none", rest[:undrifted], None, "MedQuAD throughout"),
        stream("none, PubMedQA", papers[600:], None, "PubMedQA throughout, 600 as reference", own=papers[:600]),
        stream("sudden, LiveQA", np.concatenate([rest[:lead], live[:500]]), lead, "MedQuAD, then LiveQA"),
        stream("sudden, PubMedQA", np.concatenate([rest[:lead], papers]), lead, "MedQuAD, then PubMedQA"),
        stream(
            "sudden, MedQuAD",
            np.concatenate([papers[600:900], rest[:1000]]),
            300,
            "PubMedQA (600 as reference), then MedQuAD",
            own=papers[:600],
        ),
        stream(
            "sudden, 20% LiveQA",
            mixed(np.concatenate([before, np.full(1500, 0.2)]), live),
            lead,
            "MedQuAD, then a fifth of the questions from LiveQA",
        ),
        stream(
            "sudden, 5% LiveQA",
            mixed(np.concatenate([before, np.full(1500, 0.05)]), live),
            lead,
            "MedQuAD, then a twentieth of the questions from LiveQA",
        ),
        stream(
            "sudden, new topic",
            new_topic,
            lead,
            "MedQuAD without cancer.gov, then a fifth of the questions from cancer.gov",
            own=known[:REFERENCE],
        ),
        stream(
            "gradual, LiveQA",
            mixed(np.concatenate([before, ramp[:1000]]), live),
            lead,
            "MedQuAD, with LiveQA's share growing to 100% over 1,000 requests",
        ),
        stream(
            "gradual, PubMedQA",
            mixed(np.concatenate([before, ramp]), papers),
            lead,
            "MedQuAD, with PubMedQA's share growing to 100% over 1,000 requests",
        ),
        stream(
            "seasonal",
            mixed(np.concatenate([before, season]), both),
            lead,
            "MedQuAD, with a share of LiveQA and PubMedQA that varies from 0 to half in seasons of 2,000",
        ),
        stream(
            "answers",
            rest[:2500],
            lead,
            "MedQuAD throughout; the simulated answer signals change",
            np.concatenate([np.zeros(lead), np.ones(2000)]).astype(np.int64),
        ),
    ]
    return {each.name: each for each in found}


def _noted(request: Request, index: NDArray[np.float32], state: int, rng: np.random.Generator) -> Request:
    """Return the request with its search results and sampled answer signals, as a server would note them."""
    assert request.vector is not None
    likeness = index @ request.vector
    sure = float(rng.beta(*((8, 3), (6, 4))[state]))
    rated = rng.random() < (0.2, 0.1)[state]
    up = rng.random() < (0.8, 0.6)[state]
    facts = dict(request.facts) | {
        "retrieval": float(likeness.max()),
        "sources": int((likeness >= FOUND_FROM).sum()),
        "decision": str(rng.choice(["yes", "no", "maybe"], p=((0.55, 0.34, 0.11), (0.4, 0.34, 0.26))[state])),
        "confidence": sure,
        "sentences": 4,
        "supported": int(rng.binomial(4, (0.85, 0.7)[state])),
    }
    outcome = str(rng.choice(["answered", "abstained", "escalated"], p=((0.9, 0.08, 0.02), (0.75, 0.22, 0.03))[state]))
    ratings = ("up" if up else "down",) if rated else ()
    return replace(request, facts=facts, outcome=outcome, ratings=ratings)
