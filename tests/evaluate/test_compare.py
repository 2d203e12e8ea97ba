"""What a comparison says beside figures and intervals: corrections, effects, groups, and each model's own interval.

A policy says what a new model must be; whatever it names and isn't so, or isn't known, fails.
"""

import numpy as np
import pytest

from meditune.errors import RecipeError
from meditune.evaluate.compare import caveats, changes, compare, count_changes, side_by_side
from meditune.evaluate.predictions import MeasuredModel, Predictions
from meditune.evaluate.quality_gate import check, load_policy
from meditune.statistics import holm, permutation_p, wilson


def decided(*right):
    rows = [{"id": str(i), "reference": "yes", "prediction": "yes" if each else "no"} for i, each in enumerate(right)]
    return Predictions(decision=rows)


def pairs(margins):
    rows = [
        {"id": str(i), "kind": "other", "chosen_nll": 0.0, "chosen_tokens": 1, "rejected_nll": m, "rejected_tokens": 1}
        for i, m in enumerate(margins)
    ]
    return Predictions(preference=rows)


def written(*answers):
    rows = [{"id": str(i), "reference": "aspirin eases pain", "prediction": said} for i, said in enumerate(answers)]
    return Predictions(answer=rows)


def test_holm_is_holms_procedure():
    """Worked by hand: 4 x 0.005, 3 x 0.01, then never below what came before."""
    assert holm({"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.005}) == pytest.approx(
        {"d": 0.02, "a": 0.03, "c": 0.06, "b": 0.06}
    )
    assert holm({"only": 0.03}) == {"only": 0.03}
    assert holm({"a": 0.7, "b": 0.9}) == {"a": 1.0, "b": 1.0}


def test_the_exchange_test_is_exact_where_one_side_has_no_event():
    """Six of ten items are marked on one side and none on the other: 2 of 2**6 exchanges differ as much."""
    first, second = np.array([[1.0, 1.0]] * 6 + [[0.0, 1.0]] * 4), np.array([[0.0, 1.0]] * 10)
    every = np.array([[(n >> bit) & 1 for bit in range(10)] for n in range(1024)], dtype=float)
    p = permutation_p(first, second, lambda sums: sums[..., 0] / sums[..., 1], every)
    assert p == pytest.approx((1024 * 2 / 2**6 + 1) / 1025)
    assert permutation_p(first, first, lambda sums: sums[..., 0] / sums[..., 1], every) == 1


def test_wilsons_interval_is_the_published_one():
    """81 of 263: 0.255 to 0.366 (Newcombe 1998, table I, method 3)."""
    assert wilson(81, 263) == pytest.approx([25.53, 36.62], abs=0.005)
    low, high = wilson(0, 20)
    assert low == pytest.approx(0, abs=1e-9)
    assert high == pytest.approx(16.11, abs=0.01)


def test_the_effect_is_cohens_d_of_paired_differences():
    source = np.random.default_rng(3)
    before = source.normal(0, 2, 400)
    after = before + source.normal(0.6, 1.2, 400)
    row = compare(pairs(before), pairs(after), 4000, 1)["preference_margin"]
    gaps = after - before
    assert row["effect"] == pytest.approx(gaps.mean() / gaps.std(), rel=0.05)


def test_items_of_one_group_are_drawn_together():
    """Forty copies of ten items say no more than the ten."""
    source = np.random.default_rng(5)
    ten = source.normal(0.4, 1, 10)
    groups = {str(i): str(i % 10) for i in range(400)}
    few = compare(pairs(np.zeros(10)), pairs(ten), 4000, 1)["preference_margin"]
    many = compare(pairs(np.zeros(400)), pairs(np.tile(ten, 40)), 4000, 1, groups)["preference_margin"]
    naive = compare(pairs(np.zeros(400)), pairs(np.tile(ten, 40)), 4000, 1)["preference_margin"]
    assert many["ci95"] == pytest.approx(few["ci95"])
    assert (many["items"], many["groups"]) == (400, 10)
    assert np.ptp(naive["ci95"]) < 0.3 * np.ptp(many["ci95"])


@pytest.mark.parametrize(("groups", "shown"), [(1, None), (5, None), (6, True)])
def test_a_handful_of_groups_shows_nothing(groups, shown):
    """All items got better, but draws of one group are all the same, and those of a few hardly differ."""
    by = {str(i): str(i % groups) for i in range(60)}
    row = compare(pairs(np.zeros(60)), pairs(np.linspace(1, 2, 60)), 500, 1, by)["preference_margin"]
    assert row["better"] is shown
    assert (row["p"] == 1) is (shown is None)
    assert bool(caveats({"preference_margin": row})) is (shown is None)


def test_a_share_over_groups_has_no_exact_test():
    base, tuned = decided(*[False] * 30, *[True] * 10), decided(*[True] * 30, *[True] * 10)
    alone = compare(base, tuned, 200, 1)["accuracy"]
    grouped = compare(base, tuned, 200, 1, {str(i): str(i // 4) for i in range(40)})["accuracy"]
    assert alone["test"] == "McNemar, exact"
    assert grouped["test"] == "paired bootstrap"
    assert alone["base_ci95"] == pytest.approx(wilson(10, 40))
    assert alone["tuned_ci95"] == pytest.approx(wilson(40, 40))


def test_the_correction_runs_over_every_model_that_is_compared():
    base, tuned = decided(*[False] * 8, *[True] * 32), decided(*[True] * 8, *[True] * 32)
    models = [MeasuredModel(name, each, {}) for name, each in (("a", base), ("b", tuned), ("c", base))]
    two, three = side_by_side(models[:2], 200, 1), side_by_side(models, 200, 1)
    p = two["comparison"]["accuracy"]["p"]
    assert p == pytest.approx(2 / 2**8)
    tested = len(two["comparison"])
    assert tested > 1
    assert two["comparison"]["accuracy"]["p_holm"] == pytest.approx(tested * p)
    assert three["comparisons"]["b"]["comparison"]["accuracy"]["p_holm"] == pytest.approx(2 * tested * p)
    assert three["comparisons"]["c"]["comparison"]["accuracy"]["p_holm"] == 1.0
    assert "comparison" not in three


def test_what_changed_is_named_in_both_directions():
    base = Predictions(
        decision=decided(True, False, False, True).decision, answer=written("", "aspirin", "it eases pain").answer
    )
    tuned = Predictions(
        decision=decided(False, True, False, True).decision, answer=written("aspirin", "", "it eases pain").answer
    )
    found = changes(base, tuned, {})
    assert [(row["kind"], row["id"], row["change"]) for row in found] == [
        ("decision", "0", "lost"),
        ("answer", "1", "lost"),
        ("answer", "0", "gained"),
        ("decision", "1", "gained"),
    ]
    assert count_changes(found)["decision"] == {"lost": 1, "gained": 1, "neither": 0}


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
    assert first == f"{path}, line 1: not_wose: unknown rule; did you mean not_worse?"
    assert second.startswith(f"{path}, line 4: better: unknown metric 'rougeX'; did you mean rouge")
    assert third.startswith(f"{path}, line 5: at_least:")
    path.write_text("", encoding="utf-8")
    with pytest.raises(RecipeError, match="Use one or more of: not_worse, better"):
        load_policy(path)
