"""Clusters, coverage and imbalance of a set, against what can be computed by hand; `meditune data diversity`."""

import json
import math
import re
from typing import Any

import numpy as np
import pytest

from meditune.data.diversity import BY_NAME, chosen, clusters, compared, distance, diversity, rarefied, shannon, vendi
from meditune.data.example import Example, Passage
from meditune.data.readers import pubmedqa
from meditune.data.readers.tables import Rejects
from meditune.data.splits import Splits
from meditune.evaluate.report import render
from meditune.files import read_json
from meditune.models.sentence_encoder import load
from tests import tiny
from tests.commands import jsonl, meditune, rows
from tests.evaluate.test_report import finished_run


def test_equal_groups_count_fully_and_a_tiny_one_hardly():
    assert shannon({"a": 5, "b": 5, "c": 5}) == pytest.approx(3)
    assert shannon({"a": 3, "b": 1}) == pytest.approx(math.exp(-(0.75 * math.log(0.75) + 0.25 * math.log(0.25))))
    assert 1 < shannon({"a": 999, "b": 1}) < 1.01
    assert shannon({}) == 0


def test_a_smaller_draw_shows_fewer_groups():
    counts = {str(number): 2 for number in range(200)}
    whole, part = shannon(counts), rarefied(counts, 0.1, seed=1)
    assert part < 41 < whole
    assert part == rarefied(counts, 0.1, seed=1)
    assert rarefied(counts, 1.0, seed=1) == whole


def test_the_distance_is_the_share_that_must_change():
    assert distance({"a": 1, "b": 1}, {"a": 50, "b": 50}) == 0
    assert distance({"a": 1}, {"b": 7}) == 1
    assert distance({"a": 8, "b": 2}, {"a": 5, "b": 5}) == pytest.approx(0.3)
    assert distance({}, {"a": 1}) == 1


def example(number: int, **changes: Any) -> Example:
    fields: dict[str, Any] = {
        "id": f"own:{number}",
        "source": "own",
        "question": f"Does treatment {number} help?",
        "answer": f"It helps {number} of them.",
        "group": str(number),
    }
    return Example(**fields | changes)


def splits(train: list[Example], test: list[Example] | None = None) -> Splits:
    return Splits(train, [], test if test is not None else [example(10_000)], "own-group")


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


def test_what_changed_is_told_largest_first():
    before = [example(n, source="big" if n < 80 else "small") for n in range(100)]
    after = [each for number, each in enumerate(before) if number >= 60]
    told = compared(before, after, seed=1)
    assert (told["examples"], told["gone"], told["new"]) == ([100, 40], 60, 0)
    source = told["dimensions"]["source"]
    assert source["groups"][0] in (
        {"group": "big", "before": 80.0, "after": 50.0},
        {"group": "small", "before": 20.0, "after": 50.0},
    )
    assert source["distance"] == 0.3
    assert source["effective"][0] < source["effective"][1] == 2.0


def test_the_larger_set_is_drawn_down_before_its_topics_are_counted():
    before = [example(n, meta={"focus": f"disease {n}"}) for n in range(200)]
    told = compared(before, before[:20], seed=1)["dimensions"]["focus"]
    assert told["effective"] == [20.0, 20.0]


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


@pytest.mark.parametrize("name", ["focus", "collection"])
def test_a_value_that_a_row_lists_twice_counts_once(name):
    told = found([example(n, meta={name: ["gout", "gout"] if n else ["gout"]}) for n in range(5)])
    row = told["splits"]["train"]["dimensions"][name]["groups"][0]
    assert (row["group"], row["count"], row["share"]) == ("gout", 5, 100.0)
    assert all(each["examples"] == 5 for each in told["sources"].values())


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
    assert remark["message"].startswith("maybe makes up 10% (95% interval 6 to 17%) of 100 decisions")
    assert "train.class_balance (for example 0.5)" in remark["advice"]
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
    assert "20 training examples are too few" in remark["message"]


@pytest.mark.parametrize(
    ("change", "rule", "said"),
    [
        (
            lambda n: {"source": "big" if n < 90 else "small"},
            "dominant group",
            "Source big makes up 90% (95% interval 83 to 94%)",
        ),
        (lambda _: {"answer": HARD}, "hard to read", "100% of the training answers are above reading grade 8"),
        (lambda _: {"question": "Do women sleep?"}, "women and men", "women or girls are mentioned in nearly 100%"),
        (lambda _: {"decision": "yes"}, "missing decision", "No training example has the decision no or maybe."),
        (
            lambda n: {"meta": {"question_type": "treatment" if n < 95 else f"kind {n}"}},
            "uneven groups",
            "The 6 groups by question type are only as diverse as 1.3",
        ),
    ],
)
def test_what_is_out_of_balance_is_said(change, rule, said):
    result = found([example(n, **change(n)) for n in range(100)])
    assert said in rules(result)[rule]["message"]


