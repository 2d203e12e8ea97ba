"""Conversations from a user's file to a served and exported model, on the command line."""

import json

import pytest
from transformers import AutoTokenizer

from meditune.data.example import Turn, read_examples
from meditune.engines.open_engine import open_engine
from meditune.engines.tokenizer import PlainTokenizer
from meditune.files import read_json
from meditune.models.load import load
from meditune.prompts import Encoder, load_format
from meditune.serve.chat_prompts import ChatPrompts
from meditune.serve.settings import Settings
from tests import tiny
from tests.commands import jsonl, meditune, read_rows
from tests.loopback_server import MODEL, served

REPLIES = ("The drug helps with pain.", "Half of that for children.")


def talk(number):
    thought = "<think>Adults or children?</think>\n\n" if number % 2 else ""
    said = [
        ("system", "You are a nurse."),
        ("user", f"How much of drug {number} may I take?"),
        ("assistant", f"{thought}{REPLIES[0]}"),
        ("user", f"And for my child of {number % 9 + 2} years?"),
        ("assistant", REPLIES[1]),
    ]
    return {"id": number, "messages": [{"role": role, "content": text} for role, text in said]}


REFUSING = (
    "{% for message in messages %}{% if 'unspeakable' in message['content'] %}"
    "{{ raise_exception('An unspeakable drug.') }}{% endif %}{% endfor %}"
    f"{tiny.CHATML}"
)
"""A template that rejects some conversations, as some do without a system message"""


def refused(number):
    """A conversation that the template rejects."""
    row = talk(2 * number + 30)
    row["messages"][1]["content"] = f"How much of the unspeakable drug {number} may I take?"
    return row


@pytest.fixture(scope="module")
def place(place):
    tiny.chat_tokenizer(REFUSING).save_pretrained(place.base)
    rows = [*(talk(number) for number in range(30)), *(refused(number) for number in range(6))]
    jsonl(place.folder / "chats.jsonl", rows)
    return place


@pytest.fixture(scope="module")
def run(place):
    """The folder of a finished run on conversations, and what it printed."""
    words = place.own(place.folder / "chats.jsonl", train__tasks="[answer]", evaluate__answers=4)
    result = place.run("chats", *words).ok()
    return place.folder / "chats", result


def test_a_run_trains_on_the_assistants_turns_and_shows_them(run):
    folder, result = run
    assert "the thoughts (<think> ... </think>) in 15 assistant turns were removed" in result.err
    assert "Conversations are in the model's chat template" in result.err
    shown = result.err.partition("with the supervised part between « »:")[2]
    for reply in REPLIES:
        assert f"«{reply}<|im_end|>»" in shown
    assert shown.partition("«")[0].strip().startswith("<|im_start|>system\n    You are a nurse.<|im_end|>")
    assert read_json(folder / "model" / "prompt.json")["format"] == "chat"
    assert read_json(folder / "data" / "quality.json")["sources"]["own"]["thoughts_stripped"] == 15
    assert "format: null" in (folder / "recipe.yaml").read_text(), "the recipe stays as it was given"


def test_conversations_that_the_template_rejects_are_left_out_named_and_counted(run):
    folder, result = run
    ids = {split: [row["id"] for row in read_rows(folder / "data" / f"{split}.jsonl")] for split in ("train", "test")}
    out = {split: [id for id in found if int(id.removeprefix("own:")) >= 30] for split, found in ids.items()}
    assert out["train"], "the split gives training some of them"
    assert out["test"], "and the test set"
    assert f"{len(out['train'])} of {len(ids['train'])} conversations are left out. own:" in result.err
    assert "An unspeakable drug." in result.err
    training = read_json(folder / "model" / "training.json")
    assert training["rows"] == len(ids["train"]) - len(out["train"])
    measured = read_rows(folder / "predictions" / "tuned-likelihood.jsonl")
    assert not {row["id"] for row in measured} & set(out["test"])
    remarks = read_json(folder / "report.json")["remarks"]
    assert any(f"have no prediction in tuned-answer.jsonl ({out['test'][0]})" in remark for remark in remarks)


