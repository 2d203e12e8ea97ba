"""Retraining: what is learnt from where, what is held out, the gate, going on after a kill, two at once.

The recipe of a retraining says for whom new rows are.

What a gate on new items asks for where the user says nothing, and where too little is there to judge by.

Of several corrections of one answer an expert's counts, and the decision that was named with it.

Where rows go that come again: nothing leaves the place that it had.
"""

from __future__ import annotations

import json
import re
import shutil
import signal
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from meditune.config.load_recipe import save
from meditune.config.recipe import Recipe
from meditune.data.example import Example, read_examples
from meditune.data.splits import Splits
from meditune.errors import DataError, Stopped
from meditune.evaluate.quality_gate import Policy
from meditune.files import read_json, read_jsonl, write_json
from meditune.model_registry import Registry
from meditune.operate.retraining.new_training_data import Shares, TrainingDataSources, deal, gather
from meditune.operate.retraining.release_gate import MIN_GROUPS, NEW, OLD, judge, unjudged, usual
from meditune.operate.retraining.retrain import Options, Work, _export, derive_recipe
from meditune.store.answers import Answer, Answers, Feedback
from meditune.store.database import SQLiteDatabase
from tests.commands import Bench, jsonl, meditune, rows, stopped_after
from tests.test_model_registry import finished
from tests.waiting import until

FEW = ("--min-rows", 5, "--set", "train.epochs=1")
EASY = "not_worse: []\nwithin: {perplexity: 100000}\n"


@pytest.fixture(scope="module")
def first(place: Bench) -> Path:
    """A registry with one version, to be copied."""
    folder = place.folder.parent / "first"
    run = finished(place, evaluate__answers=8)
    meditune("registry", "add", folder, run).ok()
    return folder


@pytest.fixture
def registry(first: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(first, tmp_path / "registry"))


@pytest.fixture
def easy(tmp_path: Path) -> tuple[str | Path, ...]:
    """Policies that any version meets."""
    policy = tmp_path / "easy.yaml"
    policy.write_text(EASY)
    return "--gate", policy, "--gate-new", policy


def labelled(tmp_path: Path, count: int = 40, **changes: object) -> Path:
    return jsonl(tmp_path / "labels.jsonl", rows(count, **changes))


def store_of(folder: Path) -> Answers:
    """A store with twelve corrected answers of one key, one of a stranger, and one whose question wasn't kept."""
    answers = Answers(SQLiteDatabase(folder))
    for number in range(14):
        question = None if number == 13 else f"Does garden herb number {number} ease a cough at night?"
        answers.keep(Answer(f"ask-{number}", "k1", "ask", "tiny v0001", question=question, answer="It helps."))
        who = "stranger" if number == 12 else "k1"
        said = f"{'Yes' if number % 2 else 'No'}, garden herb number {number} was tried in {number + 20} adults."
        answers.add_feedback(Feedback(f"ask-{number}", who, "down", correction=said))
    # An expert overrides what a trusted key said before.
    answers.add_feedback(
        Feedback("ask-0", "k9", "down", decision="maybe", correction="Nobody has tried it.", expert=True)
    )
    return answers


@contextmanager
def killed_at(place: str) -> Iterator[None]:
    """Inside the block a retraining is stopped where it calls that."""

    def killed(*_: object, **__: object) -> None:
        raise Stopped

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(f"meditune.operate.retraining.{place}", killed)
        yield


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (3, ("--gate", "nosuch.yaml")),
        (3, ("--gate-new", "nosuch.yaml")),
        (4, ("--export", "ggfu")),
        (3, ("--on-pass", "canary", "--percent", "200")),
    ],
)
def test_wrong_options_are_refused_before_anything_is_trained(registry: Path, tmp_path: Path, code, words) -> None:
    refused = meditune("retrain", registry, "--labels", labelled(tmp_path), *FEW, *words)
    refused.refused(code, words[-1])
    assert not (registry / "work").exists()


