"""What a set covers, and what is said to be out of balance."""

import pytest

from meditune.data.diversity.coverage import BY_NAME, diversity
from meditune.data.example import Passage
from meditune.data.readers import pubmedqa
from meditune.data.readers.tables import Rejects
from tests.data.diversity.examples import example, splits

EASY = "The drug helps. You can take it with food."
HARD = "Pharmacological immunomodulation significantly ameliorates histopathologically characterized inflammation."


def found(train, test=None):
    return diversity(splits(train, test))


def rules(result):
    return {remark["rule"]: remark for remark in result["remarks"]}


def test_groups_have_counts_shares_and_intervals():
    types = ["treatment"] * 60 + ["symptoms"] * 30 + ["causes"] * 10
    train = [example(n, meta={"question_type": kind}) for n, kind in enumerate(types)]
    told = found([*train, example(100)])["splits"]["train"]["dimensions"]["question_type"]
    assert (told["known"], told["distinct"]) == (100, 3)
    assert told["shannon"] == pytest.approx(2.46, abs=0.01)
    assert told["groups"][0] == {"group": "treatment", "count": 60, "share": 60.0, "ci95": [50.2, 69.06]}
    assert [row["group"] for row in told["groups"]] == ["treatment", "symptoms", "causes"]


def test_the_small_groups_of_many_are_counted_together():
    train = [example(n, meta={"focus": f"disease {min(n, 40)}"}) for n in range(60)]
    told = found(train)["splits"]["train"]["dimensions"]["focus"]
    assert told["distinct"] == 41
    assert told["groups"][0] == {"group": "disease 40", "count": 20, "share": 33.33, "ci95": told["groups"][0]["ci95"]}
    assert sum(row["count"] for row in told["groups"]) + told["others"] == 60


@pytest.mark.parametrize(
    ("changes", "people"),
    [
        ({"question": "Do women over forty sleep worse?"}, {"women or girls"}),
        ({"answer": "Newborns and their mothers were well."}, {"women or girls", "babies"}),
        ({"context": (Passage(text="Teenagers took part."),)}, {"teenagers"}),
        ({"meta": {"mesh": ["Aged", "Male", "Pain"]}}, {"older people", "men or boys"}),
        ({"meta": {"mesh": 7, "focus": {"odd": 1}}}, set()),
    ],
)
def test_people_are_found_in_words_and_headings(changes, people):
    assert BY_NAME["people"].groups(example(1, **changes)) == people


def test_a_rare_decision_is_named_with_what_to_do():
    train = [example(n, decision=("yes", "no", "yes", "no", "maybe")[n % 5] if n < 50 else "yes") for n in range(100)]
    remark = rules(found(train))["rare decision"]
    assert remark["said"].startswith("maybe is 10 % (6 to 17) of 100 decisions")
    assert "data.balance={by: decision, weights: {maybe: 3}}" in remark["advice"]
    assert rules(found(train[:90] + [example(n, decision="yes") for n in range(9)])).keys() >= {"rare decision"}


def test_balanced_data_get_no_remark():
    train = [
        example(
            n,
            decision=("yes", "no", "maybe")[n % 3],
            answer=EASY,
            question=f"Do women, men, babies, children, teenagers, elderly Hispanics and pregnant people sleep {n}?",
        )
        for n in range(90)
    ]
    assert found(train, train)["remarks"] == []


def test_of_few_examples_only_that_is_said():
    (remark,) = found([example(n, answer=f"{EASY} {HARD}") for n in range(20)])["remarks"]
    assert "20 training examples are too few" in remark["said"]


@pytest.mark.parametrize(
    ("change", "rule", "said"),
    [
        (lambda n: {"source": "big" if n < 90 else "small"}, "dominant group", "Source big is 90 % (83 to 94)"),
        (lambda _: {"answer": HARD}, "hard to read", "100 % of the training answers are above reading grade 8"),
        (lambda _: {"question": "Do women sleep?"}, "women and men", "women or girls are mentioned in nearly 100 %"),
        (lambda _: {"decision": "yes"}, "missing decision", "No training decision is no or maybe."),
        (
            lambda n: {"meta": {"question_type": "treatment" if n < 95 else f"kind {n}"}},
            "uneven groups",
            "The 6 groups by question type count for 1.3",
        ),
    ],
)
def test_what_is_out_of_balance_is_said(change, rule, said):
    result = found([example(n, **change(n)) for n in range(100)])
    assert said in rules(result)[rule]["said"]


def test_a_test_set_of_other_questions_is_said_to_differ():
    train = [example(n, meta={"question_type": "treatment"}) for n in range(50)]
    test = [example(n, meta={"question_type": "causes" if n % 2 else "treatment"}) for n in range(50)]
    result = found(train, test)
    assert result["differences"]["question_type"] == 0.5
    assert "question type 50 %" in rules(result)["train and test differ"]["said"]
    assert "train and test differ" not in rules(found(train, train))


def test_the_real_sources_are_as_hard_to_read_as_the_documentation_says(real_data):
    told = found(list(pubmedqa.read(real_data / "pubmedqa", Rejects())))
    assert told["sources"]["pubmedqa"]["reading_grade"]["median"] == 16.8
    headings = told["splits"]["train"]["dimensions"]["mesh"]
    assert headings["groups"][0]["group"] == "Humans"
    assert headings["distinct"] > 2000
    assert 400 < headings["shannon"] < 800
