"""Compare training speed and memory of Meditune, LitGPT, transformers' Trainer and TRL, and the machine's limit.

    python benchmarks/training.py --model smollm2-135m --json metrics.json
    python benchmarks/training.py --engines trainer --batch 2 4 --json metrics.json
    python benchmarks/training.py --engines meditune litgpt --litgpt-python /path/to/venv/bin/python

Every engine is a separate process and trains LoRA on the same examples in the same optimizer steps of eight examples,
each with a decision and an answer. Engines have settings that a user can choose (peers.py has those of TRL and the
Trainer); peers run once for each size in --batch. The first step is a warm-up and isn't counted, nor is the time for
compiling layers. With --json, measurements that the file already has are skipped, so later calls can add engines and
batch sizes. An engine that is named twice is measured twice; ratios use the mean of Meditune's runs.

- examples/s: the same work for every engine. With --threads 1, seconds are CPU time, which other work disturbs least.
- tokens/s: tokens that the engine read, without padding. A peer reads one row for the decision and one for the answer;
  Meditune reads their common prompt once, so it reads about half of the tokens for the same examples.
- training GB: the most memory from the first step on, weights included; all GB: since the process began.
- MFU: the minimum operations for the tokens read (cost.py) per second, as a share of the fastest BF16 matrix product on
  this machine right before and after (limit.py); in parentheses, as a share of the typical product. Recomputation by
  gradient checkpointing isn't counted.
- others: the share of the cores' time that other processes used; more than a few percent means a disturbed run.

Needs `pip install -e . --group bench`; LitGPT pins its own versions and needs a separate interpreter.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

os.environ |= {"HF_HUB_DISABLE_TELEMETRY": "1", "DO_NOT_TRACK": "true", "TOKENIZERS_PARALLELISM": "false"}

from cost import Cost, Read, cost_of, read_of_row, total
from limit import Shape, bf16_gflops, shapes_of
from material import FRESH, Material, config_of, lengths, material, sha256_of
from memory import Clock, Peaks
from peers import SETUPS, measured

OWN = {"meditune": "on", "meditune-uncompiled": "off"}
"""Values of Meditune's train.compile; Meditune chooses its own batch sizes"""
LITGPT = {"litgpt": "bf16-true", "litgpt-mixed": "bf16-mixed"}
"""Values of LitGPT's precision"""
ENGINES = (*OWN, *LITGPT, *SETUPS)
DEFAULT = ("meditune", "trainer", "trl", "trl-no-checkpointing", "meditune")
BATCH = 8
"""Number of examples in a step, each with two rows"""
LITGPT_NAMES = {"smollm2-135m": "SmolLM2-135M-Instruct", "gemma3-270m": "Gemma-3-270m"}
PACKAGES = ("torch", "transformers", "trl", "peft", "accelerate", "datasets", "meditune")

Job = tuple[str, int | None]
"""An engine and its number of rows in a batch"""


def main() -> None:
    """Measure each engine in a separate process and print the table."""
    options = _parser().parse_args()
    try:
        if options.worker:
            print(json.dumps(work(options)))
        else:
            compare(options)
    except ImportError as error:
        sys.exit(f"{error.name} isn't installed: pip install -e . --group bench")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m", help=f"base model, or {FRESH}")
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=list(DEFAULT))
    parser.add_argument(
        "--batch", type=int, nargs="+", default=[1, 2, 4, 8], help="numbers of rows in the peers' batches"
    )
    parser.add_argument("--steps", type=int, default=2, help="number of timed steps")
    parser.add_argument("--max-tokens", type=int, default=512, help="length of the longest row")
    parser.add_argument(
        "--threads", type=int, default=os.cpu_count(), help="compute threads; with 1, seconds are CPU time"
    )
    parser.add_argument("--litgpt-python", default=sys.executable, help="interpreter that has LitGPT")
    parser.add_argument("--json", type=Path, help="write all metrics to this file, and skip those it has")
    parser.add_argument("--again", action="store_true", help="measure these engines and batches again")
    parser.add_argument("--worker", choices=ENGINES, help=argparse.SUPPRESS)
    return parser


