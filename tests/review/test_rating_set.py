"""Rating sets: blinded, shuffled, shared among raters, and refused where they can't be made.

What was said is kept: repeated, changed, taken back, by several at once, and through a killed process.
"""

import os
import signal
import subprocess
import sys
import threading
from collections import Counter
from itertools import combinations

import pytest

from meditune.errors import DataError, MedituneError
from meditune.files import read_json, write_json
from meditune.review.rating_set import BLOCK, create, read_key, read_set
from meditune.review.ratings_store import ADJUDICATION, Note, Rating, Store
from tests.commands import meditune
from tests.review.known_ratings import finished


def made(tmp_path, questions=6, axes="expert", raters=None, overlap=None, seed=17, **changed):
    run = finished(tmp_path / "run", questions, **changed)
    create(run, tmp_path / "review", questions, axes, raters, overlap, seed)
    return read_set(tmp_path / "review")


def test_all_answers_are_there_and_only_the_key_tells_whose(tmp_path):
    found = made(tmp_path)
    key, made_from = read_key(tmp_path / "review")
    assert Counter(origin for row in key.values() for origin in row.origins) == {"base": 6, "tuned": 6, "reference": 6}
    for id, row in key.items():
        n = row.example.partition(":")[2]
        assert found.items[id].question == f"Does treatment {n} help?"
        assert ("may help most" in found.items[id].answer) == (row.origins == ("tuned",))
    assert made_from["seed"] == 17
    for name in ("set.json", "items.jsonl"):
        text = (tmp_path / "review" / name).read_text()
        assert not any(word in text for word in ("tuned", "base", "reference", "pubmedqa:", "seed"))


def test_ids_and_order_say_nothing_and_differ_from_set_to_set(tmp_path):
    run = finished(tmp_path / "run", 40)
    seen = []
    for name in ("one", "two"):
        create(run, tmp_path / name, 40, "lay", None, None, 17)
        key, _ = read_key(tmp_path / name)
        items = list(read_set(tmp_path / name).items)
        seen.append([key[id].origins[0] for id in items])
        by_id = [key[id].origins[0] for id in sorted(items)]
        for order in (seen[-1], by_id):
            assert 8 < order[:60].count("tuned") < 32
    assert seen[0] != seen[1]


def test_the_seed_chooses_the_questions(tmp_path):
    run = finished(tmp_path / "run", 30)
    chosen = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        create(run, tmp_path / name, 5, "lay", None, None, seed)
        chosen.append({row.example for row in read_key(tmp_path / name)[0].values()})
    assert len(chosen[0]) == 5
    assert chosen[0] == chosen[1] != chosen[2]


def test_the_same_answer_twice_is_rated_once_and_spaces_tell_nothing(tmp_path):
    said = made(tmp_path, 2, base={0: "Yes,  it helps.\n"}, tuned={0: "Yes, it helps."}, reference={1: "  "})
    key, _ = read_key(tmp_path / "review")
    assert Counter(row.origins for row in key.values()) == {
        **{("base", "tuned"): 1, ("reference",): 1},
        **{("base",): 1, ("tuned",): 1},
    }
    assert {item.answer for item in said.items.values()} >= {"Yes, it helps."}


def test_an_empty_answer_is_rated_too(tmp_path):
    said = made(tmp_path, 2, tuned={0: ""})
    assert sum(not item.answer for item in said.items.values()) == 1


def test_a_rater_sees_each_answer_once_and_no_question_twice_in_a_row(tmp_path):
    said = made(tmp_path, 20)
    orders = [said.work(place) for place in range(3)]
    assert all(Counter(order) == Counter(list(said.items)) for order in orders)
    assert orders[0] != orders[1]
    assert orders[0] == read_set(tmp_path / "review").work(0)
    asked = [said.items[id].asked for id in orders[0]]
    for start in range(0, 3 * BLOCK, BLOCK):
        assert len(set(asked[start : start + BLOCK])) == BLOCK
    assert len(set(asked[: 3 * BLOCK])) == BLOCK, "a block of questions is finished before the next begins"


@pytest.mark.parametrize(("raters", "overlap"), [(3, 2), (4, 1), (4, 2), (2, 2)])
def test_raters_share_the_work_evenly(tmp_path, raters, overlap):
    said = made(tmp_path, 24, raters=raters, overlap=overlap)
    shares = [set(said.work(place)) for place in range(raters)]
    assert all(sum(id in share for share in shares) == overlap for id in said.items)
    assert max(map(len, shares)) - min(map(len, shares)) <= 3 * 2
    if overlap == 2:
        together = [len(a & b) for a, b in combinations(shares, 2)]
        assert min(together) > 0
        assert max(together) - min(together) <= 3
    assert set(said.work(raters)) == shares[0], "who comes late takes the first share again"