def test_held_out_conversations_are_measured_by_their_last_turn(run):
    folder, _ = run
    report = read_json(folder / "report.json")
    assert report["tuned"]["perplexity"] < report["base"]["perplexity"]
    assert {"rouge1", "chrf"} <= report["tuned"].keys()
    for row in read_rows(folder / "predictions" / "tuned-answer.jsonl"):
        assert row["reference"] == REPLIES[1]
        assert "<|im_" not in row["prediction"]


def test_the_model_is_served_and_exported_with_the_template_it_was_trained_in(run):
    folder, _ = run
    engine = open_engine(str(folder), "transformers")
    try:
        prompts = ChatPrompts(engine.tokenizer, load_format(folder / "model"), engine.context_tokens)
        asked = [Turn(role="system", text="You are a nurse."), Turn(role="user", text="How much?")]
        text = engine.tokenizer.decode(prompts.chat(asked))
    finally:
        engine.close()
    assert text == (
        "<|im_start|>system\nYou are a nurse.<|im_end|>\n<|im_start|>user\nHow much?<|im_end|>\n<|im_start|>assistant\n"
    )
    answer = meditune("ask", folder, "How much of drug 3 may I take?", "--json").ok()
    assert "<|im_" not in json.loads(answer.out)["text"]
    meditune("export", folder, "--to", "merged").ok()
    export = folder / "export" / "merged"
    tokenizer = PlainTokenizer(export)
    assert tokenizer.eos_token == "<|im_end|>"
    messages = [{"role": turn.role, "content": turn.text} for turn in asked]
    assert tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True) == text
    end = tokenizer.get_vocab()["<|im_end|>"]
    assert end in json.loads((export / "export.json").read_text())["stop_tokens"]
    assert "apply_chat_template" in (folder / "model" / "README.md").read_text(encoding="utf-8")


def test_over_http_a_conversation_is_rendered_as_in_training(place, run, tmp_path):
    folder, _ = run
    form, loaded = load_format(folder / "model"), load(str(folder))
    written = {row["id"]: row["prediction"] for row in read_rows(folder / "predictions" / "tuned-answer.jsonl")}
    example = next(each for each in read_examples(folder / "data" / "test.jsonl") if each.id in written)
    turns = [*example.turns, Turn(role="user", text=example.question)]
    assert [turn.role for turn in turns] == ["system", "user", "assistant", "user"]
    body = {"model": MODEL, "messages": [{"role": turn.role, "content": f"{turn.text} "} for turn in turns]}
    seen = []
    with served(tmp_path, Settings(bare_chat=True), loaded, form) as server:
        start = server.service.engine.start
        server.service.engine.start = lambda request, deliver: seen.append(request) or start(request, deliver)
        reply = server.ask("/v1/chat/completions", body | {"max_tokens": 24, "temperature": 0})
    assert reply.status == 200, reply.text
    trained = Encoder(AutoTokenizer.from_pretrained(place.base), form).trained(example, "answer")[-1]
    assert list(seen[0].prompt) == trained.prompt
    assert reply.json["usage"]["prompt_tokens"] == len(trained.prompt)
    assert written[example.id].startswith(reply.json["choices"][0]["message"]["content"].strip())


def test_chat_without_a_template_says_what_to_do(place, tmp_path):
    base = tiny.save(tmp_path / "plain")
    words = place.own(place.folder / "chats.jsonl", train__tasks="[answer]", prompt__format="chat", model__base=base)
    result = place.run("no-template", *words)
    result.refused(4, "prompt.format is chat, but", "has no chat template. Set prompt.format to plain")
    assert not (place.folder / "no-template" / "data").exists(), "before any data are read"
