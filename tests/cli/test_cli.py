"""The commands: what they print, how they end, and what they say about bad input."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import typer

import meditune as package
from meditune.cli import main
from meditune.serve.settings import Settings
from meditune.store.api_keys import Keys
from tests import tiny
from tests.commands import bench, jsonl, meditune, read_rows, rows
from tests.http_servers import Answering, listening
from tests.loopback_server import served
from tests.serve.test_observability import fill_busy_store
from tests.waiting import output_of

PROJECT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def finished(place):
    """A finished run's folder."""
    place.run("finished").ok()
    return place.folder / "finished"


@pytest.fixture(scope="module")
def evaluated(place):
    """The base model's evaluation on 40 items' test split."""
    folder = place.folder / "evaluated"
    meditune("evaluate", place.base, "-o", folder, *place.settings()).ok()
    return folder


def test_help_answers_at_once():
    # A processor's seconds, not the clock's: other tests run beside this one.
    def seconds():
        used = os.times()
        return used.children_user + used.children_system

    before = seconds()
    done = subprocess.run([sys.executable, "-m", "meditune.cli.main", "--help"], capture_output=True, check=True)
    assert b"Run the whole pipeline" in done.stdout
    assert seconds() - before < 0.5


def test_help_fits_one_screen_and_cuts_no_line():
    done = meditune("--help")
    lines = done.out.splitlines()
    assert len(lines) <= 52
    assert not [line for line in lines if line.endswith("...") and not line.startswith("Usage")]
    listed = [name for names in main.PANELS.values() for name in names]
    assert sorted(listed) == sorted(typer.main.get_command(main.cli_app).commands)
    for name in listed:
        assert [line for line in lines if line.startswith(f"  {name} ")], name


def leaves(command, path=()):
    """Yield every command that isn't a group, with the words that call it."""
    if not hasattr(command, "commands"):
        yield path, command
    for name, inner in getattr(command, "commands", {}).items():
        yield from leaves(inner, (*path, name))


@pytest.mark.parametrize(
    ("path", "command"),
    [pytest.param(*leaf, id=" ".join(leaf[0])) for leaf in leaves(typer.main.get_command(main.cli_app))],
)
def test_every_command_has_an_example_that_parses_and_an_existing_page(path, command):
    example = re.search(r"Example: `meditune (.*?)`", " ".join(command.help.split()))
    assert example, command.help
    words = shlex.split(example[1])
    assert words[: len(path)] == list(path)
    command.make_context("meditune", words[len(path) :], resilient_parsing=False)
    assert "Usage: meditune" in meditune(*path, "--help").ok().out
    page, anchor = re.search(r"(?:Guide|Reference): (docs/[\w/-]+\.md)(#[\w-]+)?\.", command.help).groups()
    headings = re.findall(r"^#+ (.*)$", (PROJECT / page).read_text(encoding="utf-8"), re.MULTILINE)
    slugs = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
    assert anchor is None or anchor[1:] in slugs


def test_the_version():
    assert meditune("--version").out.strip() == package.__version__


def test_an_unknown_command_ends_with_2():
    result = meditune("rum")
    assert result.code == 2
    assert "No such command 'rum'" in result.err


def test_data_prepare_says_what_it_read_and_split(place):
    folder = place.folder / "prepared"
    result = meditune("data", "prepare", "quickstart", "-o", folder, *place.settings()).ok()
    assert "pubmedqa: 40 examples read (MIT)" in result.out
    for name in ("train", "dev", "test"):
        count = len(read_rows(folder / "data" / f"{name}.jsonl"))
        assert f"{name}: {count} examples in {count} groups" in result.out
    assert not (folder / "model").exists()


def test_brackets_and_colons_are_printed_as_they_are(place):
    done = meditune("data", "prepare", "quickstart", "-o", place.folder / "[final] 1:100:000", *place.settings())
    assert "runs/[final] 1:100:000/data" in done.last


