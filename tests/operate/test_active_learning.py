"""Which answers and rows are chosen, why, and what is said where nothing can be.

A queue is worked in a real browser, too, and what experts said of it becomes rows that a recipe reads.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from meditune.data.example import DECISIONS, Example
from meditune.data.readers import user_files
from meditune.data.readers.tables import Rejects
from meditune.errors import DataError
from meditune.files import read_json, read_jsonl
from meditune.models import sentence_encoder
from meditune.models.sentence_encoder import EncoderIdentity, SentenceEncoder
from meditune.operate.active_learning import acquisition
from meditune.operate.active_learning.acquisition import nearest, novelty
from meditune.operate.active_learning.annotation_queue import NOT_JUDGED, NOTHING, QueueOptions, choose, queue, rows
from meditune.operate.active_learning.candidates import Candidate, read
from meditune.review.rating_set import VERDICT, read_key, read_set
from meditune.review.ratings_store import Note, Rating, Store
from meditune.store import database
from meditune.store.answers import Answer, Answers, Feedback
from meditune.store.open_store import StoreLocation, open_store
from tests import layouts, tiny
from tests.browser import chromium
from tests.commands import jsonl, meditune
from tests.review.known_ratings import served
from tests.review.test_page import opened, saved, sign_in

SURE, TORN = {"yes": 0.9, "no": 0.06, "maybe": 0.04}, {"yes": 0.35, "no": 0.33, "maybe": 0.32}


def embed(texts: Sequence[str]) -> np.ndarray:
    """Bags of words as vectors of length 1: alike where words are shared."""
    found = np.zeros((len(texts), 256), dtype=np.float32)
    for row, text in zip(found, texts, strict=True):
        for word in text.casefold().split():
            row[int.from_bytes(hashlib.sha256(word.encode()).digest()[:2]) % 256] += 1
    return found / np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-9)


def candidate(question: str, **known: Any) -> Candidate:
    """A row that asks this."""
    answer = known.pop("answer", "")
    example = Example(id=f"own:{question}", source="own", question=question, answer=answer, group=question)
    return Candidate(example, **known)


def test_a_queue_loads_its_encoder_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loads: list[str] = []

    def load(name: str) -> SentenceEncoder:
        loads.append(name)
        return SentenceEncoder(EncoderIdentity("bags", 256, "bags"), embed)

    monkeypatch.setattr(sentence_encoder, "load_encoder", load)
    known = jsonl(tmp_path / "known.jsonl", [{"question": "Is tea safe?", "answer": "Yes."}])
    place = jsonl(tmp_path / "rows.jsonl", [{"question": f"Is herb {n} safe?", "answer": "Yes."} for n in range(3)])
    queue([place], tmp_path / "queue", QueueOptions(known=(known,), embedding="bags"))
    assert loads == ["bags"]


def keep(place: StoreLocation, id: str, question: str | None, answer: str = "It helps.", **facts: Any) -> Answers:
    """A store with one more answer."""
    answers = Answers(open_store(place))
    outcome = facts.pop("outcome", "answered")
    chances = facts.pop("chances", None)
    if chances:
        best = max(chances, key=lambda each: chances[each])
        facts["decision"] = {"answer": best, "probabilities": chances, "calibrated": False}
    answers.keep(Answer(id, "", "ask", "tiny 1", "idx", outcome, facts, question, answer, time=1_700_000_000.0))
    return answers


def store(folder: StoreLocation) -> StoreLocation:
    """Six answers: unsure, unsupported, abstained, disliked, corrected, and one with nothing against it."""
    keep(folder, "unsure", "Does vitamin C prevent colds?", chances=TORN, sentences=1, supported=1)
    keep(folder, "unsupported", "What causes gout?", "Uric acid.", sentences=3, supported=1)
    keep(folder, "abstained", "How is rabies treated?", "", outcome="abstained", sentences=0, supported=0)
    answers = keep(folder, "disliked", "Is asthma curable?", chances=SURE, sentences=1, supported=1)
    keep(folder, "corrected", "Can children have migraine?", chances=SURE, sentences=1, supported=1)
    keep(folder, "fine", "Does exercise help the heart?", chances=SURE, sentences=2, supported=2)
    answers.add_feedback(Feedback("disliked", "a", "down", ["wrong"], "My doctor Dr. Jane Miller says otherwise."))
    answers.add_feedback(Feedback("corrected", "a", "down", [], "", "Yes, they can have it as well."))
    answers.add_feedback(Feedback("fine", "a", "up"))
    return folder


def judge(folder: Path, name: str, said: dict[str, tuple[str | None, str | None, str]]) -> None:
    """Let an expert say decision, verdict and a better text (or nothing of one) of examples by id."""
    there = Store(folder)
    rater = there.rater(name).id
    items = {origin.example: id for id, origin in read_key(folder)[0].items()}
    assert set(items.values()) == set(read_set(folder).items)
    for example, (decision, verdict, better) in said.items():
        item, ratings = items[example], []
        if decision:
            number = DECISIONS.index(decision) + 1 if decision in DECISIONS else len(DECISIONS) + 1  # type: ignore[arg-type]
            ratings.append(Rating(rater, item, "decision", number, 1.0))
        if verdict:
            ratings.append(Rating(rater, item, "verdict", VERDICT.number(verdict.capitalize()), 1.0))
        there.save(ratings, [Note(rater, item, "", better)] if better else [])


def ids(chosen):
    return [each.candidate.id.rpartition(":")[2] for each in chosen]


def test_each_strategy_takes_what_it_looks_for_and_says_why(tmp_path):
    pool = read(store(tmp_path / "store")).candidates
    assert ids(choose(pool, 3, "feedback"))[:1] == ["corrected"]
    assert set(ids(choose(pool, 9, "feedback"))) == {"corrected", "disliked"}, "praise is no reason to ask"
    assert set(ids(choose(pool, 3, "uncertainty"))) == {"unsure", "unsupported", "abstained"}
    reasons = {each.candidate.id.rpartition(":")[2]: each.reasons for each in choose(pool, 6, "mix", embed=embed)}
    assert "a user rated it down (wrong)" in reasons["disliked"].values()
    assert reasons["corrected"]["corrected"] == "a user wrote a correction"
    assert reasons["unsure"]["unsure"] == "the model is unsure of the decision (served: yes 35%, no 33%, maybe 32%)"
    assert reasons["unsupported"]["unsupported"] == "no passage supports 2 of its 3 sentences"
    assert reasons["abstained"]["abstained"] == "the model abstained"
    assert all(each for each in reasons.values())
    assert ids(choose(pool, 2, "mix", embed=embed))[0] == "corrected", "what users say goes first"


def test_models_that_disagree_and_samples_that_scatter_are_found():
    pool = [
        candidate("agreed", probabilities={"base": SURE, "tuned": SURE}),
        candidate("disputed", probabilities={"base": SURE, "tuned": {"yes": 0.1, "no": 0.8, "maybe": 0.1}}),
        candidate("scattered", samples=("Rest and drink.", "Surgery at once helps", "Nobody knows why")),
        candidate("steady", samples=("Rest and drink.", "Rest and drink.", "Rest and drink.")),
    ]
    first, second, *others = choose(pool, 4, "disagreement", embed=embed)
    assert {first.candidate.id, second.candidate.id} == {"own:disputed", "own:scattered"}
    told = {why for each in (first, second) for why in each.reasons.values()}
    assert "decisions differ (base yes, tuned no)" in told
    assert all(each.score < 0.05 for each in others)


def test_a_core_set_covers_what_random_choice_would_repeat():
    words = [f"what causes {name} in adults {n}" for name in ("gout", "asthma", "measles") for n in range(20)]
    pool = [candidate(each) for each in words]
    chosen = choose(pool, 3, "diversity", embed=embed)
    assert {each.candidate.example.question.split()[2] for each in chosen} == {"gout", "asthma", "measles"}
    known = [f"what causes gout in adults {n}" for n in range(20, 30)]
    new = choose(pool, 2, "diversity", known=known, embed=embed)
    assert {each.candidate.example.question.split()[2] for each in new} == {"asthma", "measles"}
    (far,) = choose([*pool, candidate("is ginseng safe")], 1, "novelty", known=words, embed=embed)
    assert far.candidate.id == "own:is ginseng safe"
    assert "farther from the known questions than 100% of them" in far.reasons["novel"]


def test_distances_are_those_of_the_definition():
    rng = np.random.default_rng(1)
    vectors, known = (rng.normal(size=(n, 8)).astype(np.float32) for n in (30, 40))
    for each in (vectors, known):
        each /= np.linalg.norm(each, axis=1, keepdims=True)
    far, close = nearest(vectors, known)
    sims = np.sort(vectors @ known.T, axis=1)
    assert np.allclose(far, 1 - sims[:, -5:].mean(axis=1), atol=1e-6)
    assert np.allclose(close, sims[:, -1], atol=1e-6)
    ranks, _ = novelty(known, known)
    assert ranks.max() <= 1
    assert ranks.min() >= 0
    assert nearest(known, known, skip_itself=True)[1].max() < 0.999


def test_a_queue_of_a_store_is_a_set_to_annotate_that_holds_no_identifier(tmp_path):
    folder = store(tmp_path / "store")
    done = meditune("learn", "queue", folder, "-o", tmp_path / "set", "--budget", "5", "--strategy", "feedback")
    assert done.code == 0, done.err
    assert "2 of 6 chosen." in done.out
    assert "a user wrote a correction" in done.out
    assert "The budget is 5, but only 2 candidates match --strategy feedback." in done.err
    found = read_set(tmp_path / "set")
    assert [item.question for item in found.items.values()] == ["Can children have migraine?", "Is asthma curable?"]
    corrected, disliked = found.items.values()
    assert (corrected.context[0].label, corrected.context[0].text) == (
        "A user's correction",
        "Yes, they can have it as well.",
    )
    assert corrected.axes == ("decision", "verdict")
    assert "Jane Miller" not in "".join((tmp_path / "set" / name).read_text() for name in ("items.jsonl", "key.json"))
    assert "[NAME]" in disliked.context[0].text
    again = meditune("learn", "queue", folder, "-o", tmp_path / "set", "--budget", "5", "--strategy", "feedback")
    assert again.code == 0, "the same queue is there already"
    other = meditune("learn", "queue", folder, "-o", tmp_path / "set", "--budget", "1", "--strategy", "feedback")
    other.refused(1, "holds something else")
    more = (
        "learn",
        "queue",
        folder,
        "-o",
        tmp_path / "next",
        "--earlier-queue",
        tmp_path / "set",
        "--strategy",
        "uncertainty",
    )
    told = json.loads(meditune(*more, "--json", "--budget", "4").out)
    assert not {"answers:corrected", "answers:disliked"} & {each["id"] for each in told["chosen"]}
    assert told["pool"] == 4


def test_rows_need_only_a_question_and_known_ones_arent_asked(tmp_path):
    path = jsonl(tmp_path / "pool.jsonl", [{"question": f"Is {n} safe?"} for n in range(6)] + [{"question": ""}])
    known = jsonl(tmp_path / "known.jsonl", [{"question": "is 3 SAFE", "answer": "Yes."}])
    done = meditune("learn", "queue", path, "--training-data", known, "-o", tmp_path / "set", "--strategy", "random")
    assert "5 of 5 chosen." in done.out
    assert "there are only 5 candidates; all are in the queue" in done.err
    assert "1 answers or rows without a question" in done.err
    assert {item.axes for item in read_set(tmp_path / "set").items.values()} == {("decision",)}
    pubmedqa = layouts.pubmedqa(tmp_path, {str(n): layouts.pubmedqa_item(n) for n in range(30)})
    assert {each.example.source for each in read(pubmedqa).candidates} == {"pubmedqa"}


def test_the_same_question_is_asked_once_and_counted(tmp_path):
    for n in range(3):
        keep(tmp_path, f"n{n}", "What causes gout?" if n else "what causes GOUT")
    done = meditune("learn", "queue", tmp_path, "-o", tmp_path / "set", "--strategy", "random")
    assert "1 of 1 chosen." in done.out
    assert "(asked 3 times)" in done.out


def test_stored_predictions_disagree(tmp_path):
    path = jsonl(tmp_path / "pool.jsonl", [{"id": n, "question": f"Is {n} safe?"} for n in range(3)])
    for name, likes in (("base-decision", "yes"), ("tuned-decision", "no")):
        lines = [
            {"id": f"own:{n}", "logits": {"yes": 0.0, "no": 0.0, "maybe": -5.0} | ({likes: 4.0} if n == 1 else {})}
            for n in range(3)
        ]
        jsonl(tmp_path / f"{name}.jsonl", lines)
    given = [w for name in ("base", "tuned") for w in ("--predictions", tmp_path / f"{name}-decision.jsonl")]
    words = ("learn", "queue", path, "-o", tmp_path / "set", "--strategy", "disagreement", "--budget", "1", "--json")
    (first,) = json.loads(meditune(*words, *given).out)["chosen"]
    assert first["id"] == "own:1"
    assert first["reasons"]["disagreeing"] == "decisions differ (base-decision yes, tuned-decision no)"
    jsonl(tmp_path / "other.jsonl", [{"id": "own:9", "logits": {"yes": 1, "no": 1, "maybe": 1}}])
    meditune(*words, "--predictions", tmp_path / "other.jsonl").refused(3, "none of its ids matches a candidate")


def test_what_cant_be_queued_is_told(tmp_path, monkeypatch):
    empty = tmp_path / "empty"
    database.SQLiteDatabase(empty)
    rows = jsonl(tmp_path / "rows.jsonl", [{"question": "Is it safe?"}])

    def refused(*words, code=3, told=()):
        meditune("learn", "queue", *words, "-o", tmp_path / "set").refused(code, *told)

    refused(empty, told=["no answers yet"])
    refused(tmp_path / "nowhere", told=["no such file or folder"])
    refused(rows, "--strategy", "best", told=["Unknown --strategy best", "mix, random"])
    refused(rows, "--strategy", "feedback", told=["no answer has been rated down"])
    refused(rows, "--strategy", "uncertainty", told=["--model MODEL"])
    refused(rows, "--strategy", "novelty", told=["--training-data FILE"])
    refused(rows, "--samples", "2", told=["--model MODEL"])
    refused(rows, "--training-data", rows, told=["none is left to ask"])
    keep(empty, "a", None)
    refused(empty, told=["--keep-text"])
    nothing = jsonl(tmp_path / "nothing.jsonl", [{"question": "", "answer": "So."}])
    refused(nothing, told=["no row has a question", "nothing.jsonl:1"])
    monkeypatch.setattr(database, "BUSY_S", 0.2)
    with sqlite3.connect(empty / database.FILE, isolation_level=None) as held:
        held.execute("PRAGMA locking_mode = EXCLUSIVE")
        held.execute("BEGIN EXCLUSIVE")
        refused(empty, told=["can't be used", "locked"])


def test_nobody_is_chosen_out_of_nothing_and_ties_are_settled_by_the_seed():
    assert choose([], 3) == []
    pool = [candidate(f"q {n}", probabilities={"tuned": TORN}) for n in range(20)]
    first = [ids(choose(pool, 5, "uncertainty", seed=seed)) for seed in (1, 1, 2)]
    assert first[0] == first[1] != first[2]
    with pytest.raises(DataError, match="Choose from"):
        choose(pool, 5, "luck")


def test_a_database_is_a_store_too_and_its_password_is_nowhere(postgres, tmp_path):
    url = store(postgres.new()).replace("meditune@", "meditune:secret@")
    done = meditune("learn", "queue", url, "-o", tmp_path / "set", "--strategy", "feedback")
    assert "2 of 6 chosen." in done.out, done.err
    assert not any("secret" in path.read_text() for path in (tmp_path / "set").iterdir())


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(tiny.save(tmp_path_factory.mktemp("model")))


def test_a_model_decides_and_writes_and_what_is_too_long_stays_without(model):
    pool = [
        candidate("Is asthma curable?", probabilities={"served": SURE}),
        candidate("word " * 3000),
        candidate("Does vitamin C help?"),
    ]
    found, too_long = acquisition.asked_decisions(pool, model, samples=2)
    assert too_long == [pool[1].id]
    assert [list(each.probabilities) for each in found] == [["served", model], [], [model]]
    assert [len(each.samples) for each in found] == [2, 0, 2]
    for each in (found[0], found[2]):
        chances = each.probabilities[model]
        assert set(chances) == set(DECISIONS)
        assert sum(chances.values()) == pytest.approx(1)
    assert found[0].probabilities[model] != found[2].probabilities[model]


def test_a_queue_asks_the_models_that_are_named(model, tmp_path):
    rows = jsonl(tmp_path / "rows.jsonl", [{"question": f"Does treatment {n} help?"} for n in range(4)])
    words = ("learn", "queue", rows, "--model", model, "--strategy", "uncertainty", "--budget", "2", "--json")
    found = json.loads(meditune(*words, "-o", tmp_path / "set").out)
    assert len(found["chosen"]) == 2
    assert all(
        each["reasons"]["unsure"].startswith("the model is unsure of the decision (") for each in found["chosen"]
    )
    assert found["chosen"][0]["score"] >= found["chosen"][1]["score"]
    meditune(*words, "-o", tmp_path / "x", "--model", tmp_path / "no-model").refused(4, "no-model")


def made(tmp_path, *words):
    done = meditune("learn", "queue", store(tmp_path / "store"), "-o", tmp_path / "set", "--strategy", "random", *words)
    assert done.code == 0, done.err
    return tmp_path / "set"


def test_what_experts_said_comes_back_as_rows_that_a_recipe_reads(tmp_path):
    folder = made(tmp_path)
    meditune("learn", "rows", folder, "-o", tmp_path / "x").refused(3, "no training rows yet (6 not judged yet)")
    judge(
        folder,
        "expert",
        {
            "answers:fine": ("yes", "correct", ""),
            "answers:disliked": ("maybe", "wrong", "It can be controlled, as Dr. Jane Miller of 555-123-4567 says."),
            "answers:unsupported": (None, "wrong", ""),
            "answers:corrected": ("neither", "incomplete", ""),
            "answers:abstained": ("neither", None, "By washing the wound and vaccination at once."),
        },
    )
    done = meditune("learn", "rows", folder, "-o", tmp_path / "expert.jsonl")
    assert "3 rows" in done.out
    assert f"Left out: 2, {NOTHING}." in done.out
    assert f"Left out: 1, {NOT_JUDGED}." in done.out
    found = {each.id: each for each in user_files.read(tmp_path / "expert.jsonl", Rejects())}
    fine, disliked = found["own:answers:fine"], found["own:answers:disliked"]
    assert (fine.answer, fine.decision, fine.meta["model"]) == ("It helps.", "yes", "tiny 1")
    assert disliked.decision == "maybe"
    assert disliked.answer.startswith("It can be controlled")
    assert "Miller" not in disliked.answer
    abstained = found["own:answers:abstained"]
    assert (abstained.answer, abstained.decision) == ("By washing the wound and vaccination at once.", None)
    assert fine.meta["expert"]["verdict"] == "correct"
    assert fine.meta["expert"]["raters"] == ["R1"]
    assert not any(passage.label.startswith("A user") for each in found.values() for passage in each.context)


def test_experts_who_disagree_teach_nothing_until_they_are_settled(tmp_path):
    folder = made(tmp_path)
    judge(folder, "one", {"answers:fine": ("yes", "correct", ""), "answers:unsure": ("no", "wrong", "")})
    judge(folder, "two", {"answers:fine": ("yes", "correct", ""), "answers:unsure": ("yes", "wrong", "")})
    found = rows(folder)
    assert [row["id"] for row in found.rows] == ["answers:fine"]
    assert found.left_out["raters disagree"] == 1
    assert [row["decision"] for row in rows(folder, excluded_raters=["two"]).rows if row["id"] == "answers:unsure"] == [
        "no"
    ]


def test_the_annotation_commands_take_a_queue(tmp_path):
    folder = made(tmp_path)
    judge(folder, "one", {"answers:fine": ("yes", "correct", ""), "answers:unsure": ("no", "wrong", "")})
    judge(folder, "two", {"answers:fine": ("maybe", "correct", "")})
    assert meditune("annotate", "results", folder).code == 0
    results = read_json(folder / "results.json")
    assert results["sample"] == "queue"
    assert results["rows_by_verdict"]["correct"] == 1
    assert results["decisions"] == {"yes": 0, "no": 1, "maybe": 0, "neither": 0, "undecided": 1}
    assert meditune("annotate", "export", folder, "--to", tmp_path / "said.csv").code == 0
    assert "3 unchanged" not in meditune("annotate", "import", folder, tmp_path / "said.csv").err
    assert meditune("annotate", "export", folder, "--to", tmp_path / "said.json").code == 0
    assert 'name="decision"' in (tmp_path / "said.xml").read_text()


def test_a_set_of_another_kind_is_refused(tmp_path):
    table = jsonl(tmp_path / "mine.jsonl", [{"question": f"Why {n}?", "answer": "So it is."} for n in range(4)])
    assert meditune("annotate", "create", table, "-o", tmp_path / "set").code == 0
    meditune("learn", "rows", tmp_path / "set", "-o", tmp_path / "x").refused(
        3, "was not made by `meditune learn queue`"
    )
    assert read_jsonl(table)


@pytest.mark.browser
def test_an_expert_labels_by_keys_and_writes_what_is_missing(tmp_path):
    folder = tmp_path / "set"
    words = ("learn", "queue", store(tmp_path / "store"), "-o", folder, "--strategy", "feedback")
    assert meditune(*words).code == 0
    assert meditune("learn", "queue", tmp_path / "store", "-o", tmp_path / "all", "--strategy", "random").code == 0
    with chromium() as browser, served(folder, command="annotate") as (_, address):
        page = opened(browser, address)
        sign_in(page, "expert")
        for _ in range(2):
            page.get_by_text("2 of 2 still to rate for this answer.").wait_for()
            if page.get_by_role("heading", name="Can children have migraine?").is_visible():
                assert page.get_by_text("Yes, they can have it as well.").is_visible(), "the user's correction is shown"
                page.keyboard.press("1")  # yes
                page.keyboard.press("3")  # wrong
                page.keyboard.press("b")
                page.locator("#better").fill("Children can have migraine, too.")
                page.keyboard.press("Escape")
            else:
                page.keyboard.press("3")  # maybe
                page.keyboard.press("1")  # correct
            saved(page)
            page.keyboard.press("Enter")
        page.get_by_role("heading", name="All done. Thank you.").wait_for()
        assert page.problems == []
    found = {row["id"]: (row["decision"], row["answer"]) for row in rows(folder).rows}
    assert found == {
        "answers:corrected": ("yes", "Children can have migraine, too."),
        "answers:disliked": ("maybe", "It helps."),
    }


@pytest.mark.browser
def test_a_question_without_an_answer_asks_for_no_verdict(tmp_path):
    folder = tmp_path / "set"
    words = ("learn", "queue", store(tmp_path / "store"), "-o", folder, "--strategy", "uncertainty")
    assert meditune(*words).code == 0
    with chromium() as browser, served(folder, command="annotate") as (_, address):
        page = opened(browser, address)
        sign_in(page, "expert")
        while not page.get_by_role("heading", name="How is rabies treated?").is_visible():
            page.keyboard.press("ArrowRight")
            page.wait_for_timeout(200)
        assert page.locator("#axes .axis").count() == 1
        page.keyboard.press("4")  # neither
        page.keyboard.press("b")
        page.locator("#better").fill("By vaccination at once.")
        page.keyboard.press("Escape")
        saved(page)
    assert [(row["decision"], row["answer"]) for row in rows(folder).rows] == [("", "By vaccination at once.")]
