"""Rebalancing drops what the recipe says and nothing else, writes down each row, and leaves dev and test alone.

Sources with two styles: which cue an answer is learnt after, and which one asks for it.
"""

from collections import Counter
from dataclasses import replace

import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from meditune.config.data_options import BalanceSpec, DataSpec, PromptFormat
from meditune.config.recipe import Recipe
from meditune.config.training_options import PreferenceSpec
from meditune.data.balance import rebalanced
from meditune.data.example import LABEL, read_records, write_records
from meditune.data.preference_pairs import Pair, build
from meditune.data.prepare import prepare, stored_data
from meditune.errors import DataError, ModelError
from meditune.prompts import Encoder, save_format
from meditune.train.training_plan import check, check_start
from tests import tiny
from tests.commands import jsonl, rows
from tests.data.test_diversity import example

EASY = "The drug helps. You can take it with food."
HARD = "Pharmacological immunomodulation significantly ameliorates histopathologically characterized inflammation."


def capped(train, seed=1, **balance):
    return rebalanced(train, DataSpec(balance=BalanceSpec(**balance)), seed)


def typed(*counts):
    kinds = [kind for kind, count in enumerate(counts) for _ in range(count)]
    return [example(n, meta={"question_type": f"type {kind}"}) for n, kind in enumerate(kinds)]


def sizes(kept):
    return Counter(each.meta.get("question_type") for each in kept)


def test_a_cap_keeps_a_seeded_choice_in_order_and_rows_without_a_group():
    train = [*typed(50, 8), example(99)]
    kept, changes = capped(train, by="question_type", cap=10)
    assert sizes(kept) == {"type 0": 10, "type 1": 8, None: 1}
    assert kept == [each for each in train if each in kept]
    assert capped(train, by="question_type", cap=10)[0] == kept
    assert capped(train, seed=2, by="question_type", cap=10)[0] != kept
    assert {entry.before.id for entry in changes} == {e.id for e in train} - {e.id for e in kept}
    first = changes[0]
    assert (first.rule, first.action, first.after) == ("data.balance", "drop", None)
    assert first.detail == "question_type type 0 has 50 examples, more than 10"


def test_the_labels_of_claims_are_balanced_in_one_source():
    labels = [*(["supported"] * 9), *(["refuted"] * 4), "not_enough_information"]
    claims = [example(n, meta={LABEL: label}) for n, label in enumerate(labels)]
    kept, _ = capped([*claims, *typed(3)], by="label", cap=4, sources=["own"])
    assert Counter(each.label for each in kept) == {"supported": 4, "refuted": 4, "not_enough_information": 1, None: 3}


def test_hard_answers_go_and_decisions_stay():
    train = [example(1, answer=EASY), example(2, answer=HARD), example(3, answer=HARD, decision="no")]
    kept, changes = rebalanced(train, DataSpec(max_reading_grade=8), 1)
    assert [(each.id, each.answer) for each in kept] == [("own:1", EASY), ("own:3", "")]
    assert [(entry.before, entry.action, entry.after) for entry in changes] == [
        (train[1], "drop", None),
        (train[2], "mend", kept[1]),
    ]
    assert "above 8" in changes[0].detail
    with pytest.raises(DataError, match=r"data\.max_reading_grade leave none .* the easiest answer has reading grade"):
        rebalanced(train[1:2], DataSpec(max_reading_grade=8), 1)


def test_what_quality_control_is_told_to_keep_stays():
    train = [example(n, answer=HARD, meta={"question_type": "one"}) for n in range(9)]
    balance = BalanceSpec(by="question_type", cap=1)
    spec = DataSpec(max_reading_grade=8, balance=balance, quality={"keep": ["own:4", "own:7"]})
    assert [each.id for each in rebalanced(train, spec, 1)[0]] == ["own:4", "own:7"]


def test_rows_of_other_sources_are_in_no_group():
    train = [*typed(50), *(each.model_copy(update={"source": "other", "id": f"x{each.id}"}) for each in typed(30))]
    kept, _ = capped(train, by="question_type", cap=10, sources=["own"])
    assert Counter(each.source for each in kept) == {"own": 10, "other": 30}
    with pytest.raises(ValueError, match=r"data\.balance\.sources: other isn't among data\.sources"):
        Recipe(name="t", data={"balance": {"by": "source", "cap": 5, "sources": ["other"]}})


