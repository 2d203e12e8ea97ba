"""What the ratings say: scores, differences, agreement, disputes, and what one must know beside them.

Ratings become pairs that preference tuning reads as they are.

Agreement as published, as scikit-learn has it, and where it isn't defined.
"""

import numpy as np
import pytest
from sklearn.metrics import cohen_kappa_score

from meditune.data.prepare_pairs import prepare_pairs, read_given_pairs
from meditune.data.readers.tables import Rejects
from meditune.evaluate.report import render
from meditune.files import read_json, write_json, write_jsonl
from meditune.review.agreement import cohen, counted, fleiss, krippendorff
from meditune.review.rating_set import read_set
from meditune.review.ratings_store import ADJUDICATION, Note, Rating, Store
from meditune.review.results import of_run, results, write_pairs
from tests.commands import meditune
from tests.data.test_preference_pairs import recipe, splits
from tests.evaluate.test_report import finished_run
from tests.review.known_ratings import ANSWERS, made_rating_set, rate, rated_item

BEST = {"reference": 1, "tuned": 2, "base": 3}


def by_origin(_, origin):
    return BEST[origin]


def test_scores_run_from_0_to_100_with_the_best_option_on_top(tmp_path):
    folder = made_rating_set(tmp_path)
    rate(folder, "Ann", by_origin)
    axis = results(folder)["axes"]["helpfulness"]
    assert {name: row["score"] for name, row in axis["origins"].items()} == {"base": 0, "tuned": 50, "reference": 100}
    assert axis["origins"]["tuned"]["counts"] == [0, 6, 0]
    assert axis["difference"]["delta"] == 50
    assert axis["difference"]["better"] is True
    assert axis["difference"]["p_holm"] >= axis["difference"]["p"]


def test_the_difference_is_paired_by_question(tmp_path):
    """Questions differ much, tuning gains a little on each: only pairing can show it."""
    folder = made_rating_set(tmp_path, 12)
    rate(folder, "Ann", lambda n, origin: 1 + n % 2 + (origin == "base"))
    row = results(folder)["axes"]["understandability"]
    assert row["difference"]["ci95"] == [50, 50]
    low, high = row["origins"]["base"]["ci95"]
    assert high - low > 20


def test_questions_of_one_group_count_as_one(tmp_path):
    folder = made_rating_set(tmp_path, 8)
    rate(folder, "Ann", lambda n, origin: 1 + (origin == "base") * (n % 2))
    apart = results(folder)["overall"]["difference"]["ci95"]
    key = read_json(folder / "key.json")
    for row in key["items"].values():
        row["group"] = f"g{int(row['example'][-1]) % 2}"
    write_json(folder / "key.json", key)
    together = results(folder)["overall"]["difference"]["ci95"]
    assert together[1] - together[0] > apart[1] - apart[0]


def test_few_questions_show_no_significant_difference(tmp_path):
    folder = made_rating_set(tmp_path, 5)
    rate(folder, "Ann", by_origin)
    found = results(folder)
    for row in (found["overall"], found["axes"]["helpfulness"]):
        difference = row["difference"]
        assert difference["delta"] > 0
        assert (difference["better"], difference["p"], difference["groups"]) == (None, 1, 5)


def test_six_questions_with_one_preference_have_the_p_value_of_a_sign_test(tmp_path):
    folder = made_rating_set(tmp_path, 6)
    rate(folder, "Ann", by_origin)
    difference = results(folder)["overall"]["difference"]
    assert difference["p"] == pytest.approx(2 / 64, abs=0.015)
    assert difference["test"] == "paired permutation"


def test_no_consensus_and_cant_judge_are_counted_and_never_scored(tmp_path):
    folder = made_rating_set(tmp_path, 4, "expert")
    rate(folder, "Ann", lambda _, origin: None if origin == "tuned" else 2, only=("consensus",))
    found = results(folder)
    axis = found["axes"]["consensus"]
    assert {name: row["score"] for name, row in axis["origins"].items()} == dict.fromkeys(BEST)
    assert axis["origins"]["tuned"]["cannot"] == 4
    assert axis["origins"]["base"]["counts"] == [0, 4, 0]
    assert axis["difference"] is None
    assert found["overall"]["difference"] is None
    assert found["cannot"] == 4


