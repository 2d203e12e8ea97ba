"""Recipes and run folders of earlier versions: keys that were removed or renamed since."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from meditune.config import removed_keys
from meditune.config.load_recipe import load_recipe, save
from meditune.config.recipe_keys import slot
from tests.config.test_load_recipe import problems, write

DEFAULTS = """\
name: old
model:
  prune: {rows: 64}
  api: {timeout_seconds: 120.0, poll_seconds: 15.0}
data:
  quality: {alike: 0.7, min_answer_words: 3, max_answer_words: 2000}
  balance: {by: null, cap: null, share: null, sources: [], weights: {}}
train:
  mix: {weights: {}, temperature: null, quota: {}, unit: rows, max_epochs: null, curriculum: none}
  retrieve: {index: null, sources: [], words: 400}
  replay: {tokens: 128}
  ewc: {strength: 0.0, samples: 64}
  objective: sft
  preference:
    source: corrupted
    rated: {margin: 1.0, per_question: 10}
    sampled: {answers: 4, temperature: 1.0, margin: 0.1}
    held_out_share: 0.2
evaluate:
  samples: 0
  sampled_answers: 50
  retrieve: {index: null, sources: [], words: 400, k: 5}
"""


@pytest.fixture(autouse=True)
def _notes_appear_again() -> Iterator[None]:
    removed_keys.note_renamed.cache_clear()
    yield
    removed_keys.note_renamed.cache_clear()


def test_a_recipe_with_every_removed_key_at_its_default_is_read(tmp_path: Path) -> None:
    recipe = load_recipe(write(tmp_path, DEFAULTS)).recipe
    assert recipe == load_recipe(write(tmp_path, "name: old\n")).recipe
    save(recipe, tmp_path / "saved.yaml")
    assert "alike" not in (tmp_path / "saved.yaml").read_text(encoding="utf-8")


@pytest.mark.parametrize("key", [*removed_keys.REMOVED, *removed_keys.RENAMED])
def test_old_keys_are_no_keys_and_new_names_are(key: str) -> None:
    assert slot(tuple(key.split("."))) is None
    if key in removed_keys.RENAMED:
        assert slot(tuple(removed_keys.RENAMED[key].split(".")))


def test_another_value_is_an_error_that_names_the_place_and_the_replacement(tmp_path: Path) -> None:
    text = (
        "name: old\n"
        "train:\n"
        "  objective: orpo\n"
        "  mix:\n"
        "    temperature: 3\n"
        "  preference:\n"
        "    source: sampled\n"
        "    sampled:\n"
        "      answers: 8\n"
    )
    sampled = "this key was removed; pairs come from corrupted answers, or from the file in train.preference.path."
    assert problems(write(tmp_path, text), ("data.balance.weights={maybe: 3}", "evaluate.retrieve={words: 9}")) == [
        "mine.yaml, line 3: train.objective: orpo was removed; use dpo.",
        "mine.yaml, line 5: train.mix.temperature: this key was removed; set train.mix.weights.",
        f"mine.yaml, line 7: train.preference.source: {sampled}",
        f"mine.yaml, line 9: train.preference.sampled.answers: {sampled}",
        "--set data.balance.weights: this key was removed; use train.class_balance for rare decisions, or "
        "data.balance.cap for large groups.",
        "--set evaluate.retrieve.words: this key was removed; 400 words around each passage are shown.",
    ]


def test_an_option_at_the_old_default_is_accepted() -> None:
    options = ["train.mix={temperature: null}", "train.preference.sampled.answers=4", "model.prune.rows=64"]
    assert load_recipe("quickstart", options).recipe == load_recipe("quickstart").recipe


def test_an_option_replaces_the_removed_value_of_the_file(tmp_path: Path) -> None:
    path = write(tmp_path, "name: old\ntrain:\n  objective: orpo\n  ewc: {samples: 9}\n")
    recipe = load_recipe(path, ["train.objective=dpo", "train.ewc.samples=64"]).recipe
    assert recipe.train.objective == "dpo"


@pytest.mark.parametrize("option", ["data.quality.alike=0.8", "data.quality={alike: 0.8}", None])
def test_a_renamed_key_is_read_with_one_note(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], option: str | None
) -> None:
    path = write(tmp_path, "name: old\ndata:\n  quality:\n    alike: 0.8\n" if option is None else "name: old\n")
    for _ in range(2):
        resolved = load_recipe(path, [option] if option else [])
    assert resolved.recipe.data.quality.near_duplicate_similarity == 0.8
    origin = resolved.origin["data.quality.near_duplicate_similarity"]
    assert origin == ("--set" if option else "mine.yaml, line 4")
    note = "data.quality.alike is now data.quality.near_duplicate_similarity"
    assert capsys.readouterr().err.count(note) == 1


def test_both_names_of_a_key_are_refused(tmp_path: Path) -> None:
    text = "name: old\ndata:\n  quality: {alike: 0.8, near_duplicate_similarity: 0.9}\n"
    (problem,) = problems(write(tmp_path, text))
    assert problem.startswith("mine.yaml, line 3: data.quality.alike: no such key")