def test_corrections_and_labels_become_a_better_judged_version(registry: Path, easy, tmp_path: Path) -> None:
    store_of(tmp_path / "store")
    labels = labelled(tmp_path, 30, answer_id=lambda n: "ask-1" if n < 29 else "ask-gone")
    words = (registry, "--store", tmp_path / "store", "--trust", "k1", "--labels", labels, *FEW, *easy)
    done = meditune("retrain", *words).ok()
    assert "1 corrections by untrusted callers" in done.err
    assert "1 corrections of answers whose question wasn't stored" in done.err
    assert "1 labels of answers that are not in the store" in done.err
    assert done.last == "v0002 passed its gate against v0001 and is now served."
    found = Registry(registry)
    made = found.checked("v0002")
    assert made.parents == ("v0001",)
    assert {kind: row["rows"] for kind, row in made.fed.items() if kind != "replay"} == {"feedback": 12, "labels": 29}
    assert set(made.gate["on"]) == {"old", "new"}
    data = {name: read_examples(found.place("v0002") / "data" / f"{name}.jsonl") for name in ("train", "dev", "test")}
    new = [example for example in data["train"] if example.meta.get("kind")]
    old = [example for example in data["train"] if not example.meta.get("kind")]
    assert len(old) == made.fed["replay"]["rows"] == min(len(new), 32)
    assert {example.meta["kind"] for example in new} == {"feedback", "labels"}
    herb = next(example for example in new if example.meta["kind"] == "feedback")
    assert herb.decision in {"yes", "no", "maybe"}
    every = [example for examples in data.values() for example in examples]
    (overridden,) = [example for example in every if example.id.endswith("feedback-ask-0")]
    assert (overridden.decision, overridden.answer) == ("maybe", "Nobody has tried it.")
    before = read_examples(found.place("v0001") / "data" / "test.jsonl")
    assert [example.id for example in data["test"]][: len(before)] == [example.id for example in before]
    assert len(data["test"]) - len(before) == made.gate["on"]["new"]["items"] > 0
    assert not (registry / "work").exists()
    # It is served by itself, whatever becomes of the version before.
    shutil.rmtree(found.place("v0001"))
    meditune("ask", found.place("v0002"), "Does the drug help?").ok()


def test_what_was_held_out_is_held_out_for_good(registry: Path, easy, tmp_path: Path) -> None:
    meditune("retrain", registry, "--labels", labelled(tmp_path, 40), *FEW, *easy).ok()
    again = meditune("retrain", registry, "--labels", tmp_path / "labels.jsonl", *FEW, *easy).ok()
    assert "0 of 40 rows are new" in again.out
    assert Registry(registry).state().current == "v0002"
    more = labelled(tmp_path, 70)
    meditune("retrain", registry, "--labels", more, *FEW, *easy).ok()
    found = Registry(registry)
    tested = {example.id for example in read_examples(found.place("v0002") / "data" / "test.jsonl")}
    later = {name: read_examples(found.place("v0003") / "data" / f"{name}.jsonl") for name in ("train", "test")}
    assert tested <= {example.id for example in later["test"]}
    assert not tested & {example.id for example in later["train"]}


def test_one_that_fails_its_gate_is_kept_and_not_served(registry: Path, tmp_path: Path) -> None:
    (tmp_path / "hard.yaml").write_text("at_least: {accuracy: 101}\n")
    words = (registry, "--labels", labelled(tmp_path), *FEW, "--gate", tmp_path / "hard.yaml")
    done = meditune("retrain", *words)
    assert done.code == 5
    assert "FAILED accuracy" in done.out
    assert "v0002 did not pass its gate: v0001 stays in use." in done.out
    assert Registry(registry).state().current == "v0001"
    meditune("registry", "promote", registry, "v0002").refused(5, "accuracy on old items does not meet 'at least 101'")


def test_one_that_too_few_items_judge_is_kept_for_people_to_decide(registry: Path, tmp_path: Path) -> None:
    done = meditune("retrain", registry, "--labels", labelled(tmp_path), *FEW)
    assert done.code == 5
    assert "The gate cannot judge v0002: v0001 stays in use." in done.out
    promote = ("registry", "promote", registry, "v0002")
    meditune(*promote).refused(5, "groups, but 20 are needed for a decision")
    assert "20 are needed" in meditune("registry", "show", registry, "v0002").out
    meditune(*promote, "--force", "--reason", "two of us read its answers").ok()


