"""The script behind docs/experiments's tables.

The comparison of trainers measures every peer alike, and goes on from what a file has.

The benchmark for GPUs runs on a CPU with tiny models, so that it works where a GPU is first available.
"""

import argparse
import asyncio
import importlib.util
import itertools
import json
import math
import subprocess
import sys
import time
import types
from dataclasses import replace
from pathlib import Path

import httpx2
import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import annotators
import citations
import faithfulness
import faults
import gpu
import ideas
import label_queue
import serving
import serving_cost
import training
from meditune.assistant.events import Answer, Sentence, Source
from meditune.data.example import Example, Passage
from meditune.evidence.support_model import SupportScore
from meditune.files import read_jsonl, write_jsonl
from meditune.retrieve.build_index import build
from meditune.retrieve.collections import documents
from meditune.retrieve.storage import index_storage
from meditune.train.resource_plan import Memory
from tests import corpus, tiny

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "tables.py"


@pytest.mark.real
def test_annotators_labels_of_test_items_are_never_looked_up(real_data):
    truth = json.loads((real_data / "pubmedqa/test_ground_truth.json").read_text("utf-8"))
    assert len(ideas.published_labels()) == 500
    assert not truth.keys() & ideas.published_labels()


@pytest.fixture(scope="module")
def tables():
    spec = importlib.util.spec_from_file_location("benchmark_tables", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


def job(tables, name, folder=Path("runs"), *extra):
    return tables.Job(name, tables.ROWS[name], folder, extra)


def test_every_row_is_in_a_table_and_its_settings_fit_together(tables):
    assert {name for names in tables.TABLES.values() for name in names} == set(tables.ROWS)
    for name in tables.ROWS:
        recipe = job(tables, name).recipe()
        assert (recipe.evaluate.split, recipe.data.fallback_to_sample) == ("dev", False)


def test_rows_that_change_what_the_base_says_measure_their_own(tables):
    assert job(tables, "lora").base == job(tables, "full").base == Path("runs/base")
    assert job(tables, "lora-nf4").base == Path("runs/base-nf4")
    evaluate, *_ = job(tables, "lora-nf4").commands()
    assert "model.quantize=nf4" in evaluate


def base_measured(folder, sha256):
    (folder / "predictions").mkdir(parents=True)
    (folder / "predictions" / "model-general.jsonl").write_text('{"id": "window-0"}\n', "utf-8")
    (folder / "evaluation.json").write_text(json.dumps({"data": {"sha256": sha256}}), "utf-8")


def test_a_run_gets_the_bases_predictions_only_on_the_same_data(tables, tmp_path):
    one = job(tables, "lora", tmp_path)
    base_measured(one.base, "abc")
    one.folder.mkdir()
    (one.folder / "recipe.yaml").write_text("# data sha256: abc\nname: one\n", "utf-8")
    one.lend()
    assert (one.folder / "predictions" / "base-general.jsonl").read_text("utf-8") == '{"id": "window-0"}\n'
    (one.folder / "recipe.yaml").write_text("# data sha256: abd\nname: one\n", "utf-8")
    with pytest.raises(tables.FailedError, match="different data"):
        one.lend()


def report(accuracy):
    def row(delta, better):
        return {"delta": delta, "ci95": [delta - 1, delta + 1], "p": 0.01, "better": better, "test": ""}

    return {
        "base_model": "smollm2-135m",
        "seed": 17,
        "base": {"accuracy": 40.0, "perplexity": 16.0},
        "tuned": {"accuracy": accuracy, "perplexity": 17.0},
        "comparison": {"accuracy": row(accuracy - 40, True), "perplexity": row(1.0, None)},
        "data": {"train": 349, "test_set": "dev-151", "sha256": "ab" * 32},
        "items": {"answer": 60},
        "machine": {"gpu": None, "processor": "two cores", "cores": 2},
        "versions": {"torch": "2"},
        "training": {"trainable_parameters": 1234, "tokens_per_s": 999.6, "peak_rss_gb": 2.04, "wall_seconds": 90},
    }


def test_the_table_shows_the_base_once_and_the_reports_verdict(tables, tmp_path):
    jobs = [job(tables, name, tmp_path) for name in ("lora", "dora", "ia3")]
    for one, accuracy in zip(jobs, (60.0, 61.0), strict=False):
        one.folder.mkdir()
        (one.folder / "report.json").write_text(json.dumps(report(accuracy)), "utf-8")
    lines = tables.markdown(jobs).splitlines()
    assert lines[2].startswith("| LoRA, top 15 layers (quickstart) | 40.0 → 60.0 better | not measured | ")
    assert lines[2].endswith("| 1,234 | 1,000 | 2.0 | 1.5 |")
    assert lines[3].startswith("| DoRA | 61.0 better | ")
    assert "| 17.00 no significant change |" in lines[3]
    on_gpu = report(60.0)
    on_gpu["training"]["peak_gpu_gb"] = 11.5
    (jobs[0].folder / "report.json").write_text(json.dumps(on_gpu), "utf-8")
    assert tables.markdown(jobs).splitlines()[2].endswith("| 1,234 | 1,000 | 11.5 | 1.5 |")
    assert "| not finished |" in lines[4]
    assert "measured on dev-151 with 60 answers, seed 17, data abababababab" in lines[6]


def test_a_failed_row_is_said_and_the_others_go_on(tables, tmp_path, monkeypatch, capsys):
    jobs = [job(tables, name, tmp_path) for name in ("lora", "dora")]
    ran = []

    def call(words, log):
        ran.append(words)
        raise tables.FailedError("no room on the disk")

    monkeypatch.setattr(tables, "call", call)
    assert tables.measured(jobs, tmp_path / "strategies.md") == 1
    assert len(ran) == 2
    out = capsys.readouterr().out
    assert "[1/2] lora: FAILED. no room on the disk" in out
    assert "not finished" in (tmp_path / "strategies.md").read_text("utf-8")


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


def source(number, title, text):
    return Source(number, f"own:{number}#0", title, "", "", "", "", "own", text, 0.9, False)


def written(question, *texts):
    sentences = tuple(Sentence(text, (), False, False, "", 0.0) for text in texts)
    sources = (source(1, "own:1", "Rest helps with pain. Aspirin lowers fever."),) if texts else ()
    return Answer(question, "", "answered", "", "plain", sentences, sources)


def test_recorded_answers_are_labelled_blind_and_compared_at_as_many_shown_answers(tmp_path):
    lines = ["Rest helps with pain.", "Aspirin lowers fever.", "Bananas cure colds."]
    answers = [written("Empty?"), written("A?", *lines[:2]), written("B?", lines[2]), written("C?", lines[0], lines[2])]
    record, scores = tmp_path / "answers.jsonl", tmp_path / "scores.json"
    write_jsonl(record, map(citations.recorded, answers))
    assert read_jsonl(record)[1]["sources"][0]["title"] == "", "the model read no title"
    judge = {"run": "runs/j", "name": "j", "threshold": 0.7, "seconds": 5.0, "unjudged": 0}
    stored = {"sentences": [row["sentences"] for row in read_jsonl(record)[1:]]}
    stored |= {
        "detector": [[0.9, 0.9], [0.0], [0.9, 0.0]],
        "judge": judge | {"scores": [[0.9, 0.6], [0.5], [0.4, 0.3]]},
    }
    assert citations.scored(dict(enumerate(read_jsonl(record)[1:])), None, None)["detector"][1:] != [[0.0], [0.0, 0.0]]
    scores.write_text(json.dumps(stored), "utf-8")
    sheet = tmp_path / "label.jsonl"
    lines = list(citations.checked_again(record, None, scores, sheet, None))
    assert lines[0] == "j: 1.00 s a sentence, 1.67 s an answer"
    # At the judge's own threshold, one answer is shown; the detector shows two, as the judge does from 0.5 on.
    assert [line.split(" | ")[:3] for line in lines[-4:]] == [
        ["| detector", "2 of 3", "3"],
        ["| judge, threshold 0.700", "1 of 3", "1"],
        ["| detector and judge, threshold 0.700", "1 of 3", "1"],
        ["| judge, threshold 0.500 (as many answers as by the detector)", "2 of 3", "3"],
    ]
    rows = read_jsonl(sheet)
    assert sorted((row["answer"], row["sentence"]) for row in rows) == [(1, 0), (1, 1), (2, 0), (3, 0)]
    assert all(row.keys() == {"answer", "sentence", "question", "text", "sources", "supported"} for row in rows)
    with pytest.raises(SystemExit, match="may hold labels"):
        list(citations.checked_again(record, None, scores, sheet, None))
    for row in rows:
        row["supported"] = row["text"] != "Bananas cure colds."
    write_jsonl(sheet, rows)
    *_, by_detector, own, _, equal = citations.checked_again(record, None, scores, None, sheet)
    assert "| 3 | 3 | 0.0% (0.0 to " in by_detector
    assert "| 1 | 1 | 0.0%" in own
    assert "| 3 | 3 | 33.3% (" in equal
    assert "| +33.3 (+0.0 to +" in equal
    *_, by_detector, _, _, _ = citations.checked_again(record, None, scores, None, scores)
    assert "| 3 | 3 | 33.3% (" in by_detector, "the judge itself finds one of the detector's three unsupported"
    write_jsonl(sheet, [rows[0] | {"supported": "false"}])
    with pytest.raises(SystemExit, match="line 1: supported is 'false'"):
        list(citations.checked_again(record, None, scores, None, sheet))


class LiteralJudge:
    """A judge that supports what its sources say word for word."""

    has_spans, threshold = False, 0.5

    def __init__(self):
        self.asked = []

    def score(self, asked):
        self.asked += [(each.sources, each.sentence) for each in asked]
        for each in asked:
            yield SupportScore(0.9 if each.sentence in each.sources[0] else 0.1)


def test_a_judge_is_compared_with_the_detector_on_the_same_planted_errors():
    words = ("aspirin", "rest", "sleep", "walking", "yoga", "tea", "music", "heat")
    texts = [
        f"In all {word} users, pain fell by {n}0 percent. No harm of {word} was seen."
        for n, word in enumerate(words, 1)
    ]
    items = [
        Example(
            id=f"x:{n}", source="x", question="Less pain?", context=(Passage(text=text),), answer=text, group=f"{n}"
        )
        for n, text in enumerate(texts)
    ]
    answers = faithfulness.judged(faithfulness.with_corruptions(faithfulness.conclusions(items), {}))
    few = faithfulness.sampled(answers, 5)
    assert few == faithfulness.sampled(answers, 5)
    assert len({each.item.id for each in few}) == 5
    assert [each for each in answers if each.item.id == few[0].item.id] == [
        each for each in few if each.item == few[0].item
    ]

    judge = LiteralJudge()
    found = faithfulness.by_judge(few, judge)
    assert len(judge.asked) == sum(len(each.sentence_scores) for each in found)
    assert len({sources for sources, _ in judge.asked}) == 5
    assert [(each.kind, each.text) for each in found] == [(each.kind, each.text) for each in few]
    # One false sentence is enough, and the detector's scores stay as they are.
    assert {each.score for each in found if each.kind == "added"} == {0.1}
    assert {each.score for each in found if each.kind == "true"} == {0.9}
    assert {each.score for each in few} != {each.score for each in found}

    lines = list(faithfulness.comparison(few, found, judge.threshold))
    columns = {tuple(cells[:2]): cells for cells in (line.strip("| ").split(" | ") for line in lines)}
    added = columns["conclusions", "added"]
    area = faithfulness._interval(
        faithfulness._areas(faithfulness._of(few, "conclusions"), faithfulness._of(few, "conclusions", "added"))
    )
    assert added[2] == "5"
    assert added[3] == "{:.3f} ({:.3f} to {:.3f})".format(*area)
    assert added[4] == "1.000 (1.000 to 1.000)"
    assert added[5].startswith(f"{1 - area[0]:+.3f} (")
    assert added[7] == "100% and 100%"
    assert added[9] == "100%"
    alarms = columns["conclusions", "5"]
    assert alarms[3] == "0.0% (0.0 to 43.4)"
    assert alarms[4:] == ["10", alarms[5], "0.0%"]


def test_a_rehearsal_measures_every_job_and_installed_peer_without_an_error(tmp_path, capsys):
    for package in ("bitsandbytes", "datasets", "trl", "lm_eval"):
        pytest.importorskip(package)
    # Compiling takes longer than everything else together.
    engines = ["meditune", "meditune-recomputed", "transformers", "trainer", "trl", "lm-eval"]
    gpu.main(["--rehearse", "--engines", *engines, "--json", str(tmp_path / "gpu.json")])
    found = json.loads((tmp_path / "gpu.json").read_text(encoding="utf-8"))
    assert not [run for run in found["runs"] if "error" in run or "left_out" in run]
    assert {run["engine"] for run in found["runs"]} == set(engines)
    own = {(run["job"], run.get("quantize")): run for run in found["runs"] if run["engine"] == "meditune"}
    assert {job for job, _ in own} == set(gpu.JOBS)
    assert {kind for job, kind in own if job == "training"} == {"none", "nf4", "int8"}
    assert 0 < own["training", "nf4"]["mfu"] < 1
    recomputed = next(run for run in found["runs"] if run["engine"] == "meditune-recomputed")
    assert (own["training", "none"]["checkpointing"], recomputed["checkpointing"]) == (False, True)
    scores, losses = (run["largest_difference"] for run in found["runs"] if run["job"] == "agreement")
    assert scores < 1e-3
    assert losses < 0.01
    compared = {line["what"] for line in found["ratios"]}
    differences = [(line["value"], line["target"]) for line in found["ratios"] if line["what"].startswith("agreement")]
    assert differences == [(scores, "at most 0.0001"), (losses, "at most 0.01")]
    assert {
        "likelihoods, speed beside lm-eval",
        "answers, speed beside transformers",
        "loading qwen2.5-coder-0.5b nf4, speed beside transformers",
        "training llama2-7b none, speed beside meditune-recomputed",
        "training llama2-7b nf4, memory beside trl",
        "training llama2-7b int8, speed beside trainer",
    } <= compared
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["versions"]["torch"]


def gpu_bench(engines, path=None, end=math.inf):
    return gpu.Bench(gpu.TINY, engines, end, {"matrix_tflops": 1.0}, path)


def test_an_engine_that_is_missing_or_late_is_left_out():
    bench = gpu_bench(["vllm"])
    with bench.run("answers", "vllm") as found:
        assert found is not None
        raise ImportError("No module named 'vllm'", name="vllm")
    with bench.run("answers", "meditune") as found:
        assert found is None
    bench.end = 0.0
    with bench.run("answers", "vllm") as found:
        assert found is None
    bench.attempt(lambda: pytest.fail("starts after the time is over"), job="loading")
    assert [run["left_out"] for run in bench.runs] == ["vllm isn't installed", "no time", "no time"]


def test_a_failed_run_is_written_at_once_and_the_next_one_starts(tmp_path):
    path = tmp_path / "gpu.json"
    bench = gpu_bench(["vllm"], path)

    def load_and_run():
        with bench.run("answers", "vllm"):
            raise KeyError("tokens")
        assert json.loads(path.read_text("utf-8"))["runs"][0]["error"] == "KeyError: 'tokens'"
        raise OSError("the disk is full")

    bench.attempt(load_and_run, job="answers")
    with bench.run("answers", "vllm") as found:
        found["tokens_per_s"] = 1.0
    runs = json.loads(path.read_text("utf-8"))["runs"]
    assert [run.get("error") for run in runs] == ["KeyError: 'tokens'", "OSError: the disk is full", None]


def test_a_card_without_nvidia_smi_is_measured(monkeypatch):
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "H100")
    monkeypatch.setattr(gpu, "matrix_peak", lambda _: 1e12)
    found = gpu.about(gpu.FULL)
    assert (found["card"], found["driver"]) == ("H100", None)


