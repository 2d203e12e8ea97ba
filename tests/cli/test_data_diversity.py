"""`meditune data diversity` as a user meets it."""

import json
import re

import pytest

from meditune.evaluate.report.page import render
from meditune.files import read_json
from meditune.models.sentence_encoder import load
from tests import tiny
from tests.commands import bench, jsonl, meditune, rows
from tests.evaluate.test_report import finished_run


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    with bench(tmp_path_factory.mktemp("survey")) as made:
        yield made


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
    result = survey(place, file, tmp_path / "out")
    assert result.code == 0, result
    told = read_json(tmp_path / "out" / "diversity.json")
    assert told["splits"]["train"]["dimensions"]["question_type"]["distinct"] == 3
    assert "question type: 3 groups, effective number 3.0" in result.out
    assert re.search(r"! maybe is \d+ % \(\d+ to \d+\) of \d+ decisions\. A model that never", result.out)
    assert "! No training decision is no." in result.out
    assert result.last == f"Page: {tmp_path / 'out' / 'diversity.html'}"
    page = (tmp_path / "out" / "diversity.html").read_text(encoding="utf-8")
    assert "No training decision is no." in page
    assert "Question type" in page
    assert not re.search(r'(?:src|href)="(?!#)', page), "the page loads nothing"
    kept = read_json(tmp_path / "out" / "data" / "quality.json")["diversity"]
    assert kept == {key: told[key] for key in kept}


def test_what_a_filter_changed_is_shown_beside_it(place, file, tmp_path):
    survey(place, file, tmp_path / "before")
    capped = ["--set", "data.balance={by: decision, cap: 9}", "--compare", tmp_path / "before"]
    assert survey(place, file, tmp_path / "after", *capped).code == 0
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
    assert meditune(*words).code == 0
    found = json.loads((tmp_path / "out" / "diversity.json").read_text(encoding="utf-8"))["clusters"]
    assert sum(row["questions"] for row in found["clusters"]) == found["questions"] <= 120
    page = (tmp_path / "out" / "diversity.html").read_text(encoding="utf-8")
    assert page.count("<circle") == len(found["points"])
    assert "<script" not in page
    assert not (tmp_path / "out" / "data").exists(), "a run's data are read where they are"


def test_where_no_sentence_model_can_be_had_the_rest_is_told(place, file, tmp_path):
    result = survey(place, file, tmp_path / "out", clusters=4)
    assert result.code == 0, result
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
    assert "No training decision is no." in page
