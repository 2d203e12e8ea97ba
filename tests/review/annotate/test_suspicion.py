"""What makes a row suspicious, and what doesn't."""

from __future__ import annotations

from meditune.data.example import Example, Passage
from meditune.review.suspicious_rows import SIGNALS, flagged, suspicion


def row(n: int, question: str, answer: str, context: str = "", **more) -> Example:
    passages = (Passage(text=context),) if context else ()
    return Example(
        id=f"own:{n}", source="own", question=question, answer=answer, context=passages, group=f"g{n}", **more
    )


PLAIN = [
    row(
        n,
        f"What causes {name}?",
        f"The causes of {name} are known to doctors, and it can be treated well in most cases.",
    )
    for n, name in enumerate(("asthma", "migraine", "anaemia", "gout", "psoriasis", "epilepsy", "diabetes"))
]


def reasons(*rows: Example) -> dict[str, set[str]]:
    return {id: set(found.reasons) for id, found in suspicion([*PLAIN, *rows], SIGNALS).items()}


def test_plain_rows_are_not_suspicious():
    assert all(not found for found in reasons().values())


def test_an_answer_to_another_question_is_off_topic():
    found = reasons(
        row(90, "How is scurvy treated?", "The measles vaccine is given twice, most often to small children.")
    )
    assert found["own:90"] == {"off_topic"}


def test_an_answer_of_another_length_stands_out():
    assert reasons(row(90, "What causes rickets?", "Rickets: see above."))["own:90"] == {"length"}
    assert reasons(row(90, "What causes rickets?", "Rickets comes. " * 200))["own:90"] == {"length"}


def test_an_answer_that_its_passages_deny_is_unsupported():
    passage = "We treated 40 adults with zinc for rickets. Zinc did not reduce bone pain in adults with rickets."
    claim = "Zinc reduced bone pain in adults with rickets."
    assert "unsupported" in reasons(row(90, "Does zinc help in rickets?", claim, passage))["own:90"]
    true = "Zinc did not reduce bone pain in adults with rickets."
    assert "unsupported" not in reasons(row(90, "Does zinc help in rickets?", true, passage))["own:90"]


def test_the_same_question_answered_otherwise_is_noticed_more_where_the_decision_differs():
    text = "Rickets is treated with vitamin D, which doctors give for some months in most cases."
    first = row(90, "Is rickets curable?", text, decision="yes")
    found = suspicion([*PLAIN, first, row(91, "is rickets curable", text, decision="no")], SIGNALS)
    assert set(found["own:90"].reasons) == {"contradicted"}
    milder = suspicion([*PLAIN, first, row(91, "is rickets curable", f"{text} Often.", decision="yes")], SIGNALS)
    assert 0 < milder["own:90"].score < found["own:90"].score


def test_one_answer_under_several_questions_is_noticed():
    text = "Rickets and scurvy are treated with vitamins, which doctors give for some months in most cases."
    found = reasons(row(90, "How is rickets treated?", text), row(91, "How is scurvy treated?", text))
    assert found["own:90"] == found["own:91"] == {"repeated"}


def test_what_other_checks_flagged_is_one_more_signal():
    records = [
        {"id": "own:1", "rule": "encoding", "action": "flag", "detail": "looks garbled"},
        {"id": "own:2", "rule": "encoding", "action": "repair", "detail": "was garbled"},
    ]
    found = suspicion(PLAIN, {**SIGNALS, "quality": flagged(records)})
    assert [id for id, each in found.items() if each.reasons] == ["own:1"]
    assert found["own:1"].reasons == {"quality": "looks garbled"}
