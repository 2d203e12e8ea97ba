"""Training speed and memory: Meditune beside TRL, transformers' Trainer and LitGPT, and beside the machine's limit.

    python benchmarks/training.py --model smollm2-135m --json figures.json
    python benchmarks/training.py --engines meditune trl-bf16 trainer-bf16 meditune --trainer-batch 1 2 4
    python benchmarks/training.py --engines meditune litgpt --litgpt-python /path/to/venv/bin/python

Every engine is a process of its own and trains LoRA on the same examples with the same tokens, targets and optimizer
steps of eight examples. An engine may be named more than once; ratios are to the mean of Meditune's runs.

- tokens/s: tokens of separate decision and answer rows without padding, the text that a peer has to read. Meditune
  reads fewer, because the two rows of an example share their prompt; "read" counts what was really read. The first
  step of each engine is a warm-up and isn't counted, nor is the time in which Meditune's layers are compiled.
- MFU: operations that what was read needs at the least (cost.py) a second, as a share of the fastest BF16 matrix
  product that this machine did right before and after (limit.py); in brackets of the typical one.
- training GB: the most memory held from the first step on, weights included; all GB: since the process began.

Needs `pip install -e . --group bench`; LitGPT pins versions of its own and needs an interpreter of its own.
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
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

os.environ |= {"HF_HUB_DISABLE_TELEMETRY": "1", "DO_NOT_TRACK": "true", "TOKENIZERS_PARALLELISM": "false"}

from cost import Cost, Read, cost_of, read_of_row, total
from limit import bf16_gflops, shapes_of
from material import FRESH, Material, config_of, lengths, material, sha256_of
from memory import Peaks

ENGINES = ("meditune", "trl-bf16", "trl-bf16-chunked", "trl-fp32", "trainer-bf16", "litgpt")
BATCH = 8
"""Examples in a step, each with two rows"""
LITGPT_NAMES = {"smollm2-135m": "SmolLM2-135M-Instruct", "gemma3-270m": "Gemma-3-270m"}
PACKAGES = ("torch", "transformers", "trl", "peft", "accelerate", "datasets", "meditune")


def main() -> None:
    """Measure each engine in a process of its own and print the table."""
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
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=list(ENGINES[:-1]))
    parser.add_argument("--steps", type=int, default=3, help="steps that are timed")
    parser.add_argument("--max-tokens", type=int, default=512, help="longest row")
    parser.add_argument("--compile", choices=("on", "off"), default="on", help="Meditune's train.compile")
    parser.add_argument("--trl-batch", type=int, nargs="+", default=[8], help="rows in TRL's batches")
    parser.add_argument(
        "--trainer-batch", type=int, nargs="+", default=[2], help="rows in transformers' batches; the best counts"
    )
    parser.add_argument("--litgpt-batch", type=int, nargs="+", default=[1], help="rows in LitGPT's batches; 1 is usual")
    parser.add_argument("--litgpt-python", default=sys.executable, help="interpreter that has LitGPT")
    parser.add_argument("--litgpt-precision", default="bf16-true", help="as LitGPT calls it: bf16-true, bf16-mixed")
    parser.add_argument("--json", type=Path, help="also write all figures to this file")
    parser.add_argument("--worker", choices=ENGINES, help=argparse.SUPPRESS)
    parser.add_argument("--batch", type=int, help=argparse.SUPPRESS)
    return parser


def compare(options: argparse.Namespace) -> None:
    """Measure all engines one after the other, and the machine's limit before and after each."""
    from meditune.files import write_json

    sizes = {"litgpt": options.litgpt_batch, "trainer-bf16": options.trainer_batch, "meditune": [None]}
    jobs = [(engine, size) for engine in options.engines for size in sizes.get(engine, options.trl_batch)]
    wrong = [size for _, size in jobs if size and 2 * BATCH % size]
    if wrong:
        sys.exit(f"A batch of {wrong[0]} rows doesn't divide a step's {2 * BATCH} rows; take 1, 2, 4, 8 or 16.")
    if "litgpt" in options.engines and not shutil.which(options.litgpt_python):
        sys.exit(f"--litgpt-python {options.litgpt_python} is no program that can be started.")
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
    shapes = shapes_of(config_of(options.model))
    runs: list[dict[str, Any]] = []
    found = {"command": sys.argv[1:], "model": options.model, "about": about(), "runs": runs}
    limit = bf16_gflops(shapes)
    for engine, size in jobs:
        before, run = limit, measured(engine, size, options)
        limit = bf16_gflops(shapes)
        runs.append({"engine": engine, "batch": size} | with_speeds(run, before, limit))
        print(line(runs[-1], {}), flush=True)
        if options.json:
            write_json(options.json, found)
    print("\nBeside Meditune, the best batch of each:")
    for run in best(runs):
        print(line(run, mean_of(runs, "meditune")))


