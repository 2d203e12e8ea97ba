"""Several processes on a CPU, started by torchrun, do what one does."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.distributed import TCPStore

from meditune import distributed
from meditune.models.shared_prefix_batch import join
from meditune.prompts import Encoded
from meditune.train.trainer import deal_rows
from tests.commands import Result, meditune, read_rows, stopped_after
from tests.waiting import output_of, until

# Steps of 6 and 7 rows can't be dealt evenly. FP32 leaves the order of sums alone.
UNEVEN = {"model__dtype": "float32", "train__batch_size": 7, "train__accumulation": 1, "train__micro_batch_tokens": 300}


@contextlib.contextmanager
def torchrun(place, *words, program=("-m", "meditune")):
    """`torchrun -m meditune ...` in a process group of its own, as a terminal would start it."""
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"),
            *(*program, *map(str, words)),
        ],
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


# Starting two processes takes longer than what they do, so commands that end by themselves share them.
SEVERAL = """
import json, os, sys
from pathlib import Path

from meditune.cli import main

folder = Path(sys.argv[1])
for name, port, words in json.loads((folder / "commands.json").read_text()):
    # The processes of each command meet in a store of its own, as they would with a torchrun of its own.
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    sys.argv, code = ["meditune", *words], 0
    for handle, kind in ((1, "out"), (2, "err")):
        os.dup2(os.open(folder / f"{name}.{kind}", os.O_WRONLY | os.O_CREAT | os.O_APPEND), handle)
    try:
        main.main()
    except SystemExit as ended:
        code = ended.code
    sys.stdout.flush()
    (folder / f"{name}.code-{os.environ['RANK']}").write_text(str(code or 0))
