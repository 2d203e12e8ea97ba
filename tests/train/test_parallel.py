"""Several processes on a CPU, started by torchrun, do what one does."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file

from meditune import ranks
from meditune.models.rows import join
from meditune.prompts import Encoded
from meditune.train.parallel import dealt
from tests import commands
from tests.commands import meditune, read_rows

# A step of 7 rows can't be dealt evenly; the last of an epoch is smaller still. FP32 leaves the order of sums alone.
UNEVEN = {"model__dtype": "float32", "train__batch_size": 7, "train__accumulation": 1, "train__micro_batch_tokens": 300}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    with commands.bench(tmp_path_factory.mktemp("parallel")) as made:
        yield made


@contextlib.contextmanager
def torchrun(place, *words, processes=2):
    """`torchrun -m meditune ...` in a process group of its own, as a terminal would start it."""
    process = subprocess.Popen(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
        + ["-m", "meditune", *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | place.environment | {"OMP_NUM_THREADS": "1"},
        start_new_session=True,
    )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def train_by_two(place, name, **changes):
    """Train in two processes; returns the output and what was written to stderr."""
    with torchrun(place, *words(place, name, **changes)) as process:
        out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    return out, err


def train_by_one(place, name, **changes):
    result = meditune(*words(place, name, **changes))
    assert result.code == 0, result
    return result


def words(place, name, **changes):
    return ["train", "quickstart", "--output", place.folder / name, *place.settings(**UNEVEN | changes)]


def same(place, one, two, file="adapter_model.safetensors"):
    """Assert that two folders hold the same model, and the same account of how it was trained."""
    first, second = (load_file(place.folder / name / "model" / file) for name in (one, two))
    assert first.keys() == second.keys()
    for key, value in first.items():
        torch.testing.assert_close(second[key], value, rtol=1e-4, atol=1e-5, msg=lambda text, key=key: f"{key}: {text}")
    logs = [read_rows(place.folder / name / "training.jsonl") for name in (one, two)]
    assert len(logs[0]) == len(logs[1])
    for before, after in zip(*logs, strict=True):
        for key, value in before.items():
            if key != "seconds":
                assert after[key] == (pytest.approx(value, rel=1e-4) if isinstance(value, float) else value), key


def facts(place, name):
    return json.loads((place.folder / name / "model" / "training.json").read_text(encoding="utf-8"))


def test_two_processes_train_the_adapter_that_one_trains(place):
    extras = {"train__replay__share": 0.2, "train__replay__rows": 6, "train__l2_sp": 0.01, "train__ewc__strength": 10}
    extras |= {"train__ewc__samples": 3, "model__top_layers": 1}
    train_by_one(place, "one", **extras)
    out, err = train_by_two(place, "two", **extras)
    same(place, "one", "two")
    assert facts(place, "two")["parallel"] == "ddp"
    assert out == f"Model: {place.folder / 'two' / 'model'}\n"
    assert err.count("── train") == 1
    assert "2 processes, each with the whole model" in err
    assert "parallel" not in facts(place, "one")


def test_sharded_full_fine_tuning_gives_the_model_that_one_process_gives(place):
    full = {"model__strategy": "full", "train__learning_rate": 1e-3}
    train_by_one(place, "full-one", **full)
    _, err = train_by_two(place, "full-two", train__parallel="fsdp", **full)
    same(place, "full-one", "full-two", "model.safetensors")
    assert facts(place, "full-two")["parallel"] == "fsdp"
    assert "each with its share of every weight" in err


def test_sharded_adapters_are_those_of_one_process(place):
    shrunk = {"train__replay__share": 0.2, "train__replay__rows": 6, "model__top_layers": 1}
    shrunk |= {"train__gradient_checkpointing": True}
    train_by_one(place, "lora-one", **shrunk)
    train_by_two(place, "lora-two", train__parallel="fsdp", **shrunk)
    same(place, "lora-one", "lora-two")
