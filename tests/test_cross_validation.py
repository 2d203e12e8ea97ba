"""Cross-validation: each item is predicted once, by a model that didn't train on it."""

import json
import statistics

import pytest

from meditune.cli.metrics_tables import print_crossval
from meditune.cross_validation import pooled_results
from meditune.evaluate.metrics import summarize
from meditune.evaluate.predictions import Predictions
from meditune.files import append_jsonl, read_json, write_json, write_jsonl
from tests.commands import meditune, read_rows
from tests.evaluate.test_metrics import decisions, likelihoods

TINY = {
    "data__split": "official",
    "data__sources__0__limit": None,
    "train__epochs": "0.05",
    "evaluate__answers": "3",
    "evaluate__general_tokens": "0",
    "evaluate__resamples": "100",
}


@pytest.fixture(scope="module")
def validated(place):
    """Two folds; the command's words, its folder, and what it printed."""
    folder = place.folder / "folds"
    words = ["crossval", "quickstart", "-o", folder, "--fold", "3", "--fold", "7", *place.settings(**TINY)]
    result = meditune(*words).ok()
    return words, folder, result


def test_each_fold_is_a_run_of_its_own_that_leaves_the_test_alone(validated):
    _, folder, _ = validated
    assert {path.name for path in folder.iterdir()} == {"fold-3", "fold-7", "crossval.json"}
    measured = {}
    for name in ("fold-3", "fold-7"):
        report = json.loads((folder / name / "report.json").read_text(encoding="utf-8"))
        assert [report["data"][split] for split in ("train", "dev", "test")] == [450, 50, 500]
        assert report["data"]["test_set"] == "dev-50"
        splits = ("train", "dev", "test")
        ids = {split: {row["id"] for row in read_rows(folder / name / "data" / f"{split}.jsonl")} for split in splits}
        measured[name] = {row["id"] for row in read_rows(folder / name / "predictions" / "tuned-decision.jsonl")}
        assert measured[name] == ids["dev"]
        assert not ids["dev"] & (ids["train"] | ids["test"])
        assert not list((folder / name / "predictions").glob("*-pubmedqa.json")), "that is for the official test"
        assert f"--set data.fold={name[-1]} --set evaluate.split=dev" in report["command"]
    assert not measured["fold-3"] & measured["fold-7"]


def test_all_folds_together(validated):
    _, folder, printed = validated
    result = json.loads((folder / "crossval.json").read_text(encoding="utf-8"))
    assert (result["folds"], result["items"]["decision"]) == ([3, 7], 100)
    rows = [row for n in (3, 7) for row in read_rows(folder / f"fold-{n}" / "predictions" / "tuned-decision.jsonl")]
    found = result["figures"]["accuracy"]
    assert found["tuned"]["pooled"] == pytest.approx(sum(row["reference"] == row["prediction"] for row in rows))
    assert found["tuned"]["mean"] == pytest.approx(found["tuned"]["pooled"]), "the folds are of the same size"
    assert found["tuned"]["sd"] == pytest.approx(statistics.stdev(found["tuned"]["folds"]))
    low, high = result["accuracy_ci95"]["tuned"]
    assert low < found["tuned"]["pooled"] < high
    assert "Accuracy" in printed.out
    assert f"Results: {folder / 'crossval.json'}" in printed.out
    assert ("WORSE" in printed.last) == bool(result["worse"])