@pytest.mark.parametrize(
    ("speeds", "tried"),
    [
        ({16: 5.0, 32: 6.0, 64: 7.0}, [16, 32, 64]),
        ({16: 5.0, 32: 4.0, 64: 7.0}, [16, 32]),
        ({16: 5.0}, [16, 32]),
        ({4: 5.0, 8: 6.0}, [16, 8]),
        ({2: 5.0}, [16, 8, 4, 2]),
    ],
)
def test_a_peer_is_measured_at_the_best_batch_that_fits(speeds, tried, monkeypatch):
    monkeypatch.setattr(gpu, "restart_peak", lambda _: None)
    bench = gpu_bench(["trl"])

    def measure(found):
        if found["batch"] not in speeds:
            raise torch.OutOfMemoryError("CUDA out of memory")
        found["examples_per_s"] = speeds[found["batch"]]

    bench.search("training", "trl", 16, 64, measure)
    assert [run["batch"] for run in bench.runs] == tried


def test_a_peer_that_fails_for_another_reason_is_not_tried_again():
    bench = gpu_bench(["trl"])
    bench.search("training", "trl", 16, 64, lambda _: {}["missing"])
    assert [run["error"] for run in bench.runs] == ["KeyError: 'missing'"]


def test_training_is_timed_for_some_seconds_after_the_first_step(monkeypatch):
    clock = itertools.count(0, 0.5)
    monkeypatch.setattr(gpu.time, "perf_counter", lambda: next(clock))
    steps = gpu.Steps(replace(gpu.TINY, seconds=2.0))
    assert [steps.ended() for _ in range(5)] == [False, False, False, False, True]
    assert steps.seconds == 2.0


