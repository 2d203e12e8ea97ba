"""Overlap with one reference or several is what sacrebleu and rouge_score make of it, on every bootstrap draw too."""

import random
from itertools import zip_longest

import numpy as np
import pytest
import sacrebleu
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu.metrics import BLEU, CHRF

from meditune.data.readers.liveqa import official_split, read
from meditune.data.readers.tables import Rejects
from meditune.evaluate.metrics import statistics_of, summarise
from meditune.evaluate.metrics.text_overlap import corpus_bleu, corpus_chrf, signatures
from meditune.evaluate.predictions import Predictions, answer_row

WORDS = "The drug helps. Patients with pain improved, but children didn't. More trials are needed in adults.".split()  # noqa: SIM905


def text(source, low=3, high=30):
    return " ".join(source.choices(WORDS, k=source.randint(low, high)))


def answers(count=60, most=1):
    """Rows with one to `most` references each."""
    source, rows = random.Random(most), []
    for index in range(count):
        references = [text(source, 5) for _ in range(source.randint(1, most))]
        said = " ".join(word for word in references[-1].split() if source.random() > 0.4)
        rows.append({"id": str(index), "reference": references[0], "references": references, "prediction": said})
    return rows


def streams(rows):
    return list(zip_longest(*(row["references"] for row in rows)))


@pytest.mark.parametrize("most", [1, 3])
def test_bleu_and_chrf_equal_sacrebleus_with_any_number_of_references(most):
    rows = answers(most=most)
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
    rows = answers(most=3)
    figures, scorer = summarise(Predictions(answer=rows)), RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=True)
    for kind in ("rouge1", "rouge2", "rougeL"):
        best = [max(scorer.score(each, row["prediction"])[kind].fmeasure for each in row["references"]) for row in rows]
        assert figures[kind] == pytest.approx(np.mean(best), abs=1e-12)
    swapped = {
        "id": "a",
        "reference": "The drug eases pain. No child was harmed.",
        "prediction": "No child was harmed. The drug eases pain.",
    }
    figures = summarise(Predictions(answer=[swapped]))
    assert figures["rougeLsum"] == pytest.approx(1)
    assert figures["rougeL"] == pytest.approx(0.5)


def test_a_further_reference_never_lowers_bleus_matches_chrf_or_rouge():
    several = answers(most=3)
    one = [row | {"references": row["references"][:1]} for row in several]
    few, many = (summarise(Predictions(answer=rows)) for rows in (one, several))
    for name in ("chrf", "rouge1", "rouge2", "rougeL", "rougeLsum"):
        assert many[name] > few[name], name


def test_rows_of_earlier_versions_have_their_one_reference():
    rows = answers()
    old = [{key: value for key, value in row.items() if key != "references"} for row in rows]
    assert summarise(Predictions(answer=old)) == summarise(Predictions(answer=rows))


def test_length_is_held_to_the_reference_that_is_nearest_in_length():
    row = {"id": "a", "reference": "one", "references": ["one", "one two three four", "1 2 3 4 5 6"]}
    assert summarise(Predictions(answer=[row | {"prediction": "a b c d e"}]))["length_ratio"] == 5 / 4
    assert summarise(Predictions(answer=[row | {"prediction": "a b"}]))["length_ratio"] == 2 / 1


def test_signatures_are_sacrebleus_own():
    one, several = (signatures(Predictions(answer=answers(most=most))) for most in (1, 3))
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
    figures = summarise(Predictions(answer=rows))
    for name in ("bleu", "chrf"):
        assert figures.pop(name) == pytest.approx(100)
    for name in ("rouge1", "rouge2", "rougeL", "rougeLsum", "length_ratio"):
        assert figures[name] == pytest.approx(1), name
    assert figures["answer_loops"] == 0
    first = [{key: value for key, value in row.items() if key != "references"} for row in rows]
    assert summarise(Predictions(answer=first))["bleu"] < 50