def test_raters_are_averaged_and_an_adjudicator_overrules_them(tmp_path):
    folder = made_rating_set(tmp_path, 2)
    rate(folder, "Ann", lambda _, __: 1)
    rate(folder, "Bo", lambda _, __: 3)
    before = results(folder)
    assert before["axes"]["helpfulness"]["origins"]["base"]["score"] == 50
    assert len(before["disputed"]) == 6
    assert before["disputed"][0]["votes"]["Helpfulness"] == {"Yes, it helps": 1, "It doesn't help": 1}
    store = Store(folder)
    chief = store.rater("Chief", takes_share=False).id
    store.save(
        [Rating(chief, rated_item(folder, n, "base"), "helpfulness", 1, 1.0, round=ADJUDICATION) for n in (0, 1)]
    )
    after = results(folder)
    assert after["axes"]["helpfulness"]["origins"]["base"]["score"] == 100
    assert after["axes"]["helpfulness"]["origins"]["tuned"]["score"] == 50
    assert after["adjudicated"] == 2
    store.save([Rating(chief, rated_item(folder, 0, "tuned"), "helpfulness", None, 1.0, round=ADJUDICATION)])
    assert results(folder)["adjudicated"] == 2
    assert after["raters"] == 2
    assert after["axes"]["helpfulness"]["agreement"] == before["axes"]["helpfulness"]["agreement"]


def test_disputes_stand_by_how_far_apart_the_words_are(tmp_path):
    folder = made_rating_set(tmp_path, 3)
    rate(folder, "Ann", lambda _, __: 1, only=("helpfulness",))
    rate(folder, "Bo", lambda n, origin: 1 + n if origin == "base" else 1, only=("helpfulness",))
    found = results(folder)["disputed"]
    assert [(row["item"], row["distance"]) for row in found] == [
        (rated_item(folder, 2, "base"), 1.0),
        (rated_item(folder, 1, "base"), 0.5),
    ]


def test_agreement_names_raters_by_codes_and_one_rater_gives_none(tmp_path):
    folder = made_rating_set(tmp_path, 8)
    rate(folder, "Ann Secret", lambda n, _: 1 + n % 3)
    alone = results(folder)["axes"]["helpfulness"]["agreement"]
    assert (alone["alpha"]["value"], alone["fleiss"], alone["cohen"]) == (None, None, [])
    rate(folder, "Bo Secret", lambda n, _: 1 + n % 3)
    rate(folder, "Cy Secret", lambda n, _: 1 + (n + (n == 0)) % 3 if n < 4 else None)
    found = results(folder)
    agreement = found["axes"]["helpfulness"]["agreement"]
    assert [pair["raters"] for pair in agreement["cohen"]] == [["R1", "R2"], ["R1", "R3"], ["R2", "R3"]]
    assert agreement["cohen"][0]["value"] == 1
    assert agreement["cohen"][1]["items"] == 12
    assert 0 < agreement["alpha"]["value"] < 1
    assert agreement["fleiss"]["items"] in {12, 24}
    assert "Secret" not in str(found)


def test_a_shared_answer_counts_for_both(tmp_path):
    folder = made_rating_set(tmp_path, 2, base={0: "Same.", 1: "Same."}, tuned={0: "Same.", 1: "Same."})
    rate(folder, "Ann", lambda _, __: 2)
    difference = results(folder)["overall"]["difference"]
    assert (difference["delta"], difference["better"], difference["questions"]) == (0, None, 2)


def test_what_is_unfinished_or_outdated_is_said(tmp_path):
    folder = made_rating_set(tmp_path, 2)
    rate(folder, "Ann", by_origin, only=("helpfulness",))
    assert results(folder)["remarks"] == ["R1 gave 6 of 18 ratings."]
    path = folder.parent / "predictions" / "tuned-answer.jsonl"
    write_jsonl(path, [{"id": "pubmedqa:0", "reference": "x", "prediction": "Another."}])
    assert any("generated again later" in remark for remark in results(folder)["remarks"])
    path.unlink()
    assert any("removed later" in remark for remark in results(folder)["remarks"])


