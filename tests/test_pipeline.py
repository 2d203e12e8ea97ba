"""The journey: what it leaves, that its figures are right, and that it goes on where it was stopped."""

import errno
import json
import os
import signal
import subprocess

import numpy as np
import pytest

from meditune.evaluate.metrics import METRICS as METRIC_TABLE
from tests import layouts
from tests.commands import bench, jsonl, meditune, read_rows, rows, stopped_after
from tests.waiting import until

RUN_FOLDER = {
    *("recipe.yaml", "report.json", "report.html"),
    *("data/train.jsonl", "data/dev.jsonl", "data/test.jsonl", "data/quality.json", "data/README.md"),
    *("model/adapter_config.json", "model/adapter_model.safetensors", "model/tokenizer.json", "model/prompt.json"),
    *("model/generation_config.json", "model/README.md"),
    *(
        f"predictions/{name}-{kind}.jsonl"
        for name in ("base", "tuned")
        for kind in ("decision", "likelihood", "unconditional", "answer", "choice")
    ),
    *(f"predictions/{name}-{kind}.jsonl" for name in ("base", "tuned") for kind in ("general", "technical")),
}
FILES = {"perplexity": "likelihood", "general_perplexity": "general", "technical_perplexity": "technical"}
REPORT_KEYS = {
    "meditune",
    "recipe",
    "seed",
    "base_model",
    "strategy",
    "data",
    "base",
    "tuned",
    "comparison",
    "training",
}
TEXT_TOKENS = {"evaluate__general_tokens": 600, "evaluate__technical_tokens": 700}
DECIDED = {"accuracy", "macro_f1", "f1_yes", "f1_no", "f1_maybe", "ece", "brier", "aurc", "general_choice"}
METRICS = DECIDED | {"perplexity", "bleu", "rouge1", "rouge2", "rougeL", "length_ratio"}
METRICS |= {"unconditional_perplexity", "bits_per_byte"}
METRICS |= {"chrf", "rougeLsum", "answer_repetition", "answer_loops"}
READABILITY = {"grade_gap", "smog", "sentence_length", "rare_words", "unexplained_terms"}
METRICS |= READABILITY
FAITHFUL = {"faithfulness", "unsupported_sentences", "contradictions", "unsupported_numbers", "unsupported_names"}
METRICS |= FAITHFUL


@pytest.fixture(scope="module")
def official(place):
    """A run on the official split, with general text at hand; its folder and what it printed."""
    general = place.folder.parent / "data" / "wikitext-2"
    general.mkdir()
    (general / "test.txt").write_text(" = Hearts = \n\n The group asked 120 adults about sleep . \n" * 60, "utf-8")
    settings = place.settings(data__split="official", data__sources__0__limit=None, evaluate__answers=60, **TEXT_TOKENS)
    result = place.run("official", *settings)
    (general / "test.txt").unlink()
    general.rmdir()
    return place.folder / "official", result.ok()


STEPS = {"train__batch_size": 1, "train__checkpoint_steps": 1, "evaluate__max_new_tokens": 64}
"""Many steps with a checkpoint after each, and answers that take a moment to write."""


@pytest.fixture(scope="module")
def uninterrupted(place):
    """A run of many steps that nothing disturbed."""
    place.run("uninterrupted", **STEPS).ok()
    return "uninterrupted"


def same(place, name, other):
    """Assert that two runs gave the same weights and figures."""
    assert place.adapter(name) == place.adapter(other)
    for key in ("base", "tuned", "comparison", "data"):
        assert place.report(name)[key] == place.report(other)[key], key


def tidy(folder):
    """Assert that nothing half-written lies in the folder."""
    assert not [path for path in folder.rglob("*") if path.name.endswith((".partial", ".old"))]
    assert not (folder / "checkpoint").exists()


# What a run leaves.


def test_the_run_folder_is_complete(official):
    folder, _ = official
    there = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert there >= RUN_FOLDER
    tidy(folder)


def test_the_publishers_prediction_file_is_written(official):
    folder, _ = official
    for name in ("base", "tuned"):
        said = json.loads((folder / "predictions" / f"{name}-pubmedqa.json").read_text(encoding="utf-8"))
        rows = read_rows(folder / "predictions" / f"{name}-decision.jsonl")
        assert said == {row["id"].removeprefix("pubmedqa:"): row["prediction"] for row in rows}
        assert len(said) == 500
        assert set(said.values()) <= {"yes", "no", "maybe"}


