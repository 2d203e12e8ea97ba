"""What a gate on new items asks for where the user says nothing, and where too little is there to judge by."""

from __future__ import annotations

from pathlib import Path

import pytest

from meditune.evaluate.gate import Policy
from meditune.operate.retraining.release_gate import FEWEST, NEW, OLD, Gates, judge, unjudged, usual
from tests.commands import jsonl

MEASURED = {"accuracy": {}, "macro_f1": {}, "perplexity": {}}


def test_new_answers_must_be_likelier_and_where_there_are_only_decisions_more_must_be_right() -> None:
    assert usual(NEW, MEASURED, {}).better == ["perplexity"]
    assert usual(NEW, {"accuracy": {}, "macro_f1": {}}, {}).better == ["accuracy"]
    assert usual(OLD, MEASURED, {"perplexity": 10.0}).better == []


def test_luck_isnt_taken_for_a_better_model() -> None:
    held = usual(NEW, MEASURED, {})
    assert "Perplexity was measured on new items of 1 groups, and 20 are needed" in unjudged(NEW, 1, held, is_own=False)
    assert unjudged(NEW, FEWEST, held, is_own=False) == ""
    assert "better can't be told" in unjudged(NEW, FEWEST, usual(NEW, {"rougeL": {}}, {}), is_own=False)
    assert "No rule holds" in unjudged(NEW, FEWEST, Policy(), is_own=True)
    assert "No rule holds" in unjudged(OLD, FEWEST, usual(OLD, {}, {}), is_own=False)
    # Somebody who wrote a policy knows how many items there are.
    assert unjudged(NEW, 1, Policy(better=["accuracy"]), is_own=True) == ""


def measured(folder: Path, decided: int, scored: int) -> set[str]:
    """A run on 30 old items and 40 new ones, of which so many have decisions and scored answers; the ids of the new."""
    old, new = [f"old:{n}" for n in range(30)], [f"new:{n}" for n in range(40)]
    (folder / "data").mkdir(parents=True)
    (folder / "predictions").mkdir()
    (folder / "recipe.yaml").write_text("name: quickstart\n", encoding="utf-8")
    items = [{"id": id, "source": "own", "question": f"{id}?", "answer": "So.", "group": id} for id in (*old, *new)]
    jsonl(folder / "data" / "test.jsonl", items)
    for side, loss in (("base", 4.0), ("tuned", 3.0)):
        decisions = [
            {"id": id, "reference": "yes", "prediction": "yes", "logits": LOGITS} for id in (*old, *new[:decided])
        ]
        jsonl(folder / "predictions" / f"{side}-decision.jsonl", decisions)
        losses = [{"id": id, "nll": loss, "tokens": 2, "bytes": 3} for id in (*old, *new[:scored])]
        jsonl(folder / "predictions" / f"{side}-likelihood.jsonl", losses)
    return set(new)


LOGITS = {"yes": 1.0, "no": 0.0, "maybe": 0.0}


@pytest.mark.parametrize(
    ("decided", "scored", "said"),
    [
        (40, 1, "Perplexity was measured on new items of 1 groups"),
        (0, 0, "No rule holds for the new items"),
        (0, 40, ""),
    ],
)
def test_new_items_count_where_what_decides_was_measured_on_them(
    tmp_path: Path, decided: int, scored: int, said: str
) -> None:
    new = measured(tmp_path / "run", decided, scored)
    judged = judge(tmp_path / "run", new, Gates(), 200, 1)
    assert judged["on"]["new"]["unjudged"].startswith(said)
    assert judged["passed"] is (said == "")