def test_every_batch_size_is_decoded_once_before_it_is_timed(monkeypatch):
    decoded = []
    monkeypatch.setattr(gpu, "static_answers", lambda _, prompts, new: decoded.append((len(prompts), new)))
    monkeypatch.setattr(gpu, "timed", lambda _, work: decoded.append("timed") or work() or 1 / len(decoded))
    bench = gpu_bench(["transformers"])
    bench.size = replace(gpu.TINY, answers=16, batch=2)
    bench.answers()
    assert decoded == [(8, 4), "timed", (8, 4), (16, 4), "timed", (16, 4)]


def test_after_an_error_in_training_the_base_is_as_before(monkeypatch):
    base, recipe, pairs = gpu_base()

    def fail(loaded, *_):
        assert any("lora_A" in name for name, _ in loaded.model.named_parameters())
        loaded.model.gradient_checkpointing_enable()
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("meditune.train.trainer.train", fail)
    with pytest.raises(torch.OutOfMemoryError):
        gpu_bench([]).own_training(base, recipe, {}, pairs, {})
    assert not any("lora" in name for name, _ in base.named_parameters())
    assert not base.is_gradient_checkpointing


def test_predicted_and_measured_gpu_memory_both_exclude_the_cuda_context(monkeypatch):
    planned = Memory(weights=10**9, training=2 * 10**9, piece=4 * 10**9, process=8 * 10**9)
    monkeypatch.setattr("meditune.train.resource_plan.peak_of", lambda *_, **__: planned)
    base, recipe, pairs = gpu_base()
    found = {}
    gpu_bench([]).own_training(base, recipe, {}, pairs, found)
    assert found["predicted_gb"] == 7.0


