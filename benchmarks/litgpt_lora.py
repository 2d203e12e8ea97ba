"""Run LitGPT's `finetune_lora` with an interpreter that has LitGPT, because LitGPT pins its own versions.

    python benchmarks/litgpt_lora.py JOB.json

`training.py` starts this script and writes the job: the model's folder, the rows as token ids, and the settings.
LitGPT's own script trains, with its own model, chunked loss and loop. This script only passes in the rows, and stops
the training after the last timed step. The last line of its output has the metrics as JSON.
"""

from __future__ import annotations

import json
import sys
import tempfile
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from cost import Read, read_of_text, total
from memory import Clock, Peaks


class EndError(Exception):
    """Raised after the last timed step to stop the training."""


def main(job: dict[str, Any]) -> dict[str, Any]:
    """Train as the job says, and return the metrics without those of the first step, which is a warm-up."""
    from litgpt.args import EvalArgs, TrainArgs
    from litgpt.finetune.lora import setup
    from torch.optim.optimizer import register_optimizer_step_post_hook

    peaks, clock, reads = Peaks(), Clock(), []
    steps, a_step = job["steps"] + 1, job["rows_per_step"] // job["batch"]

    def ended(*_: Any) -> None:
        if clock.ended() == steps:
            raise EndError

    def reading(read: Read) -> None:
        peaks.loaded()
        reads.append(read)

    with tempfile.TemporaryDirectory() as scratch:
        checkpoint = converted(Path(job["folder"]), job["name"], Path(scratch))
        register_optimizer_step_post_hook(ended)
        try:
            setup(
                checkpoint_dir=checkpoint,
                out_dir=Path(scratch) / "out",
                precision=job["precision"],
                data=data_of(job, reading),
                train=TrainArgs(
                    save_interval=None,
                    log_interval=1,
                    global_batch_size=job["rows_per_step"],
                    micro_batch_size=job["batch"],
                    lr_warmup_steps=1,
                    epochs=2,
                    max_steps=steps,
                ),
                eval=EvalArgs(interval=10**9, max_new_tokens=1, max_iters=1, final_validation=False),
                seed=job["seed"],
                **{f"lora_{name}": value for name, value in job["lora"].items()},
                **{f"lora_{part}": True for part in ("query", "key", "value", "projection", "mlp")},
            )
        except EndError:
            figures = peaks.figures()
    if len(clock.ends) < steps:
        sys.exit(f"LitGPT ended after {len(clock.ends)} of {steps} steps. Ask for fewer steps.")
    read = total(reads[a_step : a_step * steps])
    return {
        "read": asdict(read),
        "versions": {name: version(name) for name in ("litgpt", "lightning", "torch")},
        **clock.figures(),
        **figures,
    }


def converted(folder: Path, name: str, scratch: Path) -> Path:
    """Return the folder of a checkpoint in LitGPT's format of the transformers model in `folder`, in BF16."""
    from litgpt.config import name_to_config
    from litgpt.scripts.convert_hf_checkpoint import convert_hf_checkpoint

    if name not in name_to_config:
        name_to_config[name] = small_gemma3(json.loads((folder / "config.json").read_text()), name)
    place = scratch / name
    place.mkdir()
    for file in folder.iterdir():
        (place / file.name).symlink_to(file)
    convert_hf_checkpoint(place, model_name=name, dtype="bfloat16")
    return place


def small_gemma3(config: dict[str, Any], name: str) -> dict[str, Any]:
    """Return LitGPT's configuration of its smallest Gemma 3 with this model's sizes; LitGPT doesn't list the 270M."""
    from litgpt.config import name_to_config

    if config["model_type"] != "gemma3_text":
        sys.exit(f"LitGPT has no configuration of {name}.")
    local = [int(kind == "sliding_attention") for kind in config["layer_types"]]
    return name_to_config["Gemma-3-1b-it"] | {
        "name": name,
        "hf_config": {"org": "google", "name": name.lower()},
        "n_embd": config["hidden_size"],
        "n_layer": config["num_hidden_layers"],
        "n_head": config["num_attention_heads"],
        "n_query_groups": config["num_key_value_heads"],
        "head_size": config["head_dim"],
        "intermediate_size": config["intermediate_size"],
        "attention_scores_scalar": config["query_pre_attn_scalar"],
        "block_size": config["max_position_embeddings"],
        "sliding_window_size": config["sliding_window"],
        "sliding_window_indices": local,
        "rope_indices": local,
    }


def data_of(job: dict[str, Any], reading: Any) -> Any:
    """Return the job's rows, in order, as a data module of LitGPT, batched by its own collator.

    `reading` is called with the counts of every batch.
    """
    import torch
    from litgpt.data import DataModule
    from litgpt.data.base import get_sft_collate_fn
    from torch.utils.data import DataLoader

    collate = get_sft_collate_fn(pad_id=job["pad_id"])
    rows = [
        {name: torch.tensor(row[name]) for name in ("input_ids", "labels")}
        | {"token_counts": dict.fromkeys(("raw", "raw_plus_prompt_template"), len(row["input_ids"]))}
        for row in job["rows"]
    ]

    def counted(batch: list[dict[str, Any]]) -> Any:
        found = [(len(row["input_ids"]), int((row["labels"][1:] != -100).sum())) for row in batch]
        reading(total([read_of_text(*each) for each in found]))
        return collate(batch)

    class Rows(DataModule):
        def connect(self, *_: Any, **__: Any) -> None:
            """Do nothing, because the rows are already tokens."""

        def train_dataloader(self) -> Any:
            return DataLoader(rows, batch_size=job["batch"], shuffle=False, collate_fn=counted)

        def val_dataloader(self) -> Any:
            return DataLoader(rows[:1], batch_size=1, collate_fn=collate)

    return Rows()


if __name__ == "__main__":
    try:
        print(json.dumps(main(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))))
    except ImportError as error:
        sys.exit(f"{sys.executable} can't import {error.name}. Install LitGPT in that environment: pip install litgpt")
