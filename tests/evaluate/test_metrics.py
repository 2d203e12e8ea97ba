"""Our figures are everyone else's figures: sacrebleu's and rouge_score's overlap on every bootstrap draw, too.

Patient-friendliness of answers, as figures of a model. Answers that repeat themselves are counted, and those that only
use a word often aren't.
"""

import json
import random
import statistics
from itertools import zip_longest

import numpy as np
import pytest
import sacrebleu
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu.metrics import BLEU, CHRF
from sklearn.metrics import accuracy_score, f1_score

from meditune.data.example import DECISIONS
from meditune.data.readers.liveqa import official_split, read
from meditune.data.readers.tables import Rejects
from meditune.errors import DataError
from meditune.evaluate.compare import compare, got_worse
from meditune.evaluate.metrics import METRICS, statistics_of, summarize
from meditune.evaluate.metrics.decision import confusion, macro_f1, recalls
from meditune.evaluate.metrics.written_answers import (
    corpus_bleu,
    corpus_chrf,
    corpus_sari,
    loops,
    measured,
    repeated,
    sari_counts,
    signatures,
    spread,
)
from meditune.evaluate.predictions import Predictions, answer_row
from meditune.readability import smog

WORDS = "the drug helps patients with pain but not children and more trials are needed in old people".split()  # noqa: SIM905


def text(source, low=3, high=30):
    return " ".join(source.choices(WORDS, k=source.randint(low, high)))


def decisions(seed, count=200, skill=0.5):
    source = random.Random(seed)
    truth = random.Random("truth").choices(DECISIONS, weights=(55, 34, 11), k=count)
    rows = []
    for index, label in enumerate(truth):
        said = label if source.random() < skill else source.choice(DECISIONS)
        logits = {name: source.gauss(2.0 if name == said else 0.0, 0.1) for name in DECISIONS}
        rows.append({"id": str(index), "reference": label, "prediction": said, "logits": logits})
    return rows


def answers(seed, count=60, noise=0.5):
    source, truth = random.Random(seed), random.Random("truth")
    rows = []
    for index in range(count):
        reference = text(truth, 5)
        said = " ".join(word for word in reference.split() if source.random() > noise) or "nothing"
        rows.append({"id": str(index), "reference": reference, "prediction": said})
    return rows


def likelihoods(seed, count=60, mean=2.5):
    source = random.Random(seed)
    return [
        {"id": str(index), "nll": (20 + index) * source.gauss(mean, 0.1), "tokens": 20 + index}
        for index in range(count)
    ]


@pytest.mark.parametrize("labels", [DECISIONS, ("yes", "no"), ("maybe",)])
def test_accuracy_and_macro_f1_equal_the_official_scripts(labels):
    rows = [row for row in decisions(1) if row["reference"] in labels]
    figures = summarize(Predictions(decision=rows))
    truth, said = [row["reference"] for row in rows], [row["prediction"] for row in rows]
    assert figures["accuracy"] == pytest.approx(100 * accuracy_score(truth, said), abs=1e-12)
    assert figures["macro_f1"] == pytest.approx(100 * f1_score(truth, said, average="macro"), abs=1e-12)


def test_bleu_equals_sacrebleus_and_rouge_equals_rouge_scores():
    rows = answers(1)
    figures = summarize(Predictions(answer=rows))
    said, truth = [row["prediction"] for row in rows], [row["reference"] for row in rows]
    assert figures["bleu"] == pytest.approx(sacrebleu.corpus_bleu(said, [truth]).score, abs=1e-12)
    scorer = RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=True)
    for kind in ("rouge1", "rouge2", "rougeL"):
        mean = np.mean([scorer.score(a, b)[kind].fmeasure for a, b in zip(truth, said, strict=True)])
        assert figures[kind] == pytest.approx(mean, abs=1e-12)
    assert figures["length_ratio"] == pytest.approx(
        sum(len(a.split()) for a in said) / sum(len(a.split()) for a in truth)
    )


def test_bleu_of_a_resample_equals_sacrebleus_on_that_resample():
    rows = answers(1)
    statistics = statistics_of(Predictions(answer=rows))["bleu"]
    drawn = [random.Random(7).randrange(len(rows)) for _ in rows]
    ours = float(statistics.figure(statistics.items[drawn].sum(axis=0)))
    said, truth = [rows[index]["prediction"] for index in drawn], [rows[index]["reference"] for index in drawn]
    assert ours == pytest.approx(sacrebleu.corpus_bleu(said, [truth]).score, abs=1e-12)