def gpu_base():
    recipe = gpu.recipe_of("llama2-7b", "none")
    base = gpu.fresh(recipe, gpu.TINY, torch.bfloat16)
    return base, recipe, gpu.examples(gpu.TINY.steps * gpu.TINY.step, base.config.vocab_size)


def test_liger_runs_in_a_process_of_its_own(monkeypatch):
    started = []

    def run_child(command, **_):
        started.append(command[1])
        gpu.main(command[2:])
        return subprocess.CompletedProcess(command, 1)

    def train_shape(self, shape, quantize, peers):
        assert "liger" not in peers or started
        for peer in peers:
            self.search("training", peer, 2, 2, lambda found: found.update(examples_per_s=3.0), shape=shape)

    monkeypatch.setitem(sys.modules, "liger_kernel", types.ModuleType("liger_kernel"))
    monkeypatch.setattr(gpu.Bench, "train_shape", train_shape)
    monkeypatch.setattr(gpu.subprocess, "run", run_child)
    bench = gpu_bench(["trainer", "liger"], end=time.monotonic() + 600)
    bench.training()
    assert started == [gpu.__file__]
    assert [run["engine"] for run in bench.runs] == ["trainer", "trainer", "trainer", "liger", "liger", "liger"]
    assert bench.runs[-1]["error"] == "RuntimeError: Liger's process ended with status 1."