def test_the_report_has_its_keys(official, place):
    report = place.report("official")
    assert report.keys() >= REPORT_KEYS
    assert (
        report["base"].keys()
        == report["tuned"].keys()
        == METRICS | {"general_perplexity", "general_bits_per_byte", "technical_perplexity"}
    )
    assert report["comparison"].keys() == report["base"].keys()
    assert report["references"].keys() == FAITHFUL
    assert all(report["comparison"][name]["references"] for name in FAITHFUL)
    for row in report["comparison"].values():
        assert row.keys() >= {"delta", "ci95", "p", "better"}
        assert row["ci95"][0] - 1e-9 <= row["delta"] <= row["ci95"][1] + 1e-9
        assert row["better"] in {True, False, None}
    data = report["data"]
    assert (data["train"] + data["dev"], data["test"]) == (500, 500)
    assert data["dev"] == pytest.approx(50, abs=2)
    assert data["test_set"] == "pubmedqa-official-500"
    training = {"tokens_per_s", "supervised_tokens", "peak_rss_gb", "seconds", "epochs"}
    assert report["training"].keys() >= training
    assert report["items"] == {"decision": 500, "answer": 60, "general": 2, "technical": 2, "choice": 8}
    assert report["signatures"].keys() == {"bleu", "chrf"}
    assert report["texts"]["technical"].keys() == {"python", "sha256"}


def test_the_recipe_says_what_it_was_run_with(official, place):
    folder, _ = official
    text = (folder / "recipe.yaml").read_text(encoding="utf-8")
    report = place.report("official")
    assert f"# data sha256: {report['data']['sha256']}" in text
    for name in ("meditune", "torch", "transformers", "peft"):
        assert f"# {name}: {report['versions'][name]}\n" in text


def test_a_damaged_report_is_computed_again(official, place):
    """Also if the grades of the reference answers are missing."""
    folder, _ = official
    report = place.report("official")
    for graded in folder.glob("predictions/*reference_faithfulness.jsonl"):
        graded.unlink()
    (folder / "report.json").write_text('{"meditune": ', encoding="utf-8")
    meditune("report", folder).ok()
    assert place.report("official")["comparison"] == report["comparison"]


def test_training_made_the_model_better_at_what_it_was_shown(official, place):
    comparison = place.report("official")["comparison"]
    for name in ("perplexity", "bleu", "rouge1", "rougeL"):
        assert comparison[name]["better"] is True, name


def test_the_last_line_says_what_got_worse(official, place):
    folder, result = official
    report = place.report("official")
    assert f"Report: {folder / 'report.html'}" in result.out
    if not report["worse"]:
        assert result.last == "No metric got worse."
    for name in report["worse"]:
        assert result.last.startswith(("SIGNIFICANTLY WORSE: ", "WORSE, but "))
        assert METRIC_TABLE[name].title in result.last


def test_decisions_score_as_in_the_official_procedure(official, place):
    """As PubMedQA's evaluation.py: scikit-learn's accuracy and macro-F1 over the predicted labels."""
    from sklearn.metrics import accuracy_score, f1_score

    for name in ("base", "tuned"):
        decided = read_rows(official[0] / "predictions" / f"{name}-decision.jsonl")
        truth, said = [row["reference"] for row in decided], [row["prediction"] for row in decided]
        figures = place.report("official")[name]
        assert figures["accuracy"] == pytest.approx(100 * accuracy_score(truth, said), abs=1e-12)
        assert figures["macro_f1"] == pytest.approx(100 * f1_score(truth, said, average="macro"), abs=1e-12)
        assert all(row["prediction"] == max(row["logits"], key=row["logits"].get) for row in decided)


def test_answers_score_as_in_sacrebleu_and_rouge_score(official, place):
    import sacrebleu
    from rouge_score.rouge_scorer import RougeScorer

    for name in ("base", "tuned"):
        answers = read_rows(official[0] / "predictions" / f"{name}-answer.jsonl")
        figures = place.report("official")[name]
        bleu = sacrebleu.corpus_bleu([row["prediction"] for row in answers], [[row["reference"] for row in answers]])
        assert figures["bleu"] == pytest.approx(bleu.score, abs=1e-9)
        kinds = ["rouge1", "rouge2", "rougeL"]
        scorer = RougeScorer(kinds, use_stemmer=True)
        scores = [scorer.score(row["reference"], row["prediction"]) for row in answers]
        for kind in kinds:
            assert figures[kind] == pytest.approx(np.mean([score[kind].fmeasure for score in scores]), abs=1e-12)


