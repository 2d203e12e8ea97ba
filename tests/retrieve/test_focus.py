"""What a rambling message asks is found in it."""

import pytest

from meditune.retrieve.query_understanding import focus
from meditune.retrieve.topics import Synonyms

KNOWN = Synonyms.of_titles(
    [
        "What is (are) Fibromyalgia ?",
        "What are the treatments for Chronic pain ?",
        "What is (are) Rheumatoid arthritis ? (Also called: RA)",
        "What are the side effects or risks of Methotrexate ?",
        "How to prevent Shingles ?",
    ]
)
RAMBLING = (
    "General health\n"
    "Hello doctor, I hope this finds you well. My mother is 71 and has worked in a bakery all her life, and my brother "
    "moved to Ohio last year. She was told that she has rheumatiod arthritis and takes methotrexate every Monday. "
    "Is there anything that would ease the swelling in the morning? Thank you very much and God bless."
)


def test_a_story_is_left_out_and_a_misspelled_disease_is_found():
    asked = focus(RAMBLING, KNOWN)
    assert asked.focus == "rheumatoid arthritis"
    assert "ease the swelling" in asked.query
    assert "rheumatoid arthritis" in asked.query
    for story in ("bakery", "Ohio", "Hello", "God bless", "General health"):
        assert story not in asked.query


def test_a_subject_that_says_something_is_searched_for():
    asked = focus("Shingles\nMy father had it twice. How can I avoid catching it from him?", KNOWN)
    assert (asked.focus, asked.question_type) == ("shingles", "prevention")
    assert asked.query.startswith("Shingles")
    assert "twice" not in asked.query


@pytest.mark.parametrize(
    ("question", "kind"),
    [
        ("What treatments are there for fibromyalgia?", "treatment"),
        ("how would a doctor diagnose fibromyalgia", "exams and tests"),
        ("Did I get fibromyalgia from my mother's genes, is it hereditary?", "inheritance"),
        ("does methotrexate have side effects", "side effects"),
        ("Fibromyalgia", "information"),
        ("what is the life expectancy with rheumatoid arthritis?", "outlook"),
    ],
)
def test_kinds_of_question(question, kind):
    assert focus(question, KNOWN).question_type == kind


def test_what_is_asked_about_counts_more_than_what_is_told():
    asked = focus("I have had chronic pain since March. Could fibromyalgia be the reason?", KNOWN)
    assert asked.focus == "fibromyalgia"
    assert [mention.topic for mention in asked.mentions] == ["fibromyalgia", "chronic pain"]


@pytest.mark.parametrize("question", ["", "   ", "Hello!", "???", "xyzzy plugh", "Thanks\n\n"])
def test_messages_without_a_question_do_no_harm(question):
    asked = focus(question, KNOWN)
    assert (asked.focus, asked.question_type) == ("", "information")
    assert asked.query.split() == question.split() or asked.query in question