def test_the_price_of_1000_answers_follows_from_throughput_and_prices():
    alone, busy = ({"users": n, "tokens": 100, "answers": 2, "tokens_per_s": v} for n, v in ((1, 25.0), (8, 100.0)))
    found = {"side": "ours", "rows": [busy, alone], "rss_mb": 1024, "cold_start_s": 4.0}
    speed, small_busy, small_alone, large, warm, cold, gpu = serving_cost.dollars(found, 2, vm_hour=0.72, gpu_hour=7.2)
    assert speed == 2.0
    # 1,000 answers take 500 s of a VM at $0.0002 per second if it is busy, and 2,000 s with one user.
    assert (small_busy, small_alone, large) == pytest.approx((0.1, 0.4, 0.1))
    # Lambda bills 2 s of the memory that gives two cores for each answer, and 4 s more for a cold start.
    gigabytes = 2 * 1769 / 1024
    assert warm == pytest.approx(1000 * (2 * gigabytes * 0.0000166667 + 0.2e-6))
    assert cold - warm == pytest.approx(1000 * 4 * gigabytes * 0.0000166667)
    assert gpu == pytest.approx(20.0)


def test_the_documented_prices_have_the_columns_and_the_vm_of_the_script(tmp_path, monkeypatch, capsys):
    measured = tmp_path / "measured.json"
    rows = [{"users": 1, "tokens": 2, "answers": 1, "tokens_per_s": 2 / 36}]
    measured.write_text(json.dumps([{"side": "ours", "rows": rows, "rss_mb": 1, "cold_start_s": 1.0}]), "utf-8")
    monkeypatch.setattr(sys, "argv", ["serving_cost.py", str(measured)])
    serving_cost.main()
    head, _, row = capsys.readouterr().out.splitlines()
    page = (Path(__file__).parents[1] / "docs" / "experiments" / "speed.md").read_text("utf-8")
    assert head in page.splitlines()
    # With one answer in 36 s, 1,000 answers cost as much as the VM in ten hours.
    assert f"costs ${float(row.split(' | $')[1]) / 10:g} per hour" in page