def test_perplexity_is_over_tokens_not_over_answers():
    rows = [{"id": "a", "nll": 10.0, "tokens": 10}, {"id": "b", "nll": 60.0, "tokens": 20}]
    assert summarize(Predictions(likelihood=rows))["perplexity"] == pytest.approx(np.exp(70 / 30))


def test_confusion_recall_and_always_yes():
    rows = decisions(1)
    matrix = confusion(rows)
    assert matrix.sum() == 200
    assert recalls(matrix)["yes"] == pytest.approx(100 * matrix[0, 0] / matrix[0].sum())
    official = np.array([276, 0, 0, 169, 0, 0, 55, 0, 0], dtype=float)
    assert float(macro_f1(official)) == pytest.approx(23.7, abs=0.05)


def test_a_decision_that_is_none_of_the_labels_is_wrong_and_no_class_of_its_own():
    rows = [row | {"prediction": None} if index % 5 == 0 else row for index, row in enumerate(decisions(1))]
    figures, matrix = summarize(Predictions(decision=rows)), confusion(rows)
    truth, said = [row["reference"] for row in rows], [row["prediction"] or "none" for row in rows]
    assert figures["accuracy"] == pytest.approx(100 * accuracy_score(truth, said), abs=1e-12)
    official = f1_score(truth, said, average="macro", labels=DECISIONS)
    assert figures["macro_f1"] == pytest.approx(100 * official, abs=1e-12)
    assert matrix.shape == (3, 4)
    assert matrix[:, 3].sum() == 40
    assert recalls(matrix)["no"] == pytest.approx(100 * matrix[1, 1] / matrix[1].sum())


def test_decisions_without_likelihoods_have_no_measure_of_confidence():
    rows = [{name: value for name, value in row.items() if name != "logits"} for row in decisions(1)]
    figures = summarize(Predictions(decision=rows))
    assert figures.keys() == {"accuracy", "macro_f1", "f1_yes", "f1_no", "f1_maybe"}
    assert figures.items() <= summarize(Predictions(decision=decisions(1))).items()
    assert set(compare(Predictions(decision=rows), Predictions(decision=decisions(2)), 100, 1)) == set(figures)


def test_calibration_error_of_a_confident_liar_is_its_confidence():
    rows = [
        {"id": str(i), "reference": "yes", "prediction": "no", "logits": {"yes": 0.0, "no": 20.0, "maybe": 0.0}}
        for i in range(10)
    ]
    assert summarize(Predictions(decision=rows))["ece"] == pytest.approx(1.0, abs=1e-6)


def everything(seed, skill, noise, mean):
    return Predictions(
        decision=decisions(seed, skill=skill),
        likelihood=likelihoods(seed, mean=mean),
        answer=answers(seed, noise=noise),
    )


def test_a_clear_gain_is_better_in_every_metric_and_the_reverse_is_worse():
    weak, strong = everything(1, 0.1, 0.7, 2.9), everything(2, 0.9, 0.2, 2.2)
    gain, loss = compare(weak, strong, 1000, 1), compare(strong, weak, 1000, 1)
    for name in ("accuracy", "macro_f1", "perplexity", "bleu", "rouge1", "rouge2", "rougeL", "length_ratio"):
        assert gain[name]["better"] is True, name
        assert loss[name]["better"] is False, name
        low, high = gain[name]["ci95"]
        assert low <= gain[name]["delta"] <= high
        assert (low > 0) == (METRICS[name].direction == "up")
    assert not set(got_worse(gain)) - {"ece", "sentence_length"}
    assert {"accuracy", "perplexity", "rouge1"} <= set(got_worse(loss))


def test_the_same_model_twice_shows_nothing():
    one = everything(1, 0.5, 0.5, 2.5)
    for name, row in compare(one, one, 500, 1).items():
        assert (row["delta"], row["ci95"], row["better"], row["p"]) == (0, [0, 0], None, 1.0), name
    assert got_worse(compare(one, one, 500, 1)) == []


