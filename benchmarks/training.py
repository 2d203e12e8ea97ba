"""Training speed and memory: Meditune beside TRL's SFTTrainer and transformers' Trainer, in one run.

    python benchmarks/training.py --model smollm2-135m
    python benchmarks/training.py --model gemma3-270m --engines meditune trl-fp32 trainer

Every engine is a process of its own and trains LoRA on the same examples with the same tokens, targets and optimizer
steps of eight examples. Speed is counted in the tokens of separate decision and answer rows without padding, the text
that a peer has to read; Meditune reads fewer, because the two rows of an example share their prompt. The second figure
counts what was really read. The first step of each engine is a warm-up and isn't counted.

Needs `pip install -e . --group bench`.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ |= {"HF_HUB_DISABLE_TELEMETRY": "1", "DO_NOT_TRACK": "true", "TOKENIZERS_PARALLELISM": "false"}

ENGINES = ("meditune", "trl-bf16", "trl-bf16-chunked", "trl-fp32", "trainer-bf16")
BATCH = 8
MAX_TOKENS = 512
FRESH = "distilgpt2-fresh"
"""DistilGPT-2's true shape with fresh weights: its own need a hub."""


def main() -> None:
    """Measure each engine in a process of its own and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m", help=f"base model, or {FRESH}")
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=list(ENGINES))
    parser.add_argument("--steps", type=int, default=3, help="steps that are timed")
    parser.add_argument("--trainer-batch", type=int, default=2, help="batch that transformers' Trainer can hold")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    parser.add_argument("--worker", choices=ENGINES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        print(json.dumps(WORKERS[options.worker](options) | {"peak_gb": peak_gb()}))
        return
    figures: dict[str, Any] = {"peak_gflops_bf16": round(matmul_gflops())}
    for engine in options.engines:
        figures[engine] = measured(engine, options)
        print(row(engine, figures), flush=True)
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


def measured(engine: str, options: argparse.Namespace) -> dict[str, Any]:
    """The figures of one engine's own process; an error where it failed."""
    words = [sys.executable, __file__, "--worker", engine, "--model", options.model, "--steps", str(options.steps)]
    result = subprocess.run(
        [*words, "--trainer-batch", str(options.trainer_batch)], capture_output=True, text=True, check=False
    )
    if result.returncode:
        return {"error": (result.stderr.strip().splitlines() or [f"exit code {result.returncode}"])[-1]}
    figures: dict[str, Any] = json.loads(result.stdout.strip().splitlines()[-1])
    return figures


def row(engine: str, figures: dict[str, Any]) -> str:
    """One engine as a line, with its ratio to Meditune."""
    mine, ours = figures[engine], figures.get("meditune", {})
    if "error" in mine:
        return f"{engine:18} failed: {mine['error']}"
    ratio = f"{ours['tokens_per_s'] / mine['tokens_per_s']:5.1f}x" if ours.get("tokens_per_s") else ""
    read = f"{mine['read_tokens_per_s']:7.0f} read" if "read_tokens_per_s" in mine else ""
    return f"{engine:18}{mine['tokens_per_s']:8.0f} tokens/s {mine['peak_gb']:6.1f} GB {ratio} {read}"


def matmul_gflops() -> float:
    """What this machine multiplies in BF16, in 10^9 operations a second, the best of ten."""
    import torch

    one = torch.randn(2048, 2048, dtype=torch.bfloat16)
    best = float("inf")
    for _ in range(10):
        started = time.perf_counter()
        one @ one
        best = min(best, time.perf_counter() - started)
    return 2 * 2048**3 / best / 1e9


def peak_gb() -> float:
    """The largest resident memory of this process, in 10^9 bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def material(options: argparse.Namespace) -> tuple[Any, Any, Any, int]:
    """Recipe, loaded model, training examples, and how many are needed."""
    from meditune.data.prepare import prepare
    from meditune.models.load import load
    from meditune.recipes.loading import load_recipe

    base = "smollm2-135m" if options.model == FRESH else options.model
    settings = [f"model.base={base}", f"prompt.max_tokens={MAX_TOKENS}", "train.epochs=1"]
    settings += [f"train.batch_size={BATCH}", "train.accumulation=1", "data.fallback_to_sample=true"]
    recipe = load_recipe("gemma3-270m", settings).recipe
    with tempfile.TemporaryDirectory() as folder:
        examples = prepare(recipe, Path(folder) / "data").splits.train
    loaded = load(base, recipe.model)
    if options.model == FRESH:
        loaded.model = fresh_distilgpt2(loaded)
    return recipe, loaded, examples[: BATCH * (options.steps + 1)], BATCH * (options.steps + 1)


def fresh_distilgpt2(loaded: Any) -> Any:
    """GPT-2 with six layers and its own vocabulary size, weights fresh, in the loaded model's number format."""
    import torch
    from transformers import AutoModelForCausalLM, GPT2Config

    torch.manual_seed(0)
    attention = loaded.model.config._attn_implementation
    shape = GPT2Config(n_layer=6, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)
    return AutoModelForCausalLM.from_config(shape, attn_implementation=attention).to(loaded.model.dtype)


