"""What a comparison says beside figures and intervals: corrections, effects, groups, and each model's own interval.

A policy says what a new model must be; whatever it names and isn't so, or isn't known, fails.

Several seeds as a distribution of before and after: intervals hold the variance of seeds and of items.

Figures by subgroup: the right items, honest intervals, and no group accused by chance.
"""

import json
import random

import numpy as np
import pytest

from meditune.cli.metrics_tables import print_seeds
from meditune.config import load_recipe as writing
from meditune.config.load_recipe import load_recipe
from meditune.data.example import DECISIONS, TRAITS, Example, Passage
from meditune.errors import DataError, RecipeError
from meditune.evaluate.compare import caveats, changes, compare, count_changes, side_by_side
from meditune.evaluate.metrics import summarize
from meditune.evaluate.predictions import MeasuredModel, Predictions
from meditune.evaluate.quality_gate import check, load_policy
from meditune.evaluate.seeds import over_seeds
from meditune.evaluate.subgroups import MIN_GROUP_SIZE, subgroups
from meditune.files import write_json, write_jsonl
from meditune.statistics import holm, permutation_p, random_swaps, two_level, wilson


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
    p = permutation_p(first, second, lambda sums: sums[..., 0] / sums[..., 1], [every])
    assert p == pytest.approx((1024 * 2 / 2**6 + 1) / 1025)
    assert permutation_p(first, first, lambda sums: sums[..., 0] / sums[..., 1], [every]) == 1


def test_swaps_are_drawn_in_blocks_that_fit_in_memory():
    blocks = list(random_swaps(7, 1200, [3, 1]))
    assert max(map(len, blocks)) <= 500
    assert (np.concatenate(blocks) == np.random.default_rng([3, 1]).integers(0, 2, (1200, 7))).all(), "the same draws"


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


@pytest.mark.parametrize("count", [1, 40])
def test_a_spread_of_rounding_errors_gives_no_effect(count):
    """Items that all changed by the same amount, or a single one, say nothing about how much items vary."""
    before = np.linspace(0.1, 0.7, count)
    row = compare(pairs(before), pairs(before + 0.3), 500, 1)["preference_margin"]
    assert (row["delta"], row["effect"]) == (pytest.approx(0.3), None)


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


def test_metrics_of_too_few_groups_are_named_unless_all_are():
    few, enough = {"groups": 5}, {"groups": 6}
    (every,) = caveats({"accuracy": few, "macro_f1": few})
    (some,) = caveats({"accuracy": few, "macro_f1": enough})
    assert every == "No change can be significant with fewer than 6 groups of items. This concerns all 2 metrics."
    assert some == "No change can be significant with fewer than 6 groups of items. Metrics: Accuracy."


