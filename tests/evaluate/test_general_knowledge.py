"""General knowledge: a sound set of questions, scored as lm-evaluation-harness would, and what real models know.

The prose of Python's language reference.
"""

import hashlib
import sys
from collections import Counter

import numpy as np
import pytest
import torch

from meditune.config.data_options import PromptFormat
from meditune.config.training_options import ModelSpec
from meditune.evaluate import general_knowledge
from meditune.evaluate.general_knowledge import answer_choices, is_prose, language_reference, questions
from meditune.evaluate.metrics import summarize
from meditune.evaluate.metrics.perplexity import chosen
from meditune.evaluate.predictions import Predictions
from meditune.models.load import load
from tests import tiny


def rows(loaded, count=999):
    return list(answer_choices(loaded, loaded.encoder(PromptFormat()), questions(count), 1024, "Choices"))


def test_the_questions_are_whole_and_no_place_is_favoured():
    asked = questions(999)
    assert len(asked) == len({each["id"] for each in asked}) == len({each["question"] for each in asked}) == 164
    for each in asked:
        assert len({choice.lower() for choice in each["choices"]}) == 4, each
        assert each["question"].endswith("?"), each
        # In ASCII bytes are characters, by which lm-evaluation-harness divides.
        assert " ".join([each["question"], *each["choices"]]).isascii(), each
    assert set(Counter(each["answer"] for each in asked).values()) == {41}
    assert [each["id"] for each in questions(10)] == [each["id"] for each in asked[:10]]
    assert set(Counter(each["answer"] for each in questions(40)).values()) == {10}
    assert questions(0) == []


def test_longer_choices_are_not_preferred_for_their_length():
    """By its length, in itself, the right choice can't be told."""
    longest = [np.argmax([len(choice) for choice in each["choices"]]) == each["answer"] for each in questions(999)]
    shortest = [np.argmin([len(choice) for choice in each["choices"]]) == each["answer"] for each in questions(999)]
    assert np.mean(longest) < 0.4
    assert np.mean(shortest) < 0.4


@pytest.mark.parametrize("architecture", ["llama", "gemma3"])
def test_choices_that_share_a_prompt_score_as_texts_of_their_own(architecture):
    loaded, asked = tiny.loaded(architecture), questions(5)
    for row, each in zip(rows(loaded, 5), asked, strict=True):
        assert (row["id"], row["reference"]) == (each["id"], each["answer"])
        prompt = loaded.tokenizer(f"Question: {each['question']}\nAnswer:")["input_ids"]
        for choice, nll, size in zip(each["choices"], row["nll"], row["bytes"], strict=True):
            target = loaded.tokenizer(f" {choice}", add_special_tokens=False)["input_ids"]
            with torch.no_grad():
                logits = loaded.model(input_ids=torch.tensor([prompt + target])).logits[0].float().log_softmax(-1)
            places = range(len(prompt) - 1, len(prompt) + len(target) - 1)
            expected = -sum(float(logits[place, token]) for place, token in zip(places, target, strict=True))
            assert nll == pytest.approx(expected, rel=1e-4)
            assert size == len(choice)


def test_the_likeliest_choice_for_its_length_counts():
    row = {"id": "a", "subject": "s", "nll": [6.0, 4.0, 9.0, 8.0], "bytes": [10, 4, 10, 10]}
    assert chosen(row) == 0
    right, wrong = row | {"reference": 0}, row | {"id": "b", "reference": 1}
    assert summarize(Predictions(choice=[right, wrong])) == {"general_choice": 50.0}


def test_a_model_that_knows_nothing_is_near_chance():
    assert summarize(Predictions(choice=rows(tiny.loaded())))["general_choice"] == pytest.approx(25, abs=10)


@pytest.mark.model
def test_the_embedded_base_model_is_far_above_chance():
    found = summarize(Predictions(choice=rows(load("smollm2-135m", ModelSpec(dtype="float32")), 60)))
    assert 50 < found["general_choice"] < 85


def test_it_is_a_long_english_text_without_code_and_repetitions():
    text = language_reference()
    paragraphs = text.split("\n\n")
    assert len(text) > 100_000
    assert len(set(paragraphs)) == len(paragraphs)
    assert "Assignment statements are used to (re)bind names to values" in text
    for code in (">>>", "::=", "inst.x = inst.x + 1", "====", "----"):
        assert code not in text
    assert text == language_reference()


@pytest.mark.parametrize(
    ("paragraph", "prose"),
    [
        ('Return a copy of the string with its first character "capitalized" and the rest lowercased.', True),
        ("class Cls: x = 3 # class variable inst = Cls() inst.x = inst.x + 1 # writes inst.x as 4.", False),
        ("Assignment statements ******", False),
        ("str.count(sub[, start[, end]])", False),
    ],
)
def test_prose_is_told_from_code_and_headings(paragraph, prose):
    assert is_prose(paragraph) is prose


def test_its_edition_is_known():
    found = general_knowledge.technical()
    assert found.edition["sha256"] == hashlib.sha256(found.text.encode()).hexdigest()
    assert found.edition["python"] == ".".join(map(str, sys.version_info[:3]))


def test_a_python_without_it_is_told_and_nothing_fails(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)
    assert general_knowledge.technical() is None
    assert "evaluate.technical_tokens=0" in capsys.readouterr().err