def test_too_little_that_is_new_trains_nothing(registry: Path, tmp_path: Path) -> None:
    done = meditune("retrain", registry, "--labels", labelled(tmp_path, 4)).ok()
    assert "4 of 4 rows are new, but at least 20 are needed" in done.out
    assert "v0001 stays" in done.out
    assert not (registry / "work").exists()
    meditune("retrain", registry).refused(3, "There are no new data")
    meditune("retrain", registry, "--store", tmp_path / "nothing").refused(3, "is not a server's store")


def test_it_goes_on_where_it_was_stopped(registry: Path, easy, tmp_path: Path) -> None:
    words = ("--labels", labelled(tmp_path), *FEW, *easy, "--set", "train.batch_size=1", "--set")
    words = (*words, "train.checkpoint_steps=1")
    whole = Path(shutil.copytree(registry, tmp_path / "whole"))
    meditune("retrain", whole, *words).ok()
    with stopped_after(3):
        stopped = meditune("retrain", registry, *words)
    assert stopped.code == 130
    other = meditune("retrain", registry, "--labels", tmp_path / "labels.jsonl", *easy)
    other.refused(1, "is unfinished", "settings", "--restart")
    # What comes meanwhile waits for the next one.
    labelled(tmp_path, 60)
    done = meditune("retrain", registry, *words).ok()
    assert "Resuming the retraining" in done.err
    assert "Resuming training after step" in done.err
    made, same = (
        Registry(folder).place("v0002") / "model" / "adapter_model.safetensors" for folder in (registry, whole)
    )
    assert made.read_bytes() == same.read_bytes()


def test_two_at_once_and_a_kill(place: Bench, registry: Path, easy, tmp_path: Path) -> None:
    words = ("retrain", registry, "--labels", labelled(tmp_path), *FEW, *easy)
    with place.started(*words) as process:
        until((registry / "work" / "retrain.json").is_file)
        second = meditune(*words)
        process.send_signal(signal.SIGKILL)
        process.wait(30)
    second.refused(1, "Another retraining is running in")
    assert Registry(registry).state().current == "v0001"
    meditune(*words).ok()
    state = Registry(registry).state()
    assert (state.current, list(state.versions)) == ("v0002", ["v0001", "v0002"])


def test_a_version_that_was_added_before_the_kill_isnt_added_twice(registry: Path, easy, tmp_path: Path) -> None:
    words = ("retrain", registry, "--labels", labelled(tmp_path), *FEW, *easy, "--on-pass", "keep")
    with killed_at("retrain._release"):
        assert meditune(*words).code == 130
    assert list(Registry(registry).state().versions) == ["v0001", "v0002"]
    done = meditune(*words).ok()
    assert list(Registry(registry).state().versions) == ["v0001", "v0002"]
    assert "meditune registry promote" in done.last


def test_a_kill_right_after_promoting_keeps_no_later_one_from_its_turn(registry: Path, easy, tmp_path: Path) -> None:
    words = ("retrain", registry, *FEW, *easy, "--labels")
    promote = Registry.promote

    def killed(*given: Any) -> None:
        promote(*given)
        raise Stopped

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Registry, "promote", killed)
        assert meditune(*words, labelled(tmp_path)).code == 130
    found = Registry(registry)
    assert (found.state().current, (registry / "work").exists()) == ("v0002", True)
    done = meditune(*words, labelled(tmp_path, 70)).ok()
    assert "v0002 was finished earlier and promoted at " in done.err
    assert found.state().current == "v0003"
    assert found.checked("v0003").fed["labels"]["rows"] == 70
    assert len(list((registry / "rows").iterdir())) == 2


