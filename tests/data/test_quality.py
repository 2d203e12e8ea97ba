"""The audit: duplicates and facts."""

from itertools import pairwise

from meditune.data.example import Example, Passage
from meditune.data.quality import BINS, facts, without_duplicates
from meditune.data.rejects import Rejects
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


def test_exact_duplicates_are_left_out_and_named():
    rejects = Rejects()
    first = example(1, context=(Passage(text="We saw it."),))
    again = first.model_copy(update={"id": "own:2", "question": "DOES treatment 1 help", "group": "2"})
    other = first.model_copy(update={"id": "own:3", "answer": "It harms."})
    undecided = first.model_copy(update={"id": "own:4", "decision": "maybe"})
    elsewhere = first.model_copy(update={"id": "own:5", "context": ()})
    kept = without_duplicates([first, again, other, undecided, elsewhere], rejects)
    assert [e.id for e in kept] == ["own:1", "own:3", "own:4", "own:5"]
    assert rejects.counts() == {"own": {"exact duplicate": 1}}
    assert "own:1" in next(rejects.rows())["row"]


def test_facts_add_up():
    train = [example(n, meta={"year": 2000 + n}) for n in range(6)]
    dev = [example(6, decision=None), example(7, question=train[0].question)]
    test = [example(8, answer="", decision="no")]
    found = facts(Splits(train, dev, test, "own-group-1"), {"own": {"read": 9}}, duplicates=2)
    assert {name: row["examples"] for name, row in found["splits"].items()} == {"train": 6, "dev": 2, "test": 1}
    assert found["splits"]["train"]["years"] == [2000, 2005]
    assert found["splits"]["dev"]["decisions"] == {"yes": 1}
    assert found["splits"]["test"]["with_answer"] == 0
    assert found["repeated_questions"] == 1
    assert found["dropped"] == {"exact duplicate": 2}
    lengths = found["lengths"]
    assert sum(each["count"] for each in lengths["question"]["words"]) == 9
    assert sum(each["count"] for each in lengths["answer"]["words"]) == 8, "an empty answer has no length"


def test_histograms_cover_every_value_once():
    examples = [example(n, answer="word " * (n * n + 1)) for n in range(40)]
    bins = facts(Splits(examples, [], [], "t"), {}, 0)["lengths"]["answer"]["words"]
    assert len(bins) <= BINS
    assert sum(each["count"] for each in bins) == 40
    assert all(left["to"] == right["from"] for left, right in pairwise(bins))
    assert bins[0]["from"] == 1
    assert bins[-1]["from"] <= 39 * 39 + 1 < bins[-1]["to"]
