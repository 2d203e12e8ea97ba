"""The second look by meaning: it only adds, and only with the sentence model that it was fitted with."""

from __future__ import annotations

import pytest

from meditune.errors import ModelError
from meditune.retrieve.embedders import embedder
from meditune.serve.safety.emergencies import emergency, numbers
from meditune.serve.safety.likeness import second_look
from meditune.serve.safety.triage import triage
from tests.retrieve import corpus

MISSED = "my wheezy 2 year old is sucking his belly in at each breath and won't play"


def test_another_embedding_model_gives_no_second_look() -> None:
    assert second_look(corpus.TINY) is None


@pytest.mark.model
def test_it_sees_what_the_rules_dont_and_leaves_ordinary_questions_alone() -> None:
    try:
        look = second_look(embedder("all-minilm-l6-v2"))
    except ModelError as error:
        pytest.skip(str(error))
    assert look("When I was a student years ago I wanted to kill myself"), "of one's own death even if long past"
    message = "mum's had pneumonia since Monday, she is muddled and her fingers look dusky, white cells are zero"
    assert look(message)
    assert triage(message, numbers(), look=look).action == "urgent"
    for ordinary in (
        "What is asthma?",
        "How do I count carbs?",
        "My knee clicks on stairs",
        "What are signs of a stroke?",
    ):
        assert not look(ordinary)
        assert triage(ordinary, numbers(), look=look).action == "answer"


def test_it_is_asked_last_and_only_about_what_is_happening() -> None:
    asked = []

    def look(message: str) -> bool:
        asked.append(message)
        return True

    assert triage("Who won the world cup?", numbers(), look=look).action == "decline"
    assert not asked
    assert triage(MISSED, numbers(), look=look).action == "urgent"
    assert emergency("What is asthma?") is None
