"""Sources with two styles: which cue an answer is learnt after, and which one asks for it."""

from dataclasses import replace

import pytest
from pydantic import ValidationError

from meditune.config.data_options import PromptFormat
from meditune.config.recipe import Recipe
from meditune.config.training_options import PreferenceSpec
from meditune.data.preference.pairs import build, read_pairs, write_pairs
from meditune.data.prepare import prepare, stored
from meditune.errors import DataError, ModelError
from meditune.prompts import Encoder, save_format
from meditune.train.training_plan import check, check_start
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
        ("plain", {"plain_cue": "Conclusion:"}, "must differ from the other cues"),
        ("plain", {"plain_cue": " "}, "must differ from the other cues"),
    ],
)
def test_a_style_and_its_cue_come_together(style, cues, said):
    with pytest.raises(ValidationError, match=said):
        Recipe.model_validate({"name": "t", "data": {"sources": [{"name": "medquad", "style": style}]}, "prompt": cues})


def test_sources_of_one_name_have_one_style():
    sources = [{"name": "own", "path": name, "style": style} for name, style in (("a", "plain"), ("b", "expert"))]
    with pytest.raises(ValidationError, match="all that are called own must have the same style"):
        Recipe.model_validate({"name": "t", "data": {"sources": sources}, "prompt": {"plain_cue": "In plain words:"}})


def test_a_cue_that_no_answer_follows_is_refused_before_training_and_counted_otherwise(tmp_path):
    asked = recipe(tmp_path, style="plain")
    data = prepare(asked, tmp_path / "data")
    check(data.splits, asked)
    assert data.quality["styles"]["train"].keys() == {"plain", "expert"}
    assert "in plain words" in (tmp_path / "data" / "README.md").read_text(encoding="utf-8")
    hard = [each for each in data.splits.train if each.style == "expert"]
    with pytest.raises(DataError, match=rf"none of the {len(hard)} answers that are trained on is in plain words"):
        check(replace(data.splits, train=hard), asked)


def test_a_model_that_knows_the_cue_can_go_on_with_experts_alone(tmp_path):
    base = tiny.save(tmp_path / "base")
    save_format(PromptFormat(plain_cue="In plain words:"), base)
    changes = {"model": {"base": str(base)}, "prompt": {"plain_cue": "In plain words:"}}
    asked = recipe(tmp_path)
    splits = prepare(asked, tmp_path / "data").splits
    check(splits, Recipe.model_validate(asked.model_dump() | changes))
    check_start(Recipe.model_validate(asked.model_dump() | changes))
    with pytest.raises(ModelError, match=r"prompt\.plain_cue is 'In plain words:' there"):
        check_start(Recipe.model_validate(asked.model_dump() | {"model": changes["model"]}))


def test_a_column_of_a_users_own_makes_no_style(tmp_path):
    rows = [{"question": f"What is disease {n}?", "answer": f"{EASY} {n}.", "style": "plain"} for n in range(40)]
    own = {"name": "own", "path": str(jsonl(tmp_path / "own.jsonl", rows))}
    splits = prepare(Recipe.model_validate({"name": "t", "data": {"sources": [own], "split": "group"}}), tmp_path / "d")
    assert not any(each.style for each in splits.splits.train)


def test_pairs_keep_the_style_of_their_question(tmp_path):
    splits = prepare(recipe(tmp_path, style="plain"), tmp_path / "data").splits
    pairs, _ = build(splits.train, PreferenceSpec(corruptions=["other"]), 1)
    write_pairs(tmp_path / "pairs.jsonl", pairs)
    styles = {each.id: each.style for each in splits.train}
    assert {pair.style for pair in pairs} == {"plain", "expert"}
    for pair in read_pairs(tmp_path / "pairs.jsonl"):
        assert pair.example().style == styles[pair.id.rpartition("/")[0]]
