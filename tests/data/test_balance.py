"""Rebalancing drops what the recipe says and nothing else, writes down each row, and leaves dev and test alone."""

from collections import Counter

import pyarrow.parquet as pq
import pytest

from meditune.config.data_options import BalanceSpec, DataSpec
from meditune.config.recipe import Recipe
from meditune.data.balance import check_weights, heaviest, rebalanced
from meditune.data.prepare import prepare
from meditune.errors import DataError
from tests.commands import jsonl, rows
from tests.data.diversity.examples import example

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


@pytest.mark.parametrize(("counts", "share", "left"), [((90, 10, 10), 0.5, (20, 10, 10)), ((30, 30), 0.5, (30, 30))])
def test_no_group_has_more_than_the_share_and_no_row_is_dropped_in_vain(counts, share, left):
    kept, _ = capped(typed(*counts), by="question_type", share=share)
    assert sizes(kept) == {f"type {kind}": count for kind, count in enumerate(left)}


def test_a_share_that_cant_be_is_refused():
    with pytest.raises(DataError, match=r"there are 2 groups, so the largest has at least 0\.50"):
        capped(typed(30, 20), by="question_type", share=0.4)


def test_hard_answers_go_and_decisions_stay():
    train = [example(1, answer=EASY), example(2, answer=HARD), example(3, answer=HARD, decision="no")]
    kept, changes = rebalanced(train, DataSpec(max_reading_grade=8), 1)
    assert [(each.id, each.answer) for each in kept] == [("own:1", EASY), ("own:3", "")]
    assert [(entry.before, entry.action, entry.after) for entry in changes] == [
        (train[1], "drop", None),
        (train[2], "mend", kept[1]),
    ]
    assert "above 8" in changes[0].detail
    with pytest.raises(DataError, match=r"data\.max_reading_grade leave none .* the easiest answer has grade"):
        rebalanced(train[1:2], DataSpec(max_reading_grade=8), 1)


def test_what_quality_control_is_told_to_keep_stays():
    train = [example(n, answer=HARD, meta={"question_type": "one"}) for n in range(9)]
    balance = BalanceSpec(by="question_type", cap=1)
    spec = DataSpec(max_reading_grade=8, balance=balance, quality={"keep": ["own:4", "own:7"]})
    assert [each.id for each in rebalanced(train, spec, 1)[0]] == ["own:4", "own:7"]


def test_an_example_is_weighed_by_its_heaviest_group():
    spec = BalanceSpec(by="question_type", weights={"rare": 3, "causes": 2})
    both = example(1, meta={"question_type": ["causes", "rare"]})
    assert heaviest(both, spec) == "rare"
    assert heaviest(example(2), spec) == "others"
    check_weights([both], spec)
    with pytest.raises(DataError, match=r"no training example is in rare\. By question_type there are: causes"):
        check_weights([example(1, meta={"question_type": "causes"})], spec)


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
    ("balance", "said"),
    [
        ({"cap": 5}, "needs data.balance.by"),
        ({"by": "source"}, "needs a cap, a share or weights"),
        ({"by": "source", "cap": 5, "share": 0.5}, "not both"),
        ({"by": "source", "weights": {"own": 0.0}}, "above 0"),
    ],
)
def test_rules_that_say_nothing_are_refused(balance, said):
    with pytest.raises(ValueError, match=said):
        BalanceSpec(**balance)