def test_perplexities_come_from_the_stored_likelihoods(official, place):
    for name in ("base", "tuned"):
        for metric, kind in FILES.items():
            scored = read_rows(official[0] / "predictions" / f"{name}-{kind}.jsonl")
            expected = np.exp(sum(row["nll"] for row in scored) / sum(row["tokens"] for row in scored))
            assert place.report("official")[name][metric] == pytest.approx(expected, rel=1e-9)


def test_both_models_were_measured_on_the_same_test_items(official):
    folder, _ = official
    test = {row["id"] for row in read_rows(folder / "data" / "test.jsonl")}
    for kind in ("decision", "likelihood", "answer"):
        both = [
            [row["id"] for row in read_rows(folder / "predictions" / f"{name}-{kind}.jsonl")]
            for name in ("base", "tuned")
        ]
        assert both[0] == both[1]
        assert set(both[0]) <= test
        assert len(set(both[0])) == len(both[0])


def test_the_adapter_finds_its_base_model_from_anywhere(place, monkeypatch):
    monkeypatch.chdir(place.base.parent)
    words = place.settings(model__base=place.base.name)
    meditune("train", "quickstart", "--output", place.folder / "relative", *words).ok()
    monkeypatch.chdir("/")
    meditune("ask", place.folder / "relative", "Does it help?", "--max-new-tokens", "2").ok()


@pytest.mark.parametrize("architecture", ["gpt2", "gemma3"])
def test_other_architectures_make_the_journey(tmp_path, architecture):
    with bench(tmp_path, architecture) as other:
        other.run(architecture).ok()
        assert other.report(architecture)["comparison"]["perplexity"]["better"] is True


# Going on.


def test_a_second_call_repeats_nothing(place, official):
    folder, first = official
    kept = [*(folder / "predictions").iterdir(), *(folder / "data").iterdir(), folder / "training.jsonl"]
    before = {path: path.stat().st_mtime_ns for path in kept}
    weights = (folder / "model" / "adapter_model.safetensors").stat().st_mtime_ns
    report = place.report("official")
    recipe = folder / "recipe.yaml"
    again = meditune("run", recipe, "--output", folder).ok()
    assert {path: path.stat().st_mtime_ns for path in kept} == before
    assert (folder / "model" / "adapter_model.safetensors").stat().st_mtime_ns == weights
    assert again.last == first.last
    for key in ("base", "tuned", "comparison"):
        assert place.report("official")[key] == report[key]


@pytest.mark.parametrize("top_layers", [None, 1], ids=["all layers", "top layer"])
def test_stopped_between_two_checkpoints(place, top_layers):
    settings = STEPS | {"train__checkpoint_steps": 3, "train__accumulation": 2, "evaluate__max_new_tokens": 4}
    settings |= {"model__top_layers": top_layers} if top_layers else {}
    names = [f"{kind}-{top_layers}" for kind in ("whole", "stopped")]
    place.run(names[0], **settings).ok()
    with stopped_after(17):
        result = place.run(names[1], **settings)
    assert result.code == 130
    assert "run the same command again" in result.err
    resumed = place.run(names[1], **settings).ok()
    assert "after step 15" in resumed.err
    same(place, names[1], names[0])
    tidy(place.folder / names[1])


def test_two_runs_in_one_folder_dont_meet_and_ctrl_c_during_training_loses_nothing(place, uninterrupted):
    """tests/test_killed.py kills."""
    folder = place.folder / "ended"
    words = ["run", "quickstart", "--output", folder, *place.settings(**STEPS)]
    with place.started(*words) as process:
        until((folder / "checkpoint" / "state.json").is_file, process=process)
        meditune(*words).refused(1, "Another meditune process is using", "choose another --output")
        log = folder / "training.jsonl"
        size = log.stat().st_size
        until(lambda: log.stat().st_size > size, process=process)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "run the same command again" in err
    assert "Traceback" not in err
    assert not list(folder.rglob("*.partial"))
    assert not (folder / "model").exists()
    resumed = meditune(*words).ok()
    assert "Resuming training after step" in resumed.err
    same(place, "ended", uninterrupted)
    tidy(folder)


def test_ended_while_measuring(place, uninterrupted):
    words = ["run", "quickstart", "--output", place.folder / "measuring", *place.settings(**STEPS)]
    predictions = place.folder / "measuring" / "predictions"
    with place.started(*words) as process:
        until(lambda: predictions.is_dir() and any(predictions.iterdir()), process=process)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    done = {path: path.stat().st_mtime_ns for path in predictions.iterdir()}
    assert not [path for path in done if path.suffix != ".jsonl"]
    meditune(*words).ok()
    assert {path: path.stat().st_mtime_ns for path in done} == done
    same(place, "measuring", uninterrupted)


