"""Leakage as a user meets it: refused before anything is measured, or owned up to and then marked everywhere."""

import json
import shutil

import pytest

from tests.commands import bench, jsonl, meditune, read_rows, rows


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    with bench(tmp_path_factory.mktemp("leakage")) as made:
        yield made


@pytest.fixture(scope="module")
def planted(place):
    """Settings of a run in which twelve training rows of the user's own ask test questions."""
    path = jsonl(place.folder / "own.jsonl", rows(12, question=lambda n: f"does TREATMENT {n} help"))
    sources = f"[{{name: pubmedqa}}, {{name: own, path: '{path}'}}]"
    return {
        "data__split": "official",
        "data__sources": sources,
        "data__sources__0__limit": None,
        "train__epochs": 0.1,
        "evaluate__answers": 5,
    }


@pytest.fixture(scope="module")
def tuned(place):
    """A run of 40 items, of which some are trained on and some tested on."""
    assert place.run("tuned").code == 0
    return place.folder / "tuned"


def elsewhere(place, **changes):
    """Settings that test on items which the run `tuned` was trained on."""
    return place.settings(**{"data__sources__0__limit": 200, "seed": 5, "evaluate__answers": 5} | changes)


def test_leaked_items_stop_a_run_before_anything_is_measured(place, planted):
    result = place.run("refused", **planted)
    result.refused(3, "Leakage: ", "of 500 test items have the question of a training item", "leakage.json")
    assert not (place.folder / "refused" / "predictions").exists()
    again = place.run("refused", **planted, evaluate__allow_leakage="[context]")
    again.refused(3, "evaluate.allow_leakage=[question]")


def test_owned_up_leakage_marks_everything_that_shows_figures(place, planted):
    result = place.run("owned", **planted, evaluate__allow_leakage="[question]")
    assert result.code == 0, result
    found = place.report("owned")["leakage"]["found"]["question"]
    asked = {row["question"].casefold().strip("?") for row in read_rows(place.folder / "owned" / "data" / "test.jsonl")}
    assert found["items"] == found["exact"] == sum(f"does treatment {n} help" in asked for n in range(12)) > 0
    said = f"{found['items']} of 500 test items"
    assert f"LEAKAGE (allowed by the recipe): {said}" in result.out
    page = (place.folder / "owned" / "report.html").read_text(encoding="utf-8")
    assert page.index("figures aren't those of unseen questions") < page.index("Did tuning help?")
    assert said in page
    assert "that it never saw" not in page
    for card in ("model/README.md", "data/README.md"):
        assert "**Leakage" in (place.folder / "owned" / card).read_text(encoding="utf-8"), card
    again = meditune("report", place.folder / "owned")
    assert said in again.out


def test_a_clean_run_says_that_it_was_checked(place, tuned):
    checked = place.report("tuned")["leakage"]
    assert checked["found"] == {}
    assert checked["items"] == place.report("tuned")["data"]["test"]
    assert checked["model"] == {"name": str(place.base), "recorded": None, "run": 0}
    page = (tuned / "report.html").read_text(encoding="utf-8")
    assert "it keeps no record. Nothing was found." in page
    assert "Leakage" not in page


@pytest.mark.parametrize("way", ["merge", "prune"])
def test_a_derived_model_remembers_what_it_was_trained_on(place, tuned, way):
    """Even where the run is gone: its record goes with the model."""
    moved = shutil.copytree(tuned, place.folder / f"moved-{way}")
    derived = place.folder / way
    assert meditune("merge", moved, "--output", derived).code == 0
    if way == "prune":
        derived = place.folder / "pruned"
        words = ["--recipe", "quickstart", "--method", "magnitude", *place.settings()]
        assert meditune("prune", place.folder / way, "--output", derived, *words).code == 0
    shutil.rmtree(moved)
    out = place.folder / f"of-{way}"
    meditune("evaluate", derived, "-o", out, *elsewhere(place)).refused(
        3, f"trained on by {derived}", "Measure on other"
    )
    assert not (out / "predictions").exists()
    fine = meditune("evaluate", derived, "-o", out, *elsewhere(place, evaluate__allow_leakage=True))
    assert fine.code == 0, fine
    assert "LEAKAGE (allowed by the recipe)" in fine.out
    assert "trained_on" in json.loads((out / "evaluation.json").read_text(encoding="utf-8"))["leakage"]["found"]


def test_a_model_is_measured_on_its_own_runs_test_items(place, tuned):
    result = meditune("evaluate", tuned, "-o", place.folder / "own-test", *place.settings())
    assert result.code == 0, result
    assert "LEAKAGE" not in result.out


def test_tuning_further_keeps_the_first_record(place, tuned):
    words = place.settings(model__base=tuned, train__epochs=0.1)
    assert meditune("train", "quickstart", "-o", place.folder / "further", *words).code == 0
    first, both = (
        json.loads((folder / "model" / "trained_on.json").read_text(encoding="utf-8"))
        for folder in (tuned, place.folder / "further")
    )
    assert set(first["questions"]) <= set(both["questions"])
    assert both["examples"] == 2 * first["examples"]