def test_intervals_hold_what_they_promise():
    """Of many comparisons of models that are equally good, about 5% of the intervals exclude 0."""
    outside = 0
    for seed in range(200):
        rows = [decisions(f"{seed}/{side}", count=120) for side in "ab"]
        result = compare(Predictions(decision=rows[0]), Predictions(decision=rows[1]), 400, seed)
        outside += result["accuracy"]["better"] is not None
    assert outside <= 22


def test_mcnemar_is_the_exact_binomial_test():
    base = [("yes", "no")] * 10 + [("yes", "yes")] * 2 + [("no", "no")] * 5
    tuned = [("yes", "yes")] * 10 + [("yes", "no")] * 2 + [("no", "no")] * 5
    first, second = (
        Predictions(decision=[{"id": str(i), "reference": a, "prediction": b} for i, (a, b) in enumerate(rows)])
        for rows in (base, tuned)
    )
    row = compare(first, second, 100, 1)["accuracy"]
    assert row["p"] == pytest.approx(2 * sum((66, 12, 1)) / 2**12)
    assert (row["gained"], row["lost"], row["test"]) == (10, 2, "McNemar, exact")


def test_other_items_are_refused():
    base, tuned = decisions(1), decisions(2)
    tuned[3] = {**tuned[3], "id": "another"}
    with pytest.raises(DataError, match="different items"):
        compare(Predictions(decision=base), Predictions(decision=tuned), 100, 1)


def test_a_move_that_vanishes_in_the_digits_shown_isnt_called_worse():
    moved = {"delta": -0.001, "ci95": [-0.01, 0.01], "p": 0.9, "better": None}
    assert got_worse({"bleu": moved}) == []
    assert got_worse({"bleu": moved | {"better": False}}) == ["bleu"]
    assert got_worse({"bleu": moved | {"delta": -0.01}}) == ["bleu"]


def test_other_editions_of_a_text_are_not_compared():
    first, second = ([{"id": f"{edition}-window-0", "nll": 30.0, "tokens": 10}] for edition in ("4f1c", "a07b"))
    with pytest.raises(DataError, match=r"technical_perplexity.*same version of Python"):
        compare(Predictions(technical=first), Predictions(technical=second), 100, 1)


NAMES = ("grade_gap", "smog", "sentence_length", "rare_words", "unexplained_terms")
PLAIN = "You may have a cold. Drink water and rest at home. Call your doctor if the fever does not go away."
HARD = (
    "Perioperative thromboprophylaxis with enoxaparin attenuated postoperative thromboembolic complications following "
    "cholecystectomy in hypercoagulable populations, notwithstanding concomitant thrombocytopenia."
)


def written(*texts):
    return Predictions(answer=[{"id": str(n), "reference": "x", "prediction": text} for n, text in enumerate(texts)])


def test_hard_text_is_worse_by_every_figure():
    found = compare(written(*[PLAIN] * 8), written(*[HARD] * 8), 200, 1)
    assert {name: found[name]["better"] for name in NAMES} == dict.fromkeys(NAMES, False)
    assert all(METRICS[name].direction == "down" for name in NAMES)


def test_figures_are_of_all_answers_together():
    figures = summarize(written("Rest now. Drink a lot of water today.", "Nephrolithiasis hurts."))
    assert figures["sentence_length"] == pytest.approx(10 / 3)
    assert figures["rare_words"] == pytest.approx(10)
    assert figures["unexplained_terms"] == pytest.approx(10)
    assert figures["smog"] == pytest.approx(smog(1, 3))


def test_an_answer_as_easy_as_asked_for_has_no_gap():
    text = (
        "Your doctor may give you a medicine that makes the blood flow better, and you may have to take it every day."
    )
    assert 6 <= measured(text)["grade"] <= 8
    assert summarize(written(text))["grade_gap"] == 0
    assert spread([text, PLAIN, HARD, ""])["inside"] == pytest.approx(100 / 3)


def test_too_easy_is_a_gap_as_well():
    assert summarize(written("No. Yes. It is."))["grade_gap"] > 6


def test_empty_answers_have_no_part_in_the_figures_and_are_counted():
    some, others = written(PLAIN, HARD), written(PLAIN, HARD, "")
    assert {name: summarize(others)[name] for name in NAMES} == {name: summarize(some)[name] for name in NAMES}
    assert spread([PLAIN, "", "..."])["empty"] == 2
    assert spread(["", ""]) == {"texts": 2, "empty": 2}