def test_the_command_leaves_json_and_a_page_that_loads_nothing(tmp_path):
    folder = made_rating_set(tmp_path)
    meditune("review", "results", folder).ok()
    assert "There are no ratings yet" in (folder / "results.html").read_text()
    rate(folder, "Ann", by_origin)
    rate(folder, "Bo", lambda n, origin: BEST[origin] - (n == 0 and origin == "base"))
    done = meditune("review", "results", folder)
    assert "Helpfulness" in done.out
    assert done.last == f"Results: {folder / 'results.html'}"
    page = (folder / "results.html").read_text()
    for text in ("Ratings by people", "Helpfulness", "Krippendorff&#39;s alpha", "Answers with the most disagreement"):
        assert text in page or text.replace("&#39;", "'") in page
    assert "<script" not in page
    assert "src=" not in page
    assert read_json(folder / "results.json")["raters"] == 2


def test_the_report_shows_what_raters_said(tmp_path):
    folder = made_rating_set(tmp_path)
    assert of_run(folder.parent) is None, "nothing was rated yet"
    rate(folder, "Ann", by_origin)
    found = of_run(folder.parent)
    page = render(finished_run(tmp_path / "shown", review=found)).read_text()
    assert "Ratings by people" in page
    assert "There is only one rater" in page
    assert "Ratings by people" not in render(finished_run(tmp_path / "plain")).read_text()
    data = {"train": 4, "test": 4, "synthetic": True}
    invented = render(finished_run(tmp_path / "invented", review=found, data=data)).read_text()
    assert invented.count('<p class="reminder">') == invented.count("<section")


@pytest.mark.parametrize("name", ["key.json", "items.jsonl", "set.json"])
def test_a_damaged_set_is_told(tmp_path, name):
    folder = made_rating_set(tmp_path)
    assert len(read_set(folder).items) == 18
    (folder / name).write_text("{}\n")
    meditune("review", "results", folder).refused(3, name)


def said(n, origin):
    return ANSWERS[origin].format(n=n)


def test_the_better_rated_answer_is_preferred_and_the_existing_reader_takes_it(tmp_path):
    folder = made_rating_set(tmp_path, 4)
    rate(folder, "Ann", by_origin)
    path = tmp_path / "pairs.jsonl"
    assert write_pairs(folder, path, 1.0, 10).rated == 12
    read = read_given_pairs(path, recipe(), Rejects())
    assert {(pair.chosen, pair.rejected) for pair in read if pair.group == "g2"} == {
        (said(2, "reference"), said(2, "tuned")),
        (said(2, "reference"), said(2, "base")),
        (said(2, "tuned"), said(2, "base")),
    }
    assert all(pair.question == f"Does treatment {pair.group[1:]} help?" for pair in read)
    assert read[0].context[0].label == "METHODS"
    assert len({pair.id for pair in read}) == 12


def test_answers_as_good_as_each_other_make_no_pair(tmp_path):
    folder = made_rating_set(tmp_path, 2)
    rate(folder, "Ann", lambda _, origin: 1 if origin == "reference" else 2)
    made_of = write_pairs(folder, tmp_path / "pairs.jsonl", 1.0, 10)
    read = read_given_pairs(tmp_path / "pairs.jsonl", recipe(), Rejects())
    assert made_of.rated == 4
    assert {pair.chosen for pair in read} == {said(0, "reference"), said(1, "reference")}
    assert write_pairs(folder, tmp_path / "pairs.jsonl", 1.0, 1).left_out == {
        "pairs beyond the maximum for one question": 2
    }


def test_a_corrected_answer_is_preferred_to_what_it_corrects(tmp_path):
    folder = made_rating_set(tmp_path, 2, tuned={1: ""})
    store = Store(folder)
    ann, bo = (store.rater(name).id for name in ("Ann", "Bo"))
    item, empty = rated_item(folder, 0, "tuned"), rated_item(folder, 1, "tuned")
    store.save([], [Note(ann, item, "", " It may help some. "), Note(bo, item, "Fine.", said(0, "tuned"))])
    store.save([], [Note(ann, empty, "", "Something.")])
    done = write_pairs(folder, tmp_path / "pairs.jsonl", 1.0, 10)
    assert (done.rated, done.corrected) == (0, 1)
    assert done.left_out == {"better answers that change nothing": 1, "better answers for unanswered items": 1}
    (pair,) = read_given_pairs(tmp_path / "pairs.jsonl", recipe(), Rejects())
    assert (pair.chosen, pair.rejected) == ("It may help some.", said(0, "tuned"))