"""


@pytest.fixture(scope="module")
def by_two(place):
    """What commands said and wrote that two processes ran together, one command after the other."""
    train_by_one(place, "first")
    commands = {name: words(place, name, **changes) for name, changes in BY_TWO.items()}
    commands["further-two"] = words(place, "further-two", model__base=place.folder / "first")
    commands |= {"doctor": ["doctor"], "nowhere": ["train", "nowhere", "--output", "none"]}
    folder = place.folder / "by-two"
    folder.mkdir()
    stores = [TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False) for _ in commands]
    named = zip(commands.items(), stores, strict=True)
    listed = [(name, store.port, [*map(str, given)]) for (name, given), store in named]
    (folder / "commands.json").write_text(json.dumps(listed), encoding="utf-8")
    with torchrun(place, "-c", SEVERAL, folder, program=("--no-python", sys.executable)) as process:
        _, err = process.communicate(timeout=600)
    assert process.returncode == 0, err

    def said(name):
        codes = {int((folder / f"{name}.code-{rank}").read_text()) for rank in range(2)}
        assert len(codes) == 1, f"the processes ended with {codes}"
        return Result(codes.pop(), *((folder / f"{name}.{kind}").read_text("utf-8") for kind in ("out", "err")))

    return said


def train_by_one(place, name, **changes):
    return meditune(*words(place, name, **changes)).ok()


def words(place, name, **changes):
    return ["train", "quickstart", "--output", place.folder / name, *place.settings(**UNEVEN | changes)]


def same(place, one, two, file="adapter_model.safetensors"):
    """Assert that two folders hold the same model, and the same account of how it was trained."""
    first, second = (load_file(place.folder / name / "model" / file) for name in (one, two))
    assert first.keys() == second.keys()
    for key, value in first.items():
        # Adam divides a gradient by its size, so where that is all but zero the order of sums shows: by a hundredth of
        # a step's 1e-2 at most.
        torch.testing.assert_close(second[key], value, rtol=1e-4, atol=1e-4, msg=lambda text, key=key: f"{key}: {text}")
    logs = [read_rows(place.folder / name / "training.jsonl") for name in (one, two)]
    assert len(logs[0]) == len(logs[1])
    for before, after in zip(*logs, strict=True):
        for key, value in before.items():
            if key != "seconds":
                assert after[key] == (pytest.approx(value, rel=1e-3) if isinstance(value, float) else value), key


def facts(place, name):
    return json.loads((place.folder / name / "model" / "training.json").read_text(encoding="utf-8"))


DDP = {
    **{"train__replay__share": 0.2, "train__replay__rows": 6, "train__l2_sp": 0.01, "train__ewc__strength": 10},
    "model__top_layers": 1,
}
FULL = {"model__strategy": "full", "train__learning_rate": 1e-3, "train__average_last": 0}
SHRUNK = {
    **{"train__replay__share": 0.2, "train__replay__rows": 6, "model__top_layers": 1},
    **{"train__gradient_checkpointing": True, "train__average_last": 0},
}
BY_TWO = {"two": DDP, "full-two": FULL | {"train__parallel": "fsdp"}, "lora-two": SHRUNK | {"train__parallel": "fsdp"}}


@pytest.mark.slow
def test_two_processes_train_the_adapter_that_one_trains(place, by_two):
    train_by_one(place, "one", **DDP)
    two = by_two("two").ok()
    same(place, "one", "two")
    assert facts(place, "two")["parallel"] == "ddp"
    assert two.out == f"Model: {place.folder / 'two' / 'model'}\n"
    assert two.err.count("── train") == 1
    assert "2 processes, each with the complete model" in two.err
    assert "parallel" not in facts(place, "one")


@pytest.mark.slow
def test_sharded_full_fine_tuning_gives_the_model_that_one_process_gives(place, by_two):
    train_by_one(place, "full-one", **FULL)
    two = by_two("full-two").ok()
    same(place, "full-one", "full-two", "model.safetensors")
    assert facts(place, "full-two")["parallel"] == "fsdp"
    assert "each with a share of every weight" in two.err


@pytest.mark.slow
def test_sharded_adapters_are_those_of_one_process(place, by_two):
    train_by_one(place, "lora-one", **SHRUNK)
    by_two("lora-two").ok()
    same(place, "lora-one", "lora-two")


@pytest.mark.slow
def test_an_adapter_that_two_processes_tune_further_is_merged_first(place, by_two):
    train_by_one(place, "further-one", model__base=place.folder / "first")
    by_two("further-two").ok()
    same(place, "further-one", "further-two")
    assert (place.folder / "further-two" / "start" / "config.json").is_file()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "code", "message"), [("nowhere", 2, "no recipe"), ("doctor", 1, "only `meditune train` supports")]
)
def test_an_error_ends_all_processes_with_one_message(by_two, name, code, message):
    ended = by_two(name)
    ended.refused(code, message)
    assert len(re.findall("^Error: ", ended.err, re.MULTILINE)) == 1, ended.err


LONG = {"train__epochs": 12, "train__checkpoint_steps": 5, "train__average_last": 0}


@pytest.fixture(scope="module")
def long(place):
    """A training that one process did without a stop."""
    train_by_one(place, "long", **LONG)
    return "long"


@pytest.mark.slow
def test_two_processes_are_stopped_and_one_goes_on(place, long):
    stop_two(place, "stopped", **LONG)
    assert "Resuming training after step" in train_by_one(place, "stopped", **LONG).err
    same(place, long, "stopped")


@pytest.mark.slow
def test_sharded_checkpoints_go_on_in_one_process_and_its_in_shards(place, long):
    settings = LONG | {"train__parallel": "fsdp"}
    stop_two(place, "shards", **settings)
    log = checkpoint(place, "shards").with_name("training.jsonl")
    assert (log.parent / "optimizer").is_dir()
    with stopped_after(len(read_rows(log)) + 6):
        assert meditune(*words(place, "shards", **settings)).code == 130
    assert not (log.parent / "optimizer").exists()
    steps = len(read_rows(log))
    with torchrun(place, *words(place, "shards", **settings)) as process:
        _, err = process.communicate(timeout=600)
    assert process.returncode == 0, err
    assert err.count(f"Resuming training after step {steps}.") == 1
    same(place, long, "shards")
    assert not log.parent.exists()


def stop_two(place, name, **settings):
    """Begin with two processes, and press ctrl-C after the first checkpoint."""
    with torchrun(place, *words(place, name, **settings)) as process:
        until(checkpoint(place, name).is_file, 300, process)
        os.killpg(process.pid, signal.SIGINT)
        out, err = process.communicate(timeout=600)
    assert process.returncode != 0
    assert err.count("run the same command again to resume") == 1, err
    has_no_traceback(err)
    assert out == ""


def has_no_traceback(err):
    """Assert that no traceback leads through our package, wherever it lies; torchrun prints one of its own."""
    assert f'File "{Path(distributed.__file__).parent}' not in err


def checkpoint(place, name):
    return place.folder / name / "checkpoint" / "state.json"


@pytest.mark.slow
def test_an_error_in_one_process_ends_the_other_which_waits_for_it(place):
    with torchrun(place, *words(place, "broken", model__base="nowhere/at-all")) as process:
        out, err = process.communicate(timeout=600)
    assert process.returncode != 0
    assert len(re.findall("^Error: ", err, re.MULTILINE)) == 1, err
    assert "three ways to get a model" in err
    assert "exitcode  : 4 " in err
    has_no_traceback(err)
    assert out == ""


def test_python_runs_the_package():
    assert output_of(sys.executable, "-m", "meditune", "--version").strip()


@pytest.mark.parametrize(
    ("key", "value"),
    [("model.quantize", "nf4"), ("model.strategy", "prefix"), ("train.l2_sp", "0.1"), ("train.ewc.strength", "1")],
)
def test_what_needs_whole_weights_is_refused_with_fsdp(key, value):
    given = ("--set", "train.parallel=fsdp", "--set", f"{key}={value}")
    meditune("recipe", "check", "quickstart", *given).refused(2, "train.parallel fsdp", key, "ddp or auto")


@pytest.mark.parametrize("lockstep", [False, True])
def test_every_row_is_dealt_once_and_some_processes_may_get_none(lockstep, monkeypatch):
    rows = [join([Encoded(str(length), "answer", [1] * length, [2, 3])]) for length in (5, 90, 20, 40, 30)]
    shares = []
    monkeypatch.setenv("WORLD_SIZE", "7")
    for rank in range(7):
        monkeypatch.setenv("RANK", str(rank))
        shares.append(deal_rows(rows, 64, lockstep))
    given = [index for share in shares for piece in share if not piece.idle for index in piece.indices]
    assert sorted(given) == [*range(5)]
    assert [len(share) for share in shares] == ([1] * 7 if lockstep else [1] * 5 + [0] * 2)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    assert [piece.indices for piece in deal_rows(rows, 64, lockstep)] == [[1], [4, 0]]
    assert distributed.world() == 2