def events(*contents):
    return httpx2.Response(200, text="".join(f"data: {json.dumps(each)}\n\n" for each in contents))


def answer(outcome="answered", cited=True):
    sentence = {"shown": True, "citations": [{"number": 1}] if cited else []}
    decision = {"answer": "yes"} if cited else None
    return {"outcome": outcome, "sentences": [sentence], "decision": decision, "tokens": {"completion": 7}}


def seen_by(replies, route, addresses=("http://a/",)):
    """Send one request for each reply; return what the benchmark recorded, and the requests."""
    requests, left = [], iter(replies)

    def reply(request):
        requests.append(request)
        return next(left)

    async def asked():
        options = argparse.Namespace(route=route, tokens=8, words=3)
        running = [types.SimpleNamespace(address=address, model="m") for address in addresses]
        async with httpx2.AsyncClient(transport=httpx2.MockTransport(reply)) as client:
            ask = serving.Asking(client, running, options, ["First?", "Second?"])
            for _ in replies:
                await ask.one(seen)

    seen = serving.Seen()
    asyncio.run(asked())
    return seen, requests


def test_questions_under_load_are_counted_by_what_the_assistant_did():
    notice, text = {"level": "remark", "text": "A note.", "title": ""}, {"text": "It helps."}
    replies = [
        events(notice, text, answer()),
        events(answer(cited=False)),
        events(answer("abstained", cited=False)),
        events(answer("escalated", cited=False)),
        events({"error": {"status": 504}}),
        events(text),
        httpx2.Response(429, headers={"retry-after": "5"}, json={"error": {"message": "busy"}}),
        httpx2.Response(503, json={"error": {"message": "restarting"}}),
    ]
    seen, requests = seen_by(replies, "ask", ["http://a/", "http://b/"])
    assert dict(seen.statuses) == {
        "answered with citations": 1,
        "answered without citations": 1,
        "abstained": 1,
        "escalated": 1,
        "504 in a stream": 1,
        "200 without an answer": 1,
        "429": 1,
        "503": 1,
    }
    assert (len(seen.seconds), len(seen.first), len(seen.failed), seen.retry_after) == (3, 1, 3, [5])
    assert (seen.decided, seen.tokens) == (1, 28)
    assert [str(each.url) for each in requests[:3]] == ["http://a/v1/ask", "http://b/v1/ask", "http://a/v1/ask"]
    assert [json.loads(each.content)["question"] for each in requests[:3]] == ["First?", "Second?", "First?"]