def test_a_finished_cross_validation_is_only_read_again(validated):
    words, folder, printed = validated
    before = {path: path.stat().st_mtime_ns for path in folder.glob("fold-*/**/*") if path.is_file()}
    for name in (".crossval.json.4194305.partial", ".DS_Store"):
        (folder / name).touch()
    again = meditune(*words)
    assert (again.code, again.out) == (0, printed.out)
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_other_settings_are_refused(validated, place):
    words, _, _ = validated
    meditune(*words, "--set", "train.learning_rate=0.5").refused(1, "train.learning_rate is 0.01 there")
    run = place.folder / "elsewhere"
    run.mkdir()
    (run / "notes.txt").touch()
    meditune("crossval", "quickstart", "-o", run).refused(1, "isn't a cross-validation's folder")


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("train.dev.patience=2", "train.dev would choose"),
        ("evaluate.calibrate=prior", "fitted on dev"),
        ("data.split=group", "data.fold selects one of the folds"),
    ],
)
def test_what_would_cheat_or_cant_be_folded_is_refused(place, tmp_path, option, said):
    words = ["crossval", "quickstart", "-o", tmp_path / "folds", "--fold", "0"]
    result = meditune(*words, *place.settings(**TINY), "--set", option)
    assert result.code != 0
    assert said in result.err
    assert "Traceback" not in result.err


def test_a_run_may_name_a_fold_and_be_measured_on_the_test(place):
    place.run("fold-alone", **TINY | {"data__fold": "9", "train__epochs": "0.02"}).ok()
    assert place.report("fold-alone")["data"]["test_set"] == "pubmedqa-official-500"


def fold(folder, number, skill):
    """The stored results of a fold's run, with 40 decisions of its own and the general text that all folds share."""
    spoken = {}
    for model, able in (("base", 0.2), ("tuned", skill)):
        rows = [row | {"id": f"{number}-{row['id']}"} for row in decisions(f"{number}{model}", 40, able)]
        general = likelihoods(f"{number}{model}", 5)
        write_jsonl(folder / "predictions" / f"{model}-decision.jsonl", rows)
        write_jsonl(folder / "predictions" / f"{model}-general.jsonl", general)
        spoken[model] = summarize(Predictions(decision=rows, general=general))
    deltas = {name: {"delta": spoken["tuned"][name] - spoken["base"][name]} for name in spoken["base"]}
    write_json(folder / "report.json", spoken | {"comparison": deltas})
    return folder


def test_pooling_takes_what_is_each_folds_own(tmp_path):
    runs = [fold(tmp_path / str(number), number, skill=0.9) for number in range(3)]
    result = pooled_results(runs, resamples=500, seed=1)
    assert result["items"] == {"decision": 120}
    assert result["figures"]["accuracy"]["difference"]["pooled"]["better"] is True
    assert result["figures"]["accuracy"]["difference"]["pooled"]["test"] == "McNemar, exact"
    general = result["figures"]["general_perplexity"]
    assert general["tuned"]["pooled"] is general["difference"]["pooled"] is None
    assert general["tuned"]["mean"] == pytest.approx(statistics.fmean(general["tuned"]["folds"]))
    alone = pooled_results(runs[:1], resamples=500, seed=1)
    assert alone["figures"]["accuracy"]["tuned"]["sd"] is None


def test_items_that_every_fold_measures_dont_stop_the_pooling(tmp_path):
    runs = [fold(tmp_path / str(number), number, skill=0.9) for number in range(3)]
    for run in runs:
        for model in ("base", "tuned"):
            append_jsonl(
                run / "predictions" / f"{model}-decision.jsonl", {"id": "x", "reference": "no", "prediction": "no"}
            )
    result = pooled_results(runs, resamples=500, seed=1)
    assert result["items"] == {"decision": 120}
    assert result["figures"]["accuracy"]["difference"]["pooled"]["better"] is True


def test_forgetting_in_the_folds_is_called_worse(tmp_path, capsys):
    runs = [fold(tmp_path / str(number), number, skill=0.9) for number in range(2)]
    for run in runs:
        report = read_json(run / "report.json")
        report["tuned"]["general_perplexity"] = report["base"]["general_perplexity"] + 5
        report["comparison"]["general_perplexity"]["delta"] = 5.0
        write_json(run / "report.json", report)
    result = pooled_results(runs, resamples=200, seed=1)
    assert "general_perplexity" in result["worse"]
    print_crossval(result)
    assert "WORSE in the mean of the folds, not tested: General perplexity" in capsys.readouterr().out
