"""The journey of a model behind an API: what is asked, sent, kept, and reported."""

import io
import json
import sys

import pytest

from meditune.prompts import LIMITS
from tests.commands import jsonl, meditune, read_rows, rows
from tests.data import layouts
from tests.remote.server import KEY

TEST_ITEMS = 9
PRICES = {
    "model__api__price_per_million_training_tokens": 8,
    "model__api__price_per_million_input_tokens": 3,
    "model__api__price_per_million_output_tokens": 6,
}


def test_the_whole_journey(place):
    result = place.call("run")
    assert result.code == 0, result
    report = json.loads((place.run / "report.json").read_text(encoding="utf-8"))
    assert (report["base_model"], report["strategy"]) == ("gpt-3.5-turbo", "api")
    assert report["base"]["accuracy"] == pytest.approx(100 / 3)
    assert report["tuned"]["accuracy"] == 100
    assert report["comparison"]["bleu"]["better"] is True
    assert report["base"].keys() == report["tuned"].keys() == report["comparison"].keys()
    assert not {"perplexity", "general_perplexity"} & report["base"].keys()
    assert report["training"]["trained_tokens"] == 4321
    assert result.last.startswith("GOT WORSE: Sentence length 5.0 -> 8.0"), "the tuned model writes longer sentences"
    page = (place.run / "report.html").read_text(encoding="utf-8")
    assert "tuned through its API" in page
    assert "not measured" in page
    assert [step["loss"] for step in read_rows(place.run / "training.jsonl")] == [2.0, 1.0, 2 / 3]
    assert "ft:gpt-3.5-turbo:org:meditune:ftjob-1" in (place.run / "model" / "README.md").read_text(encoding="utf-8")
    for shown in ("running", "Step 3/3", "successfully completed"):
        assert shown in result.err

    before = list(place.api.requests)
    again = meditune(*place.words("run"))
    assert (again.code, again.last) == (0, result.last)
    assert place.api.requests == before, "a finished run asks nothing, and needs no approval"
    assert meditune("report", place.run).code == 0

    other = place.folder / "other"
    measured = meditune("evaluate", place.run, "-o", other, *place.settings(), "--yes")
    assert measured.code == 0, measured
    assert json.loads((other / "evaluation.json").read_text(encoding="utf-8"))["figures"] == report["tuned"]
    asked = meditune("ask", place.run, "Does own treatment 4 help?")
    assert "Own treatment 4 helps" in asked.out
    assert "As a yes/no question: no (yes 8%, no 89%, maybe 3%)" in asked.out
    for path in place.folder.rglob("*"):
        assert path.is_dir() or KEY.encode() not in path.read_bytes(), f"the key is in {path}"


def test_decisions_asked_for_in_other_ways(place):
    ways = {"closed_book": "true", "written_decisions": "true", "calibrate": "temperature"}
    ways["retrieve__index"] = "contexts"
    result = place.call("run", **{f"evaluate__{key}": value for key, value in ways.items()})
    assert result.code == 0, result
    dev = len(read_rows(place.run / "data" / "dev.jsonl"))
    assert len(place.api.chats) == 2 * (6 * TEST_ITEMS + dev), "written decisions are those that came anyway"
    without = [chat for chat in place.api.chats if chat["messages"][1]["content"].startswith("Question:")]
    assert len(without) == 2 * 2 * TEST_ITEMS
    report = json.loads((place.run / "report.json").read_text(encoding="utf-8"))
    assert report["tuned"]["written_accuracy"] == report["tuned"]["calibrated_accuracy"] == 100
    assert {"closed_accuracy", "closed_macro_f1"} <= report["base"].keys()
    before = list(place.api.requests)
    assert meditune(*place.words("run", **{f"evaluate__{key}": value for key, value in ways.items()})).code == 0
    assert place.api.requests == before