def test_train_leaves_a_model_and_nothing_measured(place, finished):
    folder = place.folder / "trained"
    result = meditune("train", "quickstart", "-o", folder, *place.settings()).ok()
    assert result.last == f"Model: {folder / 'model'}"
    assert not (folder / "predictions").exists()
    assert (folder / "model" / "adapter_model.safetensors").read_bytes() == place.adapter("finished")


def test_preflight_shows_what_is_trained_before_the_first_step(place):
    err = meditune("train", "quickstart", "-o", place.folder / "preflight", *place.settings()).err
    assert "« " in err
    assert "</s>»" in err
    assert "examples left out" in err


def test_evaluate_prints_and_stores_the_figures(evaluated, place):
    stored = json.loads((evaluated / "evaluation.json").read_text())
    again = meditune("evaluate", f"{place.base}/../{place.base.name}/", "-o", evaluated, *place.settings()).ok()
    assert stored["model"] == str(place.base)
    assert f"{stored['figures']['accuracy']:.1f}" in again.out
    assert {path.name for path in (evaluated / "predictions").iterdir()} >= {
        *("model-decision.jsonl", "model-likelihood.jsonl", "model-answer.jsonl")
    }


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_evaluate_gives_a_run_the_figures_of_its_report(place, dtype):
    settings = place.settings(model__dtype=dtype)
    place.run(dtype, *settings).ok()
    meditune("evaluate", place.folder / dtype, "-o", place.folder / f"{dtype}-again", *settings).ok()
    stored = json.loads((place.folder / f"{dtype}-again" / "evaluation.json").read_text())
    assert stored["figures"] == place.report(dtype)["tuned"]


def test_evaluate_refuses_another_model_in_the_same_folder(evaluated, finished, place):
    result = meditune("evaluate", finished, "-o", evaluated, *place.settings())
    result.refused(1, "another model")


def test_a_run_and_an_evaluation_dont_share_a_folder(evaluated, finished, place):
    meditune("evaluate", finished, "-o", finished, *place.settings()).refused(1, "contains a run")
    assert not (finished / "evaluation.json").exists()
    place.run("evaluated").refused(1, "contains the evaluation of one model")


def test_evaluate_resumes_from_another_working_directory(evaluated, place, tmp_path, monkeypatch):
    folder = shutil.copytree(evaluated, tmp_path / "evaluated")
    stored = json.loads((folder / "evaluation.json").read_text())
    relative = place.base.name
    (folder / "evaluation.json").write_text(json.dumps(stored | {"model": relative}))
    monkeypatch.chdir(tmp_path)
    meditune("evaluate", place.base, "-o", folder, *place.settings()).ok()
    monkeypatch.chdir(place.base.parent)
    meditune("evaluate", relative, "-o", folder, *place.settings()).ok()
    assert json.loads((folder / "evaluation.json").read_text())["model"] == stored["model"] == str(place.base)


def test_evaluate_refuses_the_predictions_of_earlier_weights(place, tmp_path):
    model = shutil.copytree(place.base, tmp_path / "model")
    words = ("evaluate", model, "-o", tmp_path / "evaluated", *place.settings())
    meditune(*words).ok()
    tiny.model("llama", seed=1).save_pretrained(model)
    meditune(*words).refused(1, "earlier weights", str(model), "another --output")
    shutil.rmtree(tmp_path / "evaluated" / "predictions")
    meditune(*words).ok()
    meditune(*words).ok()


def test_plain_versions_of_texts_are_measured_without_training_data(place, tmp_path):
    pairs = [
        {"question": f"Does drug {n} help?", "context": f"Drug {n} ameliorated rhinitis.", "answer": f"Drug {n} helps."}
        for n in range(12)
    ]
    path = jsonl(tmp_path / "pairs.jsonl", pairs)
    settings = place.own(path, prompt__plain_cue="In plain words:")
    settings += ["--set", f"data.sources=[{{name: own, path: '{path}', style: plain, split: test}}]"]
    result = meditune("evaluate", place.base, "-o", tmp_path / "plain", *settings).ok()
    assert "SARI" in result.out
    stored = json.loads((tmp_path / "plain" / "evaluation.json").read_text())
    assert stored["data"]["test_set"] == "own-fixed-12"
    assert {"sari", "grade_gap", "rougeL", "unsupported_sentences", "contradictions"} <= stored["figures"].keys()
    refused = meditune("run", "quickstart", "-o", tmp_path / "run", *settings)
    refused.refused(3, "The train split is empty")


