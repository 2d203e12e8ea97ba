"""A model that knows some text, is tuned on something else, and forgets; less so with each protection."""

import math
import random

import pytest

from meditune.config.training_options import TrainSpec
from meditune.models.shared_prefix_batch import windows
from meditune.train import finetune, replay
from meditune.train.dataset import TokenWeights
from meditune.train.trainer import TrainingRows, train
from tests import tiny
from tests.commands import bench, meditune, read_rows, stopped_after

OFF = {"train__replay__share": 0, "train__replay__source": "medical", "train__l2_sp": 0, "train__ewc__strength": 0}
PROTECTIONS = {
    "general": {"train__replay__share": 0.3, "train__replay__source": "general"},
    "self": {"train__replay__share": 0.3, "train__replay__source": "self"},
    "l2_sp": {"train__l2_sp": 0.2},
    "ewc": {"train__ewc__strength": 50_000, "train__replay__source": "general"},
}


def chatter(seed, sentences=400):
    """Sentences of a small grammar, in words that the tiny tokenizer knows."""
    pick = random.Random(seed).choice
    return "".join(
        f"{pick(['Sleep', 'Exercise', 'The diet'])} {pick(['fell', 'helps', 'were measured'])} in the "
        f"{pick(['study', 'group', 'drug'])} of {pick(['adults', 'hearts', 'patients'])}. "
        for _ in range(sentences)
    )


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A bench whose base model has learnt the chatter."""
    with bench(tmp_path_factory.mktemp("forgetting")) as made:
        folder = made.folder.parent / "data" / "wikitext-2"
        folder.mkdir()
        (folder / "valid.txt").write_text(chatter(1), encoding="utf-8")
        (folder / "test.txt").write_text(chatter(2), encoding="utf-8")
        loaded = tiny.loaded()
        rows = windows("text", loaded.tokenizer(chatter(3))["input_ids"], 64)
        spec = TrainSpec(batch_size=8, accumulation=1, epochs=12, learning_rate=1e-2)
        list(train(loaded, TrainingRows(rows, TokenWeights([], [], spec)), spec, 1))
        loaded.model.set_attn_implementation("sdpa")
        loaded.model.save_pretrained(made.base)
        yield made


def journey(place, name, **changes):
    """Report of a run that measures little but general text."""
    settings = {"train__epochs": 3, "evaluate__general_tokens": 2000, "evaluate__answers": 2}
    settings |= {"evaluate__max_new_tokens": 1, "model__dtype": "float32"}
    result = place.run(name, **(settings | changes))
    assert result.code == 0, result
    return place.report(name)


def trained(place, name, **changes):
    """What `meditune train` printed; many steps with a checkpoint after each third."""
    steps = {"train__batch_size": 1, "train__checkpoint_steps": 3, "train__epochs": 1}
    return meditune("train", "quickstart", "--output", place.folder / name, *place.settings(**(steps | changes)))


@pytest.fixture(scope="module")
def unprotected(place):
    return journey(place, "unprotected")


@pytest.mark.parametrize("name", PROTECTIONS)
def test_a_protected_model_forgets_less(place, unprotected, name):
    """Less than half of the rise in nats, and the answers are learnt all the same."""
    report = journey(place, name, **PROTECTIONS[name])
    assert report["base"] == unprotected["base"]
    forgot, remembered = (math.log(r["tuned"]["general_perplexity"]) for r in (unprotected, report))
    known = math.log(report["base"]["general_perplexity"])
    assert forgot > known + 1
    assert remembered < known + 0.5 * (forgot - known)
    assert report["tuned"]["perplexity"] < 0.2 * report["base"]["perplexity"]


def test_what_is_off_changes_nothing_and_needs_nothing(place):
    """Not even the data that it names; the weights are those of a recipe that says nothing of it."""
    assert trained(place, "silent").code == 0
    assert trained(place, "off", **OFF).code == 0
    assert place.adapter("off") == place.adapter("silent")
    assert not (place.folder / "off" / "replay.jsonl").exists()


def test_a_stopped_run_goes_on_with_the_same_replay_and_the_same_pull(place, monkeypatch):
    monkeypatch.setattr(replay, "ROW_TOKENS", 32)
    for module in (replay, finetune):
        monkeypatch.setattr(module, "EWC_ROWS", 12)
    both = {"train__replay__share": 0.4, "train__replay__rows": 9, "train__ewc__strength": 500, "train__l2_sp": 0.02}
    assert trained(place, "whole", **both).code == 0
    written = place.folder / "stopped" / "replay.jsonl"
    with stopped_after(11):
        assert trained(place, "stopped", **both).code == 130
    before = written.stat()
    resumed = trained(place, "stopped", **both)
    assert resumed.code == 0
    assert "after step 9" in resumed.err
    assert "Writing replay text" not in resumed.err
    assert (written.stat().st_mtime_ns, written.stat().st_ino) == (before.st_mtime_ns, before.st_ino)
    assert len(read_rows(written)) == 12
    assert written.read_bytes() == (place.folder / "whole" / "replay.jsonl").read_bytes()
    assert place.adapter("stopped") == place.adapter("whole")
    logs = [read_rows(place.folder / name / "training.jsonl") for name in ("whole", "stopped")]
    for whole, stopped in zip(*logs, strict=True):
        assert whole | {"seconds": 0} == stopped | {"seconds": 0}
    assert logs[0][-1]["penalty"] > 0
    assert any(step["replay_loss"] for step in logs[0])
