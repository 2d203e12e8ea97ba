"""TRL's SFTTrainer and transformers' Trainer, with the settings that their users would choose on a CPU.

Each trains LoRA of the same rank on the same layers with PyTorch's fused attention, pads rows to the longest row of
their batch, reads them in the given order, and computes the loss on answers only, through labels of -100. TRL's default
loss, "nll", is computed in chunks without all logits; `chunked_nll` is a deprecated name of the same loss.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cost import Read, cost_of, read_of_text, total
from material import Material
from memory import Clock, Peaks

Build = Callable[[Any, Any, Any, Path], Any]
"""Returns a trainer for a model, its tokenizer, rows and a folder"""


@dataclass(frozen=True)
class Setup:
    """A trainer and its settings; by default BF16 weights, as transformers loads such a checkpoint."""

    trainer: str
    """trl or transformers"""
    weights: str = "bfloat16"
    """Number format of the base model"""
    autocast: bool = True
    """Compute in BF16 by autocast with FP32 adapters; otherwise adapters are BF16, too"""
    checkpointing: bool | None = None
    """Gradient checkpointing; None is the trainer's default"""


SETUPS = {
    "trl": Setup("trl"),
    "trl-no-checkpointing": Setup("trl", checkpointing=False),
    "trl-bf16-true": Setup("trl", autocast=False, checkpointing=False),
    "trl-fp32-weights": Setup("trl", weights="float32", checkpointing=False),
    "trainer": Setup("transformers"),
    "trainer-bf16-true": Setup("transformers", autocast=False),
    "trainer-fp32-weights": Setup("transformers", weights="float32"),
}
"""`trl` uses gradient checkpointing by default; `trainer` doesn't."""


class Counting:
    """A collator that records the counts of each batch."""

    def __init__(self, collate: Any) -> None:
        self.collate = collate
        self.reads: list[Read] = []

    def __call__(self, rows: Any) -> Any:
        batch = self.collate(rows)
        lengths = batch["attention_mask"].sum(1).tolist()
        supervised = (batch["labels"][:, 1:] != -100).sum(1).tolist()
        self.reads.append(total([read_of_text(*both) for both in zip(lengths, supervised, strict=True)]))
        return batch


def measured(given: Material, setup: Setup, rows: int, batch: int) -> dict[str, Any]:
    """Return the metrics of training on the material with `rows` rows in a step, in batches of `batch`."""
    build = {"trl": _trl, "transformers": _transformers}[setup.trainer]
    arguments: dict[str, Any] = {
        "per_device_train_batch_size": batch,
        "gradient_accumulation_steps": rows // batch,
        "num_train_epochs": 1,
        "train_sampling_strategy": "sequential",
        "bf16": setup.autocast,
        "use_cpu": True,
        "report_to": [],
        "save_strategy": "no",
        "logging_strategy": "no",
        "disable_tqdm": True,
    }
    if setup.checkpointing is not None:
        arguments["gradient_checkpointing"] = setup.checkpointing
    return _timed(given, setup, lambda *parts: build(given, arguments, *parts))


def _timed(given: Material, setup: Setup, build: Build) -> dict[str, Any]:
    """Return the metrics of all steps except the first, which is a warm-up."""
    import torch
    from datasets import Dataset
    from peft import LoraConfig, get_peft_model
    from transformers import TrainerCallback

    from meditune.models.adapters import TARGETS, USUAL_TARGETS

    recipe, loaded = given.recipe, given.loaded
    model = loaded.model.to(getattr(torch, setup.weights))
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
    adapted = get_peft_model(model, lora, autocast_adapter_dtype=setup.autocast)
    cost = cost_of(adapted)
    peaks, clock = Peaks(), Clock()

    class Watch(TrainerCallback):
        def on_train_begin(self, *_: Any, **__: Any) -> None:
            peaks.loaded()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            clock.ended()

    with tempfile.TemporaryDirectory() as folder:
        trainer = build(adapted, loaded.tokenizer, Dataset.from_list(given.rows_by_step()), Path(folder))
        trainer.add_callback(Watch())
        trainer.data_collator = counting = Counting(trainer.data_collator)
        trainer.train()
    size = trainer.args.gradient_accumulation_steps
    read = total(counting.reads[size : size * len(clock.ends)])
    return {
        "read_tokens": read.tokens,
        "supervised_tokens": read.supervised,
        "flops": cost.of(read),
        "checkpointing": trainer.args.gradient_checkpointing,
        "number_formats": sorted({str(parameter.dtype) for parameter in adapted.parameters()}),
        **clock.figures(),
        **peaks.figures(),
    }


def _trl(given: Material, arguments: dict[str, Any], model: Any, tokenizer: Any, data: Any, folder: Path) -> Any:
    from trl import SFTConfig, SFTTrainer

    longest = given.recipe.prompt.max_tokens
    config = SFTConfig(output_dir=str(folder), **arguments, max_length=longest, packing=False)
    return SFTTrainer(model=model, args=config, train_dataset=data, processing_class=tokenizer)


def _transformers(_: Material, arguments: dict[str, Any], model: Any, tokenizer: Any, data: Any, folder: Path) -> Any:
    from transformers import DataCollatorForSeq2Seq, Trainer, TrainingArguments

    return Trainer(
        model=model,
        args=TrainingArguments(output_dir=str(folder), **arguments),
        train_dataset=data,
        data_collator=DataCollatorForSeq2Seq(tokenizer),
    )
