"""Rows that say the same."""

import pytest

from meditune.data.quality.deduplication import by_threshold, pairs, repeated_questions
from meditune.data.readers import liveqa, pubmedqa
from meditune.data.readers.tables import Rejects
from tests.data.quality_examples import ANSWER, medquad_rows, row

FORM = [
    row(100 + n, question=f"What are the treatments for {name} syndrome?", answer=f"{name} can be treated in {n} ways.")
    for n, name in enumerate(("Alba", "Bernt", "Corvin", "Dorsey", "Eltham", "Farrow"))
]


def found(*examples):
    return [(pair.first, pair.again, pair.exact) for pair in pairs(examples)]


def test_the_same_but_for_case_and_punctuation():
    again = row(2, question="HOW is asthma treated", answer=ANSWER.replace(",", "").upper())
    assert found(row(1), again) == [(0, 1, True)]


@pytest.mark.parametrize(
    "answer",
    [
        ANSWER.replace("Most people", "Many people").replace("gets hard", "is hard"),
        "In short: " + ANSWER,
        ANSWER.replace("A controller is taken every day and keeps the swelling down. ", ""),
        " ".join(reversed(ANSWER.split(". "))),
    ],
)
def test_nearly_the_same(answer):
    [pair] = pairs([row(1), row(2, question="how is asthma treatd?", answer=answer)])
    assert not pair.exact
    assert pair.alike >= 0.7


@pytest.mark.parametrize(
    "changes",
    [
        {"answer": ANSWER.replace("within minutes", "within 5 minutes")},
        {"answer": ANSWER.replace("Most people need", "Most people do not need")},
        {"question": "How is asthma prevented?"},
        {"question": "How is eczema treated?"},
        {"decision": "no"},
        {"answer": "Gout is treated with rest, cold packs and pills against the pain."},
    ],
)
def test_other_facts_make_another_row(changes):
    assert found(row(1), row(2, **changes)) == []


def test_one_form_with_other_names_is_another_question():
    told = "There is no cure. Treatment is aimed at the symptoms, and a team of specialists takes part in it."
    first, second = (
        row(n, question=f"What are the treatments for {name} syndrome?", answer=f"{told} See {name}.")
        for n, name in ((1, "Bart"), (2, "Barth"))
    )
    assert found(first, second, *FORM) == []
    misspelt = first.model_copy(update={"id": "own:3", "question": first.question.replace("Bart", "Barrt")})
    assert found(first, misspelt, *FORM) == [(0, 1, False)]


def test_a_lower_threshold_finds_no_fewer():
    found_all = pairs([row(1), row(2, answer=ANSWER.replace("Most people need both, and a plan for attacks. ", ""))])
    counts = [each["pairs"] for each in by_threshold(found_all)]
    assert counts == sorted(counts, reverse=True)
    assert counts[0] == 1


def test_questions_asked_again():
    asked = [row(1), row(2, answer="Rest."), row(3, question="Other?"), row(4, question="how IS asthma treated")]
    assert repeated_questions(asked) == [(0, 1), (0, 3)]


@pytest.mark.real
def test_the_known_duplicates_of_medquad_are_found(real_data):
    examples = medquad_rows(real_data)
    exact = [pair for pair in pairs(examples) if pair.exact]
    plain = len(examples) - len({(each.question, each.answer) for each in examples})
    assert len(exact) >= plain >= 48
    gone = {pair.again for pair in exact}
    left = [example for index, example in enumerate(examples) if index not in gone]
    assert len(repeated_questions(left)) >= 2_062 - len(exact)


@pytest.mark.real
def test_pubmedqa_and_liveqa_hardly_repeat_themselves(real_data):
    assert pairs(list(pubmedqa.read(real_data / "pubmedqa", Rejects()))) == []
    assert len(pairs(list(liveqa.read(real_data / "liveqa", Rejects())))) < 20