def test_rows_longer_than_the_model_reads_are_refused(tmp_path):
    with bench(tmp_path, "gpt2") as place:
        place.run("long", prompt__max_tokens=2048).refused(2, "reads at most 1,024 tokens", "Lower prompt.max_tokens")
        settings = place.settings(evaluate__max_new_tokens=700, prompt__max_tokens=512, prompt__answer_tokens=128)
        result = meditune("evaluate", place.base, "-o", tmp_path / "evaluated", *settings)
        result.refused(2, "reads at most 1,024 tokens", "Lower evaluate.max_new_tokens to at most 640")


def test_compare_says_which_is_better(evaluated, finished, tmp_path):
    result = meditune("compare", evaluated, finished, "--resamples", "200", "--json-file", tmp_path / "c.json").ok()
    stored = json.loads((tmp_path / "c.json").read_text())
    assert stored["comparison"]["perplexity"]["better"] is True
    assert "Perplexity" in result.out
    assert result.last.startswith(("No metric got worse.", "SIGNIFICANTLY WORSE: ", "WORSE, but "))


def test_a_result_that_cant_be_written_is_still_printed(evaluated, finished, tmp_path):
    done = meditune("compare", evaluated, finished, "--json-file", tmp_path)
    assert done.code == 1
    assert "Accuracy" in done.out
    assert f"Error: {tmp_path}: Is a directory." in done.err


def test_compare_takes_any_number_of_models_and_either_side_of_a_run(evaluated, finished, tmp_path):
    changed = tmp_path / "changes.jsonl"
    words = ("--resamples", 200, "--changes-file", changed)
    result = meditune("compare", f"{finished}:base", finished, evaluated, *words).ok()
    assert result.out.count("Accuracy") >= 2
    rows = [json.loads(line) for line in changed.read_text().splitlines()]
    assert {row["model"] for row in rows} == {str(finished)}, "the base measured again says what it said"
    assert {row["change"] for row in rows} <= {"lost", "gained", "neither"}
    assert all(row["question"] for row in rows)
    meditune("compare", finished).refused(1, "two or more models")
    meditune("compare", finished, finished).refused(3, "named twice")
    meditune("compare", f"{evaluated}:base", finished).refused(3, "no predictions of 'base', only of model")


def test_a_gate_ends_with_a_code_of_its_own(evaluated, finished, tmp_path):
    policy = tmp_path / "policy.yaml"
    policy.write_text("better: [perplexity]\n")
    passed = meditune("compare", evaluated, finished, "--resamples", 200, "--gate", policy).ok()
    assert "met" in passed.out
    policy.write_text("better: [perplexity]\nat_least: {accuracy: 101}\n")
    failed = meditune("compare", evaluated, finished, "--resamples", 200, "--gate", policy)
    assert failed.code == 5
    assert "NOT MET" in failed.out
    assert "Error: The policy isn't met. " in failed.err
    assert "accuracy must be at least 101" in failed.err
    policy.write_text("bettr: [perplexity]\n")
    meditune("compare", evaluated, finished, "--gate", policy).refused(2, "line 1", "did you mean better?")


def test_compare_refuses_different_items(place, evaluated):
    other = place.folder / "other-items"
    meditune("evaluate", place.base, "-o", other, *place.settings(data__sources__0__limit=41))
    meditune("compare", evaluated, other).refused(3, "measured on different items")


def test_compare_refuses_different_measures(place, tmp_path):
    for name, removed in (("decisions", "answer"), ("answers", "decision")):
        path = jsonl(tmp_path / f"{name}.jsonl", rows(30, **{removed: ""}))
        meditune("evaluate", place.base, "-o", tmp_path / name, *place.own(path, evaluate__choices=0)).ok()
    meditune("compare", tmp_path / "decisions", tmp_path / "answers").refused(3, "no metric in common")


