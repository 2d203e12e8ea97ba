"""Sources with two styles: which cue an answer is learnt after, and which one asks for it."""

import pytest
from pydantic import ValidationError

from meditune.data.prepare import prepare, stored
from meditune.prompts import Encoder
from meditune.recipe import Recipe
from tests import tiny
from tests.commands import jsonl
from tests.data.test_balance import EASY, HARD


def recipe(tmp_path, **source):
    rows = [{"question": f"What is disease {n}?", "answer": f"{HARD if n % 2 else EASY} {n}."} for n in range(40)]
    own = {"name": "own", "path": str(jsonl(tmp_path / "own.jsonl", rows)), **source}
    prompt = {"plain_cue": "In plain words:"} if source else {}
    return Recipe.model_validate({"name": "t", "data": {"sources": [own], "split": "group"}, "prompt": prompt})


def test_easy_answers_are_learnt_after_the_plain_cue_which_all_that_is_measured_is_asked_with(tmp_path):
    asked = recipe(tmp_path, style="plain")
    splits = prepare(asked, tmp_path / "data").splits
    assert splits == stored(tmp_path / "data").splits
    encoder = Encoder(tiny.tokenizer(), asked.prompt)

    def cue(example):
        text = encoder.tokenizer.decode(encoder.supervised(example, "answer").prompt)
        return text.rsplit("\n", 1)[1]

    assert {(each.answer.startswith("The drug"), cue(each)) for each in splits.train} == {
        (True, "In plain words:"),
        (False, "Conclusion:"),
    }
    assert {cue(each) for each in [*splits.dev, *splits.test]} == {"In plain words:"}


def test_without_that_style_nothing_is_noted(tmp_path):
    splits = prepare(recipe(tmp_path), tmp_path / "data").splits
    assert not any(each.style for examples in splits.named().values() for each in examples)


@pytest.mark.parametrize(
    ("style", "cues", "said"),
    [
        ("plain", {}, "set prompt.plain_cue"),
        ("expert", {"plain_cue": "In plain words:"}, "is never learnt"),
        ("plain", {"plain_cue": "Conclusion:"}, "must differ from prompt.answer_cue"),
    ],
)
def test_a_style_and_its_cue_come_together(style, cues, said):
    with pytest.raises(ValidationError, match=said):
        Recipe.model_validate({"name": "t", "data": {"sources": [{"name": "medquad", "style": style}]}, "prompt": cues})