def test_only_the_training_split_is_rebalanced_and_every_row_is_accounted_for(tmp_path):
    own = [row | {"answer": HARD if number % 2 else EASY} for number, row in enumerate(rows(80))]
    source = {"name": "own", "path": str(jsonl(tmp_path / "own.jsonl", own))}
    made = {
        name: prepare(Recipe(name="test", data={"sources": [source], "split": "group"} | changes), tmp_path / name)
        for name, changes in (("plain", {}), ("easy", {"max_reading_grade": 8.0}))
    }
    plain, easy = made["plain"].splits, made["easy"].splits
    assert (easy.dev, easy.test) == (plain.dev, plain.test)
    assert len(easy.train) == len(plain.train), "these rows have decisions, which stay"
    emptied = [each.id for each in easy.train if not each.answer]
    assert 0 < len(emptied) < len(plain.train)
    ledger = pq.read_table(tmp_path / "easy" / "ledger.parquet").to_pylist()
    assert [row["id"] for row in ledger if row["rule"] == "data.max_reading_grade"] == emptied
    found = made["easy"].quality["rebalanced"]
    assert found["rules"] == {"data.max_reading_grade: answer removed": {"own": len(emptied)}}
    assert f"{len(emptied)} of own" in (tmp_path / "easy" / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("balance", "message"),
    [
        ({"cap": 5}, "needs data.balance.by"),
        ({"sources": ["own"]}, "needs data.balance.by"),
        ({"by": "source"}, "needs data.balance.cap"),
    ],
)
def test_rules_that_say_nothing_are_refused(balance, message):
    with pytest.raises(ValueError, match=message):
        BalanceSpec(**balance)


def recipe(tmp_path, **source):
    answers = [f"{HARD if n % 2 else EASY} {n}." for n in range(40)]
    column = {} if source else {"style": "plain"}
    rows = [{"question": f"What is disease {n}?", "answer": text, **column} for n, text in enumerate(answers)]
    own = {"name": "own", "path": str(jsonl(tmp_path / "own.jsonl", rows)), **source}
    prompt = {"plain_cue": "In plain words:"} if source else {}
    return Recipe.model_validate({"name": "t", "data": {"sources": [own], "split": "group"}, "prompt": prompt})


def test_easy_answers_are_learnt_after_the_plain_cue_which_all_that_is_measured_is_asked_with(tmp_path):
    asked = recipe(tmp_path, style="plain")
    splits = prepare(asked, tmp_path / "data").splits
    assert splits == stored_data(tmp_path / "data").splits
    encoder = Encoder(tiny.tokenizer(), asked.prompt)

    def cue(example):
        text = encoder.tokenizer.decode(encoder.supervised(example, "answer").prompt)
        return text.rsplit("\n", 1)[1]

    assert {(each.answer.startswith("The drug"), cue(each)) for each in splits.train} == {
        (True, "In plain words:"),
        (False, "Conclusion:"),
    }
    assert {cue(each) for each in [*splits.dev, *splits.test]} == {"In plain words:"}


@pytest.mark.parametrize(
    ("style", "cues", "message"),
    [
        ("plain", {}, "set prompt.plain_cue"),
        ("plain", {"plain_cue": "Conclusion:"}, "must differ from the other cues"),
        ("plain", {"plain_cue": " "}, "must differ from the other cues"),
    ],
)
def test_a_style_and_its_cue_come_together(style, cues, message):
    with pytest.raises(ValidationError, match=message):
        Recipe.model_validate({"name": "t", "data": {"sources": [{"name": "medquad", "style": style}]}, "prompt": cues})


def test_sources_of_one_name_have_one_style():
    sources = [{"name": "own", "path": name, "style": style} for name, style in (("a", "plain"), ("b", "expert"))]
    with pytest.raises(ValidationError, match="all sources named own must have the same style"):
        Recipe.model_validate({"name": "t", "data": {"sources": sources}, "prompt": {"plain_cue": "In plain words:"}})


def test_a_cue_that_no_answer_follows_is_refused_before_training_and_counted_otherwise(tmp_path):
    asked = recipe(tmp_path, style="plain")
    data = prepare(asked, tmp_path / "data")
    check(data.splits, asked)
    assert data.quality["styles"]["train"].keys() == {"plain", "expert"}
    assert "in plain words" in (tmp_path / "data" / "README.md").read_text(encoding="utf-8")
    hard = [each for each in data.splits.train if each.style == "expert"]
    with pytest.raises(DataError, match=rf"none of the {len(hard)} training answers is in plain words"):
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


def test_without_that_style_nothing_is_noted_even_if_a_column_has_its_name(tmp_path):
    splits = prepare(recipe(tmp_path), tmp_path / "data").splits
    assert all(each.meta["style"] == "plain" for each in splits.train)
    assert not any(each.style for examples in splits.named().values() for each in examples)


def test_pairs_keep_the_style_of_their_question(tmp_path):
    splits = prepare(recipe(tmp_path, style="plain"), tmp_path / "data").splits
    pairs, _ = build(splits.train, PreferenceSpec(), 1)
    write_records(tmp_path / "pairs.jsonl", pairs)
    styles = {each.id: each.style for each in splits.train}
    assert {pair.style for pair in pairs} == {"plain", "expert"}
    for pair in read_records(tmp_path / "pairs.jsonl", Pair):
        assert pair.example().style == styles[pair.id.rpartition("/")[0]]