def test_a_model_that_mostly_says_nothing_has_no_figures():
    assert not set(NAMES) & summarize(written(PLAIN, "", "")).keys()


@pytest.mark.real
def test_medians_of_real_texts(real_data):
    """As docs/reference/metrics.md says."""
    items = json.loads((real_data / "pubmedqa" / "ori_pqal.json").read_text(encoding="utf-8"))
    found = [measured(item["LONG_ANSWER"])["grade"] for item in items.values()]
    assert statistics.median(found) == pytest.approx(16.8, abs=0.1)


WITHOUT_REPETITION = "The drug eased pain in adults, and no harm was seen in children over the whole year."


def test_repeated_four_word_sequences_are_counted():
    assert repeated(WITHOUT_REPETITION) == 0
    assert repeated("It helps with pain. It helps with pain. It helps with pain.") == pytest.approx(5 / 9)
    assert repeated("IT helps WITH pain. it Helps with pain.") == pytest.approx(1 / 5)
    assert repeated("yes yes yes") == repeated("") == 0


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (WITHOUT_REPETITION, False),
        ("", False),
        ("no no no", False),
        ("no " * 8, True),
        ("It helps with pain. " * 2, False),
        ("It helps with pain. " * 3, True),
        (WITHOUT_REPETITION + " and it helps" * 4, True),
        (WITHOUT_REPETITION + " and it helps" * 3 + " " + WITHOUT_REPETITION, True),
        (f"{WITHOUT_REPETITION} " * 3, True),
        (f"{WITHOUT_REPETITION} {WITHOUT_REPETITION} The drug eased", False),
    ],
)
def test_a_loop_is_a_phrase_three_times_in_a_row(text, expected):
    assert loops(text) is expected


def test_an_answers_share_counts_the_same_whatever_its_length():
    rows = [
        {"id": "a", "reference": "x", "prediction": "It helps. " * 40},
        {"id": "b", "reference": "x", "prediction": WITHOUT_REPETITION},
    ]
    figures = summarize(Predictions(answer=rows))
    assert figures["answer_repetition"] == pytest.approx(100 * (1 - 2 / 77) / 2)
    assert figures["answer_loops"] == 50


def test_an_answer_that_leaves_its_loop_is_gained():
    stuck, free = (
        [{"id": "a", "reference": "x", "prediction": said}] for said in ("It helps. " * 9, WITHOUT_REPETITION)
    )
    row = compare(Predictions(answer=stuck), Predictions(answer=free), 100, 1)["answer_loops"]
    assert (row["delta"], row["gained"], row["lost"]) == (-100, 1, 0)


PHRASES = "The drug helps. Patients with pain improved, but children didn't. More trials are needed in adults.".split()  # noqa: SIM905


def overlap_text(source, low=3, high=30):
    return " ".join(source.choices(PHRASES, k=source.randint(low, high)))


def overlap_answers(count=60, most=1):
    """Rows with one to `most` references each."""
    source, rows = random.Random(most), []
    for index in range(count):
        references = [overlap_text(source, 5) for _ in range(source.randint(1, most))]
        said = " ".join(word for word in references[-1].split() if source.random() > 0.4)
        rows.append({"id": str(index), "reference": references[0], "references": references, "prediction": said})
    return rows


def streams(rows):
    return list(zip_longest(*(row["references"] for row in rows)))


@pytest.mark.parametrize("most", [1, 3])
def test_bleu_and_chrf_equal_sacrebleus_with_any_number_of_references(most):
    rows = overlap_answers(most=most)
    found, said = statistics_of(Predictions(answer=rows)), [row["prediction"] for row in rows]
    assert found["bleu"].value() == pytest.approx(sacrebleu.corpus_bleu(said, streams(rows)).score, abs=1e-12)
    assert found["chrf"].value() == pytest.approx(sacrebleu.corpus_chrf(said, streams(rows)).score, abs=1e-12)
    drawn = [random.Random(7).randrange(len(rows)) for _ in rows]
    again = [rows[index] for index in drawn]
    said = [row["prediction"] for row in again]
    for name, scorer in (("bleu", BLEU()), ("chrf", CHRF())):
        ours = float(found[name].figure(found[name].items[drawn].sum(axis=0)))
        assert ours == pytest.approx(scorer.corpus_score(said, streams(again)).score, abs=1e-12), name