def test_compare_and_report_say_what_kind_of_folder_they_need(evaluated, tmp_path):
    meditune("compare", evaluated, tmp_path).refused(3, str(tmp_path), "meditune evaluate")
    meditune("report", tmp_path).refused(3, str(tmp_path), "--output folder of `meditune run`")
    meditune("report", evaluated).refused(3, "the evaluation of one model", f"meditune compare {evaluated} OTHER")


def test_report_computes_the_same_report_again(place, finished):
    before = place.report("finished")
    (finished / "report.html").unlink()
    meditune("report", finished).ok()
    assert place.report("finished") == before
    assert (finished / "report.html").is_file()


def test_report_keeps_the_machine_and_versions_of_the_run(place, finished, monkeypatch):
    before = place.report("finished")
    monkeypatch.setattr("meditune.pipeline.machine", lambda: {"processor": "another"})
    monkeypatch.setattr("meditune.pipeline.versions", lambda _: {"torch": "another"})
    meditune("report", finished).ok()
    assert place.report("finished") == before


def test_report_shows_what_raters_said(place, finished):
    folder = finished / "review"
    meditune("review", "create", finished, "--questions", 2, "--form", "lay").ok()
    try:
        first = read_rows(folder / "items.jsonl")[0]["id"]
        ratings = folder / "ratings.csv"
        ratings.write_text(f"item,rater,axis,option\n{first},Ann,helpfulness,1\n")
        meditune("review", "import", folder, ratings).ok()
        meditune("report", finished).ok()
        assert place.report("finished")["review"]["ratings"] == 1
        assert "Ratings by people" in (finished / "report.html").read_text()
    finally:
        shutil.rmtree(folder)
        meditune("report", finished).ok()
    assert "review" not in place.report("finished")


def test_report_refuses_a_run_that_lost_predictions(place, finished):
    path = finished / "predictions" / "base-answer.jsonl"
    kept = path.read_bytes()
    path.unlink()
    try:
        meditune("report", finished).refused(3, "isn't finished")
    finally:
        path.write_bytes(kept)


def test_ask_answers_with_a_decision_and_its_limits(finished, tmp_path):
    source = tmp_path / "abstract.txt"
    source.write_text("We studied treatment 5. It helped 5 of 200 patients.", encoding="utf-8")
    closed = meditune("ask", finished, "Does treatment 5 help?", "--max-new-tokens", "8")
    resting = meditune("ask", finished, "Does treatment 5 help?", "--source", source, "--max-new-tokens", "8")
    assert closed.code == resting.code == 0
    assert "memory alone" in closed.out
    assert "memory alone" not in resting.out
    for result in (closed, resting):
        assert "As a yes/no question: " in result.out
        assert "emergency" in result.last


@pytest.mark.parametrize(
    ("question", "text"),
    [("", "no question"), (" \n", "no question"), ("Does it help? " * 400, "too long"), ("Help \udcff?", "UTF-8")],
    ids=["empty", "blank", "long", "not unicode"],
)
def test_ask_refuses_what_is_no_question(finished, question, text):
    meditune("ask", finished, question).refused(3, text)


def test_ask_refuses_an_answer_that_exceeds_the_models_context(finished):
    refused = meditune("ask", finished, "Does it help?", "--max-new-tokens", 2000)
    refused.refused(4, "the answer may have 2,000", "more than the 1,024")


def test_ask_refuses_a_source_that_is_no_text(finished, place):
    meditune("ask", finished, "Does it help?", "--source", "/no/such.txt").refused(3, "/no/such.txt")
    weights = place.base / "model.safetensors"
    meditune("ask", finished, "Does it help?", "--source", weights).refused(3, str(weights), "UTF-8")