def meditune(options: argparse.Namespace) -> dict[str, Any]:
    """Meditune's own training loop."""
    from meditune.models.adapters import add_lora
    from meditune.models.frozen import FrozenLayers
    from meditune.train.encode import encode
    from meditune.train.sft import train
    from meditune.train.weights import TokenWeights

    recipe, loaded, examples, _ = material(options)
    encoder = loaded.encoder(recipe.prompt)
    rows, facts = encode(examples, encoder, recipe.train.tasks)
    model = add_lora(loaded.model, recipe.model.lora, recipe.seed)
    weights = TokenWeights(examples, rows, recipe.train)
    steps = list(train(model, loaded.pad_id, rows, weights, recipe.train, recipe.seed, FrozenLayers(model, 0)))[1:]
    seconds = sum(step.seconds for step in steps)
    read = sum(step.tokens for step in steps)
    apart = sum(len(item.prompt) + len(item.target) for one in rows for item in one.encoded)
    return {"tokens_per_s": read / facts.tokens * apart / seconds, "read_tokens_per_s": read / seconds}


def separate_rows(options: argparse.Namespace) -> tuple[Any, Any, list[dict[str, list[int]]]]:
    """Model with LoRA targets named, tokenizer, and one row for each task of each example."""
    recipe, loaded, examples, _ = material(options)
    encoder = loaded.encoder(recipe.prompt)
    rows = []
    for example in examples:
        for task in recipe.train.tasks:
            item = encoder.supervised(example, task)
            ids = [*item.prompt, *item.target]
            rows.append({"input_ids": ids, "labels": [-100] * len(item.prompt) + item.target})
    return recipe, loaded, rows


def peer(options: argparse.Namespace, build: Callable[[Any, Any, Any, Path, Any], Any]) -> dict[str, Any]:
    """Time a transformers-style trainer's steps over the same rows."""
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import TrainerCallback

    from meditune.models.adapters import TARGETS, USUAL_TARGETS

    recipe, loaded, rows = separate_rows(options)
    model = loaded.model.float()
    model.set_attn_implementation("sdpa")
    kind = model.config.get_text_config().model_type
    lora = LoraConfig(
        task_type="CAUSAL_LM",
        r=recipe.model.lora.r,
        lora_alpha=recipe.model.lora.alpha,
        target_modules=TARGETS.get(kind, USUAL_TARGETS),
        fan_in_fan_out=kind == "gpt2",
    )
    if loaded.tokenizer.pad_token_id is None:
        loaded.tokenizer.pad_token = loaded.tokenizer.eos_token
    torch.manual_seed(recipe.seed)
    ends: list[float] = []

    class Clock(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            ends.append(time.monotonic())

    with tempfile.TemporaryDirectory() as folder:
        trainer = build(model, loaded.tokenizer, Dataset.from_list(rows), Path(folder), lora)
        trainer.add_callback(Clock())
        counted = tokens_by_step(trainer, len(rows))
        trainer.train()
    return {"tokens_per_s": sum(counted[1 : len(ends)]) / (ends[-1] - ends[0])}


def tokens_by_step(trainer: Any, count: int) -> list[int]:
    """Real tokens of each optimizer step, in the order that the trainer's own sampler gives."""
    args = trainer.args
    size = args.per_device_train_batch_size * args.gradient_accumulation_steps
    lengths = [len(ids) for ids in trainer.train_dataset["input_ids"]]
    mean = sum(lengths) / len(lengths)
    return [round(mean * min(size, count - start)) for start in range(0, count, size)]


def arguments(folder: Path, batch: int, bf16: bool) -> dict[str, Any]:
    """Settings that both of transformers' trainers share; sixteen rows, the two of eight examples, in a step."""
    return {
        "output_dir": str(folder),
        "per_device_train_batch_size": batch,
        "gradient_accumulation_steps": 2 * BATCH // batch,
        "num_train_epochs": 1,
        "bf16": bf16,
        "use_cpu": True,
        "report_to": [],
        "save_strategy": "no",
        "logging_strategy": "no",
        "gradient_checkpointing": False,
        "disable_tqdm": True,
    }


def trl(bf16: bool, **more: Any) -> Callable[[argparse.Namespace], dict[str, Any]]:
    """TRL's SFTTrainer, batch 8."""

    def build(model: Any, tokenizer: Any, rows: Any, folder: Path, lora: Any) -> Any:
        from trl import SFTConfig, SFTTrainer

        config = SFTConfig(**arguments(folder, BATCH, bf16), max_length=MAX_TOKENS, packing=False, **more)
        return SFTTrainer(model=model, args=config, train_dataset=rows, processing_class=tokenizer, peft_config=lora)

    return lambda options: peer(options, build)


def trainer(options: argparse.Namespace) -> dict[str, Any]:
    """transformers' Trainer at the batch it can hold, BF16 autocast."""

    def build(model: Any, tokenizer: Any, rows: Any, folder: Path, lora: Any) -> Any:
        from peft import get_peft_model
        from transformers import DataCollatorForSeq2Seq, Trainer, TrainingArguments

        return Trainer(
            model=get_peft_model(model, lora),
            args=TrainingArguments(**arguments(folder, options.trainer_batch, True)),
            train_dataset=rows,
            data_collator=DataCollatorForSeq2Seq(tokenizer),
        )

    return peer(options, build)


WORKERS: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
    "meditune": meditune,
    "trl-bf16": trl(True),
    "trl-bf16-chunked": trl(True, loss_type="chunked_nll"),
    "trl-fp32": trl(False),
    "trainer-bf16": trainer,
}

if __name__ == "__main__":
    main()