def about() -> dict[str, Any]:
    """Versions and the machine."""
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


def measured(engine: str, size: int | None, options: argparse.Namespace) -> dict[str, Any]:
    """The figures of one engine's own process; an error where it failed."""
    words = [sys.executable, __file__, "--worker", engine, "--model", options.model, "--steps", str(options.steps)]
    words += ["--max-tokens", str(options.max_tokens), "--batch", str(size or 0), "--compile", options.compile]
    words += ["--litgpt-python", options.litgpt_python, "--litgpt-precision", options.litgpt_precision]
    return outcome(subprocess.run(words, capture_output=True, text=True, check=False))


def outcome(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    """What a process printed last, as JSON; an error with its last line where it failed."""
    if done.returncode:
        return {"error": (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]}
    figures: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return figures


def with_speeds(run: dict[str, Any], before: dict[str, Any], after: dict[str, Any]) -> dict[str, Any]:
    """The run's figures with tokens a second and MFU."""
    if "error" in run:
        return run
    flops = run["flops"] / run["seconds"] / 1e9
    return run | {
        "tokens_per_s": run["text_tokens"] / run["seconds"],
        "read_tokens_per_s": run["read_tokens"] / run["seconds"],
        "gflops": flops,
        "mfu": flops / max(before["best"], after["best"]),
        "mfu_of_typical": flops / ((before["typical"] + after["typical"]) / 2),
        "bf16_gflops_before": before,
        "bf16_gflops_after": after,
    }


def mean_of(runs: list[dict[str, Any]], engine: str) -> dict[str, float]:
    """Mean speed and largest peak of an engine's runs; empty where it has none."""
    mine = [run for run in runs if run["engine"] == engine and "error" not in run]
    if not mine:
        return {}
    peaks = [run["training_peak_gb"] or run["peak_gb"] for run in mine]
    return {"tokens_per_s": sum(run["tokens_per_s"] for run in mine) / len(mine), "peak_gb": max(peaks)}


def best(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The fastest run of each engine."""
    ranked = sorted(runs, key=lambda run: -run.get("tokens_per_s", 0.0))
    return [
        next(run for run in ranked if run["engine"] == engine) for engine in dict.fromkeys(r["engine"] for r in runs)
    ]


def line(run: dict[str, Any], ours: dict[str, float]) -> str:
    """One run as a line; where Meditune's figures are given, with its speed and memory as multiples of the run's."""
    name = run["engine"] + (f" x{run['batch']}" if run["batch"] else "")
    if "error" in run:
        return f"{name:20} failed: {run['error']}"
    training = run["training_peak_gb"]
    ratios = ""
    if ours and run["engine"] != "meditune":
        peak = ours["peak_gb"] / (training or run["peak_gb"])
        ratios = f"  Meditune: {ours['tokens_per_s'] / run['tokens_per_s']:.1f}x the speed, {peak:.2f}x the training GB"
    limits = [run[f"bf16_gflops_{when}"] for when in ("before", "after")]
    return (
        f"{name:20}{run['tokens_per_s']:7.0f} tokens/s ({run['read_tokens_per_s']:.0f} read)  "
        f"{f'{training:.1f}' if training else '?'} training GB, {run['peak_gb']:.1f} all GB  "
        f"MFU {run['mfu']:.1%} ({run['mfu_of_typical']:.1%}) of "
        f"{max(each['best'] for each in limits)} GFLOP/s{ratios}"
    )


def work(options: argparse.Namespace) -> dict[str, Any]:
    """One engine's figures, measured in this process."""
    from meditune.errors import MedituneError

    settings = [*lengths(options.max_tokens), f"train.batch_size={BATCH}", f"train.compile={options.compile}"]
    try:
        given = material(options.model, BATCH * (options.steps + 1), settings)
    except MedituneError as error:
        sys.exit(" ".join(str(error).split()))
    if len(given.examples) < BATCH * (options.steps + 1):
        sys.exit(f"There are {len(given.examples)} examples, too few for {options.steps + 1} steps of {BATCH}.")
    facts = {"seed": given.recipe.seed, "data_sha256": given.data_sha256}
    if options.worker == "meditune":
        return meditune(given) | facts
    if options.worker == "litgpt":
        return litgpt(given, options) | facts
    import peers

    if options.worker == "trainer-bf16":
        return peers.trainer(given, 2 * BATCH, options.batch) | facts
    more = {"loss_type": "chunked_nll"} if options.worker == "trl-bf16-chunked" else {}
    return peers.trl(given, 2 * BATCH, options.batch, options.worker != "trl-fp32", **more) | facts


def meditune(given: Material) -> dict[str, Any]:
    """Meditune's own training loop."""
    from meditune.models.frozen import FrozenLayers
    from meditune.train.encode import encode
    from meditune.train.fast import fast_layers
    from meditune.train.sft import plan_steps, probe, train
    from meditune.train.weights import TokenWeights

    recipe, loaded = given.recipe, given.loaded
    rows, _ = encode(given.examples, loaded.encoder(recipe.prompt), recipe.train.tasks)
    model, cost = adapted(given)
    weights = TokenWeights(given.examples, rows, recipe.train)
    peaks = Peaks()
    peaks.loaded()
    frozen = FrozenLayers(model, 0)

    def try_a_piece() -> float:
        return probe(model, loaded.pad_id, rows, weights, recipe.train, frozen)

    with fast_layers(model, recipe.train, sum(map(len, rows)), try_a_piece) as are_compiled:
        steps = list(train(model, loaded.pad_id, rows, weights, recipe.train, recipe.seed, frozen))
    figures = peaks.figures()
    timed = [rows[index] for step in plan_steps(len(rows), recipe.train, recipe.seed)[1:] for index in step]
    read = total([read_of_row(row) for row in timed])
    return {
        "seconds": sum(step.seconds for step in steps[1:]),
        "text_tokens": sum(len(item.prompt) + len(item.target) for row in timed for item in row.encoded),
        "read_tokens": read.tokens,
        "flops": cost.of(read),
        "rows_sha256": sha256_of(given.rows()),
        "compiled": are_compiled,
        **figures,
    }


def adapted(given: Material) -> tuple[Any, Cost]:
    """The model with Meditune's adapter, and what training it costs."""
    from meditune.models.adapters import add_lora

    model = add_lora(given.loaded.model, given.recipe.model.lora, given.recipe.seed)
    return model, cost_of(model)


def litgpt(given: Material, options: argparse.Namespace) -> dict[str, Any]:
    """LitGPT's `finetune_lora`, in the interpreter that has it."""
    from meditune.models.load import locate

    if options.model not in LITGPT_NAMES:
        sys.exit(f"LitGPT has no architecture for {options.model}; it knows {', '.join(LITGPT_NAMES)} here.")
    rows, lora = given.rows(), given.recipe.model.lora
    job = {
        "folder": locate(given.base),
        "name": LITGPT_NAMES[options.model],
        "rows": rows,
        "batch": options.batch,
        "rows_per_step": 2 * BATCH,
        "steps": options.steps,
        "precision": options.litgpt_precision,
        "seed": given.recipe.seed,
        "pad_id": given.loaded.pad_id,
        "lora": {"r": lora.r, "alpha": lora.alpha, "dropout": lora.dropout},
    }
    _, cost = adapted(given)
    # Two models at once might not fit.
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
    return figures | {
        "text_tokens": read.tokens,
        "read_tokens": read.tokens,
        "flops": cost.of(read),
        "rows_sha256": sha256_of(rows),
    }


if __name__ == "__main__":
    main()