def test_what_goes_on_from_a_version_that_isnt_served_any_more_is_dropped(registry: Path, easy, tmp_path: Path) -> None:
    words = ("retrain", registry, *FEW, *easy, "--labels")
    meditune(*words, labelled(tmp_path)).ok()
    with killed_at("retrain._export"):
        assert meditune(*words, labelled(tmp_path, 70)).code == 130
    found = Registry(registry)
    found.rollback("by hand")
    done = meditune(*words, tmp_path / "labels.jsonl").ok()
    assert "v0001 is served now. That retraining is dropped" in done.err
    assert (found.state().current, found.get("v0003").parents) == ("v0003", ("v0001",))
    assert len(list((registry / "rows").iterdir())) == 2


def test_a_source_that_comes_meanwhile_waits_for_the_next_one(registry: Path, easy, tmp_path: Path) -> None:
    labels = labelled(tmp_path)
    more = jsonl(tmp_path / "more.jsonl", rows(20, question=lambda n: f"Does new lotion {n} help?"))
    words = ("retrain", registry, *FEW, *easy, "--labels", labels)
    with killed_at("retrain._export"):
        assert meditune(*words).code == 130
    done = meditune(*words, "--labels", more).ok()
    assert "the next retraining will use the new sources" in done.err
    assert Registry(registry).get("v0002").fed["labels"]["rows"] == 40


def test_what_was_rolled_back_or_refused_is_trained_again_of_the_same_rows(
    registry: Path, easy, tmp_path: Path
) -> None:
    (tmp_path / "hard.yaml").write_text("at_least: {accuracy: 101}\n")
    words = ("retrain", registry, "--labels", labelled(tmp_path), *FEW)
    found = Registry(registry)
    meditune(*words, *easy).ok()
    found.rollback("by hand")
    assert meditune(*words, "--gate", tmp_path / "hard.yaml").code == 5
    meditune(*words, *easy, "--set", "train.epochs=3").ok()
    assert found.state().current == "v0004"
    assert (found.place("v0004") / "recipe.yaml").read_text() != (found.place("v0003") / "recipe.yaml").read_text()


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("retrain.json", {"id": "1", "begun": "now", "parent": "v0001", "options": {}}),
        ("retrain.json", {"id": "1", "started": "now", "parent": "v0001", "options": {}, "seed": 1}),
        ("retrain.json", {"id": "1", "started": "now", "parent": "v0001"}),
        ("retrain.json", ["1"]),
        ("retrain.json", None),
        ("gathered.json", {"new": [], "fed": {"labels": 30}, "index": ""}),
        ("gathered.json", {"new": [], "fed": {}}),
    ],
)
def test_an_unfinished_retraining_with_unknown_or_missing_keys_is_refused_with_what_to_do(
    tmp_path: Path, file: str, content: Any
) -> None:
    work = Work(Registry(tmp_path))
    work.folder.mkdir()
    path = work.folder / file
    path.write_text(json.dumps(content) if content else '{"id":')
    said = f"{re.escape(str(path))} is damaged, or another version .* Delete {re.escape(str(work.folder))} to drop"
    with pytest.raises(DataError, match=said):
        work.read() if file == "retrain.json" else work.gathered()


def test_no_password_of_a_database_is_written_down() -> None:
    options = Options(TrainingDataSources("postgresql://nurse:s3cret@db.example:5432/clinic?password=s3cret"))
    assert options.result_options()["sources"]["store"] == "postgresql://nurse@db.example:5432/clinic"
    assert "s3cret" not in json.dumps(options.result_options())


def test_items_that_are_measured_on_arent_learnt(registry: Path, easy, tmp_path: Path) -> None:
    tests = read_examples(Registry(registry).place("v0001") / "data" / "test.jsonl")
    stolen = [
        {"id": f"stolen-{n}", "question": each.question, "answer": "It does help, as we know.", "decision": "yes"}
        for n, each in enumerate(tests)
    ]
    path = jsonl(tmp_path / "labels.jsonl", [*rows(30), *stolen])
    done = meditune("retrain", registry, "--labels", path, *FEW, *easy).ok()
    assert "similar to a held-out item" in done.err
    learnt = read_examples(Registry(registry).place("v0002") / "data" / "train.jsonl")
    assert not [example.id for example in learnt if "stolen" in example.id]


