"""Conversations from a user's file to a served and exported model, on the command line."""

import json

import pytest

from meditune.data.example import Turn
from meditune.engines.open_engine import open_engine
from meditune.engines.tokenizer import PlainTokenizer
from meditune.files import read_json
from meditune.prompts import load_format
from meditune.serve.chat_prompts import ChatPrompts
from tests import tiny
from tests.commands import bench, jsonl, meditune, read_rows

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


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    with bench(tmp_path_factory.mktemp("chats")) as made:
        tiny.chat_tokenizer().save_pretrained(made.base)
        jsonl(made.folder / "chats.jsonl", [talk(number) for number in range(30)])
        yield made


@pytest.fixture(scope="module")
def run(place):
    """The folder of a finished run on conversations, and what it printed."""
    words = place.own(place.folder / "chats.jsonl", train__tasks="[answer]", evaluate__answers=4)
    result = place.run("chats", *words)
    assert result.code == 0, result
    return place.folder / "chats", result


def test_a_run_trains_on_the_assistants_turns_and_shows_them(run):
    folder, result = run
    assert "the thoughts (<think> ... </think>) of 15 assistant turns were stripped" in result.err
    assert "Conversations are in the model's chat template" in result.err
    shown = result.err.partition("with the supervised part between « »:")[2]
    for reply in REPLIES:
        assert f"«{reply}<|im_end|>»" in shown
    assert shown.partition("«")[0].strip().startswith("<|im_start|>system\n    You are a nurse.<|im_end|>")
    assert read_json(folder / "model" / "prompt.json")["format"] == "chat"
    assert read_json(folder / "data" / "quality.json")["sources"]["own"]["thoughts_stripped"] == 15
    assert "format: null" in (folder / "recipe.yaml").read_text(), "the recipe stays as it was given"


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
    answer = meditune("ask", folder, "How much of drug 3 may I take?", "--json")
    assert answer.code == 0, answer
    assert "<|im_" not in json.loads(answer.out)["text"]
    result = meditune("export", folder, "--to", "merged")
    assert result.code == 0, result
    export = folder / "export" / "merged"
    tokenizer = PlainTokenizer(export)
    assert tokenizer.eos_token == "<|im_end|>"
    messages = [{"role": turn.role, "content": turn.text} for turn in asked]
    assert tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True) == text
    end = tokenizer.get_vocab()["<|im_end|>"]
    assert end in json.loads((export / "export.json").read_text())["stop_tokens"]
    assert "apply_chat_template" in (folder / "model" / "README.md").read_text(encoding="utf-8")


def test_chat_without_a_template_says_what_to_do(place, tmp_path):
    base = tiny.save(tmp_path / "plain")
    words = place.own(place.folder / "chats.jsonl", train__tasks="[answer]", prompt__format="chat", model__base=base)
    result = place.run("no-template", *words)
    result.refused(4, "prompt.format is chat, but", "has no chat template. Set prompt.format to plain")
    assert not (place.folder / "no-template" / "data").exists(), "before any data are read"
