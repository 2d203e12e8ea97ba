"""Texts put right, without losing a word."""

import re
from collections import Counter

import pytest

from meditune.data.quality.rules import asked, decoded, laid_out, without_boilerplate
from tests.data.quality.examples import medquad_rows

PAGE = "Key Points\nAsthma is common. Click here to read more. It can be treated.\nBack to top"


def words(text):
    return Counter(re.findall(r"\w+", text))


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("The doctor gives\nmedicine every day.", "The doctor gives medicine every day."),
        ("It hurts .  Take rest , please.", "It hurts. Take rest, please."),
        ("Signs are:\n• fever\n• cough", "Signs are:\n- fever\n- cough"),
        ("Signs are:\n•\nfever\n•\ncough", "Signs are:\n- fever\n- cough"),
        ("Signs: - Fever. - Cough. - Pain.", "Signs:\n- Fever.\n- Cough.\n- Pain."),
        ("First.\n\n\n\nSecond.\xa0 Third.", "First.\n\nSecond. Third."),
        ("- one\n\n- two", "- one\n- two"),
        ("It is well-known - as we said - and safe.", "It is well-known - as we said - and safe."),
        ("Dose: 5 mg .5 ml", "Dose: 5 mg .5 ml"),
    ],
)
def test_layout(before, after):
    assert laid_out(before) == after
    assert laid_out(after) == after
    assert words(before) == words(after)


@pytest.mark.parametrize("question", ["What is (are) Gout ?", "What is (are) Gout? ?", "What is (are)  Gout??"])
def test_a_question_ends_with_one_mark(question):
    assert asked(question) == "What is (are) Gout?"


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("cafÃ©", "café"),
        ("donâ€™t", "don’t"),
        ("5 Âµg", "5 µg"),
        ("a\u200bb\ufeff", "ab"),
        ("Größe “quoted” – ﬁne α≥β 治疗", "Größe “quoted” – ﬁne α≥β 治疗"),
        ("plain", "plain"),
    ],
)
def test_encoding(before, after):
    assert decoded(before) == after


def test_words_of_a_page_go_and_are_named():
    left, gone = without_boilerplate(PAGE)
    assert left == "Asthma is common. It can be treated."
    assert sorted(gone) == ["Back to top", "Click here to read more.", "Key Points"]


def test_an_answer_that_is_nothing_else_stays():
    assert without_boilerplate("Back to top") == ("Back to top", ["Back to top"])


@pytest.mark.real
def test_no_word_of_medquad_is_lost_by_its_layout(real_data):
    mended = 0
    for example in medquad_rows(real_data)[::16]:
        for before, after in (
            (example.question, asked(example.question)),
            (example.answer, laid_out(example.answer)),
        ):
            assert words(before) == words(after), example.id
            mended += before != after
    assert mended > 1_000