def test_chats_under_load_are_counted_by_status():
    pieces = [{"choices": [{"delta": {"content": text}}], "usage": None} for text in ("", "Yes.")]
    seen, requests = seen_by([events(*pieces, {"choices": [], "usage": {"completion_tokens": 2}})], "chat")
    assert (dict(seen.statuses), seen.tokens, len(seen.first)) == ({"200": 1}, 2, 1)
    assert str(requests[0].url) == "http://a/v1/chat/completions"


def test_questions_for_the_load_are_titles_of_the_index_or_lines_of_a_file(tmp_path):
    texts = {"a.md": "# Does rest help?\n\nIt does.\n", "b.md": "# Gout\n\nCrystals inflame a joint.\n"}
    library = str(tmp_path / "index")
    build(index_storage(library), [documents(str(corpus.folder(tmp_path / "texts", texts)))], corpus.TINY)
    assert serving.questions(argparse.Namespace(index=library, questions=None)) == ["Does rest help?"]
    write_jsonl(tmp_path / "test.jsonl", [{"question": "Why?"}, {"question": "Why?"}])
    options = argparse.Namespace(index=library, questions=str(tmp_path / "test.jsonl"))
    assert serving.questions(options) == ["Why?"]


def test_metrics_of_several_servers_are_added_up():
    checked = 'meditune_sentences_checked_total{by="judge"}'
    text = f"# HELP meditune_waiting Requests\nmeditune_waiting 2.0\nmeditune_up 1.0\n{checked} 3.0\n"

    async def found():
        transport = httpx2.MockTransport(lambda _: httpx2.Response(200, text=text))
        async with httpx2.AsyncClient(transport=transport) as client:
            return await serving.metrics(client, [types.SimpleNamespace(address=each) for each in ("http://a/",) * 2])

    assert asyncio.run(found()) == {"meditune_waiting": 4.0, checked: 6.0}


def test_a_fault_that_cant_be_injected_says_what_to_install(monkeypatch):
    monkeypatch.setattr(faults, "FAKETIME", None)
    options = argparse.Namespace(postgresql=False, object_storage=False)
    assert "apt-get install libfaketime" in faults.injected("clock-set-back", options, {})


def test_a_faults_row_reports_what_the_store_lacks_keeps_and_has_in_another_order():
    users = faults.Users({}, confirmed={"a": "", "b": "", "lost": "words"}, deleted={"gone", "undeleted"})
    users.replies = [faults.Reply(0, 1, "answered"), faults.Reply(2, 3, "deletion 404")]
    users.asked[0] = ["a", "gone", "b", "lost"]
    right = faults.row("fault", users, {"a": [], "b": [], "undeleted": []}, 0.0)
    assert right == "| fault | 1 | deletion 404: 1 | 0 | 3, 1, 2 | 1, 1, 1 | 1.0 s | never |"
    assert "STORED IN ANOTHER ORDER" in faults.row("fault", users, {"b": [], "a": []}, 0.0)