def test_what_is_trained_on_is_what_is_asked(place):
    assert place.call("run", model__api__hyperparameters="{batch_size: 4, learning_rate_multiplier: 0.5}").code == 0
    sent = place.api.files["file-1"]["content"]
    assert sent == (place.run / "api" / "training.jsonl").read_text(encoding="utf-8")
    trained = [json.loads(line)["messages"] for line in sent.splitlines()]
    train = read_rows(place.run / "data" / "train.jsonl")
    assert len(trained) == 2 * len(train)
    assert [messages[-1] for messages in trained[:2]] == [
        {"role": "assistant", "content": train[0]["decision"]},
        {"role": "assistant", "content": train[0]["answer"]},
    ]
    asked = [chat["messages"] for chat in place.api.chats]
    assert len(asked) == 4 * TEST_ITEMS
    assert {messages[0]["content"] for messages in trained} == {messages[0]["content"] for messages in asked}
    assert LIMITS in trained[0][0]["content"]
    for messages in [*trained, *asked]:
        prompt = messages[1]["content"]
        assert prompt.startswith("We gave own treatment ")
        assert prompt.endswith(("\nAnswer:", "\nConclusion:"))
    assert {
        json.dumps(chat["messages"][:2]) for chat in place.api.chats if chat["model"] == "gpt-3.5-turbo"
    }.isdisjoint(json.dumps(messages[:2]) for messages in trained)
    assert all(chat["temperature"] == 0 for chat in place.api.chats)
    method = place.api.jobs["ftjob-1"]["method"]
    hyperparameters = {"n_epochs": 3, "batch_size": 4, "learning_rate_multiplier": 0.5}
    assert method == {"type": "supervised", "supervised": {"hyperparameters": hyperparameters}}


def test_nothing_is_sent_before_it_is_approved_of(place):
    for command in ("run", "train"):
        result = meditune(*place.words(command, **PRICES))
        result.refused(1, "Nothing was sent", place.api.url, "OPENAI_API_KEY", "training rows", "Cost: about", "--yes")
    result = meditune("evaluate", "gpt-3.5-turbo", "-o", place.folder / "e", *place.settings())
    result.refused(1, "Nothing was sent", "18 test prompts", "price_per_million_input_tokens", "--yes")
    assert place.api.requests == []
    assert place.call("train", **(PRICES | {"train__epochs": 1})).code == 0, "other settings are still taken"


def test_the_cost_is_that_of_all_tokens(place):
    err = meditune(*place.words("train", **PRICES)).err
    rows_ = read_rows(place.run / "api" / "training.jsonl")
    tokens = int(err.split("about ")[1].split(" tokens")[0].replace(",", ""))
    letters = sum(len(message["content"]) for row in rows_ for message in row["messages"])
    assert letters / 4 <= tokens <= letters / 4 * 1.15 + 20 * len(rows_)
    assert f"about {3 * tokens:,} tokens are trained on" in err
    assert f"Cost: about {3 * tokens * 8 / 1e6:,.2f}" in err


@pytest.mark.parametrize(("typed", "code"), [("y\n", 0), ("n\n", 1), ("", 1)])
def test_a_terminal_is_asked(place, monkeypatch, typed, code):
    terminal = io.StringIO(typed)
    terminal.isatty = lambda: True
    monkeypatch.setattr(sys, "stdin", terminal)
    result = meditune(*place.words("train"))
    assert result.code == code
    assert "Send it? [y/N]" in result.err
    assert bool(place.api.requests) == (code == 0)


def test_restricted_rows_never_leave(place):
    notes = layouts.noteevents(place.folder / "NOTEEVENTS.csv", [layouts.note(number) for number in range(30)])
    for command in ("run", "train"):
        sources = f"[{{name: mimic, path: '{notes}'}}]"
        place.call(command, data__sources=sources).refused(3, "mimic (PhysioNet", "third party")
        assert not place.run.exists()
    marked = jsonl(place.folder / "own.jsonl", rows(40, restricted=lambda number: number == 7))
    for command in ("run", "train"):
        place.call(command).refused(3, "1 examples from own", "third party")
    meditune("evaluate", "api:other", "-o", place.folder / "e", *place.settings(), "--yes").refused(3, "third party")
    said = f"[{{name: own, path: '{place.folder / 'gone.csv'}', restricted: true, licence: Ward's agreement}}]"
    for words in (("run", "quickstart"), ("train", "quickstart"), ("evaluate", "api:other")):
        folder = place.folder / f"said-{words[0]}"
        refused = meditune(*words, "-o", folder, *place.settings(data__sources=said), "--yes")
        refused.refused(3, "own (Ward's agreement)", "third party")
    assert place.api.requests == []
    assert marked.is_file()
    jsonl(place.folder / "own.jsonl", rows(40, restricted="false"))
    assert (
        meditune(*place.words("train", "--yes", seed=3)[:3], place.folder / "new", *place.settings(), "--yes").code == 0
    )


def test_other_models_by_name_and_through_ask(place):
    asked = meditune("ask", "api:gpt-4.1-mini", "Does own treatment 3 help?", "--api", f"url={place.api.url}")
    assert asked.code == 0, asked
    assert "As a yes/no question: yes" in asked.out
    assert LIMITS in asked.out
    assert {chat["model"] for chat in place.api.chats} == {"gpt-4.1-mini"}
    meditune("ask", "/no/model", "Does it help?", "--api", f"url={place.api.url}").refused(4, "isn't behind an API")
    place.evaluate("api:").refused(4, "name the model")


