"""Splits: nothing that belongs together straddles them."""

import random
from collections import Counter

import pytest

from meditune.data.example import DECISIONS, Example
from meditune.data.readers import pubmedqa
from meditune.data.readers.tables import Rejects
from meditune.data.splits import by_group, official_tests, question_key, split
from meditune.errors import DataError


def example(number, source="own", **changes):
    fields = {
        "id": f"{source}:{number}",
        "source": source,
        "question": f"Does treatment {number} of {source} help?",
        "answer": f"It helps {number}.",
        "decision": DECISIONS[number % 3],
        "group": f"group-{number}",
    }
    return Example(**fields | changes)


def tangled(count, seed):
    """Examples whose groups and questions overlap in random chains."""
    drawn = random.Random(seed)
    return [
        example(n, group=f"g{drawn.randrange(count)}", question=f"Question {drawn.randrange(count)}?")
        for n in range(count)
    ]


@pytest.mark.parametrize("seed", range(5))
def test_no_group_and_no_question_straddles(seed):
    parts = split({"own": tangled(200, seed)}, official=False, test_share=0.2, dev_share=0.2, seed=seed).named()
    for trait in (lambda e: e.group, lambda e: question_key(e.question)):
        found = [{trait(e) for e in part} for part in parts.values()]
        assert not found[0] & found[1]
        assert not found[0] & found[2]
        assert not found[1] & found[2]
    assert sorted(e.id for part in parts.values() for e in part) == sorted(e.id for e in tangled(200, seed))


def test_questions_are_the_same_whatever_their_case_and_punctuation():
    assert question_key(" Does  IT help?") == question_key("does it help")
    same = [example(1, question="Does it help?"), example(2, question="DOES IT HELP"), *map(example, range(3, 40))]
    for seed in range(20):
        rest, _ = by_group(same, 0.3, seed)
        assert len({"own:1", "own:2"} & {e.id for e in rest}) != 1


def test_shares_are_kept_in_each_source_and_decision():
    examples = [example(n, source, decision="yes" if n % 10 else "maybe") for source in "ab" for n in range(200)]
    parts = split({s: [e for e in examples if e.source == s] for s in "ab"}, False, 0.2, 0.1, seed=1)
    counted = Counter((e.source, e.decision) for e in parts.test)
    assert counted == {("a", "yes"): 36, ("b", "yes"): 36, ("a", "maybe"): 4, ("b", "maybe"): 4}
    assert len(parts.dev) == pytest.approx(32, abs=4)


def test_the_seed_decides_and_nothing_else():
    examples = [example(n) for n in range(100)]

    def ids(seed):
        return [e.id for e in by_group(examples, 0.2, seed)[1]]

    assert ids(1) == ids(1)
    assert ids(1) != ids(2)


@pytest.mark.parametrize("seed", range(5))
def test_a_large_group_neither_enters_the_test_nor_keeps_others_out(seed):
    examples = [example(n, group="all" if n < 60 else str(n), decision="yes") for n in range(100)]
    held = by_group(examples, 0.2, seed)[1]
    assert not any(e.group == "all" for e in held)
    assert len(held) == 20


@pytest.mark.parametrize("seed", range(5))
def test_questions_of_different_sources_stay_together_whatever_the_seed(seed):
    twins = [example(n, source) for n in range(20) for source in ("one", "two")]
    twins = [e.model_copy(update={"question": f"Is question {e.group} the same in both?"}) for e in twins]
    parts = split({s: [e for e in twins if e.source == s] for s in ("one", "two")}, True, 0.3, 0.2, seed)
    questions = [{question_key(e.question) for e in part} for part in parts.named().values()]
    assert questions[0].isdisjoint(questions[1] | questions[2])
    assert questions[1].isdisjoint(questions[2])


def test_groups_of_different_sources_are_different():
    both = {s: [example(n, s, group=str(n)) for n in range(30)] for s in "ab"}
    assert split(both, False, 0.2, 0.2, 1).test_set.startswith("a-group-")


@pytest.mark.parametrize("count", [0, 1, 2, 3])
def test_too_few_examples_are_refused_by_name(count):
    with pytest.raises(DataError, match="split is empty"):
        split({"own": [example(n) for n in range(count)]}, False, 0.2, 0.1, 1)