def test_models_and_doctor_and_recipes(place, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    listed = meditune("models").ok()
    assert "smollm2-135m" in listed.out
    assert "Apache-2.0" in listed.out
    assert "Cores" in meditune("doctor").out
    shown = meditune("recipe", "show", "quickstart", "--set", "train.epochs=1").out
    assert any(line.strip().startswith("epochs: 1") and line.endswith("# --set") for line in shown.splitlines())
    assert meditune("recipe", "check", "quickstart").out.startswith("quickstart is valid")


def test_a_reader_that_closes_the_pipe_is_no_error(place):
    with place.started("recipe", "show", "quickstart") as process:
        process.stdout.close()
        assert "Traceback" not in process.stderr.read()


# Bad input. Each must leave nothing half-written.


def test_every_mistake_in_the_settings_at_once(place):
    result = place.run("bad", "--set", "train.epochz=1", "--set", "train.learning_rate=fast")
    result.refused(2, "train.epochs?", "train.learning_rate", "'fast'", "2 problems")
    assert not (place.folder / "bad").exists()


@pytest.mark.parametrize(
    ("command", "option"),
    [
        ("data diversity RUN -o out --set seed=1", "--set"),
        ("data phi table.csv --set seed=1", "--set"),
        ("data audit table.csv -o out --workers 4", "--workers"),
        ("annotate create table.csv -o out --set seed=1", "--set"),
        ("annotate create RUN -o out --set seed=1", "--set"),
        ("update literature --index index --first-file one.xml.gz", "--first-file"),
        ("update literature --index index --since 2026-01-31", "--since"),
        ("retrain registry --labels labels.jsonl --trust KEY", "--trust"),
    ],
)
def test_options_that_would_have_no_effect_are_refused(finished, tmp_path, monkeypatch, command, option):
    monkeypatch.chdir(tmp_path)
    Path("table.csv").write_text("question,answer\nWhy?,Because.\n", encoding="utf-8")
    result = meditune(*(finished if word == "RUN" else word for word in command.split()))
    assert result.code != 0, result
    result.refused(result.code, f"Error: {option} ")


def test_a_recipe_that_is_not_there(place):
    meditune("run", "quikstart", "-o", place.folder / "bad").refused(2, "Did you mean quickstart?")
    meditune("run", "/no/such.yaml", "-o", place.folder / "bad").refused(2, "/no/such.yaml", "quickstart")
    assert not (place.folder / "bad").exists()


@pytest.mark.parametrize("command", ["run", "evaluate"])
def test_a_model_that_is_not_there(place, command):
    words = {"run": ["quickstart"], "evaluate": ["/no/model"]}[command]
    result = meditune(command, *words, "-o", place.folder / "bad", *place.settings(model__base="/no/model"))
    result.refused(4, "/no/model: no such folder. There is no folder /no, either.", "OWNER/NAME")
    assert not (place.folder / "bad").exists()


def test_a_hub_model_offline_names_the_three_ways(place):
    result = place.run("hub", model__base="owner/name")
    result.refused(4, "owner/name", "1. online", "2. offline", "3. without a hub")
    assert place.run("hub").code == 0, "the same folder takes a model that can be had"


def test_a_model_without_tokenizer(place, tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    for path in place.base.iterdir():
        if not path.name.startswith("tokenizer"):
            (folder / path.name).write_bytes(path.read_bytes())
    place.run("untokenized", model__base=folder).refused(4, str(folder), "no tokenizer", "Copy")


def test_tuning_an_adapter_that_cant_be_merged_is_refused(place, finished):
    virtual = place.folder / "virtual"
    settings = place.settings(model__strategy="prefix", model__top_layers="null")
    meditune("train", "quickstart", "--output", virtual, *settings).ok()
    place.run("twice", model__base=virtual).refused(4, "an adapter of virtual tokens", "can't be merged")
    pytest.importorskip("bitsandbytes")
    place.run("twice", model__base=finished, model__quantize="nf4").refused(
        4, "unquantized base", "is merged into its base"
    )
    assert not (place.folder / "twice").exists()


def test_layers_that_the_model_lacks_are_refused_before_anything_is_measured(place):
    place.run("targets", model__lora__targets="[q_porj]").refused(4, "no linear layer named q_porj", "q_proj")
    assert not (place.folder / "targets").exists()


def test_a_seed_that_no_generator_takes_is_refused(place):
    place.run("seed", seed=2**63).refused(2, "seed", f"below {2**63}")


def test_recipe_check_looks_at_the_sources():
    words = ("recipe", "check", "quickstart", "--set", "data.sources=[{name: Own, path: a.csv}]")
    meditune(*words).refused(3, "'Own'", "Did you mean 'own'?")


def test_a_mistyped_run_folder_is_not_looked_for_at_the_hub(finished, tmp_path, monkeypatch):
    monkeypatch.chdir(finished.parent.parent)
    mistyped, near = f"{finished.parent.name}/finishd", f"{finished.parent.name}/finished"
    commands = [("ask", mistyped, "Does it help?"), ("export", mistyped, "--to", "ollama"), ("serve", mistyped)]
    for words in commands:
        meditune(*words).refused(4, f"{mistyped}: no such folder. Did you mean {near}?", "OWNER/NAME")
    monkeypatch.chdir(tmp_path)
    for words in commands:
        meditune(words[0], "runs/nothing", *words[2:]).refused(4, "runs/nothing: no such folder.")


def test_a_misspelt_model_names_the_nearest(place):
    place.run("near", model__base="smolm2-135m").refused(4, "Did you mean smollm2-135m?")


def test_a_truncated_file_is_named_with_its_line(place, tmp_path):
    path = place.folder.parent / "data" / "pubmedqa" / "ori_pqal.json"
    cut = tmp_path / "ori_pqal.json"
    cut.write_text(path.read_text(encoding="utf-8")[:5000], encoding="utf-8")
    result = place.run("cut", data__sources__0__path=cut)
    result.refused(3, f"{cut}, line ", "not valid JSON")
    assert not (place.folder / "cut" / "data").exists()
    mended = place.run("cut", data__sources__0__path=path)
    assert mended.code == 0, "a folder in which nothing is done yet takes other settings"


def test_a_reworded_description_is_no_other_recipe(place):
    place.run("described", description="PubMedQA.").ok()
    place.run("described", description="The same recipe in other words.").ok()
    place.run("described", seed=3).refused(1, "seed is", "To resume it")


def test_a_folder_with_something_else_is_left_alone(place, tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work", encoding="utf-8")
    meditune("run", "quickstart", "-o", tmp_path, *place.settings()).refused(1, str(tmp_path), "--output")
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]
    meditune("run", "quickstart", "-o", tmp_path / "thesis.txt", *place.settings()).refused(1, "--output")


def test_a_folder_with_another_run_is_left_alone(place, finished):
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*")}
    meditune("run", "quickstart", "-o", finished, *place.settings(seed=3)).refused(1, str(finished), "seed is 17 there")
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("*")} == before


def test_prepared_data_is_not_taken_for_other_data(place):
    words = ("quickstart", "-o", place.folder / "claimed", *place.settings(model__base="owner/name"))
    meditune("data", "prepare", *words).ok()
    place.run("claimed", seed=3).refused(1, "seed is 17 there, model.base is owner/name there")
    others = {"train__epochs": 9, "train__batch_size": 3, "evaluate__max_new_tokens": 7, "data__test_share": 0.3}
    refused = place.run("claimed", seed=3, **others)
    refused.refused(1, "claimed contains prepared data with other settings: seed is 17", "To use these data, use the")
    keys = re.findall(r"([a-z_.]+) is \S+ there", refused.err)
    assert set(keys[:2]) == {"seed", "data.test_share"}
    assert {"model.base", "train.epochs", "train.batch_size", "evaluate.max_new_tokens"} <= set(keys)


def test_an_option_joined_to_its_path_reaches_the_home_folder(place, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    jsonl(tmp_path / "own.jsonl", rows(30))
    words = place.own(tmp_path / "own.jsonl")
    prepared = meditune("data", "prepare", "quickstart", "--output=~/my data", *words)
    assert prepared.code == 0
    assert (tmp_path / "my data" / "recipe.yaml").is_file()
    assert f"meditune data diversity '{tmp_path / 'my data'}' --output DIR" in prepared.out


@pytest.mark.parametrize("output", ["/dev/null/run", "x" * 300])
def test_a_place_that_can_not_be_written_to(place, output):
    meditune("run", "quickstart", "-o", place.folder / output, *place.settings()).refused(1, output)


def test_corrected_rows_are_prepared_again_until_a_model_is_measured(place, tmp_path):
    path = jsonl(tmp_path / "own.jsonl", rows(60))
    words = ["quickstart", "-o", tmp_path / "out", *place.own(path)]
    meditune("data", "prepare", *words).ok()
    jsonl(path, rows(60, question=lambda number: f"Does corrected treatment {number} help?"))
    again = meditune("data", "prepare", *words)
    assert f"{path} has changed" in again.err
    train = tmp_path / "out" / "data" / "train.jsonl"
    assert {row["question"].split()[1] for row in read_rows(train)} == {"corrected"}
    (tmp_path / "out" / "predictions").mkdir()
    jsonl(path, rows(60))
    meditune("data", "prepare", *words).refused(3, f"{path} has changed", "another --output")


def test_errors_reach_the_shell(place):
    with place.started("run", "nosuch", "-o", place.folder / "bad") as process:
        out, err = process.communicate(timeout=60)
    assert process.returncode == 2
    assert out == ""
    assert err.startswith("Error: There is no recipe 'nosuch'.")


def test_the_command_of_a_run_can_be_pasted_into_a_shell(place):
    place.run("pasted", *place.settings(prompt__answer_cue="In short:"))
    command = place.report("pasted")["command"]
    assert "'prompt.answer_cue=In short:'" in command
    assert command.startswith(f"meditune run quickstart --output {Path(place.folder / 'pasted')}")


def test_what_got_worse_is_red_in_a_terminal(monkeypatch, capsys):
    from meditune.cli.metrics_tables import print_worse

    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    row = {"delta": -2.0, "ci95": [-3.0, -1.0], "p": 0.01, "better": False}
    result = {"base": {"bleu": 5.0}, "tuned": {"bleu": 3.0}, "comparison": {"bleu": row}, "worse": ["bleu"]}
    print_worse(result)
    red = "\x1b[1;31m"
    assert capsys.readouterr().out == f"{red}SIGNIFICANTLY WORSE: BLEU 5.00 -> 3.00\x1b[0m\n"
    print_worse(result | {"comparison": {"bleu": row | {"better": None}}})
    assert capsys.readouterr().out == f"{red}WORSE, but no significant change: BLEU 5.00 -> 3.00\x1b[0m\n"
    print_worse(result | {"worse": []})
    assert "No metric got worse." in capsys.readouterr().out


def test_mimic_rows_are_refused_for_an_api_model(place, tmp_path):
    settings = place.settings(data__sources="[{name: mimic}]")
    meditune("evaluate", "gpt-3.5-turbo", "-o", tmp_path / "api", *settings).refused(3, "mimic (Phys", "third party")
    assert not (tmp_path / "api").exists()


def test_preparing_data_needs_no_torch(tmp_path):
    program = (
        "import sys\nfrom meditune.cli.main import cli_app\n"
        "sys.argv = ['meditune', 'data', 'prepare', 'quickstart', '--set', 'data.sources=[{name: sample, limit: 60}]',"
        f" '--output', {str(tmp_path / 'data')!r}]\n"
        "cli_app(standalone_mode=False)\n"
        "sys.exit('torch' in sys.modules)"
    )
    output_of(sys.executable, "-c", program)


def test_it_tells_of_a_service_and_of_a_server_that_runs(store, monkeypatch):
    base = fill_busy_store(store)
    _, metrics = Keys(base).create("Prometheus", ["metrics"])
    monkeypatch.setenv("MEDITUNE_STORE", store)
    with served(store, Settings(keys_needed=True, hourly=3600.0)) as server:
        server.chat(key="")
        without = meditune("status", "--url", server.address)
        assert "set MEDITUNE_KEY to a key with the metrics scope" in without.out
        monkeypatch.setenv("MEDITUNE_KEY", metrics)
        found = meditune("status", "--url", server.address).ok()
        said = json.loads(meditune("status", "--url", server.address, "--json", "--hours", "48").out)
    for words in (
        "answers       400: ",
        "answered by   quickstart v2, index c0ffeec0ffee: 200",
        "corrections, ",
        "requests since start (0 failed, 0 refused)",
        "cost since start: ",
        "LOST, last seen",
        "1 open alert in 12,345 requests since /srv/drift/reference",
        "/srv/literature: 5,122 articles, 1 retracted",
        "ALERT novelty (large): Distance: farther",
        "ALERT Drift: novelty (large): not sent by webhook (HTTP 503)",
        "ALERT http://10.0.0.9:8000/ stopped unexpectedly",
    ):
        assert words in found.out, (words, found.out)
    assert said["answers"]["count"] == 400
    assert len(said["alerts"]) == 3
    assert said["live"][server.address]["meditune_requests_total"] >= 2


def test_a_mistyped_store_or_key_is_refused_and_nothing_is_written(tmp_path, monkeypatch):
    nowhere, exported = tmp_path / "nowhere", tmp_path / "export.jsonl"
    exported.write_text("of an earlier export")
    commands = [("answers", "export", "-o", exported), ("answers", "delete", "--key", "deadbeef")]
    commands += [("answers", "delete", "ask-1"), ("answers", "prune", "--days", 0)]
    commands += [("keys", "list"), ("keys", "rotate", "deadbeef"), ("keys", "revoke", "deadbeef")]
    for command in commands:
        meditune(*command, "--store", nowhere).refused(3, f"There is no store in {nowhere}")
    assert not nowhere.exists()
    assert exported.read_text() == "of an earlier export"
    id = meditune("keys", "create", "Ann", "--store", nowhere).last.split("-")[1]
    meditune("answers", "delete", "--key", "deadbeef", "--store", nowhere).refused(3, "There is no key 'deadbeef'")
    assert "0 answers" in meditune("answers", "delete", "--key", id, "--store", nowhere).out
    monkeypatch.setenv("MEDITUNE_STORE", str(nowhere))
    empty = meditune("answers", "export", "-o", exported).out
    assert empty == f"0 answers in {nowhere} (another store: --store DIR). Written: {exported}\n"


def test_a_server_that_is_gone_and_a_store_that_isnt_there(tmp_path, monkeypatch):
    assert "There is no store in" in meditune("status", "--store", tmp_path / "nowhere").err
    assert not (tmp_path / "nowhere").exists()
    fill_busy_store(tmp_path, 1)
    command = ("status", "--store", tmp_path, "--url", "http://127.0.0.1:1")
    found = meditune(*command)
    assert (found.code, "no answer (ConnectError)" in found.out) == (0, True)
    monkeypatch.setitem(sys.modules, "prometheus_client.parser", None)
    found = meditune(*command)
    assert (found.code, "reading metrics needs prometheus-client" in found.out) == (0, True)


@pytest.mark.parametrize("content", ["<!doctype html>\n<html>Welcome</html>\n", "other_requests_total 5\n"])
def test_an_address_that_is_no_server_of_meditune_is_said(tmp_path, content):
    class Handler(Answering):
        def do_GET(self):
            self.answer(content)

    fill_busy_store(tmp_path, 1)
    with listening(Handler) as url:
        found = meditune("status", "--store", tmp_path, "--url", url).ok()
    assert "no Meditune server: /metrics has other content" in found.out


def test_a_signal_during_a_destructor_stops_the_program_all_the_same():
    """Python ignores an exception there."""
    script = """
import signal, time
from meditune.cli.main import stop_on_signals
from meditune.errors import Stopped

class Busy:
    def __del__(self):
        signal.raise_signal(signal.SIGTERM)

stop_on_signals()
try:
    Busy()
    time.sleep(60)
except Stopped:
    print("stopped")
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=50, check=True)
    assert (done.stdout, done.stderr) == ("stopped\n", "")