def test_bleu_of_many_draws_equals_sacrebleus_one_by_one():
    """Also where whole orders have no match, where answers are too short for them, and where nothing was written."""
    source = np.random.default_rng(5)
    totals = np.sort(source.integers(0, 40, (4000, 4)), axis=1)[:, ::-1]
    matches = source.integers(0, totals + 1) * source.integers(0, 2, totals.shape)
    lengths = np.stack([totals[:, 0], source.integers(1, 60, 4000)], axis=1)
    sums = np.concatenate([lengths, matches, totals], axis=1)
    ours = corpus_bleu(sums.reshape(2, 2000, 10).astype(float)).reshape(-1)
    theirs = [
        BLEU.compute_bleu(row[2:6], row[6:10], row[0], row[1], smooth_method="exp").score for row in sums.tolist()
    ]
    assert (np.array(theirs) > 0).sum() > 2000
    assert (np.array(theirs) == 0).sum() > 100
    np.testing.assert_allclose(ours, theirs, rtol=1e-12, atol=0)


def test_chrf_of_many_draws_equals_sacrebleus_one_by_one():
    source = np.random.default_rng(6)
    both = source.integers(0, 30, (3000, 6, 2)) * source.integers(0, 2, (3000, 6, 2))
    shared = source.integers(0, both.min(axis=2, keepdims=True) + 1)
    sums = np.concatenate([both, shared], axis=2).reshape(3000, 18)
    theirs = [CHRF()._compute_f_score(row) for row in sums.tolist()]
    assert (np.array(theirs) == 0).any()
    np.testing.assert_allclose(corpus_chrf(sums.astype(float)), theirs, rtol=1e-12, atol=0)


def test_rouge_is_that_of_the_best_reference_and_rouge_lsum_goes_by_sentences():
    rows = overlap_answers(most=3)
    figures, scorer = summarize(Predictions(answer=rows)), RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=True)
    for kind in ("rouge1", "rouge2", "rougeL"):
        best = [max(scorer.score(each, row["prediction"])[kind].fmeasure for each in row["references"]) for row in rows]
        assert figures[kind] == pytest.approx(np.mean(best), abs=1e-12)
    swapped = {
        "id": "a",
        "reference": "The drug eases pain. No child was harmed.",
        "prediction": "No child was harmed. The drug eases pain.",
    }
    figures = summarize(Predictions(answer=[swapped]))
    assert figures["rougeLsum"] == pytest.approx(1)
    assert figures["rougeL"] == pytest.approx(0.5)


def test_a_further_reference_never_lowers_bleus_matches_chrf_or_rouge():
    several = overlap_answers(most=3)
    one = [row | {"references": row["references"][:1]} for row in several]
    few, many = (summarize(Predictions(answer=rows)) for rows in (one, several))
    for name in ("chrf", "rouge1", "rouge2", "rougeL", "rougeLsum"):
        assert many[name] > few[name], name


def test_rows_of_earlier_versions_have_their_one_reference():
    rows = overlap_answers()
    old = [{key: value for key, value in row.items() if key != "references"} for row in rows]
    assert summarize(Predictions(answer=old)) == summarize(Predictions(answer=rows))


def test_length_is_held_to_the_reference_that_is_nearest_in_length():
    row = {"id": "a", "reference": "one", "references": ["one", "one two three four", "1 2 3 4 5 6"]}
    assert summarize(Predictions(answer=[row | {"prediction": "a b c d e"}]))["length_ratio"] == 5 / 4
    assert summarize(Predictions(answer=[row | {"prediction": "a b"}]))["length_ratio"] == 2 / 1


def test_signatures_are_sacrebleus_own():
    one, several = (signatures(Predictions(answer=overlap_answers(most=most))) for most in (1, 3))
    version = f"version:{sacrebleu.__version__}"
    assert one["bleu"] == f"nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|{version}"
    assert several["bleu"].startswith("nrefs:var|")
    assert several["chrf"] == f"nrefs:var|case:mixed|eff:yes|nc:6|nw:0|space:no|{version}"
    assert signatures(Predictions()) == {}


