"""Retrieved passages through a whole run: found once, shown to both models, trained with, measured and reported."""

from __future__ import annotations

import pytest

from meditune.files import read_json
from tests.commands import bench, meditune, read_rows
from tests.evaluate.test_report import shown

ASKED = {
    "data__sources__0__limit": "60",
    "evaluate__closed_book": "true",
    "evaluate__retrieve__index": "contexts",
    "evaluate__retrieve__k": "3",
    "train__retrieve__share": "0.75",
    "train__retrieve__passages": "3",
    "train__retrieve__missing": "0.25",
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    with bench(tmp_path_factory.mktemp("grounding")) as made:
        yield made


@pytest.fixture(scope="module")
def done(place):
    result = place.run("run", **ASKED)
    assert result.code == 0, result
    return place.folder / "run", result


@pytest.fixture(scope="module")
def folder(done):
    return done[0]


def rows(folder, kind, name="tuned"):
    return {row["id"]: row for row in read_rows(folder / "predictions" / f"{name}-{kind}.jsonl")}


def test_every_measured_item_has_its_passages(folder):
    found = {row["id"]: row for row in read_rows(folder / "retrieved.jsonl")}
    test = {row["id"]: row for row in read_rows(folder / "data" / "test.jsonl")}
    assert found.keys() == test.keys()
    for row in found.values():
        assert [passage["rank"] for passage in row["passages"]] == [0, 1, 2]
        assert row["passages"][0]["score"] >= row["passages"][2]["score"]
        assert "may help some patients" not in str(row["passages"]), "conclusions aren't among what is searched"
    own = sum(row["passages"][0]["document"] == row["id"] for row in found.values())
    assert own == len(found), "the number in the question tells the abstracts apart"
    facts = read_json(folder / "retrieved.json")
    assert (facts["index"], facts["documents"], facts["leaks"]) == ("contexts", 60, {})
    assert facts["own"] == {"items": len(test), "ranks": {"1": len(test)}}


@pytest.mark.parametrize("name", ["base", "tuned"])
def test_both_models_are_measured_under_every_condition_on_the_same_items(folder, name):
    given = rows(folder, "decision", name)
    for condition in ("closed", "retrieved"):
        decided = rows(folder, condition, name)
        assert decided.keys() == given.keys()
        assert any(decided[id]["logits"] != given[id]["logits"] for id in given)
        for kind in ("likelihood", "answer"):
            assert rows(folder, f"{condition}_{kind}", name).keys() == rows(folder, kind, name).keys()
    assert {row["passages"] for row in rows(folder, "retrieved_answer", name).values()} <= {1, 2, 3}
    for kind in ("retrieved_faithfulness", "retrieved_reference_faithfulness"):
        assert rows(folder, kind, name).keys() == rows(folder, "answer", name).keys()


def test_figures_and_differences_follow_from_what_is_stored(folder):
    report = read_json(folder / "report.json")
    for name in ("base", "tuned"):
        found = report["conditions"][name]
        assert found.keys() == {"closed", "given", "retrieved"}
        for condition, kind in (("closed", "closed"), ("given", "decision"), ("retrieved", "retrieved")):
            said = rows(folder, kind, name).values()
            right = 100 * sum(row["reference"] == row["prediction"] for row in said) / len(said)
            assert found[condition]["figures"]["accuracy"] == pytest.approx(right)
            delta = right - found["given"]["figures"]["accuracy"]
            if condition != "given":
                assert found[condition]["comparison"]["accuracy"]["delta"] == pytest.approx(delta)
                assert report[name][f"{condition}_accuracy"] == pytest.approx(right)
        assert "faithfulness" not in found["closed"]["figures"], "closed book there is nothing to be faithful to"
        assert found["retrieved"]["figures"]["faithfulness"] == report[name]["retrieved_faithfulness"]
    assert report["retrieval"]["share"] == 100
    assert report["comparison"].keys() == report["base"].keys()


def test_people_are_shown_the_conditions(done):
    folder, result = done
    assert "tuned, by context" in result.out
    assert "the top 3 documents contain the item's own document for 100.0 %" in result.out
    words = shown(folder)
    assert "With and without sources" in words
    assert "Closed book Given context Retrieved passages" in words
    assert "Retrieved passages (3)" in words


def test_training_showed_the_own_passage_among_others_and_nothing_of_the_test(folder):
    found = read_rows(folder / "retrieved_train.jsonl")
    train = {row["id"]: row for row in read_rows(folder / "data" / "train.jsonl")}
    assert len(found) == round(0.75 * len(train))
    assert sum(not row["right"] for row in found) == round(0.25 * len(found))
    places = set()
    for row in found:
        documents = [passage["document"] for passage in row["passages"]]
        assert len(set(documents)) == 3
        assert set(documents) <= train.keys(), "a passage of a dev or test item"
        assert (row["id"] in documents) == row["right"]
        places |= {documents.index(row["id"])} if row["right"] else set()
    assert places == {0, 1, 2}, "the own passage comes anywhere"
    said = read_json(folder / "model" / "training.json")["retrieved"]
    assert said == {"examples": len(found), "right": sum(row["right"] for row in found), "left_out": 0}
    card = (folder / "model" / "README.md").read_text(encoding="utf-8")
    assert f"{len(found)} of the {len(train)} examples showed retrieved passages" in card
    record = read_json(folder / "model" / "trained_on.json")
    assert len(record["contexts"]) == len(train), "the record names the examples' own contexts"


def test_the_same_seed_gives_the_same_passages_and_another_others(place, folder):
    for name, seed in (("again", "17"), ("other", "18")):
        result = meditune(
            "data", "prepare", "quickstart", "-o", place.folder / name, *place.settings(**ASKED, seed=seed)
        )
        assert result.code == 0, result
    for file in ("retrieved.jsonl", "retrieved_train.jsonl"):
        assert (place.folder / "again" / file).read_bytes() == (folder / file).read_bytes()
    assert (place.folder / "other" / "retrieved_train.jsonl").read_bytes() != (folder / file).read_bytes()


def test_the_system_with_retrieval_stands_beside_the_models(folder, tmp_path):
    names = [f"{folder}:{each}" for each in ("base", "tuned", "tuned+retrieved", "tuned+closed", "retrieved")]
    result = meditune("compare", *names[:4], "--json", tmp_path / "out.json")
    assert result.code == 0, result
    found = read_json(tmp_path / "out.json")
    assert found["models"] == names[:4]
    report = read_json(folder / "report.json")
    assert found["figures"][names[2]]["accuracy"] == report["tuned"]["retrieved_accuracy"]
    row = found["comparisons"][names[2]]["comparison"]["accuracy"]
    assert row["delta"] == pytest.approx(report["tuned"]["retrieved_accuracy"] - report["base"]["accuracy"])
    assert row["test"] == "McNemar, exact"
    assert meditune("compare", names[2], names[4]).code == 0, "of a run's folder the tuned model is taken"


def test_a_condition_that_was_not_measured_is_named(place):
    assert place.run("plain", data__sources__0__limit="60").code == 0
    plain = place.folder / "plain"
    meditune("compare", plain, f"{plain}:tuned+retrieved").refused(
        3, "tuned wasn't measured with retrieved passages", "evaluate.retrieve.index="
    )
    assert not (plain / "retrieved.jsonl").exists()
    assert "conditions" not in read_json(plain / "report.json")


def test_an_evaluation_finds_its_own_passages(place, folder, tmp_path):
    settings = place.settings(**ASKED)
    result = meditune("evaluate", folder, "--recipe", "quickstart", "-o", tmp_path / "one", *settings)
    assert result.code == 0, result
    assert (tmp_path / "one" / "retrieved.jsonl").read_bytes() == (folder / "retrieved.jsonl").read_bytes()
    assert not (tmp_path / "one" / "retrieved_train.jsonl").exists()
    one, run = read_json(tmp_path / "one" / "evaluation.json"), read_json(folder / "report.json")
    assert one["conditions"]["model"] == run["conditions"]["tuned"]
    assert one["figures"] == pytest.approx(run["tuned"])
    assert "model, by context" in result.out


def test_a_comparison_says_that_the_passages_were_others(place, folder, tmp_path):
    other = place.settings(**ASKED | {"evaluate__retrieve__k": "1"})
    assert meditune("evaluate", folder, "--recipe", "quickstart", "-o", tmp_path / "one", *other).code == 0
    first = f"{folder}:tuned+retrieved"
    result = meditune("compare", first, f"{tmp_path / 'one'}:retrieved")
    assert result.code == 0, result
    assert f"had other passages than {first}" in result.out
    assert "other passages" not in meditune("compare", first, f"{folder}:base+retrieved").out


def test_settings_may_change_until_something_is_measured(place):
    settings = place.settings(**ASKED)
    name = place.folder / "changed"
    assert meditune("data", "prepare", "quickstart", "-o", name, *settings).code == 0
    fewer = place.settings(**ASKED | {"evaluate__retrieve__k": "2"})
    assert meditune("data", "prepare", "quickstart", "-o", name, *fewer).code == 0
    assert {len(row["passages"]) for row in read_rows(name / "retrieved.jsonl")} == {2}
