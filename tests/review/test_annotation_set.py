"""Which rows get into an annotation set, in which order, for whom, and what the page can't know.

What makes a row suspicious, and what doesn't.
"""

from __future__ import annotations

import json
from collections import Counter

import pytest

from meditune.data.example import Example, Passage
from meditune.errors import DataError
from meditune.files import read_json
from meditune.review.annotation_set import SIGNALS, AnnotationSetOptions, create, flagged, suspicion
from meditune.review.import_export import export
from meditune.review.rating_set import VALIDATE, read_set
from meditune.review.ratings_store import Store
from meditune.review.review_server import ReviewApp
from tests import layouts
from tests.commands import jsonl, meditune
from tests.review.known_ratings import SUBJECTS, annotated_item, key, made_annotation_set, table


def test_a_table_becomes_a_set_that_names_its_source_and_hides_what_is_known(tmp_path):
    path = table(tmp_path / "mine.jsonl", 12, url=lambda n: f"https://example.org/{n}" if n else "javascript:alert(1)")
    done = meditune("annotate", "create", path, "-o", tmp_path / "set", "--rows", "8", "--synthetic-gold", "3")
    assert "8 rows to check, and 3 known items among them." in done.out
    found, rows = read_set(tmp_path / "set"), key(tmp_path / "set")
    assert Counter(row.origins for row in rows.values()) == {("row",): 8, ("planted",): 3}
    assert {item.source for item in found.items.values()} == {"mine.jsonl"}
    assert all(not item.link or item.link.startswith("https://") for item in found.items.values())
    for name in ("set.json", "items.jsonl"):
        text = (tmp_path / "set" / name).read_text()
        assert not any(word in text for word in ("planted", "gold", "expected", "own:"))


def test_rows_are_checked_already_only_if_a_decision_was_applied_to_them(tmp_path):
    mark = {"verdict": "correct", "was": "0" * 64}
    path = table(tmp_path / "mine.jsonl", 3, validated=lambda n: mark if n == 1 else "no")
    assert create(str(path), tmp_path / "set", AnnotationSetOptions()).decided == 1
    assert {row.example for row in key(tmp_path / "set").values()} == {"own:0", "own:2"}


def test_earlier_turns_of_a_conversation_are_shown(tmp_path):
    said = [("user", "How much?"), ("assistant", "Two."), ("user", "And for children?"), ("assistant", "One.")]
    messages = [{"role": role, "content": text} for role, text in said]
    path = jsonl(tmp_path / "chats.jsonl", [{"messages": messages}])
    create(str(path), tmp_path / "set", AnnotationSetOptions(rows=1))
    store = Store(tmp_path / "set")
    app = ReviewApp(read_set(tmp_path / "set"), store, None)
    (item,) = app.set.items.values()
    shown = app.item_facts(item, store.rater("Ann"))
    assert [(turn["role"], turn["text"]) for turn in shown["turns"]] == said[:2]
    (tasks, _) = export(tmp_path / "set", tmp_path / "tasks.json", None, False, VALIDATE)
    assert read_json(tasks)[0]["data"]["question"] == "User: How much?\n\nAssistant: Two.\n\nUser: And for children?"


def test_a_planted_answer_belongs_to_another_question_and_isnt_asked_twice(tmp_path):
    folder = made_annotation_set(tmp_path, 20, rows=10, planted=5)
    found, rows = read_set(folder), key(folder)
    asked = [item.question for item in found.items.values()]
    assert len(set(asked)) == len(asked)
    for id, row in rows.items():
        subject = next(name for name in SUBJECTS if name in found.items[id].question)
        assert (subject in found.items[id].answer) != row.known
        assert row.expected == (("wrong", "unsafe", "off-topic") if row.known else ())


def test_known_items_and_shared_rows_go_to_everybody_and_the_rest_is_dealt(tmp_path):
    folder = made_annotation_set(tmp_path, 20, rows=12, planted=3, raters=3, overlap=1, shared=3)
    found, rows = read_set(folder), key(folder)
    shares = [set(found.work(place)) for place in range(3)]
    for id, row in rows.items():
        assert sum(id in share for share in shares) in ({3} if row.known else {1, 3})
    assert sum(all(id in share for share in shares) for id in rows) == 6
    assert read_json(folder / "set.json")["overlap"] == 1
    assert read_set(made_annotation_set(tmp_path / "two", 8, raters=3)).settings.overlap == 2, (
        "two raters judge a row unless told otherwise"
    )


