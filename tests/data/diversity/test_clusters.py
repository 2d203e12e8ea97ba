"""Clusters are what their vectors say, named by their own words."""

import numpy as np
import pytest

from meditune.data.diversity.clusters import chosen, clusters, vendi
from tests.data.diversity.examples import example

TOPICS = ("kidney stones", "breast cancer", "lung asthma")


def embed(texts):
    """A direction for each topic, with a little noise."""
    generator = np.random.default_rng(1)
    vectors = np.array([[topic.split()[0] in text for topic in TOPICS] for text in texts], dtype=np.float32)
    vectors += generator.normal(0, 0.05, vectors.shape).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def examples(count, topics=TOPICS, **changes):
    return [example(n, question=f"Does {topics[n % len(topics)]} hurt in year {n}?", **changes) for n in range(count)]


def test_clusters_are_the_topics_and_carry_their_words():
    made = clusters(chosen({"train": examples(60), "test": examples(30, TOPICS[:1])}, 1), embed, 3, seed=1)
    assert made["questions"] == 90
    by_name = {row["name"]: row for row in made["clusters"]}
    assert {frozenset(name.split(", ")[:2]) for name in by_name} == {frozenset(topic.split()) for topic in TOPICS}
    kidney = made["clusters"][0]
    assert kidney["where"] == {"train": 20, "test": 30}
    assert "kidney stones" in kidney["example"]
    assert len(made["points"]) == 90
    assert all(0 <= point[axis] <= 1 for point in made["points"] for axis in "xy")
    assert made["vendi"]["train"] > 2 * made["vendi"]["test"]


def test_a_focus_stands_for_its_questions():
    asked = [example(n, question="What are the symptoms?", meta={"focus": TOPICS[n % 3]}) for n in range(30)]
    made = clusters(chosen({"train": asked}, 1), embed, 3, seed=1)
    assert [row["questions"] for row in made["clusters"]] == [10, 10, 10]


def test_the_same_seed_gives_the_same_and_restricted_text_isnt_copied():
    sets = {"train": examples(40, meta={"restricted": True})}
    made = [clusters(chosen(sets, 1), embed, 3, seed=1) for _ in range(2)]
    assert made[0] == made[1]
    assert {row["example"] for row in made[0]["clusters"]} == {""}
    assert {point["question"] for point in made[0]["points"]} == {""}


def test_few_questions_and_stop_words_do_no_harm():
    made = clusters(chosen({"train": [example(n, question="Who is it?") for n in range(3)]}, 1), embed, 12, seed=1)
    assert sum(row["questions"] for row in made["clusters"]) == 3
    assert made["points"] == []


def test_the_vendi_score_counts_different_directions():
    assert vendi(np.eye(5, dtype=np.float32)) == pytest.approx(5)
    assert vendi(np.ones((7, 4), dtype=np.float32) / 2) == pytest.approx(1)