def test_a_test_set_of_other_questions_is_said_to_differ():
    train = [example(n, meta={"question_type": "treatment"}) for n in range(50)]
    test = [example(n, meta={"question_type": "causes" if n % 2 else "treatment"}) for n in range(50)]
    result = found(train, test)
    assert result["differences"]["question_type"] == 0.5
    assert "question type 50%" in rules(result)["train and test differ"]["message"]
    assert "train and test differ" not in rules(found(train, train))
    assert "train and test differ" not in rules(found(train, test[:29]))  # may differ by chance


def test_the_real_sources_are_as_hard_to_read_as_the_documentation_says(real_data):
    told = found(list(pubmedqa.read(real_data / "pubmedqa", Rejects())))
    assert told["sources"]["pubmedqa"]["reading_grade"]["median"] == 16.8
    headings = told["splits"]["train"]["dimensions"]["mesh"]
    assert headings["groups"][0]["group"] == "Humans"
    assert headings["distinct"] > 2000
    assert 400 < headings["shannon"] < 800


@pytest.fixture
def file(tmp_path):
    own = [
        row | {"decision": "maybe" if number % 12 == 0 else "yes", "question_type": f"kind {number % 3}"}
        for number, row in enumerate(rows(120))
    ]
    own[5]["question"] = "Is <script>alert(1)</script> & co. safe?"
    return jsonl(tmp_path / "own.jsonl", own)


def survey(place, file, output, *more, clusters=0):
    words = ["data", "diversity", "quickstart", "--output", output, "--clusters", clusters]
    return meditune(*words, *place.own(file), *more)


def test_a_recipes_data_are_surveyed(place, file, tmp_path):
    result = survey(place, file, tmp_path / "out").ok()
    told = read_json(tmp_path / "out" / "diversity.json")
    assert told["splits"]["train"]["dimensions"]["question_type"]["distinct"] == 3
    assert "question type: 3 groups, effective number 3.0" in result.out
    share = r"\d+% \(95% interval \d+ to \d+%\)"
    assert re.search(rf"! maybe makes up {share} of \d+ decisions\. A model that never", result.out)
    assert "! No training example has the decision no." in result.out
    assert result.last == f"Page: {tmp_path / 'out' / 'diversity.html'}"
    page = (tmp_path / "out" / "diversity.html").read_text(encoding="utf-8")
    assert "No training example has the decision no." in page
    assert "Question type" in page
    assert not re.search(r'(?:src|href)="(?!#)', page), "the page loads nothing"
    kept = read_json(tmp_path / "out" / "data" / "quality.json")["diversity"]
    assert kept == {key: told[key] for key in kept}


def test_what_a_filter_changed_is_shown_beside_it(place, file, tmp_path):
    survey(place, file, tmp_path / "before")
    capped = ["--set", "data.balance={by: decision, cap: 9}", "--compare", tmp_path / "before"]
    survey(place, file, tmp_path / "after", *capped).ok()
    found = read_json(tmp_path / "after" / "diversity.json")["compared"]
    assert found["examples"][0] > found["examples"][1] == found["examples"][0] - found["gone"]
    decision = {row["group"]: row for row in found["dimensions"]["decision"]["groups"]}
    assert decision["yes"]["before"] > 80 > decision["yes"]["after"]
    assert "Before and after" in (tmp_path / "after" / "diversity.html").read_text(encoding="utf-8")


def test_clusters_stand_on_the_page_as_text(place, file, tmp_path, monkeypatch):
    model = load(tiny.sentence_model(tmp_path / "model"))
    monkeypatch.setattr("meditune.models.sentence_encoder.sentence_model", lambda: model)
    survey(place, file, tmp_path / "run")
    words = ["data", "diversity", tmp_path / "run", "--output", tmp_path / "out", "--clusters", 4]
    meditune(*words).ok()
    found = json.loads((tmp_path / "out" / "diversity.json").read_text(encoding="utf-8"))["clusters"]
    assert sum(row["questions"] for row in found["clusters"]) == found["questions"] <= 120
    page = (tmp_path / "out" / "diversity.html").read_text(encoding="utf-8")
    assert page.count("<circle") == len(found["points"])
    assert "<script" not in page
    assert not (tmp_path / "out" / "data").exists(), "a run's data are read where they are"


def test_where_no_sentence_model_can_be_had_the_rest_is_told(place, file, tmp_path):
    result = survey(place, file, tmp_path / "out", clusters=4).ok()
    assert "The survey has no clusters: " in result.err
    assert "clusters" not in read_json(tmp_path / "out" / "diversity.json")


def test_what_is_neither_recipe_nor_run_is_refused(tmp_path):
    result = meditune("data", "diversity", tmp_path / "nothing", "--output", tmp_path / "out")
    result.refused(2, "nothing")


def test_the_report_tells_it_and_reports_without_it_are_drawn(place, file, tmp_path):
    run = finished_run(tmp_path / "run")
    assert "Data coverage" not in render(run).read_text(encoding="utf-8")
    survey(place, file, tmp_path / "out")
    quality = run / "data" / "quality.json"
    known = read_json(tmp_path / "out" / "data" / "quality.json")
    quality.write_text(json.dumps(read_json(quality) | {"diversity": known["diversity"]}), encoding="utf-8")
    page = render(run).read_text(encoding="utf-8")
    assert "Data coverage" in page
    assert "No training example has the decision no." in page