def test_lineage_says_what_it_was_made_of(registry: Path, easy, tmp_path: Path) -> None:
    literature = tmp_path / "literature"
    literature.mkdir()
    jsonl(literature / "pairs.jsonl", rows(30, meta=lambda n: {"url": f"https://example.org/{n}"}))
    done = meditune(
        "retrain", registry, "--literature", literature, *FEW, *easy, "--on-pass", "canary", "--percent", 5
    ).ok()
    assert done.last.endswith("and is a canary in 5% of the conversations.")
    said = json.loads((Registry(registry).place("v0002") / "version.json").read_text())
    (rows_file,) = registry.glob("rows/*/literature.jsonl")
    assert said["fed"]["literature"]["rows"] == 30
    recipe = (Registry(registry).place("v0002") / "recipe.yaml").read_text()
    assert str(rows_file.resolve()) in recipe
    shown = meditune("registry", "show", registry, "v0002").out
    assert "new: 30 rows of literature" in shown
    assert "Gate, against v0001: passed" in shown
    assert read_json(registry / "registry.json")["trial"]["version"] == "v0002"


NONE = Splits([], [], [], "test")
PLAIN, EXPERT = {"name": "medquad", "style": "plain"}, {"name": "pubmedqa"}
OWN = {"name": "own", "path": "rows.jsonl", "style": "plain"}


@pytest.mark.parametrize(
    ("sources", "synthetic", "expected"),
    [
        ([PLAIN], False, [("medquad", "plain"), ("own", "plain")]),
        ([OWN], False, [("own", "plain")]),
        ([PLAIN, EXPERT], False, [("medquad", "plain"), ("pubmedqa", "expert"), ("own", "expert")]),
        ([PLAIN], True, [("sample", "plain"), ("own", "plain")]),
        ([EXPERT], False, [("pubmedqa", "expert"), ("own", "expert")]),
    ],
)
def test_new_rows_have_the_style_that_all_old_ones_had(tmp_path, sources, synthetic, expected):
    plain = any(source.get("style") for source in sources)
    said = {"data": {"sources": sources}, "prompt": {"plain_cue": "In plain words:"} if plain else {}}
    save(Recipe.model_validate({"name": "first", **said}), tmp_path / "recipe.yaml")
    made = derive_recipe(tmp_path, NONE, NONE, [Path("new.jsonl")], synthetic)
    assert [(source.name, source.style) for source in made.data.sources] == expected


MEASURED = {"accuracy": {}, "macro_f1": {}, "perplexity": {}}


def test_new_answers_must_be_likelier_and_where_there_are_only_decisions_more_must_be_right() -> None:
    assert usual(NEW, MEASURED, {}).better == ["perplexity"]
    assert usual(NEW, {"accuracy": {}, "macro_f1": {}}, {}).better == ["accuracy"]
    assert usual(OLD, MEASURED, {"perplexity": 10.0}).better == []


def test_luck_isnt_taken_for_a_better_model() -> None:
    held = usual(NEW, MEASURED, {})
    assert "Perplexity was measured on new items of 1 groups, but 20 are needed" in unjudged(NEW, 1, held, is_own=False)
    assert unjudged(NEW, MIN_GROUPS, held, is_own=False) == ""
    assert "an improvement cannot be detected" in unjudged(
        NEW, MIN_GROUPS, usual(NEW, {"rougeL": {}}, {}), is_own=False
    )
    assert "The policy has no rule" in unjudged(NEW, MIN_GROUPS, Policy(), is_own=True)
    assert "The policy has no rule" in unjudged(OLD, MIN_GROUPS, usual(OLD, {}, {}), is_own=False)
    # Somebody who wrote a policy knows how many items there are.
    assert unjudged(NEW, 1, Policy(better=["accuracy"]), is_own=True) == ""


