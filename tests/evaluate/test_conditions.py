"""Decisions asked for in other ways, through the whole journey of a tiny model."""

import json
import shutil

import pytest

from meditune.config.recipe import EvaluateSpec
from meditune.data.example import DECISIONS, Example, Passage
from meditune.evaluate.evaluator import decided_on
from meditune.evaluate.metrics import summarise
from meditune.evaluate.predictions import Predictions, write_pubmedqa
from meditune.files import read_json, write_jsonl
from tests.commands import bench, meditune, read_rows
from tests.evaluate.test_report import shown

ALL = {
    "evaluate__closed_book": "true",
    "evaluate__written_decisions": "true",
    "evaluate__calibrate": "prior",
    "evaluate__abstain_target": "0.3",
    "data__dev_share": "0.45",
    "data__sources__0__limit": "60",
}
KINDS = ("decision", "dev_decision", "closed", "written", "calibration")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    with bench(tmp_path_factory.mktemp("conditions")) as made:
        yield made


@pytest.fixture(scope="module")
def folder(place):
    result = place.run("run", **ALL)
    assert result.code == 0, result
    return place.folder / "run"


def stored(folder, name):
    return {kind: read_rows(folder / "predictions" / f"{name}-{kind}.jsonl") for kind in KINDS}


@pytest.mark.parametrize("name", ["base", "tuned"])
def test_every_way_is_measured_on_its_items(folder, name):
    rows = stored(folder, name)
    ids = {split: {row["id"] for row in read_rows(folder / "data" / f"{split}.jsonl")} for split in ("dev", "test")}
    assert {row["id"] for row in rows["dev_decision"]} == ids["dev"]
    for kind in ("decision", "closed", "written"):
        assert {row["id"] for row in rows[kind]} == ids["test"]
    assert rows["calibration"][0].keys() >= {"method", "temperature", "bias", "items"}
    assert rows["calibration"][0]["items"] == len(ids["dev"])
    for closed, given in zip(rows["closed"], rows["decision"], strict=True):
        assert closed["logits"] != given["logits"], "without the context the model finds other things likely"


def test_the_figures_follow_from_what_is_stored(folder):
    report = read_json(folder / "report.json")
    for name in ("base", "tuned"):
        rows = stored(folder, name)
        for prefix, kind in (("", "decision"), ("closed_", "closed"), ("written_", "written")):
            right = sum(row["reference"] == row["prediction"] for row in rows[kind])
            assert report[name][f"{prefix}accuracy"] == pytest.approx(100 * right / len(rows[kind]))
        assert {"calibrated_accuracy", "calibrated_macro_f1", "calibrated_ece"} <= report[name].keys()
        said = report["decision"][name]
        assert said["written"]["without_label"] == sum(row["prediction"] is None for row in rows["written"])
        assert said["calibration"]["bias"].keys() == set(DECISIONS)
        assert said["abstention"].keys() == {"target", "raw", "calibrated"}
        assert said["risk_coverage"][-1]["risk"] == pytest.approx(1 - report[name]["accuracy"] / 100)
    assert report["comparison"].keys() == report["base"].keys()


def test_the_page_shows_raw_beside_corrected_figures(folder):
    words = shown(folder)
    assert "By likelihood Base model" in words
    assert "By likelihood, calibrated Base model" in words
    assert "With and without sources" in words
    assert "Prior calibration: each label" in words
    assert "Abstention" in words
    verdict = words.partition("Before and after")[0]
    for row in ("closed book", "calibrated"):
        assert row not in verdict.partition("Metrics that got worse")[0], "details stay out of the verdict"


def test_the_report_needs_no_model_and_goes_on_after_a_stop_between_the_two(folder, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    (copy / "predictions" / "tuned-calibration.jsonl").unlink()
    assert meditune("report", copy).code == 0
    assert read_json(copy / "report.json")["tuned"] == read_json(folder / "report.json")["tuned"]


def test_an_evaluation_measures_them_too(place, folder, tmp_path):
    settings = place.settings(**ALL)
    result = meditune("evaluate", folder, "--recipe", "quickstart", "-o", tmp_path / "one", *settings)
    assert result.code == 0, result
    figures = json.loads((tmp_path / "one" / "evaluation.json").read_text(encoding="utf-8"))["figures"]
    assert figures == pytest.approx(read_json(folder / "report.json")["tuned"])


def test_nothing_of_it_is_measured_unasked(place, tmp_path):
    assert meditune("evaluate", place.base, "-o", tmp_path / "plain", *place.settings()).code == 0
    there = {path.name for path in (tmp_path / "plain" / "predictions").iterdir()}
    assert "model-decision.jsonl" in there
    assert not there & {f"model-{kind}.jsonl" for kind in ("dev_decision", "closed", "written", "calibration")}


def example(number, **changes):
    given = {"context": (Passage(text="Pain fell."),), "decision": "yes"} | changes
    return Example(id=f"pubmedqa:{number}", source="pubmedqa", question=f"Does {number} help?", group=number, **given)


def test_closed_book_takes_only_the_context_away():
    examples = [example("1"), example("2", context=()), example("3", decision=None)]
    kinds = decided_on(examples, [], EvaluateSpec(closed_book=True))
    assert [each.id for each in kinds["decision"]] == ["pubmedqa:1", "pubmedqa:2"]
    assert kinds["closed"] == [examples[0].model_copy(update={"context": ()})], "the second has none to take away"
    assert decided_on(examples[1:2], [], EvaluateSpec(closed_book=True)).keys() == {"decision"}


def test_a_written_decision_without_a_label_is_wrong_and_no_class_of_its_own():
    rows = [{"id": str(n), "reference": "yes", "prediction": said} for n, said in enumerate(("yes", None, None, "no"))]
    figures = summarise(Predictions(written=rows))
    assert figures["written_accuracy"] == 25
    assert figures["written_macro_f1"] == pytest.approx(100 * (2 / 5 + 0) / 2)


def test_the_publishers_file_maps_pubmed_ids_to_labels(tmp_path):
    rows = [{"id": "pubmedqa:12345678", "prediction": "yes"}, {"id": "pubmedqa:9", "prediction": None}]
    other = {"id": "own:1", "prediction": "no"}
    write_jsonl(tmp_path / "base-decision.jsonl", [*rows, other])
    test = [example("12345678"), example("9"), example("1").model_copy(update={"id": "own:1", "source": "own"})]
    path = write_pubmedqa(tmp_path, "base", test)
    assert path == tmp_path / "base-pubmedqa.json"
    assert read_json(path) == {"12345678": "yes", "9": "none"}
    assert write_pubmedqa(tmp_path, "base", test[2:]) is None