def test_gold_of_ones_own_is_read_and_a_wrong_verdict_is_told(tmp_path):
    gold = jsonl(
        tmp_path / "gold.jsonl",
        [
            {"question": "What causes tinnitus?", "answer": "Often noise.", "verdict": "correct"},
            {"question": "How to treat gout?", "answer": "Take ten times the dose.", "verdict": "wrong, unsafe"},
        ],
    )
    folder = made_annotation_set(tmp_path, 6, gold=gold)
    assert {row.expected for row in key(folder).values() if row.known} == {("correct",), ("wrong", "unsafe")}
    assert {item.source for item in read_set(folder).items.values()} == {"table.jsonl"}
    jsonl(gold, [{"question": "Why?", "answer": "So.", "verdict": "bad"}])
    done = meditune("annotate", "create", tmp_path / "table.jsonl", "-o", tmp_path / "x", "--gold", gold)
    done.refused(3, "gold.jsonl, row gold-1: verdict 'bad' must consist of correct, incomplete")


def test_strata_give_the_same_number_each_as_far_as_they_go(tmp_path):
    kinds = {"decision": lambda n: "maybe" if n == 0 else "yes" if n < 12 else "no"}
    folder = made_annotation_set(tmp_path, 20, kinds, rows=9, strata="decision")
    assert Counter(row.stratum for row in key(folder).values()) == {"maybe": 1, "yes": 4, "no": 4}
    with pytest.raises(DataError, match="Choose from none, source, decision, question_type"):
        made_annotation_set(tmp_path / "other", 4, strata="colour")


def test_the_most_suspicious_rows_come_first_for_every_rater(tmp_path):
    odd = {"answer": lambda n: "See above." if n in (3, 17) else f"Doctors know why {SUBJECTS[n]} comes, and treat it."}
    folder = made_annotation_set(tmp_path, 20, odd, sample="suspicious", rows=10)
    found = read_set(folder)
    for place in range(3):
        assert {annotated_item(folder, 3), annotated_item(folder, 17)} <= set(found.work(place)[:8])
    scores = [row.score for row in key(folder).values()]
    assert scores == sorted(scores, reverse=True)
    assert set(key(folder)[annotated_item(folder, 3)].reasons) >= {"off_topic", "repeated"}


def test_only_rows_to_train_and_develop_on_are_offered_unless_asked(tmp_path, monkeypatch):
    items = {str(20_000_000 + number): layouts.pubmedqa_item(number) for number in range(40)}
    layouts.pubmedqa(tmp_path / "data" / "pubmedqa", items)
    monkeypatch.setenv("MEDITUNE_DATA", str(tmp_path / "data"))
    run = tmp_path / "run"
    meditune("data", "prepare", "quickstart", "-o", run, "--set", "data.split=group").ok()
    split = {
        name: {json.loads(line)["id"] for line in (run / "data" / f"{name}.jsonl").open()}
        for name in ("train", "dev", "test")
    }
    for source, words in ((run, ()), ("quickstart", ("--set", "data.split=group"))):
        folder = tmp_path / f"set-{len(words)}"
        meditune("annotate", "create", source, "-o", folder, *words).ok()
        assert {row.example for row in key(folder).values()} == split["train"] | split["dev"]
    pytest.importorskip("pyarrow")
    flag = {"id": sorted(split["dev"])[0], "rule": "encoding", "action": "flag", "detail": "looks garbled"}
    write_ledger(run / "data" / "ledger.parquet", flag)
    create(str(run), tmp_path / "odd", AnnotationSetOptions(rows=1, sample="suspicious"))
    (row,) = key(tmp_path / "odd").values()
    assert (row.example, row.reasons["quality"]) == (flag["id"], "looks garbled")
    create(str(run), tmp_path / "all", AnnotationSetOptions(test=True))
    assert len(key(tmp_path / "all")) == 40
    assert {item.source[:8] for item in read_set(tmp_path / "all").items.values()} == {"PubMedQA"}


def write_ledger(path, *rows):
    """A ledger as quality control leaves it."""
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(list(rows)), path)


def test_what_cant_be_checked_is_told(tmp_path):
    folder = made_annotation_set(tmp_path, 6)
    meditune("annotate", "create", tmp_path, "-o", tmp_path / "x").refused(3, "contains no prepared data")
    meditune("annotate", "create", tmp_path / "table.jsonl", "-o", tmp_path / "x", "--synthetic-gold", "9").refused(
        3, "of 9 wrong items can be made", "--gold"
    )
    meditune("annotate", "create", tmp_path / "table.jsonl", "-o", folder, "--rows", "2").refused(1, "something else")
    meditune("review", "results", folder).refused(3, "a set of another kind", "meditune annotate")
    meditune("review", "serve", folder).refused(3, "a set of another kind")


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
