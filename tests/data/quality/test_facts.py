"""Counts, lengths, and the proof that splits are disjoint."""

from itertools import pairwise

from meditune.data.example import Example
from meditune.data.quality.audit import BINS, facts, shared
from meditune.data.splits import Splits


def example(number, **changes):
    fields = {
        "id": f"own:{number}",
        "source": "own",
        "question": f"Does treatment {number} help?",
        "answer": f"It helps {number}.",
        "decision": "yes",
        "group": str(number),
    }
    return Example(**fields | changes)


def test_facts_add_up():
    train = [example(n, meta={"year": 2000 + n}) for n in range(6)]
    dev = [example(6, decision=None), example(7, question=train[0].question)]
    test = [example(8, answer="", decision="no")]
    found = facts(Splits(train, dev, test, "own-group-1"), {"own": {"read": 9}}, {"exact_duplicate": 2})
    assert {name: row["examples"] for name, row in found["splits"].items()} == {"train": 6, "dev": 2, "test": 1}
    assert found["splits"]["train"]["years"] == [2000, 2005]
    assert found["splits"]["dev"]["decisions"] == {"yes": 1}
    assert found["splits"]["test"]["with_answer"] == 0
    assert found["repeated_questions"] == 1
    assert found["dropped"] == {"exact_duplicate": 2}
    lengths = found["lengths"]
    assert sum(each["count"] for each in lengths["question"]["words"]) == 9
    assert sum(each["count"] for each in lengths["answer"]["words"]) == 8, "an empty answer has no length"


def test_histograms_cover_every_value_once():
    examples = [example(n, answer="word " * (n * n + 1)) for n in range(40)]
    bins = facts(Splits(examples, [], [], "t"), {}, {})["lengths"]["answer"]["words"]
    assert len(bins) <= BINS
    assert sum(each["count"] for each in bins) == 40
    assert all(left["to"] == right["from"] for left, right in pairwise(bins))
    assert bins[0]["from"] == 1
    assert bins[-1]["from"] <= 39 * 39 + 1 < bins[-1]["to"]


def test_what_two_splits_share_is_counted():
    one, two, three = example(1), example(2), example(3)
    clean = shared(Splits([one], [two], [three], "t"))
    assert all(not any(row.values()) for row in clean.values())
    leaky = Splits([one], [two.model_copy(update={"question": "does TREATMENT 1 help"})], [three, one], "t")
    assert shared(leaky) == {
        "train and dev": {"ids": 0, "groups": 0, "questions": 1, "contexts": 0},
        "train and test": {"ids": 1, "groups": 1, "questions": 1, "contexts": 0},
        "dev and test": {"ids": 0, "groups": 0, "questions": 1, "contexts": 0},
    }