def test_margin_and_committee_ask_for_the_items_that_the_head_decides_least_clearly():
    generator = np.random.default_rng(0)
    right = generator.integers(0, 2, 200)
    inputs = (2.0 * right - 1)[:, None] + generator.normal(size=(200, 1))
    targets, rest = np.eye(3)[right], np.arange(100, 200)
    asked = {
        each: label_queue.ranked(each, inputs, targets, np.arange(100), rest, 1.0) for each in ("random", "margin")
    }
    assert asked["random"].tolist() == rest.tolist()
    assert sorted(asked["margin"]) == rest.tolist()
    assert abs(inputs[asked["margin"][:10]]).max() < 0.5 < 1 < abs(inputs[asked["margin"][-10:]]).min()
    # An input that few labelled items have, with contradictory labels, has a different weight in each sample.
    rare = np.append(np.arange(6), np.arange(100, 110))
    inputs = np.hstack([inputs, 3.0 * np.isin(np.arange(200), rare)[:, None]])
    committee = label_queue.ranked("committee", inputs, targets, np.arange(100), rest, 1.0)
    assert np.isin(committee[:10], rare).sum() >= 6


def test_inputs_without_signal_are_regularized_most_and_clear_inputs_least():
    generator, right = np.random.default_rng(0), np.arange(300) % 3
    noise, clear = generator.normal(size=(300, 50)), np.eye(3)[right]
    chosen = [label_queue.cross_validated(each, np.eye(3)[right], right, 0)[0] for each in (noise, clear)]
    assert chosen == [min(label_queue.STRENGTHS), max(label_queue.STRENGTHS)]


def test_a_learning_curve_never_learns_from_held_out_items():
    generator = np.random.default_rng(0)
    right, pool, held = np.arange(500) % 3, np.arange(400), np.arange(400, 500)
    inputs = np.eye(3)[right] + 0.3 * generator.normal(size=(500, 3))
    curve = list(label_queue.curve("margin", inputs, right, pool, held, 0))
    altered = np.where(np.isin(np.arange(500), held), (right + 1) % 3, right)
    assert len(curve) == len(label_queue.BUDGETS)
    assert np.array_equal(curve, list(label_queue.curve("margin", inputs, altered, pool, held, 0)))
    assert (curve[-1].argmax(axis=1) == right[held]).mean() > 0.9


def test_a_head_fitted_to_soft_targets_predicts_their_shares():
    targets = np.array([[0.7, 0.1, 0.2]] * 30)
    assert label_queue.chances(label_queue.fit(np.zeros((30, 1)), targets, 1.0), np.zeros((1, 1))) == pytest.approx(
        targets[:1], abs=0.01
    )


def test_a_bias_for_maybe_finds_more_of_them_and_costs_no_accuracy():
    said = np.array([[0.5, 0.1, 0.4], [0.45, 0.15, 0.4], [0.55, 0.05, 0.4], [0.7, 0.1, 0.2]])
    bias = annotators.best_bias(said, np.array([2, 2, 0, 0]))
    assert annotators.biased(said, bias).argmax(axis=1).tolist() == [2, 2, 0, 0]
    assert annotators.best_bias(said, np.array([0, 2, 0, 0])) == pytest.approx(0.15)


def test_the_area_under_the_curve_of_a_draw_counts_an_item_as_often_as_it_was_drawn():
    scores, positive, negative = np.array([3.0, 1.0, 2.0, 1.0]), np.array([0, 1]), np.array([2, 3])
    figure, items = label_queue.auc(scores, positive, negative)
    assert figure(items.sum(axis=0)) == pytest.approx((1 + 1 + 0 + 0.5) / 4)
    assert figure(np.array([2.0, 1, 0, 3]) @ items) == pytest.approx((2 * 3 * 1 + 1 * 3 * 0.5) / 9)