def test_what_isnt_rated_on_every_axis_makes_no_pair(tmp_path):
    folder = made_rating_set(tmp_path, 2)
    rate(folder, "Ann", by_origin, only=("helpfulness",))
    meditune("review", "pairs", folder, "-o", tmp_path / "pairs.jsonl").refused(
        3, "its ratings give no pairs", "--margin"
    )
    assert not (tmp_path / "pairs.jsonl").exists()


def test_a_run_trains_on_them(tmp_path, capsys):
    folder = made_rating_set(tmp_path, 12)
    rate(folder, "Ann", by_origin)
    done = meditune("review", "pairs", folder, "-o", tmp_path / "pairs.jsonl").ok()
    assert "36 pairs of rated answers, 0 with an answer that a rater wrote." in done.out
    sets = prepare_pairs(recipe(path=str(tmp_path / "pairs.jsonl")), splits(), "hash", tmp_path / "other")
    assert len(sets.train) + len(sets.held_out) == 36
    assert not {pair.group for pair in sets.train} & {pair.group for pair in sets.held_out}


@pytest.mark.parametrize("margin", [0.5, 2.0, 3.9])
def test_the_margin_is_on_a_scale_of_1_to_5(tmp_path, margin):
    folder = made_rating_set(tmp_path, 1)
    rate(folder, "Ann", by_origin, only=("helpfulness", "understandability"))
    rate(folder, "Ann", lambda _, __: 1, only=("intent",))
    gaps = [4 / 3, 4 / 3, 8 / 3]
    expected = sum(gap >= margin for gap in gaps)
    if expected:
        assert write_pairs(folder, tmp_path / "pairs.jsonl", margin, 10).rated == expected
    else:
        meditune("review", "pairs", folder, "-o", tmp_path / "p.jsonl", "--margin", margin).refused(3, "too close")


N = np.nan
KRIPPENDORFF = np.array(
    [
        [1, 2, 3, 3, 2, 1, 4, 1, 2, N, N, N],
        [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, N, 3],
        [N, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, N],
        [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, N],
    ]
).T
"""Krippendorff 2011, section C: twelve units, four observers, missing data."""
FLEISS = np.array(
    [
        *([0, 0, 0, 6, 0], [0, 3, 0, 0, 3], [0, 1, 4, 0, 1], [0, 0, 0, 0, 6], [0, 3, 0, 3, 0], [2, 0, 4, 0, 0]),
        *([0, 0, 4, 0, 2], [2, 0, 3, 1, 0], [2, 0, 0, 4, 0], [0, 0, 0, 0, 6], [1, 0, 0, 5, 0], [1, 1, 0, 4, 0]),
        *([0, 3, 3, 0, 0], [1, 0, 0, 5, 0], [0, 2, 0, 3, 1], [0, 0, 5, 0, 1], [3, 0, 0, 1, 2], [5, 1, 0, 0, 0]),
        *([0, 2, 0, 4, 0], [1, 0, 2, 0, 3], [0, 0, 0, 0, 6], [0, 1, 0, 5, 0], [0, 2, 0, 1, 3], [2, 0, 0, 4, 0]),
        *([1, 0, 0, 4, 1], [0, 5, 0, 1, 0], [4, 0, 0, 0, 2], [0, 2, 0, 4, 0], [1, 0, 5, 0, 0], [0, 0, 0, 0, 6]),
    ]
)
"""Fleiss 1971, table 1: thirty patients, six psychiatrists each; columns add up to 26, 26, 30, 55, 43."""


@pytest.mark.parametrize(("level", "published"), [("nominal", 0.743), ("ordinal", 0.815)])
def test_alpha_is_krippendorffs(level, published):
    found = krippendorff(KRIPPENDORFF, 5, level)
    assert found["value"] == pytest.approx(published, abs=0.0005)
    assert found["items"] == 11, "the last unit has one rating only"
    low, high = found["ci95"]
    assert low < found["value"] < high <= 1


