"""Which questions and passages count as the same: light rewrites do, other questions of the same form don't."""

import random
import time

import pytest

from meditune.data.near_duplicates import near_passages, near_questions, share_within

QUESTION = "Does early treatment with metformin lower the risk of heart failure in older adults with diabetes?"
OTHERS = [
    "Is laparoscopic surgery safe in patients with cirrhosis of the liver?",
    "Do children with asthma sleep worse than their healthy peers?",
    "Can a simple blood test predict who will develop sepsis after surgery?",
]


@pytest.mark.parametrize(
    "rewritten",
    [
        QUESTION.upper().replace("?", " ..."),
        "In older adults with diabetes, does early treatment with metformin lower the risk of heart failure?",
        QUESTION.replace("metformin", "metfromin"),
        QUESTION.replace("diabetes", "diabetis").replace("failure", "failures"),
        QUESTION.replace("lower", "reduce"),
        QUESTION.replace("early ", ""),
        QUESTION.replace("with diabetes", "with severe diabetes"),
    ],
    ids=["case", "order", "swapped letters", "two slips", "word replaced", "word left out", "word added"],
)
def test_a_light_rewrite_is_the_same_question(rewritten):
    found = near_questions([QUESTION], [*OTHERS, rewritten])
    assert [pair[:2] for pair in found] == [(0, 3)]
    assert 0.65 <= found[0][2] <= 1


@pytest.mark.parametrize(
    ("form", "one", "other"),
    [
        ("What are the symptoms of Duane syndrome type {} ?", "1", "2"),
        ("What are the symptoms of Cockayne syndrome type {} ?", "II", "III"),
        ("What is the outlook for {} lymphoma in children?", "Hodgkin", "non-Hodgkin"),
        ("What are the symptoms of {}?", "asthma", "sepsis"),
        ("{} Crohn's disease?", "Is it", "What is"),
        ("Does treatment {} help adults with pain in the back?", "17", "71"),
    ],
)
def test_other_questions_of_the_same_form_are_others(form, one, other):
    assert near_questions([form.format(one)], [*OTHERS, form.format(other)]) == []


def test_a_template_with_many_fillings_makes_no_rewrites():
    form = "What research or clinical trials are being done at this time for people with {}?"
    diseases = ["chorea", "syncope", "ataxia", "stroke", "headache", "hydrocephalus", "narcolepsy"]
    questions = [form.format(disease) for disease in diseases]
    assert near_questions(questions, questions) == []
    assert near_questions(questions[:1], [*OTHERS, questions[1]], questions[2:]) == []
    assert near_questions(questions[:1], [*OTHERS, questions[1]]), "without the others it looks like a rewrite"


def abstract(seed, count=150):
    chance = random.Random(seed)
    return [f"w{chance.randrange(3000)}" for _ in range(count)]


def test_a_passage_is_found_inside_another_and_with_words_replaced():
    known, stranger = abstract(1), abstract(2)
    article = [*abstract(3, 400), *known, *abstract(4, 400)]
    changed = [word if place % 8 else "other" for place, word in enumerate(known)]
    rewritten = [word if place % 2 else "other" for place, word in enumerate(known)]
    texts = [" ".join(words) for words in (stranger, article, changed, rewritten)]
    assert {pair[:2] for pair in near_passages([" ".join(known)], texts)} == {(0, 1), (0, 2)}


def test_a_short_phrase_that_many_rows_share_is_no_match():
    assert near_passages(["Background: none was given."], ["Background: none was given."]) == []


def test_thousands_of_rows_take_seconds():
    chance = random.Random(1)
    vocabulary = [f"{chance.choice('bcdfgklmnprst')}{number:x}o" for number in range(4000)]
    questions = [" ".join(chance.sample(vocabulary, 12)) for _ in range(20_000)]
    passages = [" ".join(chance.choices(vocabulary, k=100)) for _ in range(20_000)]
    started = time.monotonic()
    assert len(near_questions(questions[:500], questions)) == 500
    assert len(near_passages(passages[:500], passages)) == 500
    assert time.monotonic() - started < 30, "about 5 s on an idle core"


def test_the_share_of_an_answer_that_stands_in_a_text():
    answer = "one two three four five six seven eight nine ten"
    assert share_within(answer, f"Before. {answer.upper()}! After.", 8) == 1
    assert share_within(answer, "one two three four five six seven eight", 8) == pytest.approx(1 / 3)
    assert share_within("one two", answer, 8) == 0
