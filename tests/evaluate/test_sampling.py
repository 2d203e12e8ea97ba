"""Answers by chance are seeded, as many as asked for, and a run without them writes none."""

import pytest

from meditune.config.load_recipe import load_recipe
from meditune.config.recipe import Recipe
from meditune.data.example import Example
from meditune.errors import RecipeError
from meditune.evaluate.evaluator import Measuring
from meditune.evaluate.predictions import path_of
from meditune.files import read_jsonl
from tests import tiny

EXAMPLES = [
    Example(id=f"t:{n}", source="test", question=f"Does drug {n} help?", answer="It helps.", group=str(n))
    for n in range(4)
]


def measured(folder, seed=17, **spec):
    recipe = Recipe.model_validate(
        {
            "name": "tiny",
            "seed": seed,
            "prompt": {"max_tokens": 64, "answer_tokens": 8},
            "evaluate": {"max_new_tokens": 4, "general_tokens": 0, "choices": 0, "answers": 3, **spec},
        }
    )
    measuring = Measuring(recipe, EXAMPLES, folder)
    assert not measuring.is_done("base")
    measuring.measure(tiny.loaded(), "base")
    assert measuring.is_done("base")
    path = path_of(folder, "base", "samples")
    return read_jsonl(path) if path.is_file() else None


def test_samples_of_a_subset_of_the_answered_items(tmp_path):
    rows = measured(tmp_path / "one", samples=3, sampled_answers=2)
    assert [len(row["predictions"]) for row in rows] == [3, 3]
    answered = [row["id"] for row in read_jsonl(path_of(tmp_path / "one", "base", "answer"))]
    assert {row["id"] for row in rows} < set(answered)
    assert rows == measured(tmp_path / "again", samples=3, sampled_answers=2)
    assert len({text for row in rows for text in row["predictions"]}) > 2


def test_no_samples_unless_asked_for(tmp_path):
    assert measured(tmp_path) is None


def test_virtual_tokens_are_refused_with_samples():
    with pytest.raises(RecipeError, match=r"evaluate\.samples can.t be written with model.strategy prefix"):
        load_recipe("quickstart", ["model.strategy=prefix", "model.top_layers=null", "evaluate.samples=2"])