def test_a_share_over_groups_has_no_exact_test():
    base, tuned = decided(*[False] * 30, *[True] * 10), decided(*[True] * 30, *[True] * 10)
    alone = compare(base, tuned, 200, 1)["accuracy"]
    grouped = compare(base, tuned, 200, 1, {str(i): str(i // 2) for i in range(40)})["accuracy"]
    assert alone["test"] == "McNemar, exact"
    assert grouped["test"] == "paired bootstrap"
    assert alone["base_ci95"] == pytest.approx(wilson(10, 40))
    assert alone["tuned_ci95"] == pytest.approx(wilson(40, 40))


def test_pairs_about_one_question_are_drawn_together():
    base, tuned = pairs([-1.0] * 10 + [1.0] * 30), pairs([1.0] * 40)
    for each in (base, tuned):
        each.preference[:] = [row | {"group": f"question {int(row['id']) // 10}"} for row in each.preference]
    found = compare(base, tuned, 200, 1)["preference_accuracy"]
    assert (found["items"], found["groups"], found["better"]) == (40, 4, None)


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


def likely(nll, tokens=40):
    rows = [{"id": str(i), "nll": float(each), "tokens": tokens, "bytes": 200} for i, each in enumerate(nll)]
    return Predictions(likelihood=rows)


def test_six_texts_that_all_got_likelier_dont_survive_the_correction():
    """Signs of six differences agree by chance in 2 of 64 cases, so no p-value can be smaller."""
    source = np.random.default_rng(3)
    before = source.uniform(80, 120, 6)
    row = compare(likely(before), likely(before - source.uniform(0.5, 9, 6)), 10_000, 1)["perplexity"]
    assert row["p"] == pytest.approx(2 / 64, abs=0.01)
    assert row["p_holm"] > 0.05


def test_few_decisions_with_other_probabilities_are_compared():
    """The area under the risk-coverage curve counts each model's own distinct probabilities."""

    def decisions(items):
        rows = [{"id": str(i), "reference": DECISIONS[i % 2], "prediction": "yes"} for i in range(9)]
        for i, row in enumerate(rows):
            row["logits"] = {"yes": 1.0 + min(i, items), "no": 0.0, "maybe": 0.0}
        return Predictions(decision=rows)

    rows = compare(decisions(2), decisions(9), 500, 1)
    assert {"aurc", "ece", "accuracy"} <= rows.keys()
    assert compare(decisions(9), decisions(9), 500, 1)["aurc"]["test"] == rows["aurc"]["test"] == "paired bootstrap"
    assert all(row["p"] >= 2 / 2**9 for row in rows.values())


def test_ten_texts_without_an_effect_seldom_seem_better_or_worse():
    source = np.random.default_rng(8)
    found = []
    for _ in range(200):
        before = source.normal(100, 10, 10)
        found.append(compare(likely(before), likely(before + source.normal(0, 5, 10)), 500, 1)["perplexity"]["better"])
    assert sum(each is not None for each in found) <= 18


def test_perplexities_of_two_tokenizers_arent_compared(tmp_path):
    """The same texts in 40 and in 60 tokens: perplexity falls although the texts became less likely."""
    before = np.random.default_rng(0).normal(100, 5, 50)
    rows = compare(likely(before), likely(before + 1, tokens=60), 500, 1)
    assert rows["perplexity"]["delta"] < 0
    assert rows["perplexity"]["better"] is None
    assert rows["bits_per_byte"]["better"] is False
    assert any("tokenizers" in each for each in caveats(rows))
    assert outcome(tmp_path, "better: [perplexity]", rows) == {("perplexity", "better"): False}
    assert outcome(tmp_path, "not_worse: all", rows) == {("bits_per_byte", "not_worse"): False}


def test_windows_of_two_tokenizers_arent_compared():
    """A window has 511 scored tokens with any tokenizer, but with the second one it contains less of the text."""
    before = np.random.default_rng(0).normal(1500, 50, 40)

    def windows(nll, size):
        rows = [{"id": f"window-{n}", "nll": each, "tokens": 511, "bytes": size} for n, each in enumerate(nll)]
        return Predictions(general=rows, technical=rows)

    rows = compare(windows(before, 2100), windows(before - 300, 1600), 500, 1)
    assert {name: row["better"] for name, row in rows.items()} == dict.fromkeys(
        ("general_perplexity", "general_bits_per_byte", "technical_perplexity")
    )
    assert any("different windows of the text" in each for each in caveats(rows))
    assert compare(windows(before, 2100), windows(before - 300, 2100), 500, 1)["general_perplexity"]["better"] is True


def test_the_interval_of_a_percentage_holds_no_impossible_change():
    rows = compare(decided(*[True] + [False] * 11), decided(*[True] * 11 + [False]), 500, 1)
    assert rows["accuracy"]["ci95"][1] == 100


def test_sentences_can_become_more_than_100_words_longer():
    short, long = (written(*[" ".join(["word"] * (count + n)) for n in range(12)]) for count in (10, 200))
    row = compare(short, long, 200, 1)["sentence_length"]
    assert row["ci95"][0] <= row["delta"] <= row["ci95"][1]


@pytest.mark.parametrize("kind", ["general", "technical", "unconditional"])
def test_a_tokenizer_that_gives_another_number_of_windows_doesnt_stop_a_comparison(kind):
    """A BOS token takes a window's first place, so 5,120 tokens fill 11 windows instead of 10."""

    def windows(count):
        rows = [{"id": f"window-{n}", "nll": 1500.0 + n, "tokens": 511, "bytes": 2100 + count} for n in range(count)]
        return Predictions(**{kind: rows}, decision=decided(*[True] * 40).decision)

    rows = compare(windows(10), windows(11), 500, 1)
    assert rows["accuracy"]["items"] == 40
    assert rows[f"{kind}_perplexity"]["other_tokens"]
    assert any("No change is claimed" in each for each in caveats(rows))


def test_other_questions_with_the_same_ids_are_refused():
    asthma, gout = decided(*[True] * 40), decided(*[True] * 40)
    about = [
        MeasuredModel(
            topic,
            each,
            {str(i): Example(id=str(i), source="own", group=str(i), question=f"{topic} {i}?") for i in range(40)},
        )
        for topic, each in (("Asthma", asthma), ("Gout", gout))
    ]
    with pytest.raises(DataError, match="40 items have the same id but different questions"):
        side_by_side(about, 200, 1)
    for row in gout.decision:
        row["reference"] = "no"
    with pytest.raises(
        DataError, match=r"40 items have the same id but different reference answers \(0, 1, 2, 3, 4 and"
    ):
        compare(asthma, gout, 200, 1)


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


def test_an_answers_change_is_judged_by_its_best_reference():
    """The second reference is the tuned model's answer, word for word."""
    row = {"id": "a", "reference": "Aspirin eases pain.", "references": ["Aspirin eases pain.", "Rest is enough."]}
    base, tuned = (Predictions(answer=[row | {"prediction": text}]) for text in ("Aspirin helps.", "Rest is enough."))
    assert [each["change"] for each in changes(base, tuned, {})] == ["gained"]


ROWS = {
    "accuracy": {"delta": 4.0, "ci95": [1.0, 7.0], "better": True, "p": 0.01, "groups": 100},
    "macro_f1": {"delta": -1.0, "ci95": [-3.0, 1.0], "better": None, "p": 0.4, "groups": 100},
    "perplexity": {"delta": 0.8, "ci95": [0.2, 1.4], "better": False, "p": 0.01, "groups": 100},
}
FIGURES = {"accuracy": 62.0, "macro_f1": 43.0, "perplexity": 14.1}


def outcome(tmp_path, text, rows=ROWS):
    path = tmp_path / "policy.yaml"
    path.write_text(text, encoding="utf-8")
    return {(each.metric, each.rule): each.passed for each in check(load_policy(path), rows, FIGURES)}


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


def test_a_loss_on_too_few_groups_fails_although_nothing_can_be_significant(tmp_path):
    was, now = decided(*[True] * 200), decided(*[False] * 160, *[True] * 40)
    rows = compare(was, now, 200, 1, {str(i): str(i % 5) for i in range(200)})
    assert rows["accuracy"]["better"] is None
    policy = "not_worse: [accuracy]\nbetter: [accuracy]\nwithin: {accuracy: 90}"
    assert outcome(tmp_path, policy, rows) == {
        ("accuracy", "not_worse"): False,
        ("accuracy", "better"): False,
        ("accuracy", "within 90"): False,
    }
    same = compare(was, was, 200, 1, {str(i): str(i % 5) for i in range(200)})
    assert outcome(tmp_path, "not_worse: [accuracy]", same) == {("accuracy", "not_worse"): True}


def test_better_needs_a_p_value_below_a_twentieth(tmp_path):
    """Four of 200 decisions were gained: the bootstrap's interval excludes 0, and McNemar's p is 0.125."""
    rows = compare(decided(*[False] * 4, *[True] * 196), decided(*[True] * 200), 2000, 1)
    assert rows["accuracy"]["better"] is True
    assert rows["accuracy"]["p"] == pytest.approx(0.125)
    assert outcome(tmp_path, "better: [accuracy]", rows) == {("accuracy", "better"): False}


def test_six_texts_with_a_loss_of_just_the_margin_seldom_pass(tmp_path):
    """Nominally 2.5% pass; by the bootstrap's percentiles, about 10% would."""
    source = np.random.default_rng(4)
    passed = 0
    for _ in range(300):
        before = source.normal(100, 10, 6)
        row = compare(likely(before), likely(before + source.normal(5, 5, 6)), 300, 1)["bits_per_byte"]
        margin = 5 / 200 / np.log(2)
        passed += outcome(tmp_path, f"within: {{bits_per_byte: {margin}}}", {"bits_per_byte": row}).popitem()[1]
    assert passed <= 15


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
    path.write_text("better: []\nwithin: {}\n", encoding="utf-8")
    with pytest.raises(RecipeError, match="the rules name no metrics"):
        load_policy(path)


def finished(folder, seed, base, tuned, *settings):
    """A run that decided item i rightly where base[i] and tuned[i] say so."""
    recipe = load_recipe("quickstart", [f"seed={seed}", *settings])
    (folder / "predictions").mkdir(parents=True)
    (folder / "recipe.yaml").write_text(writing.show(recipe), encoding="utf-8")
    write_json(folder / "report.json", {"seed": seed})
    for name, rights in (("base", base), ("tuned", tuned)):
        rows = [
            {"id": str(n), "reference": "yes", "prediction": "yes" if right else "no"} for n, right in enumerate(rights)
        ]
        write_jsonl(folder / "predictions" / f"{name}-decision.jsonl", rows)
    return folder


def first(share, count=200):
    return [n < share * count for n in range(count)]


@pytest.fixture
def three(tmp_path):
    gains = {1: 0.5, 2: 0.54, 3: 0.52}
    return [finished(tmp_path / str(seed), seed, first(0.4), first(gain)) for seed, gain in gains.items()]


def test_the_spread_over_seeds_is_told(three):
    found = over_seeds(three, 1000)
    accuracy = found["metrics"]["accuracy"]
    assert found["seeds"] == [1, 2, 3]
    assert accuracy["delta"] == pytest.approx([10, 14, 12])
    assert (accuracy["mean"], accuracy["sd"]) == pytest.approx((12, 2))
    assert accuracy["range"] == pytest.approx([10, 14])
    assert (accuracy["better"], accuracy["agree"], accuracy["items"]) == (True, 3, 200)


def test_the_interval_holds_the_items_variance_too(three):
    """All seeds answer the same questions: the same gain on 24 of 200 items has a standard error of 2.3 points."""
    accuracy = over_seeds(three, 4000)["metrics"]["accuracy"]
    of_items = 100 * (0.12 * 0.88 / 200) ** 0.5
    assert accuracy["se"] == pytest.approx((of_items**2 + 2**2 / 3) ** 0.5, rel=0.1)
    assert accuracy["seed_share"] == pytest.approx(2**2 / 3 / accuracy["se"] ** 2)
    assert accuracy["ci95"][0] < 12 - 1.96 * of_items
    assert 2 < accuracy["df"] < 199


def test_p_is_corrected_for_the_number_of_metrics(three):
    rows = over_seeds(three, 1000)["metrics"]
    assert len(rows) > 2
    least = min(row["p"] for row in rows.values())
    assert min(row["p_holm"] for row in rows.values()) == pytest.approx(min(1, len(rows) * least))


def test_the_terminal_says_what_few_seeds_cannot_tell(three, capsys):
    print_seeds(over_seeds(three, 500))
    said = " ".join(capsys.readouterr().out.split())
    assert "two-level bootstrap" in said
    assert "3 seeds show whether the mean difference" in said
    assert "with 2 degrees of freedom" in said
    assert "can't show how far one more seed may deviate" in said


def test_detector_metrics_are_held_to_the_references(tmp_path, three):
    def graded(marked):
        span = {"start": 0, "end": 4, "kind": "direction", "why": "", "source": ""}
        return [
            {"id": str(n), "score": 0.9, "by": "words", "spans": [span] if n in marked else [],
             "sentences": [{"start": 0, "end": 9, "score": 0.5, "supported": True}]}
            for n in range(200)
        ]  # fmt: skip

    def metric(references):
        for folder in three:
            for name, marked in (("base", range(2)), ("tuned", range(24))):
                place = folder / "predictions"
                write_jsonl(place / f"{name}-faithfulness.jsonl", graded(marked))
                write_jsonl(place / f"{name}-reference_faithfulness.jsonl", graded(references))
        return over_seeds(three, 1000)["metrics"]["contradictions"]

    within, beyond = metric(range(150, 168)), metric(range(150, 154))
    assert (within["better"], within["difference"], within["references"]["figure"]) == (None, False, 9.0)
    assert (beyond["better"], beyond["references"]["of"], beyond["references"]["figure"]) == (False, "tuned", 2.0)


@pytest.mark.parametrize("seeds", [2, 3, 5])
@pytest.mark.parametrize(
    ("of_seeds", "of_items", "of_both"),
    [(0.0, 1.0, 0.2), (0.07, 1.0, 0.5), (0.3, 1.0, 0.5), (1.0, 0.3, 0.3)],
    ids=["items dominate", "alike", "seeds weigh more", "seeds dominate"],
)
def test_the_interval_covers_the_mean_as_often_as_it_says(seeds, of_seeds, of_items, of_both):
    """400 simulated sets of runs on the same 150 items, with known variances of seeds, items and both together."""
    source, sets, items = np.random.default_rng(5), 400, 150
    weights = source.multinomial(items, np.full(items, 1 / items), size=300) / items
    effects = of_seeds * source.normal(size=(sets, 1, seeds)) + of_items * source.normal(size=(sets, items, 1))
    each = 0.4 + effects + of_both * source.normal(size=(sets, items, seeds))
    drawn = np.einsum("bi,sir->sbr", weights, each, optimize=True)
    estimates = [two_level(one.mean(axis=0), draws, items, 1) for one, draws in zip(each, drawn, strict=True)]
    covered = np.mean([low <= 0.4 <= high for low, high in (found.ci95() for found in estimates)])
    assert 0.85 <= covered <= 0.995


def test_runs_that_differ_in_more_than_their_seed_are_refused(tmp_path):
    one = finished(tmp_path / "1", 1, first(0.4), first(0.5))
    with pytest.raises(DataError, match=r"differ in more than their seed: train\.epochs"):
        over_seeds([one, finished(tmp_path / "2", 2, first(0.4), first(0.5), "train.epochs=1")])
    with pytest.raises(DataError, match="same seed"):
        over_seeds([one, finished(tmp_path / "3", 1, first(0.4), first(0.5))])
    with pytest.raises(DataError, match="two or more"):
        over_seeds([one])


def example(number, source="own", **changes):
    fields = {
        "id": f"{source}:{number}",
        "source": source,
        "question": f"Does drug {number} help?",
        "answer": "It helps.",
        "decision": DECISIONS[number % 3],
        "group": str(number),
    }
    return Example(**fields | changes)


def decided_where(examples, right):
    """Decisions that are right where `right(example)` says so."""
    rows = []
    for item in examples:
        said = item.decision if right(item) else DECISIONS[(DECISIONS.index(item.decision) + 1) % 3]
        row = {"id": item.id, "reference": item.decision, "prediction": said}
        rows.append(row | {"logits": dict.fromkeys(DECISIONS, 0.0)})
    return Predictions(decision=rows)


def rows_of(result, metric="accuracy"):
    return {(row["by"], row["group"]): row for row in result["metrics"][metric]}


def test_a_groups_figures_are_those_of_its_items_alone():
    examples = [example(n, source) for source in ("one", "two") for n in range(60)]
    source = random.Random(1)
    luck = {item.id: source.random() for item in examples}
    base, tuned = (decided_where(examples, lambda item, bar=bar: luck[item.id] < bar) for bar in (0.3, 0.6))
    row = rows_of(subgroups(examples, base, tuned, 1))["source", "two"]
    assert row["items"] == 60
    for name, predictions in (("base", base), ("tuned", tuned)):
        alone = Predictions(decision=[each for each in predictions.decision if each["id"].startswith("two")])
        assert row[name] == pytest.approx(summarize(alone)["accuracy"])
        right = sum(each["reference"] == each["prediction"] for each in alone.decision)
        assert row[f"{name}_ci95"] == pytest.approx(wilson(right, 60))
    others = Predictions(decision=[each for each in tuned.decision if each["id"].startswith("one")])
    assert row["others"] == pytest.approx(summarize(others)["accuracy"])
    assert row["ci95"][0] <= row["delta"] <= row["ci95"][1]


def test_items_about_one_document_are_no_independent_evidence():
    """Two of twenty documents, each with five questions, got worse."""
    kinds = ("one", "two")
    examples = [
        example(5 * document + n, source, group=str(document))
        for source in kinds
        for document in range(20)
        for n in range(5)
    ]
    lost = {("one", "0"), ("one", "1")}
    base, tuned = (
        decided_where(examples, lambda item, fallen=fallen: not (fallen and (item.source, item.group) in lost))
        for fallen in (False, True)
    )
    row = rows_of(subgroups(examples, base, tuned, 1))["source", "one"]
    assert row["flags"] == []
    assert row["p"] > 0.05
    alone = [item.model_copy(update={"group": item.id}) for item in examples]
    assert "got worse" in rows_of(subgroups(alone, base, tuned, 1))["source", "one"]["flags"]


def test_the_worst_group_comes_first_and_is_flagged_and_small_ones_come_last():
    sizes = {"poor": 40, "good": 40, "few": MIN_GROUP_SIZE - 1}
    examples = [example(n, source) for source, size in sizes.items() for n in range(size)]
    tuned = decided_where(examples, lambda item: item.source == "good" or int(item.group) % 4 == 0)
    base = decided_where(examples, lambda item: item.source != "few")
    found = [row for row in subgroups(examples, base, tuned, 1)["metrics"]["accuracy"] if row["by"] == "source"]
    assert [row["group"] for row in found] == ["poor", "good", "few"]
    assert found[0]["flags"] == ["below the others", "got worse"]
    assert found[1]["flags"] == []
    assert not {"flags", "tuned_ci95"} & found[2].keys()


def test_draws_in_which_no_answer_says_anything_leave_a_groups_rate_out():
    sizes = {"big": 60, "silent": 3, "worse": 40}
    examples = [example(n, source) for source, size in sizes.items() for n in range(size)]
    # Few of the big group's answers say something, so some draws of it say nothing.
    loud = [each.source == "worse" or each.id in ("big:0", "big:1") for each in examples]
    base, tuned = (
        Predictions(
            faithfulness=[
                graded(each.id, int(says), unsupported=fallen and each.source == "worse")
                for each, says in zip(examples, loud, strict=True)
            ],
            reference_faithfulness=[
                graded(each.id, int(each.source != "silent"), unsupported=False) for each in examples
            ],
        )
        for fallen in (False, True)
    )
    result = subgroups(examples, base, tuned, 1)
    assert "NaN" not in json.dumps(result)
    rows = rows_of(result, "unsupported_sentences")
    assert ("source", "silent") not in rows
    assert "got worse" in rows["source", "worse"]["flags"]


def test_f1_is_compared_only_between_groups_in_which_it_has_a_meaning():
    """All of one source's references are "yes", so the source has no F1 of "no"."""
    examples = [example(n, source) for source in ("mixed", "other") for n in range(60)]
    examples += [example(n, "agreed", decision="yes") for n in range(60)]
    measured = decided_where(examples, lambda item: int(item.group) % 4 > 0)
    measured = Predictions(decision=measured.decision, written=measured.decision)
    result = subgroups(examples, None, measured, 1)
    assert "NaN" not in json.dumps(result)
    for name in ("macro_f1", "written_macro_f1", "f1_no"):
        assert "reference decision" not in {by for by, _ in rows_of(result, name)}
    assert {group for by, group in rows_of(result, "f1_no") if by == "source"} == {"mixed", "other"}
    assert ("source", "agreed") in rows_of(result, "f1_yes")


def test_rounding_errors_flag_no_group():
    examples = [example(n, source) for source in ("one", "two", "three") for n in range(70)]
    rows = [{"id": each.id, "similarity": 0.7, "token_similarity": 0.1} for each in examples]
    found = subgroups(examples, Predictions(similarity=rows), Predictions(similarity=rows), 1)["metrics"]
    assert all(row.get("p_others", 1) == 1 for name in found for row in found[name])


@pytest.mark.parametrize("others", [1, 2, 8])
def test_a_few_other_items_flag_no_group(others):
    flagged = 0
    for seed in range(20):
        source = random.Random(seed)
        examples = [example(n, name) for name, size in (("many", 60), ("few", others)) for n in range(size)]
        rows = [{"id": each.id, "similarity": source.gauss(0.5, 0.1), "token_similarity": 0.1} for each in examples]
        found = rows_of(subgroups(examples, None, Predictions(similarity=rows), seed), "similarity")
        flagged += found["source", "many"]["p_others"] < 0.05
    assert flagged <= 2


def graded(id, sentences, unsupported):
    """What the detector says of an answer."""
    said = [{"start": 0, "end": 5, "supported": not unsupported}] * sentences
    return {"id": id, "score": float(not unsupported) if sentences else None, "sentences": said, "spans": []}


def test_chance_flags_hardly_any_run():
    """Models that serve all groups alike: of 40 runs at most a few flag anything, though each looks at many groups."""
    flagged = 0
    for seed in range(40):
        source = random.Random(seed)
        examples = [
            example(n, source.choice("abcdef"), meta={"year": source.randrange(1990, 2020)}, decision="yes")
            for n in range(150)
        ]
        sides = [decided_where(examples, lambda _, source=source: source.random() < 0.6) for _ in range(2)]
        found = subgroups(examples, *sides, seed)["metrics"]["accuracy"]
        assert len(found) > 8
        flagged += any(row.get("flags") for row in found)
    assert flagged <= 6


@pytest.mark.parametrize(
    ("by", "changes", "groups"),
    [
        ("mention", {"question": "Do women over forty sleep worse?"}, {"women or girls"}),
        ("mention", {"question": "Do pregnant girls gain?"}, {"women or girls", "pregnancy"}),
        ("mention", {"context": (Passage(text="African-American men came."),)}, {"men or boys", "race or ethnicity"}),
        ("mention", {"question": "Is the human genome stable?"}, {"none of these"}),
        ("subject", {"meta": {"mesh": ["Breast Neoplasms", "Mastectomy"]}}, {"cancer"}),
        ("subject", {"meta": {"mesh": ["Insulin", "Stroke"]}}, {"heart and vessels", "hormones and metabolism"}),
        ("subject", {"meta": {}}, set()),
        ("year", {"meta": {"year": 2004}}, {"2000 to 2004"}),
        ("year", {"meta": {"year": None}}, set()),
        ("question type", {"meta": {"question_type": ["treatment", "cause"]}}, {"treatment", "cause"}),
        ("question type", {"meta": {"question_type": "symptoms"}}, {"symptoms"}),
        ("question length", {"question": "word " * 9}, {"9 to 15 words"}),
        ("reference decision", {"decision": None}, set()),
    ],
)
def test_what_group_an_item_is_in(by, changes, groups):
    assert TRAITS[by](example(1, **changes)) == groups