@pytest.mark.real
def test_the_official_split_is_the_publishers(real_data):
    rejects = Rejects()
    examples = list(pubmedqa.read(real_data / "pubmedqa", rejects))
    truth = pubmedqa.ground_truth(real_data / "pubmedqa")
    parts = split({"pubmedqa": examples}, official=True, test_share=0.2, dev_share=0.1, seed=17)
    assert {e.group: e.decision for e in parts.test} == truth
    assert parts.test_set == "pubmedqa-official-500"
    assert len(parts.train) + len(parts.dev) == 500
    assert len(parts.dev) == pytest.approx(50, abs=2)
    assert len(rejects) == 0


@pytest.mark.real
def test_every_fold_is_the_publishers_and_its_test_the_official_one(real_data):
    examples = list(pubmedqa.read(real_data / "pubmedqa", Rejects()))
    official = set(pubmedqa.ground_truth(real_data / "pubmedqa"))
    published = pubmedqa.official_folds(examples)
    held = []
    for fold in range(pubmedqa.FOLDS):
        parts = split({"pubmedqa": examples}, True, 0.2, 0.1, seed=1, fold=fold)
        assert sorted(e.id for e in parts.dev) == sorted(e.id for e in published[fold])
        assert (len(parts.train), len(parts.dev)) == (450, 50)
        assert {e.group for e in parts.test} == official
        held += [e.id for e in parts.dev]
    assert len(set(held)) == len(held) == 500


def test_a_fixed_source_is_whole_in_its_split_and_draws_shared_questions_into_training():
    sources = {name: [example(n, name) for n in range(20)] for name in ("own/train", "own/test")}
    free = [example(n, "own/free") for n in range(30)]
    free += [example(n, "own/free", question=sources["own/train"][n - 30].question) for n in range(30, 35)]
    found = split(
        sources | {"own/free": free},
        official=False,
        test_share=0.4,
        dev_share=0.2,
        seed=3,
        fixed={"own/train": "train", "own/test": "test"},
    )
    assert {e.id for e in found.train} >= {e.id for e in sources["own/train"]}
    assert {e.id for e in found.test} >= {e.id for e in sources["own/test"]}
    assert not {question_key(e.question) for e in found.test} & {question_key(e.question) for e in found.train}
    assert found.test_set == "own/test-fixed-20+own/free-group-12"


@pytest.mark.parametrize("newest", [False, True])
@pytest.mark.parametrize("chain", [1, 2, 4])
def test_rows_similar_to_a_fixed_training_row_and_the_rows_joined_to_them_are_trained_on(chain, newest):
    own, known = [example(n, meta={"year": 1990 + n * 7 % 11}) for n in range(40)], example(200, "own/train")
    similar = [e.id for e in own[:chain]]
    pairs = [*zip(similar, [*similar[1:], known.id], strict=True)]

    def leaks(splits):
        rank = {e.id: n for n, part in enumerate((splits.train, splits.dev, splits.test)) for e in part}
        straddling = [pair for pair in pairs if rank[pair[0]] != rank[pair[1]]]
        return {tuple(sorted(pair, key=lambda id_: -rank[id_])) for pair in straddling}

    sources, fixed = {"own": own, "own/train": [known]}, {"own/train": "train"}
    for seed in range(30):
        found = split(sources, False, 0.2, 0.2, seed, newest=newest, fixed=fixed, leaks=leaks)
        assert leaks(found) == set()
        assert {e.id for e in found.train} >= {*similar, known.id}
        assert sorted(e.id for part in found.named().values() for e in part) == sorted(e.id for e in [*own, known])


def test_rows_that_ask_the_question_of_a_fixed_training_row_are_not_for_development():
    known = [example(n, "own/train") for n in range(5)]
    own = [*(example(n, question=known[n].question) for n in range(5)), *(example(n) for n in range(5, 40))]
    for seed in range(20):
        found = split({"own": own, "own/train": known}, False, 0.2, 0.4, seed, fixed={"own/train": "train"})
        assert {e.id for e in found.train} >= {e.id for e in own[:5]}
        assert len(found.dev) == pytest.approx(0.4 * 32, abs=2)


def test_an_official_test_set_of_a_source_in_a_fixed_split_is_not_looked_for():
    assert official_tests({"scifact": [example(1, "scifact")]}, {"scifact"}) == set()