def test_leftovers_of_a_killed_run_are_removed(place, uninterrupted):
    ended = subprocess.Popen(["true"])
    ended.wait()
    folder = place.folder / uninterrupted
    (folder / f".checkpoint.{ended.pid}.partial").mkdir()
    (folder / f".report.json.{ended.pid}.partial").write_text("{", encoding="utf-8")
    (folder / f".data.{os.getpid()}.partial").mkdir()
    (folder / "checkpoint").mkdir()  # of a run that was killed between saving the model and removing the checkpoint
    place.run(uninterrupted, **STEPS).ok()
    assert [path.name for path in folder.glob(".*.*")] == [f".data.{os.getpid()}.partial"]
    assert not (folder / "checkpoint").exists()
    (folder / f".data.{os.getpid()}.partial").rmdir()


def test_a_refused_folder_is_left_as_it_was(place, tmp_path):
    (tmp_path / "mine").mkdir()
    wrong = place.settings(model__base="nobody")
    meditune("run", "quickstart", "--output", tmp_path / "new", *wrong).refused(4, "no model 'nobody'")
    meditune("run", "quickstart", "--output", tmp_path / "mine", *wrong).refused(4, "no model 'nobody'")
    assert not (tmp_path / "new").exists()
    assert not list((tmp_path / "mine").iterdir())


# The full disk.


def test_a_disk_that_fills_up_anywhere_loses_nothing(place, monkeypatch):
    """The first call finds the disk full at its first write, the second at its second, until one ends well."""
    place.run("roomy", model__dtype="float32").ok()
    real, left = os.fsync, 0

    def full(handle):
        nonlocal left
        if left == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        left -= 1
        real(handle)

    monkeypatch.setattr(os, "fsync", full)
    for room in range(40):
        left = room
        result = place.run("full", model__dtype="float32")
        folder = place.folder / "full"
        assert not [path for path in folder.rglob("*") if path.name.endswith(".partial")]
        for path in folder.rglob("*.json*"):
            assert path.suffix != ".json" or json.loads(path.read_text(encoding="utf-8")) is not None
        if result.code == 0:
            break
        result.refused(1, "disk is full", "run the same command again")
    assert result.code == 0
    same(place, "full", "roomy")


@pytest.mark.parametrize("kilobytes", [40, 130, 250], ids="{} kB".format)
def test_a_full_file_system(place, tmp_path, kilobytes):
    """A real one, which the libraries' own writers meet too."""
    mount = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(tmp_path)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("file systems can't be mounted here")
    try:
        words = ["run", "quickstart", "--output", tmp_path / "run", *place.settings(train__checkpoint_steps=2)]
        meditune(*words).refused(1, "disk is full", str(tmp_path))
        assert not [path for path in tmp_path.rglob("*") if path.name.endswith(".partial")]
        subprocess.run(["mount", "-o", "remount,size=20m", str(tmp_path)], check=True)
        meditune(*words).ok()
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


# Odd data: the whole run works, or says why not.


