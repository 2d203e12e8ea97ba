"""Invented streams of requests with vectors of a few topics."""

import json

import numpy as np

from meditune.operate.drift.signals import Request
from meditune.store.answers import Answers
from meditune.store.database import SQLiteDatabase

SIZE = 24
TOPICS = {"heart": 0, "skin": 1, "sleep": 2, "vaccine": 3}
_WORDS = ("does", "my", "pain", "help", "with", "the", "daily", "often", "doctor", "when", "night", "cause")


def requests(count, seed, topics=("heart", "skin", "sleep"), first=1, words=(5, 9), confidence=(8, 3), outcome=0.1):
    """So many requests about these topics, their questions so many words long."""
    rng = np.random.default_rng(seed)
    middles = np.random.default_rng(0).normal(size=(len(TOPICS), SIZE))
    found = []
    for number in range(first, first + count):
        topic = str(rng.choice(topics))
        vector = (middles[TOPICS[topic]] + rng.normal(scale=0.6, size=SIZE)).astype(np.float32)
        said = [topic, *rng.choice(_WORDS, int(rng.integers(*words)))]
        facts = {"confidence": float(rng.beta(*confidence))}
        found.append(
            Request(
                f"r{number}",
                " ".join(said),
                vector=vector / np.linalg.norm(vector),
                outcome="abstained" if rng.random() < outcome else "answered",
                facts=facts,
                ratings=("up",) if rng.random() < 0.3 else (),
                sequence=number,
            )
        )
    return found


def fill_store(folder, given, time=1.0):
    """The requests' figures in a store, in one transaction: one for each would take a disk's time for each."""
    answers = Answers(SQLiteDatabase(folder))
    with answers.base.changing() as base:
        for each in given:
            base.execute(
                "INSERT INTO answers (id, time, who, route, model, index_content, outcome, facts) "
                "VALUES (?, ?, 'k', 'ask', 'm', '', ?, ?)",
                (each.id, time, each.outcome, json.dumps(each.facts)),
            )
    return answers


def write_facts(path, given):
    """The requests without their questions, as `meditune answers export` writes them where texts aren't kept."""
    rows = (
        {"id": each.id, "question": None, "outcome": each.outcome, "facts": dict(each.facts), "feedback": []}
        for each in given
    )
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path
