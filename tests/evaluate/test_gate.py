"""A policy says what a new model must be; whatever it names and isn't so, or isn't known, fails."""

import pytest

from meditune.errors import RecipeError
from meditune.evaluate.gate import check, load_policy

ROWS = {
    "accuracy": {"delta": 4.0, "ci95": [1.0, 7.0], "better": True},
    "macro_f1": {"delta": -1.0, "ci95": [-3.0, 1.0], "better": None},
    "perplexity": {"delta": 0.8, "ci95": [0.2, 1.4], "better": False},
}
FIGURES = {"accuracy": 62.0, "macro_f1": 43.0, "perplexity": 14.1}


def outcome(tmp_path, text):
    path = tmp_path / "policy.yaml"
    path.write_text(text, encoding="utf-8")
    return {(each.metric, each.rule): each.passed for each in check(load_policy(path), ROWS, FIGURES)}


def test_each_rule_decides_by_the_interval(tmp_path):
    assert outcome(tmp_path, "not_worse: all") == {
        ("accuracy", "not_worse"): True,
        ("macro_f1", "not_worse"): True,
        ("perplexity", "not_worse"): False,
    }
    assert outcome(tmp_path, "better: [accuracy, macro_f1]") == {
        ("accuracy", "better"): True,
        ("macro_f1", "better"): False,
    }
    assert outcome(tmp_path, "within: {macro_f1: 3.5, perplexity: 1}") == {
        ("macro_f1", "within 3.5"): True,
        ("perplexity", "within 1"): False,
    }
    assert outcome(tmp_path, "at_least: {accuracy: 62}\nat_most: {perplexity: 14}") == {
        ("accuracy", "at_least 62"): True,
        ("perplexity", "at_most 14"): False,
    }


def test_what_wasnt_measured_fails(tmp_path):
    assert outcome(tmp_path, "not_worse: [bleu]\nat_least: {rouge1: 0}") == {
        ("bleu", "not_worse"): False,
        ("rouge1", "at_least 0"): False,
    }


def test_every_mistake_is_told_with_its_line(tmp_path):
    path = tmp_path / "policy.yaml"
    path.write_text("not_wose: all\nbetter:\n  - accuracy\n  - rougeX\nat_least: {accuracy: high}\n", encoding="utf-8")
    with pytest.raises(RecipeError) as raised:
        load_policy(path)
    first, second, third = str(raised.value).splitlines()
    assert first == f"{path}, line 1: not_wose: no such rule; did you mean not_worse?"
    assert second.startswith(f"{path}, line 4: better: no metric 'rougeX'; did you mean rouge")
    assert third.startswith(f"{path}, line 5: at_least:")
    path.write_text("", encoding="utf-8")
    with pytest.raises(RecipeError, match="expected rules: not_worse, better"):
        load_policy(path)