def measured(folder: Path, decided: int, scored: int) -> set[str]:
    """A run on 30 old items and 40 new ones, of which so many have decisions and scored answers; the ids of the new."""
    old, new = [f"old:{n}" for n in range(30)], [f"new:{n}" for n in range(40)]
    (folder / "data").mkdir(parents=True)
    (folder / "predictions").mkdir()
    (folder / "recipe.yaml").write_text("name: quickstart\n", encoding="utf-8")
    items = [{"id": id, "source": "own", "question": f"{id}?", "answer": "So.", "group": id} for id in (*old, *new)]
    jsonl(folder / "data" / "test.jsonl", items)
    for side, loss in (("base", 4.0), ("tuned", 3.0)):
        decisions = [
            {"id": id, "reference": "yes", "prediction": "yes", "logits": LOGITS} for id in (*old, *new[:decided])
        ]
        jsonl(folder / "predictions" / f"{side}-decision.jsonl", decisions)
        losses = [{"id": id, "nll": loss, "tokens": 2, "bytes": 3} for id in (*old, *new[:scored])]
        jsonl(folder / "predictions" / f"{side}-likelihood.jsonl", losses)
    return set(new)


LOGITS = {"yes": 1.0, "no": 0.0, "maybe": 0.0}


@pytest.mark.parametrize(
    ("decided", "scored", "said"),
    [
        (40, 1, "Perplexity was measured on new items of 1 groups"),
        (0, 0, "The policy has no rule for the new items"),
        (0, 40, ""),
    ],
)
def test_new_items_count_where_what_decides_was_measured_on_them(
    tmp_path: Path, decided: int, scored: int, said: str
) -> None:
    new = measured(tmp_path / "run", decided, scored)
    judged = judge(tmp_path / "run", new, (None, None), 200, 1)
    assert judged["on"]["new"]["unjudged"].startswith(said)
    assert judged["passed"] is (said == "")


def test_an_expert_overrides_what_others_say_later(tmp_path: Path) -> None:
    answers = Answers(SQLiteDatabase(tmp_path / "store"))
    for id in ("a", "b", "c"):
        answers.keep(Answer(id, "k", "ask", "tiny", question=f"Does herb {id} help?", answer="It helps."))
    right, wrong = "The herb was never tried.", "Yes, my aunt takes it."
    answers.add_feedback(Feedback("a", "expert", "down", correction=right, decision="maybe", expert=True, time=1.0))
    answers.add_feedback(Feedback("a", "nurse", "down", correction=wrong, time=2.0))
    answers.add_feedback(Feedback("b", "nurse", "down", correction=wrong, time=1.0))
    answers.add_feedback(Feedback("b", "other", "down", correction="No, it fails.", time=2.0))
    answers.add_feedback(Feedback("c", "expert", "down", decision="no", expert=True))
    found = gather(TrainingDataSources(str(tmp_path / "store"), ("all",)), tmp_path / "rows")
    said = {row["id"]: (row["answer"], row["decision"]) for row in read_jsonl(found.files["feedback"])}
    assert said == {"feedback-a": (right, "maybe"), "feedback-b": ("No, it fails.", "no"), "feedback-c": ("", "no")}


@pytest.mark.parametrize(
    ("question", "correction", "decision"),
    [
        ("Does the herb help?", "No, it fails.", "no"),
        ("Does the herb help?", "no", "no"),
        ("Does the herb help?", "No\nIt fails.", "no"),
        ("Is the herb safe?", "No it is not safe.", "no"),
        ("Does the herb help?", "Yes it helps.", "yes"),
        ("Is treatment needed?", "No treatment is needed.", None),
        ("How much paracetamol may I take?", "No more than 4 g a day.", None),
        ("How much paracetamol may I take?", "Maybe: ask a pharmacist.", None),
    ],
)
def test_only_the_answer_to_a_yes_or_no_question_opens_with_a_decision(
    tmp_path: Path, question: str, correction: str, decision: str | None
) -> None:
    answers = Answers(SQLiteDatabase(tmp_path / "store"))
    answers.keep(Answer("a", "k", "ask", "tiny", question=question, answer="It helps."))
    answers.add_feedback(Feedback("a", "k", "down", correction=correction))
    found = gather(TrainingDataSources(str(tmp_path / "store"), ("k",)), tmp_path / "rows")
    assert [row["decision"] for row in read_jsonl(found.files["feedback"])] == [decision]


