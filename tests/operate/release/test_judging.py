"""What a gate on new items asks for where the user says nothing, and where too little is there to judge by."""

from __future__ import annotations

from meditune.evaluate.gate import Policy
from meditune.operate.release.judging import FEWEST, NEW, OLD, unjudged, usual

MEASURED = {"accuracy": {}, "macro_f1": {}, "perplexity": {}}


def test_new_answers_must_be_likelier_and_where_there_are_only_decisions_more_must_be_right() -> None:
    assert usual(NEW, MEASURED, {}).better == ["perplexity"]
    assert usual(NEW, {"accuracy": {}, "macro_f1": {}}, {}).better == ["accuracy"]
    assert usual(OLD, MEASURED, {"perplexity": 10.0}).better == []


def test_luck_isnt_taken_for_a_better_model() -> None:
    held = usual(NEW, MEASURED, {})
    assert "of 1 groups, and 20 are needed" in unjudged(NEW, 1, held, is_own=False)
    assert unjudged(NEW, FEWEST, held, is_own=False) == ""
    assert "better can't be told" in unjudged(NEW, FEWEST, usual(NEW, {"rougeL": {}}, {}), is_own=False)
    assert "No rule holds" in unjudged(NEW, FEWEST, Policy(), is_own=True)
    assert "No rule holds" in unjudged(OLD, FEWEST, usual(OLD, {}, {}), is_own=False)
    # Somebody who wrote a policy knows how many items there are.
    assert unjudged(NEW, 1, Policy(better=["accuracy"]), is_own=True) == ""