def test_a_job_can_be_looked_at_and_cancelled(place):
    place.api.life = ("queued", "running")
    place.api.trouble("GET /fine_tuning/jobs/ftjob-1/events", heard=True, status=401)
    place.call("train").refused(4, "refused GET /fine_tuning/jobs/ftjob-1/events (401", "goes on at 127.0.0.1")
    status = meditune("api", "status", place.run)
    assert status.out.startswith("ftjob-1 at 127.0.0.1: running")
    assert "Step 3/3" in status.out
    assert meditune("api", "cancel", place.run).out == "ftjob-1 at 127.0.0.1: cancelled\n"
    place.call("train").refused(4, "ftjob-1 at 127.0.0.1 was cancelled")
    assert place.api.count("POST", "/fine_tuning/jobs") == 1
    meditune("api", "status", place.run).refused(3, "no training job")
    place.api.life = ("succeeded",)
    meditune(*place.words("train")).refused(1, "Nothing was sent", "--yes")
    assert place.call("train").code == 0
    assert (place.api.count("POST", "/files"), place.api.count("POST", "/fine_tuning/jobs")) == (1, 2)


def test_a_training_that_happens_elsewhere_cant_be_measured_on_its_way(place):
    place.call("train", train__dev__keep_best=True).refused(2, "train.dev", "keep_best")


def test_rows_cant_come_more_often_at_an_api(place):
    place.call("train", data__balance="{by: decision, weights: {no: 2}}").refused(2, "data.balance.weights", "a cap")
    assert place.api.requests == []


def test_commands_about_a_job_need_a_run(place, tmp_path):
    for command in ("status", "cancel"):
        meditune("api", command, tmp_path).refused(3, "holds no run")


def test_a_failed_job_says_why(place):
    place.api.life = ("queued", "failed")
    place.api.failure = "line 3 is unsafe (We gave own treatment 3 to 120 adults. Pain fell by 3 percent)."
    result = place.call("run")
    result.refused(4, "ftjob-1 at 127.0.0.1 failed: line 3 is unsafe (…", "makes a new job")
    assert "120 adults" not in result.err
    assert not (place.run / "model").exists()
    meditune("report", place.run).refused(3, "isn't finished")


@pytest.mark.parametrize(
    ("changes", "code", "texts"),
    [
        ({"train__epochs": 1.5}, 2, ["train.epochs", "whole number"]),
        ({"model__api__hyperparameters": "{n_epochs: 2}"}, 2, ["model.api.hyperparameters", "train.epochs"]),
        ({"train__epochs": 51}, 2, ["train.epochs", "1 to 50"]),
        ({"data__dev_share": 0.49, "data__test_share": 0.6, "train__tasks": "[decision]"}, 3, ["10 rows or more"]),
        ({"model__api__context_tokens": 177}, 3, ["model.api.context_tokens=177"]),
        ({"model__api__context_tokens": 64}, 3, ["10 rows or more", "longer than model.api.context_tokens=64"]),
        ({"model__api__key_variable": "sk-0123456789"}, 2, ["model.api.key_variable", "name of an environment"]),
        ({"model__api__key_variable": "NO_SUCH_KEY"}, 4, ["NO_SUCH_KEY isn't set"]),
        ({"model__api__url": "http://example.org/v1"}, 2, ["model.api.url", "unencrypted"]),
        ({"model__api__url": "https://user:secret@example.org/v1"}, 2, ["plain address"]),
        ({"model__api__url": "https://example.org/v1"}, 4, ["MEDITUNE_OFFLINE"]),
    ],
)
def test_what_can_not_work_is_said_before_anything_is_sent(place, changes, code, texts):
    result = place.call("run", **changes)
    result.refused(code, *texts)
    assert "sk-0123456789" not in result.err
    assert "secret" not in result.err
    assert place.api.requests == []


def test_what_is_too_long_is_left_out_and_counted(place):
    long = "We asked many adults. " * 60
    jsonl(place.folder / "own.jsonl", rows(40, context=lambda number: long if number % 4 == 0 else "It helped."))
    result = place.call("train", model__api__context_tokens=300)
    assert result.code == 0, result
    dropped = json.loads((place.run / "model" / "training.json").read_text(encoding="utf-8"))["dropped"]
    assert f"{dropped} left out" in result.err
    train = read_rows(place.run / "data" / "train.jsonl")
    assert dropped == 2 * sum(row["context"][0]["text"].startswith("We asked") for row in train) > 0
    assert len(read_rows(place.run / "api" / "training.jsonl")) == 2 * len(train) - dropped