@pytest.mark.parametrize(
    ("name", "changes", "metrics"),
    [
        ("one decision", {"decision": "yes"}, METRICS - {"f1_no", "f1_maybe"}),
        ("no maybe", {"decision": lambda number: ("yes", "no")[number % 2]}, METRICS - {"f1_maybe"}),
        ("answers only", {"decision": ""}, METRICS - DECIDED | {"general_choice"}),
        ("decisions only", {"answer": ""}, DECIDED),
        ("no context", {"context": ""}, METRICS - FAITHFUL),
        ("long context", {"context": "We saw that pain fell by 30 percent. " * 60}, METRICS),
        ("long answers", {"answer": lambda number: f"Own treatment {number} helps. " * 200}, METRICS),
        ("foreign letters", {"answer": lambda number: f"治疗{number}有效 — très bien 🩺"}, METRICS),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_odd_data_makes_the_journey(place, tmp_path, name, changes, metrics):
    path = jsonl(tmp_path / "own.jsonl", rows(30, **changes))
    meditune("run", "quickstart", "-o", tmp_path / "run", *place.own(path)).ok()
    report = json.loads((tmp_path / "run" / "report.json").read_text(encoding="utf-8"))
    assert report["base"].keys() == metrics
    assert metrics - READABILITY <= report["tuned"].keys() <= metrics  # a model this small may write no words
    assert (tmp_path / "run" / "report.html").stat().st_size > 10_000
    for key in ("base", "tuned"):
        assert all(np.isfinite(value) for value in report[key].values())


@pytest.mark.parametrize(("removed", "task"), [("answer", "answer"), ("decision", "decision")])
def test_nothing_to_learn_is_said_before_anything_is_computed(place, tmp_path, removed, task):
    path = jsonl(tmp_path / "own.jsonl", rows(30, **{removed: ""}))
    result = meditune("run", "quickstart", "-o", tmp_path / "run", *place.own(path, train__tasks=f"[{task}]"))
    result.refused(3, f"a{'n' * (task == 'answer')} {task} to learn from", "train.tasks")
    assert not (tmp_path / "run" / "predictions").exists()


def test_a_test_question_longer_than_the_budget(place, tmp_path):
    path = jsonl(tmp_path / "own.jsonl", rows(30, question=lambda number: f"Does treatment {number} help? " * 60))
    result = meditune("run", "quickstart", "-o", tmp_path / "run", *place.own(path))
    result.refused(3, "own:", "prompt.max_tokens")
    assert not (tmp_path / "run" / "model").exists()


def test_a_training_question_longer_than_the_budget_is_counted(place, tmp_path):
    folder = tmp_path / "run"
    settings = place.own(jsonl(tmp_path / "own.jsonl", rows(30)))
    meditune("data", "prepare", "quickstart", "-o", folder, *settings)
    chosen = read_rows(folder / "data" / "train.jsonl")[0]["id"].removeprefix("own:")
    long = rows(30, question=lambda n: f"Does own treatment {n} help?" + " Really so?" * (200 * (str(n) == chosen)))
    settings = place.own(jsonl(tmp_path / "long.jsonl", long))
    result = meditune("run", "quickstart", "-o", tmp_path / "other", *settings).ok()
    assert "1 examples left out" in result.err
    training = json.loads((tmp_path / "other" / "report.json").read_text(encoding="utf-8"))["training"]
    assert training["dropped"] == 1


def test_a_loss_that_explodes_is_said(place):
    place.run("exploded", train__learning_rate="1e30").refused(1, "Training diverged", "train.learning_rate")
    assert not (place.folder / "exploded" / "model").exists()


def test_without_data_the_sample_takes_over_and_is_marked(place, tmp_path, monkeypatch):
    monkeypatch.setenv("MEDITUNE_DATA", str(tmp_path))
    settings = place.settings(data__split=None, data__sources__0__limit=None, train__epochs=0.1, evaluate__answers=4)
    result = meditune("run", "quickstart", "-o", tmp_path / "run", *settings).ok()
    assert "SYNTHETIC" in result.err
    assert "SYNTHETIC" in result.out
    assert "https://raw.githubusercontent.com/pubmedqa" in result.err
    report = json.loads((tmp_path / "run" / "report.json").read_text(encoding="utf-8"))
    assert report["data"]["synthetic"] is True
    assert "synthetic" in (tmp_path / "run" / "report.html").read_text(encoding="utf-8").lower()
    for card in ("data/README.md", "model/README.md"):
        assert "invented" in (tmp_path / "run" / card).read_text(encoding="utf-8")


def test_real_data_take_the_samples_place_once_they_are_there(place, tmp_path, monkeypatch):
    words = ["quickstart", "-o", tmp_path / "run", *place.settings(data__sources__0__limit=None)]
    with monkeypatch.context() as patch:
        patch.setenv("MEDITUNE_DATA", str(tmp_path))
        assert "SYNTHETIC" in meditune("data", "prepare", *words).out
    again = meditune("data", "prepare", *words)
    assert "replace the sample" in again.err
    assert "SYNTHETIC" not in again.out
    assert json.loads((tmp_path / "run" / "data" / "quality.json").read_text())["sources"]["pubmedqa"]["read"] == 1000


def test_real_data_is_not_marked_synthetic(official, place):
    assert place.report("official")["data"]["synthetic"] is False
    assert "synthetic" not in (official[0] / "report.html").read_text(encoding="utf-8").lower()


def test_all_of_pubmedqas_own_layout_is_read(official):
    quality = json.loads((official[0] / "data" / "quality.json").read_text(encoding="utf-8"))
    assert quality["sources"]["pubmedqa"]["read"] == 1000
    shares = quality["splits"]["test"]["decisions"]
    assert shares.keys() == set(layouts.DECISIONS)