@pytest.mark.real
def test_any_of_liveqas_references_is_a_perfect_answer(real_data):
    _, test = official_split(list(read(real_data / "liveqa", Rejects())))
    several = [example for example in test if len(example.references()) > 1][:15]
    rows = [answer_row(example, example.references()[-1]) for example in several]
    figures = summarize(Predictions(answer=rows))
    for name in ("bleu", "chrf"):
        assert figures.pop(name) == pytest.approx(100)
    for name in ("rouge1", "rouge2", "rougeL", "rougeLsum", "length_ratio"):
        assert figures[name] == pytest.approx(1), name
    assert figures["answer_loops"] == 0
    first = [{key: value for key, value in row.items() if key != "references"} for row in rows]
    assert summarize(Predictions(answer=first))["bleu"] < 50


# Plain versions of a source

SPECIES = "About 95 species are currently accepted."
CAT = "The cat perched on the mat."


def sari(*items):
    """SARI of (source, answer, references) triples."""
    rows = [{"id": str(n), **sari_counts(*item)} for n, item in enumerate(items)]
    return summarize(Predictions(sari=rows))["sari"]


def test_sari_equals_easses_published_examples():
    # README.md and issue 99 of https://github.com/feralvam/easse.
    known = [
        "About 95 species are currently known.",
        "About 95 species are now accepted.",
        "95 species are now accepted.",
    ]
    sat = ["The cat sat on the mat.", "The cat is on the mat.", "The cat sat."]
    found = sari((SPECIES, "About 95 you now get in.", known), (CAT, "Cat on mat.", sat))
    assert found == pytest.approx(33.17472563619544)
    plain = "Shu Abe (born June 7 1984) is a Japanese football player."
    found = sari(("Shu Abe (born June 7 1984) is a former Japanese football player.", plain, [plain]))
    assert found == pytest.approx(91.66666666666667)


def test_sari_by_hand():
    # Words: added c, wanted c; kept a, to keep a; deleted b and d, to delete b and d but not a.
    # Pairs: added "a c", wanted "a c"; none kept; both of the source deleted, rightly. Longer ones: only one deletion.
    counts = sari_counts("a b d", "a c", ["a c"])
    assert counts["add"] == [[1, 1, 1], [1, 1, 1], [0, 0, 0], [0, 0, 0]]
    assert counts["keep"] == [[1, 1, 1], [0, 0, 0], [0, 0, 0], [0, 0, 0]]
    assert counts["delete"] == [[2, 2, 2], [2, 2, 2], [1, 1, 1], [0, 0, 0]]
    assert sari(("a b d", "a c", ["a c"])) == pytest.approx(100 * (2 + 1 + 3) / 12)
    # With two references, what one of them keeps is half kept and half deleted.
    counts = sari_counts("a b", "a", ["a", "b"])
    assert counts["keep"][0] == [0.5, 1, 1]
    assert counts["delete"][0] == [0.5, 1, 1]


def test_sari_of_many_draws_equals_that_of_each():
    source = random.Random(5)
    items = [(text(source), text(source), [text(source) for _ in range(source.randint(1, 3))]) for _ in range(9)]
    statistics = statistics_of(Predictions(sari=[{"id": str(n), **sari_counts(*item)} for n, item in enumerate(items)]))
    found = statistics["sari"]
    drawn = np.array([[1, 2, 0, 0, 1, 1, 3, 0, 1], [0, 0, 0, 4, 0, 0, 5, 0, 0]], dtype=float)
    for weights, value in zip(drawn, corpus_sari(drawn @ found.items), strict=True):
        repeated_items = [item for item, times in zip(items, weights, strict=True) for _ in range(int(times))]
        assert value == pytest.approx(sari(*repeated_items))


def test_kept_facts_are_the_mean_share_of_each_answers_reference():
    def row(id, *verdicts):
        return {"id": id, "statements": [{"kind": "must", "text": "t", "verdict": each} for each in verdicts]}

    found = summarize(Predictions(facts=[row("a", "yes", "no", "maybe", "yes"), row("b", "yes")]))
    assert found == {"facts_kept": 75.0, "facts_contradicted": 0.5}