def compare(options: argparse.Namespace) -> None:
    """Measure all engines one after the other, and the machine's limit before and after each."""
    from meditune.files import write_json

    jobs = jobs_of(options.engines, options.batch)
    wrong = [size for size in options.batch if 2 * BATCH % size]
    if wrong:
        sys.exit(f"A batch of {wrong[0]} rows doesn't divide a step's {2 * BATCH} rows; take 1, 2, 4, 8 or 16.")
    if set(LITGPT) & set(options.engines) and not shutil.which(options.litgpt_python):
        sys.exit(
            f"--litgpt-python {options.litgpt_python} can't be started. Give the Python of an environment with LitGPT."
        )
    settings = {name: getattr(options, name) for name in ("model", "steps", "max_tokens", "threads")}
    found = earlier(options.json, settings) | settings | {"about": about()}
    found["runs"] = [run for run in found["runs"] if "error" not in run]
    if options.again:
        found["runs"] = [run for run in found["runs"] if (run["engine"], run["batch"]) not in jobs]
    shapes, clock = shapes_of(config_of(options.model)), "processor" if options.threads == 1 else "wall"
    for engine, size in missing(jobs, found["runs"]):
        before, run = limit(shapes, options.threads), in_process(engine, size, options)
        run = {"engine": engine, "batch": size} | with_speeds(run, clock, before, limit(shapes, options.threads))
        print(line(run, {}), flush=True)
        found["runs"].append(run)
        if options.json:
            write_json(options.json, found)
    print("\nBeside Meditune, the best batch of each:")
    for run in best(found["runs"]):
        print(line(run, mean_of(found["runs"], "meditune")))


def limit(shapes: list[Shape], threads: int) -> dict[str, Any]:
    """Return the machine's speed with these threads, by CPU time if there is only one."""
    import torch

    torch.set_num_threads(threads)
    return bf16_gflops(shapes, time.process_time if threads == 1 else time.perf_counter)


def jobs_of(engines: list[str], sizes: list[int]) -> list[Job]:
    """Return the jobs: Meditune's engines once each time they are named, peers also for each batch size."""
    return [(engine, size) for engine in engines for size in ([None] if engine in OWN else sizes)]


def missing(jobs: list[Job], runs: list[dict[str, Any]]) -> list[Job]:
    """Return the jobs, in order, that have no run yet; a job that is named twice needs two runs."""
    had = Counter((run["engine"], run["batch"]) for run in runs)
    left = []
    for job in jobs:
        if had[job]:
            had[job] -= 1
        else:
            left.append(job)
    return left


def earlier(file: Path | None, settings: dict[str, Any]) -> dict[str, Any]:
    """Return the results of earlier calls from the file; exit if they had other settings."""
    from meditune.files import read_json

    if file is None or not file.is_file():
        if file:
            file.parent.mkdir(parents=True, exist_ok=True)
        return {"runs": []}
    found: dict[str, Any] = read_json(file)
    for name, value in settings.items():
        if found.get(name) != value:
            sys.exit(f"{file} was measured with {name} {found.get(name)}, not {value}. Name another file with --json.")
    return found


def about() -> dict[str, Any]:
    """Return the versions and the machine."""
    versions: dict[str, str | None] = {}
    for name in PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = None
    return {"python": platform.python_version(), "versions": versions, "cores": os.cpu_count(), "cpu": _cpu()}


def _cpu() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").is_file() else []
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.machine())


def in_process(engine: str, size: int | None, options: argparse.Namespace) -> dict[str, Any]:
    """Return the metrics of one engine, measured in a separate process, or its error."""
    words = [sys.executable, __file__, "--worker", engine, "--model", options.model, "--steps", str(options.steps)]
    words += ["--max-tokens", str(options.max_tokens), "--batch", str(size or 0)]
    words += ["--litgpt-python", options.litgpt_python]
    environment = os.environ | {"OMP_NUM_THREADS": str(options.threads)}
    if engine not in OWN:
        # Meditune limits oneDNN's cache of compiled shapes; peers get oneDNN's default, as their users do.
        environment.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "1024")
    return outcome(subprocess.run(words, capture_output=True, text=True, check=False, env=environment))