def test_many_raters_get_the_same_number_of_questions_and_keep_them(tmp_path):
    """There are 120 teams of three of ten raters, but only 30 questions."""
    said = made(tmp_path, 30, raters=10, overlap=3)
    shares = [said.work(place) for place in range(10)]
    assert [len({said.items[id].asked for id in share}) for share in shares] == [9] * 10
    assert set(Counter(id for share in shares for id in share).values()) == {3}
    assert [read_set(tmp_path / "review").work(place) for place in range(10)] == shares
    earlier = read_json(tmp_path / "review" / "set.json") | {"shuffle": "0"}
    del earlier["balanced"]
    write_json(tmp_path / "review" / "set.json", earlier)
    as_dealt = read_set(tmp_path / "review")
    assert [len(as_dealt.work(place)) // 3 for place in range(10)] == [6, 12, 9, 7, 12, 9, 8, 9, 9, 9]


def test_the_same_command_leaves_the_set_as_it_is_and_another_is_refused(tmp_path):
    before = [*made(tmp_path).items]
    assert [*made(tmp_path).items] == before
    with pytest.raises(MedituneError, match="contains something else"):
        made(tmp_path, seed=18)
    store = Store(tmp_path / "review")
    for name in ("Anna", "Ben"):
        store.save([Rating(store.rater(name).id, before[0], "harm_extent", 1, 2.0)])
    with pytest.raises(MedituneError, match="a rating set with 2 ratings by 2 raters") as refused:
        made(tmp_path, seed=18)
    assert f"`meditune review serve {tmp_path / 'review'}`" in str(refused.value)
    assert "remove" not in str(refused.value), "advice to delete what raters did"


def test_bad_input_is_told(tmp_path):
    run = finished(tmp_path / "run")
    meditune("review", "create", tmp_path).refused(3, "contains no run")
    meditune("review", "create", run, "--form", "doctor").refused(3, "no form 'doctor'", "expert, lay")
    meditune("review", "create", run, "--overlap", 2).refused(1, "--raters")
    meditune("review", "create", run, "--raters", 2, "--overlap", 3).refused(1, "at most 2")
    meditune("review", "serve", run).refused(3, "contains no rating set", "meditune review create")
    for model in ("base", "tuned"):
        (run / "predictions" / f"{model}-answer.jsonl").rename(run / "predictions" / f"{model}-likelihood.jsonl")
    with pytest.raises(DataError, match="no written answers"):
        create(run, tmp_path / "other", 3, "lay", None, None, 1)


def test_the_default_place_is_in_the_run(tmp_path):
    run = finished(tmp_path / "run")
    done = meditune("review", "create", run, "--questions", 2, "--form", "lay").ok()
    assert "6 answers to 2 questions" in done.out
    assert read_json(run / "review" / "set.json")["axes"] == "lay"


def test_saying_it_again_changes_nothing_and_saying_another_thing_does(tmp_path):
    store = Store(tmp_path)
    rater = store.rater("Ann").id
    for option in (2, 2, 3):
        store.save([Rating(rater, "i", "harm", option, 1.5)])
    store.save([Rating(rater, "i", "bias", None, 1.0), Rating(rater, "i", "harm", 1, 1.0, round=ADJUDICATION)])
    assert {(r.axis, r.option, r.round) for r in store.ratings()} == {
        *(("harm", 3, 1), ("bias", None, 1)),
        ("harm", 1, ADJUDICATION),
    }
    store.remove(rater, "i", "harm")
    store.remove(rater, "i", "harm")
    assert {(r.axis, r.round) for r in store.ratings(item="i")} == {("bias", 1), ("harm", ADJUDICATION)}


def test_names_are_one_without_regard_to_case_and_spaces(tmp_path):
    store = Store(tmp_path)
    first, second = store.rater("Ann  Lee"), store.rater("Bo")
    assert store.rater(" ann LEE ").id == first.id
    assert [(r.name, r.code, r.place) for r in store.raters().values()] == [("Ann Lee", "R1", 0), ("Bo", "R2", 1)]
    assert second.id != first.id


def test_who_only_adjudicates_takes_no_share_of_the_first_round(tmp_path):
    store = Store(tmp_path)
    assert store.rater("Chief", takes_share=False).place is None
    assert store.rater("Ann").place == 0
    assert store.rater("Chief").place == 1


def test_an_empty_note_is_no_note(tmp_path):
    store = Store(tmp_path)
    rater = store.rater("Ann").id
    store.save([], [Note(rater, "i", "Hm.", "")])
    assert [note.comment for note in store.notes()] == ["Hm."]
    store.save([], [Note(rater, "i", " ", "")])
    assert store.notes() == []


def test_all_or_nothing(tmp_path):
    store = Store(tmp_path)
    rater = store.rater("Ann").id
    with pytest.raises(MedituneError):
        store.save([Rating(rater, "i", "harm", 1, 1.0), Rating("nobody", "i", "harm", 1, 1.0)])
    assert store.ratings() == []


def test_raters_at_once_lose_nothing(tmp_path):
    Store(tmp_path)

    def rate(name):
        store = Store(tmp_path)
        rater = store.rater(name).id
        for number in range(20):
            store.save([Rating(rater, f"i{number}", "harm", 1, 1.0)])

    threads = [threading.Thread(target=rate, args=(f"rater {n}",)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(Store(tmp_path).ratings()) == 80
    assert sorted(rater.place for rater in Store(tmp_path).raters().values()) == [0, 1, 2, 3]


def test_a_killed_process_loses_nothing_that_it_stored(tmp_path):
    code = (
        "import sys; from pathlib import Path; from meditune.review.ratings_store import *\n"
        "store = Store(Path(sys.argv[1])); rater = store.rater('Ann').id\n"
        "for n in range(10**6):\n    store.save([Rating(rater, f'i{n}', 'harm', 1, 1.0)]); print(n, flush=True)"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    said = [process.stdout.readline() for _ in range(25)]
    os.kill(process.pid, signal.SIGKILL)
    said += process.communicate()[0].splitlines(keepends=True)
    last = max(int(line) for line in said if line.endswith("\n"))
    assert {f"i{n}" for n in range(last + 1)} <= {r.item for r in Store(tmp_path).ratings()}


def test_a_damaged_file_is_told(tmp_path):
    (tmp_path / "ratings.sqlite").write_bytes(b"no database at all, and long enough to be looked at" * 40)
    with pytest.raises(MedituneError, match=r"ratings\.sqlite cannot be used"):
        Store(tmp_path)
