"""What a chat's answer is taken to decide, and how many tokens it is taken to have."""

import math

import pytest

from meditune.models.api_client import estimated_tokens, label_logits, of_chat


def test_a_label_has_the_likelihood_of_all_its_spellings():
    logits = label_logits({"Yes": -1.0, " yes": -2.0, "NO": -3.0, " May": -4.0, "The": -5.0, "\n": -6.0})
    assert logits["yes"] == pytest.approx(math.log(math.exp(-1) + math.exp(-2)))
    assert (logits["no"], logits["maybe"]) == (-3.0, -4.0)


def test_a_label_that_is_not_told_has_the_least_that_is():
    assert label_logits({"Yes": -0.1, "Well": -7.0}) == {"yes": -0.1, "no": -7.0, "maybe": -7.0}
    assert set(label_logits({"Well": -0.1, "not": -7.0}).values()) == {-7.0}
    assert label_logits({}) is None


def test_tokens_are_counted_by_the_stated_rule():
    assert estimated_tokens("") == 0
    assert estimated_tokens("a" * 40) == 10
    assert estimated_tokens("a b c d e f") == 8
    assert estimated_tokens("治疗有效") == 4
    assert of_chat([{"role": "user", "content": "a" * 40}, {"role": "assistant", "content": ""}]) == 3 + 4 + 10 + 4
