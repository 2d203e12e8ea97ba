"""A model behind an API: what is asked, sent, stored and reported, from training files to the safety test set.

A run that is stopped or killed anywhere goes on, and pays for nothing twice. An API that is slow, busy, broken or
strict: what passes is waited for, the rest is said in a sentence.
"""

from __future__ import annotations

import io
import json
import math
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from meditune import hosted_pipeline
from meditune.config.load_recipe import load_recipe
from meditune.evaluate.safety_battery import chosen_messages
from meditune.http_client import Backoff
from meditune.models.api_client import (
    ApiError,
    ApiModel,
    Chat,
    Client,
    estimated_tokens,
    label_logits,
    of_chat,
    without_echo,
)
from meditune.prompts import LIMITS
from tests import layouts
from tests.commands import Bench, Result, jsonl, meditune, read_rows, rows
from tests.hosted_api import KEY, Api, serving

QUICK = {
    "model.base": "gpt-3.5-turbo",
    "data.split": "group",
    "evaluate.resamples": "100",
    "evaluate.general_tokens": "0",
}


@dataclass(frozen=True)
class Place:
    """Where a test works."""

    api: Api
    folder: Path
    data: Path

    def settings(self, **changes: Any) -> list[str]:
        """`--set` options; a keyword's "__" stands for a dot, None removes an option."""
        sources = f"[{{name: own, path: '{self.data}'}}]"
        values: dict[str, Any] = QUICK | {"model.api.url": self.api.url, "data.sources": sources}
        values |= {key.replace("__", "."): value for key, value in changes.items()}
        return [word for key, value in values.items() if value is not None for word in ("--set", f"{key}={value}")]

    def words(self, command: str, *more: str, **changes: Any) -> list[Any]:
        """A command with the quickstart's recipe into the run's folder."""
        return [command, "quickstart", "-o", self.run, *self.settings(**changes), *more]

    def call(self, command: str, *more: str, **changes: Any) -> Result:
        """The command, approved of beforehand."""
        return meditune(*self.words(command, "--yes", *more, **changes))

    def evaluate(self, model: str = "gpt-3.5-turbo", *more: str, **changes: Any) -> Result:
        """`meditune evaluate`, approved of beforehand."""
        return meditune(*self.evaluation(model, *more, **changes))

    def evaluation(self, model: str = "gpt-3.5-turbo", *more: str, **changes: Any) -> list[Any]:
        """The words of `meditune evaluate`."""
        return ["evaluate", model, "-o", self.run, *self.settings(**changes), "--yes", *more]

    def interrupted(self, *words: Any, match: str, heard: bool = True) -> Result:
        """The command in a process of its own, which gets a ctrl-C during the request that `match` names."""
        with self.bench.started(*words) as process:
            self.api.trouble(match, heard=heard, act=lambda: process.send_signal(signal.SIGINT), delay=0.2)
            out, err = process.communicate(timeout=240)
        return Result(process.returncode, out, err)

    @property
    def run(self) -> Path:
        """The run's folder."""
        return self.folder / "run"

    @property
    def bench(self) -> Bench:
        """To start commands in processes of their own."""
        return Bench(self.folder, self.folder, {"OPENAI_API_KEY": KEY})

    def predictions(self, name: str) -> list[dict[str, Any]]:
        """Stored predictions, such as of base-decision."""
        return read_rows(self.run / "predictions" / f"{name}.jsonl")

    def asked_twice(self) -> list[str]:
        """Prompts that one model was shown more than once; a request whose sender was killed midway has no content."""
        shown = [(chat["model"], chat["messages"][-1]["content"]) for chat in self.api.chats if chat]
        return [prompt for model, prompt in shown if shown.count((model, prompt)) > 1]


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("meditune.hosted_pipeline.POLL_SECONDS", 0.01)
    monkeypatch.setattr("meditune.models.api_client.BACKOFF", Backoff(attempts=8, first_wait=0.02))
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("MEDITUNE_OFFLINE", "1")
    monkeypatch.setenv("MEDITUNE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    with serving() as api:
        yield Place(api, tmp_path, jsonl(tmp_path / "own.jsonl", rows(40)))


TEST_ITEMS = 9
PRICES = {"model__api__prices": "{training: 8, input: 3, output: 6}"}


def test_the_whole_journey(place):
    result = place.call("run").ok()
    report = json.loads((place.run / "report.json").read_text(encoding="utf-8"))
    assert (report["base_model"], report["strategy"]) == ("gpt-3.5-turbo", "api")
    assert report["base"]["accuracy"] == pytest.approx(100 / 3)
    assert report["tuned"]["accuracy"] == 100
    assert report["comparison"]["bleu"]["better"] is True
    assert report["base"].keys() == report["tuned"].keys() == report["comparison"].keys()
    assert not {"perplexity", "general_perplexity"} & report["base"].keys()
    assert report["training"]["trained_tokens"] == 4321
    assert result.last.startswith("SIGNIFICANTLY WORSE: Sentence length 5.0 -> 8.0"), "tuned sentences are longer"
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
    meditune("report", place.run).ok()

    other = place.folder / "other"
    meditune("evaluate", place.run, "-o", other, *place.settings(), "--yes").ok()
    assert json.loads((other / "evaluation.json").read_text(encoding="utf-8"))["figures"] == report["tuned"]
    asked = meditune("ask", place.run, "Does own treatment 4 help?")
    assert "Own treatment 4 helps" in asked.out
    assert "As a yes/no question: no (yes 8%, no 89%, maybe 3%)" in asked.out
    for path in place.folder.rglob("*"):
        assert path.is_dir() or KEY.encode() not in path.read_bytes(), f"the key is in {path}"


def test_decisions_asked_for_in_other_ways(place):
    ways = {"closed_book": "true", "written_decisions": "true", "calibrate": "temperature"}
    ways["retrieve__index"] = "contexts"
    place.call("run", **{f"evaluate__{key}": value for key, value in ways.items()}).ok()
    dev = len(read_rows(place.run / "data" / "dev.jsonl"))
    assert len(place.api.chats) == 2 * (6 * TEST_ITEMS + dev), "written decisions are those that came anyway"
    without = [chat for chat in place.api.chats if chat["messages"][1]["content"].startswith("Question:")]
    assert len(without) == 2 * 2 * TEST_ITEMS
    report = json.loads((place.run / "report.json").read_text(encoding="utf-8"))
    assert report["tuned"]["written_accuracy"] == report["tuned"]["calibrated_accuracy"] == 100
    assert {"closed_accuracy", "closed_macro_f1"} <= report["base"].keys()
    before = list(place.api.requests)
    meditune(*place.words("run", **{f"evaluate__{key}": value for key, value in ways.items()})).ok()
    assert place.api.requests == before


def test_what_is_trained_on_is_what_is_asked(place):
    place.call("run", model__api__hyperparameters="{batch_size: 4, learning_rate_multiplier: 0.5}").ok()
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
    result.refused(1, "Nothing was sent", "18 test prompts", "model.api.prices.input", "--yes")
    assert place.api.requests == []
    assert place.call("train", **(PRICES | {"train__epochs": 1})).code == 0, "other settings are still taken"


def test_the_cost_is_that_of_all_tokens(place):
    err = meditune(*place.words("train", **PRICES)).err
    rows_ = read_rows(place.run / "api" / "training.jsonl")
    tokens = int(err.split("about ")[1].split(" tokens")[0].replace(",", ""))
    letters = sum(len(message["content"]) for row in rows_ for message in row["messages"])
    assert letters / 4 <= tokens <= letters / 4 * 1.15 + 20 * len(rows_)
    assert f"about {3 * tokens:,} training tokens" in err
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
    meditune(*place.words("train", "--yes", seed=3)[:3], place.folder / "new", *place.settings(), "--yes").ok()


def test_other_models_by_name_and_through_ask(place):
    asked = meditune("ask", "api:gpt-4.1-mini", "Does own treatment 3 help?", "--api", f"url={place.api.url}").ok()
    assert "As a yes/no question: yes" in asked.out
    assert LIMITS in asked.out
    assert {chat["model"] for chat in place.api.chats} == {"gpt-4.1-mini"}
    refused = meditune("ask", "/no/model", "Does it help?", "--api", f"url={place.api.url}")
    refused.refused(4, "isn't known as an API model")
    place.evaluate("api:").refused(4, "write the API's name")


@pytest.mark.parametrize(
    ("text", "disagree"),
    [
        ("No, it doesn't.", True),
        ("**Maybe**: it is unclear.", True),
        ("Yes, it does.", False),
        ("No-one knows.", False),
    ],
)
def test_an_answer_in_words_that_disagrees_with_the_decision_is_told(place, text, disagree):
    place.api.answer = lambda prompt, _tuned: "Yes" if prompt.endswith("Answer:") else text
    asked = ("ask", "api:gpt-4.1-mini", "Does it help?", "--api", f"url={place.api.url}")
    assert ("The written answer and the decision disagree, so trust neither." in meditune(*asked).out) is disagree
    said = json.loads(meditune(*asked, "--json").out)
    assert (said["text"], said["decision"], said["contradictory"]) == (text, "yes", disagree)


def test_a_job_can_be_looked_at_and_cancelled(place):
    place.api.life = ("queued", "running")
    place.api.trouble("GET /fine_tuning/jobs/ftjob-1/events", heard=True, status=401)
    place.call("train").refused(4, "refused GET /fine_tuning/jobs/ftjob-1/events (401", "continues at 127.0.0.1")
    status = meditune("api", "status", place.run)
    assert status.out.startswith("ftjob-1 at 127.0.0.1: running")
    assert "Step 3/3" in status.out
    assert meditune("api", "cancel", place.run).out == "ftjob-1 at 127.0.0.1: cancelled\n"
    place.call("train").refused(4, "ftjob-1 at 127.0.0.1 was cancelled")
    assert place.api.count("POST", "/fine_tuning/jobs") == 1
    meditune("api", "status", place.run).refused(3, "no training job")
    place.api.life = ("succeeded",)
    meditune(*place.words("train")).refused(1, "Nothing was sent", "--yes")
    place.call("train").ok()
    assert (place.api.count("POST", "/files"), place.api.count("POST", "/fine_tuning/jobs")) == (1, 2)


def test_a_training_that_happens_elsewhere_cant_be_measured_on_its_way(place):
    place.call("train", train__dev__keep_best=True).refused(2, "train.dev", "keep_best")


def test_commands_about_a_job_need_a_run(place, tmp_path):
    for command in ("status", "cancel"):
        meditune("api", command, tmp_path).refused(3, "contains no run")


def test_a_failed_job_says_why(place):
    place.api.life = ("queued", "failed")
    place.api.failure = "line 3 is unsafe (We gave own treatment 3 to 120 adults. Pain fell by 3 percent)."
    result = place.call("run")
    result.refused(4, "ftjob-1 at 127.0.0.1 failed: line 3 is unsafe (…", "creates a new job")
    assert "120 adults" not in result.err
    assert not (place.run / "model").exists()
    meditune("report", place.run).refused(3, "isn't finished")


@pytest.mark.parametrize(
    ("changes", "code", "texts"),
    [
        ({"train__epochs": 1.5}, 2, ["train.epochs", "whole number"]),
        ({"model__api__hyperparameters": "{n_epochs: 2}"}, 2, ["model.api.hyperparameters", "train.epochs"]),
        ({"train__epochs": 51}, 2, ["train.epochs", "1 to 50"]),
        ({"data__dev_share": 0.49, "data__test_share": 0.6, "train__tasks": "[decision]"}, 3, ["at least 10 rows"]),
        ({"model__api__context_tokens": 177}, 3, ["model.api.context_tokens=177"]),
        ({"model__api__context_tokens": 64}, 3, ["at least 10 rows", "longer than model.api.context_tokens=64"]),
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
    result = place.call("train", model__api__context_tokens=300).ok()
    dropped = json.loads((place.run / "model" / "training.json").read_text(encoding="utf-8"))["dropped"]
    assert f"{dropped} rows are left out" in result.err
    train = read_rows(place.run / "data" / "train.jsonl")
    assert dropped == 2 * sum(row["context"][0]["text"].startswith("We asked") for row in train) > 0
    assert len(read_rows(place.run / "api" / "training.jsonl")) == 2 * len(train) - dropped


def made_once(place):
    """Assert that one file and one job were made, and nothing was asked twice."""
    assert (len(place.api.files), len(place.api.jobs)) == (1, 1)
    assert place.asked_twice() == []


@pytest.mark.parametrize(
    ("match", "heard"),
    [
        *(("POST /files", heard) for heard in (True, False)),
        *(("POST /fine_tuning/jobs", heard) for heard in (True, False)),
        ("GET /fine_tuning/jobs/ftjob-1", False),
        ("GET /.*/events", True),
    ],
)
def test_stopped_at_any_request(place, match, heard):
    stopped = place.interrupted(*place.words("train", "--yes"), match=match, heard=heard)
    assert stopped.code == 130, stopped
    assert "run the same command again" in stopped.err
    begun = match.startswith("GET")
    assert ("The job ftjob-1 continues at" in stopped.err) == begun
    assert (f"meditune api cancel {place.run}" in stopped.err) == begun
    again = meditune(*place.words("train")).ok()
    made_once(place)
    assert again.last == f"Model: {place.run / 'model'}"


def test_a_program_that_is_interrupted_names_the_job_too(tmp_path, monkeypatch, capsys):
    def follow(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(hosted_pipeline, "follow", follow)
    folder = tmp_path / "my runs"
    hosted_pipeline.State(job="ftjob-1").save(folder)
    recipe = load_recipe("quickstart").recipe
    model = ApiModel("gpt-3.5-turbo", recipe.model.api)
    with Client(model.spec, None) as client, pytest.raises(KeyboardInterrupt):
        hosted_pipeline.run_job(client, model, recipe, folder)
    written = capsys.readouterr().err
    assert "The job ftjob-1 continues at api.openai.com" in written
    assert f"meditune api cancel '{folder}'" in written


def test_stopped_while_measuring(place):
    """What was under way when the user stopped is kept too."""
    place.api.troubles = []
    for _ in range(3):
        place.api.trouble("POST /chat/completions", heard=True, status=None, delay=0.05)
    stopped = place.interrupted(*place.evaluation(), match="POST /chat/completions")
    assert stopped.code == 130, stopped
    assert (place.run / "predictions" / "model-decision.jsonl.begun").is_file()
    asked = len(place.api.chats)
    assert 4 <= asked < 18
    place.evaluate().ok()
    assert len(place.api.chats) == 18
    made = {path.name for path in (place.run / "predictions").iterdir()}
    assert made >= {"model-answer.jsonl", "model-decision.jsonl"}
    assert not [name for name in made if name.endswith(".begun")]
    assert place.asked_twice() == []


def test_a_row_that_was_cut_off_is_asked_for_again(place):
    assert place.interrupted(*place.evaluation(), match="POST /chat/completions").code == 130
    begun = place.run / "predictions" / "model-decision.jsonl.begun"
    begun.write_text(begun.read_text(encoding="utf-8").rstrip()[:-20], encoding="utf-8")
    place.evaluate().ok()
    assert len(place.predictions("model-decision")) == 9
    assert len(place.asked_twice()) == 2


@pytest.mark.parametrize("match", ["POST /files", "POST /fine_tuning/jobs", "POST /chat/completions"])
def test_killed(place, match):
    with place.bench.started(*place.words("run", "--yes")) as process:
        place.api.trouble(match, heard=True, act=process.kill, delay=0.1)
        process.wait(timeout=240)
        time.sleep(0.2)
    assert process.returncode == -signal.SIGKILL
    place.call("train" if "chat" not in match else "run").ok()
    assert (len(place.api.files), len(place.api.jobs)) == (1, 1)
    assert len(place.asked_twice()) <= 2 * 4, "only what was under way is lost"


def test_an_api_without_lists_is_not_made_to_train_twice(place):
    place.api.lists = False
    stopped = place.interrupted(*place.words("train", "--yes"), match="POST /fine_tuning/jobs")
    assert stopped.code == 130
    place.call("train").refused(4, "it may have created a job", "file-1", str(place.run / "api" / "job.json"))
    assert len(place.api.jobs) == 1


SETTINGS = {"evaluate__safety_messages": 5}


def test_the_battery_counts_in_the_estimate(place):
    plain, asked = (
        meditune("evaluate", "gpt-3.5-turbo", "-o", place.run, *place.settings(**changes)) for changes in ({}, SETTINGS)
    )
    plain.refused(1, "18 test prompts")
    asked.refused(1, "23 test prompts")
    assert place.api.requests == []


def test_the_battery_is_asked_in_the_form_of_every_prompt_and_stored(place):
    place.api.answer = lambda *_: "Call 911 now."
    place.evaluate("gpt-3.5-turbo", **SETTINGS).ok()
    rows = place.predictions("model-safety")
    messages = chosen_messages(5, 17)
    assert [(row["id"], row["message"]) for row in rows] == [(message.id, message.text) for message in messages]
    sent = {chat["messages"][-1]["content"] for chat in place.api.chats}
    assert {f"Question: {message.text}\nConclusion:" for message in messages} <= sent
    figures = json.loads((place.run / "evaluation.json").read_text(encoding="utf-8"))["figures"]
    assert figures["safety_rate"] == 100 * sum(message.category == "emergency" for message in messages) / 5


SOON = {"Retry-After": "0.02"}
EVERY = [
    *("POST /files", "POST /fine_tuning/jobs", "GET /fine_tuning/jobs/ftjob-1", "GET /fine_tuning/jobs/ftjob-1/events")
]


def test_troubles_that_pass_are_waited_for(place):
    for match in EVERY:
        place.api.trouble(match, status=429, headers=SOON, error={"code": "rate_limit_exceeded"})
        place.api.trouble(match, status=503, headers=SOON)
    place.api.trouble("POST /chat/completions", times=9, status=429, headers=SOON)
    place.api.trouble("POST /chat/completions", times=3, status=500, headers=SOON)
    place.call("run").ok()
    assert (len(place.api.files), len(place.api.jobs)) == (1, 1)
    assert place.asked_twice() == []


@pytest.mark.parametrize(
    "trouble",
    [{"heard": True}, {"heard": False}, {"partial": True}, {"heard": True, "status": 500, "headers": SOON}],
    ids=["dropped after", "dropped before", "dropped in the middle", "error after"],
)
@pytest.mark.parametrize("match", ["POST /files", "POST /fine_tuning/jobs"])
def test_what_was_made_before_the_connection_broke_is_found(place, match, trouble):
    place.api.trouble(match, **trouble)
    place.call("train").ok()
    assert (len(place.api.files), len(place.api.jobs)) == (1, 1)


def test_a_slow_answer_is_asked_for_again(place, monkeypatch):
    monkeypatch.setattr("meditune.models.api_client.TIMEOUT_SECONDS", 0.3)
    place.api.trouble("POST /chat/completions", delay=1.0, heard=True)
    place.evaluate().ok()
    assert len(place.asked_twice()) == 2


def test_an_outage_ends_with_the_way_to_go_on(place):
    place.api.trouble("GET /fine_tuning/jobs/ftjob-1", times=99, status=502, headers=SOON)
    place.call("train").refused(
        4, "127.0.0.1 answers 502; gave up after 8 attempts", "The job ftjob-1 continues at", "later to resume"
    )
    place.api.troubles = []
    place.call("train").ok()
    assert len(place.api.jobs) == 1


def test_a_long_pause_is_left_to_the_user(place):
    place.api.trouble("POST /files", status=429, headers={"Retry-After": "3600"})
    place.call("train").refused(4, "asks for a pause of 3600 seconds")


def test_no_credit_is_no_rate_limit(place):
    error = {"type": "insufficient_quota", "code": "insufficient_quota", "message": "You exceeded your quota."}
    place.api.trouble("POST /fine_tuning/jobs", times=9, status=429, error=error)
    place.call("train").refused(4, "refused POST /fine_tuning/jobs", "You exceeded your quota", "credit")
    assert place.api.count("POST", "/fine_tuning/jobs") == 1


@pytest.mark.parametrize(
    ("status", "texts"),
    [
        (400, ["(400: The server had a trouble)"]),
        (401, ["(401: The server had a trouble)", "Check the key in OPENAI_API_KEY"]),
        (403, ["(403: The server had a trouble)", "permissions"]),
        (404, ["(404: The server had a trouble)", "Check the model's name"]),
    ],
)
def test_a_refusal_is_one_sentence_and_no_second_request(place, status, texts):
    place.api.trouble("POST /chat/completions", times=99, status=status)
    result = place.evaluate(model__api__concurrency=1)
    result.refused(4, "own:", "127.0.0.1 refused POST /chat/completions", *texts)
    assert place.api.count("POST", "/chat/completions") == 1
    assert not (place.run / "predictions").exists()


def test_neither_key_nor_rows_are_in_an_error(place):
    wrong = KEY.replace("0", "9")
    place.api.key = wrong
    result = place.evaluate()
    result.refused(4, "401: Incorrect API key provided: Bearer …")
    assert KEY not in result.err
    place.api.key = KEY
    said = "Bad row: We gave own treatment 3 to 120 adults. Pain fell by 3 percent. Bad row."
    place.api.trouble("POST /chat/completions", times=99, status=400, error={"message": said})
    result = place.evaluate()
    result.refused(4, "400: Bad row: ")
    assert "120 adults" not in result.err
    place.api.troubles = []
    place.api.trouble("POST /files", times=99, status=400, error={"message": said})
    result = meditune("train", "quickstart", "-o", place.folder / "other", *place.settings(), "--yes")
    result.refused(4, "POST /files (400: Bad row: ")
    assert "120 adults" not in result.err


@pytest.mark.parametrize("key", ["sk-two words", "sk-ümlaut"])
def test_a_key_that_is_none_is_not_shown(place, monkeypatch, key):
    monkeypatch.setenv("OPENAI_API_KEY", key)
    result = place.evaluate()
    result.refused(4, "The value of OPENAI_API_KEY isn't a valid key")
    assert key not in result.err


def test_an_address_without_an_api(place):
    place.evaluate(model__api__url=place.api.url + "/v1").refused(4, "404", "model.api.url")


def test_an_api_that_needs_no_key(place, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY")
    place.api.key = None
    place.evaluate(model__api__key_variable="null").ok()


# What a chat may lack.


def test_decisions_by_word_where_no_likelihoods_are_told(place):
    place.api.likelihoods = False
    place.api.answer = lambda prompt, _: "**No**, it doesn't." if "treatment 4 " in prompt else "Hard to say."
    result = place.evaluate().ok()
    assert "9 of 9 decisions of model are based on the written text" in result.err
    decided = place.predictions("model-decision")
    assert {row["by"] for row in decided} == {"word"}
    assert {row["prediction"] for row in decided} <= {"no", None}
    assert "are neither yes, no nor maybe, and count as wrong" in result.err
    figures = json.loads((place.run / "evaluation.json").read_text(encoding="utf-8"))["figures"]
    assert "ece" not in figures
    right = sum(row["prediction"] == row["reference"] for row in decided)
    assert figures["accuracy"] == pytest.approx(100 * right / 9)


def test_unclear_decisions_make_the_journey(place):
    place.api.likelihoods = False
    place.api.answer = lambda prompt, tuned: "Yes." if tuned and "treatment 3 " in prompt else "I can't tell."
    place.call("run").ok()
    report = json.loads((place.run / "report.json").read_text(encoding="utf-8"))
    assert [sum(row) for row in report["decision"]["base"]["confusion"]] == [3, 3, 3]
    assert [row[3] for row in report["decision"]["base"]["confusion"]] == [3, 3, 3]
    assert report["base"]["accuracy"] == report["base"]["macro_f1"] == 0
    assert report["baselines"][0]["accuracy"] == pytest.approx(100 / 3)
    assert "none of these" in (place.run / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("option", ["logprobs", "max_tokens"])
def test_options_that_a_model_does_not_take_are_left_out(place, option):
    place.api.refused = (option,)
    place.evaluate(model__api__concurrency=1).ok()
    answered = [chat for chat in place.api.chats if option not in chat]
    assert len(answered) == 18
    assert len(place.api.chats) == 19
    if option == "max_tokens":
        assert {chat["max_completion_tokens"] for chat in answered} == {8, 96}


def test_an_empty_answer_is_an_answer(place):
    place.api.answer = lambda *_: ""
    place.evaluate().ok()
    assert {row["prediction"] for row in place.predictions("model-answer")} == {""}


def test_no_more_requests_at_once_than_allowed(place):
    place.api.trouble("POST /chat/completions", times=99, heard=True, delay=0.05)
    place.evaluate(model__api__concurrency=3).ok()
    assert 1 < place.api.most_at_once <= 3


def test_a_model_that_refuses_temperature_0_is_asked_without_it(capsys):
    class Client:
        host, sent = "api.example.org", []

        def post(self, _, body):
            self.sent.append(body)
            if "temperature" in body:
                raise ApiError("refused", 400, "temperature does not support 0 with this model")
            return {"choices": [{"message": {"content": "Yes."}}]}

    chat = Chat(Client(), "model")
    assert [chat.write([], 8), chat.decide([]).prediction] == ["Yes.", "yes"]
    assert ["temperature" in body for body in Client.sent] == [True, False, False]
    assert capsys.readouterr().err == "model refuses temperature 0, so its answers can differ each time.\n"


def test_an_echo_is_masked_and_nothing_else():
    secret = "The patient is a 61 year-old man with cough."
    assert without_echo(f"Line 3 is bad: {secret} Mend it", [secret]) == "Line 3 is bad: … Mend it"
    assert without_echo("Key sk-1 is wrong", ["sk-1"]) == "Key … is wrong"
    long = "Bad line. " * 29
    assert without_echo(f"{long}{secret}", [secret]) == f"{long}…"
    assert without_echo("Nothing to hide", [secret, ""]) == "Nothing to hide"


def test_a_label_has_the_likelihood_of_all_its_spellings():
    logits = label_logits({"Yes": -1.0, " yes": -2.0, "NO": -3.0, " May": -4.0, "The": -5.0, "\n": -6.0})
    assert logits["yes"] == pytest.approx(math.log(math.exp(-1) + math.exp(-2)))
    assert (logits["no"], logits["maybe"]) == (-3.0, -4.0)


def test_a_label_that_is_not_told_has_the_least_that_is():
    assert label_logits({"Yes": -0.1, "Well": -7.0}) == {"yes": -0.1, "no": -7.0, "maybe": -7.0}
    assert set(label_logits({"Well": -0.1, "not": -7.0}).values()) == {-7.0}
    assert label_logits({}) is None


def test_tokens_are_counted_by_the_stated_rule():
    assert estimated_tokens("") == 0
    assert estimated_tokens("a" * 40) == 10
    assert estimated_tokens("a b c d e f") == 8
    assert estimated_tokens("治疗有效") == 4
    assert of_chat([{"role": "user", "content": "a" * 40}, {"role": "assistant", "content": ""}]) == 3 + 4 + 10 + 4
