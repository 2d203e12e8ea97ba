"""Figures by subgroup: the right items, honest intervals, and no group accused by chance."""

import json
import random

import pytest

from meditune.data.example import DECISIONS, TRAITS, Example, Passage
from meditune.evaluate.metrics import summarise
from meditune.evaluate.predictions import Predictions
from meditune.evaluate.subgroups import MIN_GROUP_SIZE, subgroups
from meditune.statistics import wilson


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


def decided(examples, right):
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
    base, tuned = (decided(examples, lambda item, bar=bar: luck[item.id] < bar) for bar in (0.3, 0.6))
    row = rows_of(subgroups(examples, base, tuned, 1))["source", "two"]
    assert row["items"] == 60
    for name, predictions in (("base", base), ("tuned", tuned)):
        alone = Predictions(decision=[each for each in predictions.decision if each["id"].startswith("two")])
        assert row[name] == pytest.approx(summarise(alone)["accuracy"])
        right = sum(each["reference"] == each["prediction"] for each in alone.decision)
        assert row[f"{name}_ci95"] == pytest.approx(wilson(right, 60))
    others = Predictions(decision=[each for each in tuned.decision if each["id"].startswith("one")])
    assert row["others"] == pytest.approx(summarise(others)["accuracy"])
    assert row["ci95"][0] <= row["delta"] <= row["ci95"][1]


def test_the_worst_group_comes_first_and_is_flagged_and_small_ones_come_last():
    sizes = {"poor": 40, "good": 40, "few": MIN_GROUP_SIZE - 1}
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
        sides = [decided(examples, lambda _, source=source: source.random() < 0.6) for _ in range(2)]
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
