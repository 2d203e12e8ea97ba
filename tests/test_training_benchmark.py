"""The comparison of trainers measures every peer alike, and goes on from what a file has."""

import argparse
import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import training
from tests import tiny


def run_of(engine, batch, examples_per_s, gb=2.0):
    limit = {"best": 1000, "typical": 800}
    return {
        "engine": engine,
        "batch": batch,
        "examples_per_s": examples_per_s,
        "tokens_per_s": 100.0,
        "training_peak_gb": gb,
        "peak_gb": gb,
        "mfu": 0.5,
        "mfu_of_typical": 0.6,
        "others_share": 0.01,
        "bf16_gflops_before": limit,
        "bf16_gflops_after": limit,
    }


def test_every_peer_runs_with_every_batch():
    peers = [engine for engine in training.ENGINES if engine not in training.OWN]
    jobs = training.jobs_of(["meditune", *peers, "meditune"], [1, 2, 4, 8])
    assert jobs[0] == jobs[-1] == ("meditune", None)
    assert all([size for name, size in jobs if name == peer] == [1, 2, 4, 8] for peer in peers)


def test_a_file_s_measurements_are_not_repeated():
    jobs = [("meditune", None), ("trl", 1), ("trl", 2), ("meditune", None)]
    runs = [run_of("meditune", None, 1.0), run_of("trl", 2, 1.0)]
    assert training.missing(jobs, runs) == [("trl", 1), ("meditune", None)]
    assert training.missing(jobs, []) == jobs


def test_a_file_with_other_settings_is_refused(tmp_path):
    file = tmp_path / "figures.json"
    file.write_text(json.dumps({"model": "smollm2-135m", "steps": 2, "runs": []}))
    assert training.earlier(file, {"model": "smollm2-135m", "steps": 2})["runs"] == []
    with pytest.raises(SystemExit, match="steps 2, not 3"):
        training.earlier(file, {"model": "smollm2-135m", "steps": 3})


def test_each_engine_s_best_batch_counts_and_speed_is_that_of_examples():
    runs = [run_of("trl", 1, 1.0, 1.0), run_of("trl", 8, 0.5, 4.0), run_of("meditune", None, 3.0, 2.0)]
    assert [(run["engine"], run["batch"]) for run in training.best(runs)] == [("meditune", None), ("trl", 1)]
    ours = training.mean_of([*runs, run_of("meditune", None, 5.0, 2.5)], "meditune")
    assert "Meditune: 4.00x the speed, 2.50x the training GB" in training.line(runs[0], ours)


def test_speeds_are_of_the_tokens_that_were_read_by_the_chosen_clock():
    run = {"wall_seconds": 10.0, "processor_seconds": 8.0, "examples": 16, "read_tokens": 4000, "flops": 8e12}
    run |= {"tokens_of_separate_rows": 8000}
    found = training.with_speeds(run, "processor", {"best": 1000, "typical": 800}, {"best": 900, "typical": 800})
    assert (found["examples_per_s"], found["tokens_per_s"], found["mfu"]) == (2.0, 500.0, 1.0)
    assert training.with_speeds(run, "wall", found["bf16_gflops_before"], found["bf16_gflops_after"])["mfu"] == 0.8


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tiny.save(tmp_path_factory.mktemp("base"))


@pytest.mark.parametrize("engine", ["meditune-uncompiled", "trl", "trl-no-checkpointing", "trainer-bf16-true"])
def test_every_engine_trains_the_same_answers_and_counts_what_it_read(base, engine, tmp_path, monkeypatch):
    monkeypatch.delenv("MEDITUNE_DATA", raising=False)
    monkeypatch.setenv("MEDITUNE_OFFLINE", "1")
    monkeypatch.setenv("MEDITUNE_CACHE", str(tmp_path))
    run = training.work(argparse.Namespace(worker=engine, model=str(base), steps=1, max_tokens=200, batch=[4]))
    # An engine that trained other tokens of answers than the rows have ends with an error.
    assert run["examples"] == training.BATCH
    assert run["read_tokens"] == run["tokens_of_separate_rows"] or engine in training.OWN
    assert run["read_tokens"] < run["tokens_of_separate_rows"] or engine not in training.OWN
    if engine not in training.OWN:
        assert run["checkpointing"] == (engine == "trl")
        assert run["number_formats"] == ["torch.bfloat16"] + ["torch.float32"] * (
            engine in {"trl", "trl-no-checkpointing"}
        )