def outcome(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    """Return the JSON of a process's last line, or its error if it failed."""
    if done.returncode:
        return {"error": (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]}
    figures: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return figures


def with_speeds(run: dict[str, Any], clock: str, before: dict[str, Any], after: dict[str, Any]) -> dict[str, Any]:
    """Return the run's metrics with examples and tokens per second and MFU, by wall-clock or CPU seconds."""
    if "error" in run:
        return run
    seconds = run[f"{clock}_seconds"]
    flops = run["flops"] / seconds / 1e9
    return run | {
        "examples_per_s": run["examples"] / seconds,
        "tokens_per_s": run["read_tokens"] / seconds,
        "gflops": flops,
        "mfu": flops / max(before["best"], after["best"]),
        "mfu_of_typical": flops / ((before["typical"] + after["typical"]) / 2),
        "bf16_gflops_before": before,
        "bf16_gflops_after": after,
    }


def mean_of(runs: list[dict[str, Any]], engine: str) -> dict[str, float]:
    """Return the mean speed and the largest peak of an engine's runs; empty if it has none."""
    mine = [run for run in runs if run["engine"] == engine and "error" not in run]
    if not mine:
        return {}
    peaks = [run["training_peak_gb"] or run["peak_gb"] for run in mine]
    return {"examples_per_s": sum(run["examples_per_s"] for run in mine) / len(mine), "peak_gb": max(peaks)}


def best(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the fastest run of each engine, the fastest engine first."""
    found: dict[str, dict[str, Any]] = {}
    for run in sorted(runs, key=lambda run: -run.get("examples_per_s", 0.0)):
        found.setdefault(run["engine"], run)
    return list(found.values())


def line(run: dict[str, Any], ours: dict[str, float]) -> str:
    """Return one run as a line, with Meditune's speed and memory relative to it if Meditune's metrics are given."""
    name = run["engine"] + (f" x{run['batch']}" if run["batch"] else "")
    if "error" in run:
        return f"{name:24} failed: {run['error']}"
    training = run["training_peak_gb"]
    ratios = ""
    if ours and run["engine"] not in OWN:
        peak = ours["peak_gb"] / (training or run["peak_gb"])
        speed = ours["examples_per_s"] / run["examples_per_s"]
        ratios = f"  Meditune: {speed:.2f}x the speed, {peak:.2f}x the training GB"
    others = "" if run["others_share"] is None else f", others {run['others_share']:.0%}"
    limits = [run[f"bf16_gflops_{when}"] for when in ("before", "after")]
    return (
        f"{name:24}{run['examples_per_s']:6.3f} examples/s, {run['tokens_per_s']:5.0f} tokens/s read  "
        f"{f'{training:.2f}' if training else '?'} training GB, {run['peak_gb']:.2f} all GB  "
        f"MFU {run['mfu']:.1%} ({run['mfu_of_typical']:.1%}) of "
        f"{max(each['best'] for each in limits)} GFLOP/s{others}{ratios}"
    )


def work(options: argparse.Namespace) -> dict[str, Any]:
    """Return one engine's metrics, measured in this process."""
    from meditune.errors import MedituneError

    settings = [*lengths(options.max_tokens), f"train.batch_size={BATCH}"]
    settings += [f"train.compile={OWN.get(options.worker, 'off')}"]
    try:
        given = material(options.model, BATCH * (options.steps + 1), settings)
    except MedituneError as error:
        sys.exit(" ".join(str(error).split()))
    if len(given.examples) < BATCH * (options.steps + 1):
        sys.exit(
            f"There are {len(given.examples)} examples, too few for {options.steps + 1} steps of {BATCH}. "
            "Use fewer --steps."
        )
    rows, size = given.rows_by_step(), options.batch[0]
    if options.worker in OWN:
        run = meditune(given)
    elif options.worker in LITGPT:
        run = litgpt(given, size, options)
    else:
        run = measured(given, SETUPS[options.worker], 2 * BATCH, size)
    supervised = sum(label != -100 for row in rows[2 * BATCH :] for label in row["labels"])
    if run["supervised_tokens"] != supervised:
        sys.exit(f"{options.worker} trained {run['supervised_tokens']} tokens of answers instead of {supervised}.")
    examples, tokens = BATCH * options.steps, sum(len(row["input_ids"]) for row in rows[2 * BATCH :])
    facts = {"seed": given.recipe.seed, "data_sha256": given.data_sha256, "rows_sha256": sha256_of(rows)}
    return run | facts | {"examples": examples, "tokens_of_separate_rows": tokens}


def meditune(given: Material) -> dict[str, Any]:
    """Return the metrics of Meditune's own training loop."""
    from meditune.models.hidden_state_cache import HiddenStateCache
    from meditune.train.dataset import TokenWeights, encode
    from meditune.train.finetune import fast_layers
    from meditune.train.trainer import TrainingRows, plan_steps, probe, train

    recipe, loaded = given.recipe, given.loaded
    rows, _ = encode(given.examples, loaded.encoder(recipe.prompt), recipe.train.tasks)
    model, cost = adapted(given)
    data = TrainingRows(rows, TokenWeights(given.examples, rows, recipe.train))
    peaks, clock = Peaks(), Clock()
    peaks.loaded()
    in_training = replace(loaded, model=model, frozen=HiddenStateCache(model, 0))

    def try_a_piece() -> float:
        return probe(in_training, data, recipe.train)

    with fast_layers(model, recipe.train, sum(map(len, rows)), try_a_piece) as are_compiled:
        for _ in train(in_training, data, recipe.train, recipe.seed):
            clock.ended()
    timed = [rows[index] for step in plan_steps(len(rows), recipe.train, recipe.seed)[1:] for index in step]
    read = total([read_of_row(row) for row in timed])
    return {
        "read_tokens": read.tokens,
        "supervised_tokens": read.supervised,
        "flops": cost.of(read),
        "compiled": are_compiled,
        **clock.figures(),
        **peaks.figures(),
    }


def adapted(given: Material) -> tuple[Any, Cost]:
    """Return the model with Meditune's adapter, and what training it costs."""
    from meditune.models.adapters import add_lora

    model = add_lora(given.loaded.model, given.recipe.model.lora, given.recipe.seed)
    return model, cost_of(model)


def litgpt(given: Material, size: int, options: argparse.Namespace) -> dict[str, Any]:
    """Return the metrics of LitGPT's `finetune_lora`, in the interpreter that has it."""
    from meditune.models.load import locate

    if options.model not in LITGPT_NAMES:
        sys.exit(f"LitGPT has no architecture for {options.model}; it knows {', '.join(LITGPT_NAMES)} here.")
    lora = given.recipe.model.lora
    job = {
        "folder": locate(given.base),
        "name": LITGPT_NAMES[options.model],
        "rows": given.rows_by_step(),
        "batch": size,
        "rows_per_step": 2 * BATCH,
        "steps": options.steps,
        "precision": LITGPT[options.worker],
        "seed": given.recipe.seed,
        "pad_id": given.loaded.pad_id,
        "lora": {"r": lora.r, "alpha": lora.alpha, "dropout": lora.dropout},
    }
    _, cost = adapted(given)
    # Free this model, because two models might not fit in memory.
    given.loaded.model = None
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "job.json"
        file.write_text(json.dumps(job), encoding="utf-8")
        script = Path(__file__).with_name("litgpt_lora.py")
        clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        words = [options.litgpt_python, str(script), str(file)]
        done = subprocess.run(words, capture_output=True, text=True, check=False, env=clean)
    figures = outcome(done)
    if "error" in figures:
        sys.exit(figures["error"])
    read = Read(**figures.pop("read"))
    return figures | {"read_tokens": read.tokens, "supervised_tokens": read.supervised, "flops": cost.of(read)}


if __name__ == "__main__":
    main()