def test_alpha_of_two_observers_is_krippendorffs():
    """Krippendorff 2011, section A: binary data of two observers, alpha 0.095."""
    meg = [0, 1, 0, 0, 0, 0, 0, 0, 1, 0]
    owen = [1, 1, 1, 0, 0, 1, 0, 0, 0, 0]
    found = krippendorff(np.array([meg, owen]).T + 1, 2, "nominal")
    assert found["value"] == pytest.approx(0.095, abs=0.0005)


def test_kappa_is_fleiss():
    assert FLEISS.sum(axis=0).tolist() == [26, 26, 30, 55, 43]
    found = fleiss(FLEISS)
    assert found["value"] == pytest.approx(0.430, abs=0.0005)
    assert found["ci95"][0] < 0.430 < found["ci95"][1]


@pytest.mark.parametrize(("ours", "theirs"), [("nominal", None), ("ordinal", "linear")])
def test_kappa_is_scikit_learns(ours, theirs):
    source = np.random.default_rng(1)
    first = source.integers(1, 5, 200)
    second = np.where(source.random(200) < 0.6, first, source.integers(1, 5, 200))
    found = cohen(np.column_stack([first, second]), 4, ours)
    assert found["value"] == pytest.approx(cohen_kappa_score(first, second, weights=theirs))


def test_kappa_leaves_out_what_one_rater_left_out():
    found = cohen([[1, 1], [2, N], [N, 1], [2, 2], [1, 2]], 2)
    assert found["items"] == 3
    assert found["value"] == pytest.approx(cohen_kappa_score([1, 2, 1], [1, 2, 2]))


def test_intervals_cover_the_truth_and_narrow_with_more_units():
    """Two raters who agree on 80% of two equally frequent options: kappa 0.6."""
    source = np.random.default_rng(2)
    inside, width = 0, {}
    for number in range(100):
        first = source.integers(1, 3, 100)
        second = np.where(source.random(100) < 0.8, first, 3 - first)
        low, high = cohen(np.column_stack([first, second]), 2, seed=number)["ci95"]
        inside += low <= 0.6 <= high
        width[100] = high - low
    assert 88 <= inside <= 100
    first = source.integers(1, 3, 1600)
    low, high = cohen(np.column_stack([first, np.where(source.random(1600) < 0.8, first, 3 - first)]), 2)["ci95"]
    assert high - low == pytest.approx(width[100] / 4, rel=0.35)


def test_units_of_one_cluster_are_drawn_together():
    source = np.random.default_rng(4)
    few = source.integers(1, 4, (20, 3)).astype(float)
    many = np.repeat(few, 10, axis=0)
    alone, together = krippendorff(few, 3, "ordinal"), krippendorff(many, 3, "ordinal", list(np.repeat(range(20), 10)))
    apart = krippendorff(many, 3, "ordinal")
    spans = [each["ci95"][1] - each["ci95"][0] for each in (alone, together, apart)]
    assert spans[1] == pytest.approx(spans[0], rel=0.1)
    assert spans[2] < spans[0] / 2


def test_undefined_is_none_and_not_nought_or_one():
    assert krippendorff([[1, 1], [1, 1]], 3, "nominal")["value"] is None, "no disagreement was possible"
    assert krippendorff([[1, N], [N, 2]], 3, "ordinal")["value"] is None
    assert cohen([[1, 1], [1, 1]], 2)["value"] is None
    assert fleiss(np.zeros((0, 3)))["value"] is None
    assert fleiss([[3, 0], [3, 0]])["value"] is None
    only = krippendorff([[1, 2]], 2, "nominal")
    assert only["ci95"] is None, "one unit gives no interval"
    with pytest.raises(ValueError, match="same number of raters"):
        fleiss([[3, 0], [2, 0]])


def test_whole_disagreement_is_negative_and_whole_agreement_one():
    assert krippendorff([[1, 2], [2, 1]], 2, "nominal")["value"] < 0
    assert krippendorff([[1, 1], [2, 2]], 2, "ordinal")["value"] == pytest.approx(1)
    assert counted([[1, 2, N], [2, 2, 2]], 2).tolist() == [[1, 1], [0, 3]]