def test_nobody_without_a_key_is_trusted_by_an_empty_name(tmp_path: Path) -> None:
    answers = Answers(SQLiteDatabase(tmp_path / "store"))
    for id, who in (("a", ""), ("b", "nurse")):
        answers.keep(Answer(id, who, "ask", "tiny", question=f"Does herb {id} help?", answer="It helps."))
        answers.add_feedback(Feedback(id, who, "down", correction="It fails.", decision="no"))
    found = gather(TrainingDataSources(str(tmp_path / "store"), ("", "nurse")), tmp_path / "rows")
    assert [row["id"] for row in read_jsonl(found.files["feedback"])] == ["feedback-b"]
    assert stat.S_IMODE(found.files["feedback"].stat().st_mode) == 0o600


def test_files_of_the_same_name_in_two_folders_are_different_rows_unless_their_own_ids_are_the_same(
    tmp_path: Path,
) -> None:
    def labels(month: str, word: str, **columns: str) -> Path:
        (tmp_path / month).mkdir(exist_ok=True)
        asked = [{"question": f"Does {word} help with {illness}?", "answer": "It helps."} for illness in WORDS]
        return jsonl(tmp_path / month / "labels.jsonl", [row | columns for row in (*asked, asked[0])])

    def ids(*files: Path) -> list[str]:
        found = gather(TrainingDataSources(labels=files), tmp_path / "rows")
        return [row["id"] for row in read_jsonl(found.files["labels"])]

    january, february = labels("january", "aspirin"), labels("february", "zinc")
    both = ids(january, february)
    assert len(set(both)) == len(both) == 2 * (len(WORDS) + 1)
    assert both[: len(WORDS) + 1] == ids(january)
    corrected = labels("february", "zinc", answer="It fails.")
    assert ids(january, corrected) == both
    assert ids(labels("march", "gold", id="a")) == ids(labels("april", "iron", id="a")) == ["labels-labels-a"]


WORDS = ("asthma", "angina", "gout", "measles", "scurvy", "rickets", "mumps", "tetanus", "anthrax", "cholera")


def example(number: int, answer: str = "It helps.") -> Example:
    word = f"{WORDS[number % 10]}{WORDS[number // 10]}"
    return Example(
        id=f"own:{number}", source="own", question=f"What of {word}?", answer=f"{word}: {answer}", group=f"g{number}"
    )


@pytest.mark.parametrize("held_out", [0.1, 0.3, 0.8])
def test_a_corrected_row_keeps_its_place_whatever_share_is_held_out(held_out: float) -> None:
    old = Splits(
        [example(number) for number in range(20)],
        [example(number) for number in range(20, 30)],
        [example(number) for number in range(30, 50)],
        "first",
    )
    corrected = [example(number, "It does not help.") for number in range(50)]
    fresh = [example(number) for number in range(50, 90)]
    pool = {each.id: each for each in old.train}
    splits = deal([*corrected, *fresh], old, pool, Shares(held_out), 0).splits
    now = {name: {each.id: each for each in rows} for name, rows in splits.named().items()}
    for name, before in old.named().items():
        for each in before:
            assert "not help" in now[name][each.id].answer


def test_a_new_version_gets_the_exports_of_the_one_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    facts = {"engine": "any", "stop_tokens": [1], "context_tokens": 9, "sha256": {}, "made_from": {}}
    for name, kind, weights in (("gguf", "gguf", "Q8_0"), ("openvino-int4", "openvino", "int4")):
        (tmp_path / "export" / name).mkdir(parents=True)
        write_json(tmp_path / "export" / name / "export.json", {"kind": kind, "weights": weights, **facts})
    made = []
    monkeypatch.setattr(
        "meditune.export.export.export", lambda run, to, quantization: made.append((run, to, quantization))
    )
    _export(tmp_path / "new", tmp_path, None)
    run = str(tmp_path / "new")
    assert made == [(run, "gguf", "Q8_0"), (run, "openvino", "int4")]
