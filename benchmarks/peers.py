"""TRL's SFTTrainer and transformers' Trainer, with settings that are sensible on a CPU.

The model in FP32 with LoRA of the same rank on the same layers, BF16 by autocast where asked for, PyTorch's fused
attention, rows padded to the longest of their batch, and a loss on answers only through labels of -100.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cost import Read, cost_of, read_of_text, total
from material import Material, sha256_of
from memory import Peaks

Build = Callable[[Any, Any, Any, Path, Any], Any]
"""From model, tokenizer, rows, folder and LoRA's configuration to a trainer"""


class Counting:
    """A collator that remembers what each batch reads."""

    def __init__(self, collate: Any) -> None:
        self.collate = collate
        self.reads: list[Read] = []

    def __call__(self, rows: Any) -> Any:
        batch = self.collate(rows)
        lengths = batch["attention_mask"].sum(1).tolist()
        supervised = (batch["labels"][:, 1:] != -100).sum(1).tolist()
        self.reads.append(total([read_of_text(*both) for both in zip(lengths, supervised, strict=True)]))
        return batch


def timed(given: Material, build: Build) -> dict[str, Any]:
    """Figures of a transformers-style trainer's steps over the rows, without the first, which warms up."""
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import TrainerCallback

    from meditune.models.adapters import TARGETS, USUAL_TARGETS

    recipe, loaded, rows = given.recipe, given.loaded, given.rows()
    model = loaded.model.float()
    model.set_attn_implementation("sdpa")
    kind = model.config.get_text_config().model_type
    lora = LoraConfig(
        task_type="CAUSAL_LM",
        r=recipe.model.lora.r,
        lora_alpha=recipe.model.lora.alpha,
        lora_dropout=recipe.model.lora.dropout,
        target_modules=TARGETS.get(kind, USUAL_TARGETS),
        fan_in_fan_out=kind == "gpt2",
    )
    if loaded.tokenizer.pad_token_id is None:
        loaded.tokenizer.pad_token = loaded.tokenizer.eos_token
    torch.manual_seed(recipe.seed)
    peaks, ends = Peaks(), []

    class Clock(TrainerCallback):
        def on_train_begin(self, *_: Any, **__: Any) -> None:
            peaks.loaded()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            ends.append(time.monotonic())

    with tempfile.TemporaryDirectory() as folder:
        trainer = build(model, loaded.tokenizer, Dataset.from_list(rows), Path(folder), lora)
        cost = cost_of(trainer.model)
        trainer.add_callback(Clock())
        trainer.data_collator = counting = Counting(trainer.data_collator)
        trainer.train()
    size = trainer.args.gradient_accumulation_steps
    read = total(counting.reads[size : size * len(ends)])
    return {
        "seconds": ends[-1] - ends[0],
        "text_tokens": read.tokens,
        "read_tokens": read.tokens,
        "flops": cost.of(read),
        "rows_sha256": sha256_of(rows),
        **peaks.figures(),
    }


def _arguments(folder: Path, rows: int, batch: int, bf16: bool) -> dict[str, Any]:
    """Settings that both trainers share; `rows` rows in a step."""
    return {
        "output_dir": str(folder),
        "per_device_train_batch_size": batch,
        "gradient_accumulation_steps": rows // batch,
        "num_train_epochs": 1,
        "bf16": bf16,
        "use_cpu": True,
        "report_to": [],
        "save_strategy": "no",
        "logging_strategy": "no",
        "gradient_checkpointing": False,
        "disable_tqdm": True,
    }


def trl(given: Material, rows: int, batch: int, bf16: bool, **more: Any) -> dict[str, Any]:
    """TRL's SFTTrainer."""
    from trl import SFTConfig, SFTTrainer

    def build(model: Any, tokenizer: Any, data: Any, folder: Path, lora: Any) -> Any:
        longest = given.recipe.prompt.max_tokens
        config = SFTConfig(**_arguments(folder, rows, batch, bf16), max_length=longest, packing=False, **more)
        return SFTTrainer(model=model, args=config, train_dataset=data, processing_class=tokenizer, peft_config=lora)

    return timed(given, build)


def trainer(given: Material, rows: int, batch: int) -> dict[str, Any]:
    """transformers' Trainer with BF16 autocast."""
    from peft import get_peft_model
    from transformers import DataCollatorForSeq2Seq, Trainer, TrainingArguments

    def build(model: Any, tokenizer: Any, data: Any, folder: Path, lora: Any) -> Any:
        return Trainer(
            model=get_peft_model(model, lora),
            args=TrainingArguments(**_arguments(folder, rows, batch, True)),
            train_dataset=data,
            data_collator=DataCollatorForSeq2Seq(tokenizer),
        )

    return timed(given, build)
