"""Checkpoints of training: the log of steps, and the optimizer's state in one file or sharded over processes."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

from meditune import distributed
from meditune.config.recipe import Recipe, what_counts
from meditune.errors import MedituneError
from meditune.files import full_disk_message, read_json, read_jsonl, replace_folder, write_json, write_jsonl
from meditune.models.fsdp import is_sharded, shard_like
from meditune.train.optimizer import empty_state
from meditune.train.trainer import Step

FOLDER = "checkpoint"
OPTIMIZER_FILE = "optimizer.safetensors"
SHARDS_FOLDER = "optimizer"


def write(place: Path, log: Sequence[Step], tensors: dict[str, Any], recipe: Recipe, sharded: bool) -> None:
    """Replace the checkpoint in `place` atomically; all processes must call this."""
    with ExitStack() as stack:
        partial = None
        if distributed.is_first():
            stack.enter_context(full_disk_message(place))
            partial = stack.enter_context(replace_folder(place))
        if sharded:
            from torch.distributed.checkpoint.state_dict_saver import save

            # In the first process, this returns after all other processes have written their shards.
            save(tensors, checkpoint_id=distributed.broadcast(str(partial)) + f"/{SHARDS_FOLDER}")
        if partial:
            if not sharded:
                from safetensors.torch import save_file

                save_file({key: value.contiguous() for key, value in tensors.items()}, partial / OPTIMIZER_FILE)
            write_jsonl(partial / "training.jsonl", (asdict(step) for step in log))
            write_json(partial / "state.json", {"recipe": _what_training_depends_on(recipe)})


def tokens_read(place: Path) -> int:
    """Return the number of tokens that the checkpoint's steps have read; 0 if there is no checkpoint."""
    steps = place / "training.jsonl"
    return sum(row["tokens"] for row in read_jsonl(steps)) if steps.is_file() else 0


def read(place: Path, model: Any, recipe: Recipe) -> tuple[list[Step], dict[str, Any]] | None:
    """Return the checkpoint's steps and its tensors, which are sharded like `model`; None if there is no checkpoint.

    Raises MedituneError if the checkpoint was written with other settings.
    """
    if not distributed.broadcast((place / "state.json").is_file()):
        return None
    if read_json(place / "state.json")["recipe"] != _what_training_depends_on(recipe):
        raise MedituneError(
            f"{place} was written with other training settings. Use the old settings, or remove that folder to "
            "start training from the beginning."
        )
    log = [Step(**row) for row in read_jsonl(place / "training.jsonl")]
    print(f"Resuming training after step {len(log)}.", file=sys.stderr)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if (place / SHARDS_FOLDER).is_dir():
        from torch.distributed.checkpoint.filesystem import FileSystemReader
        from torch.distributed.checkpoint.state_dict_loader import load

        # Before the first optimizer step, there is no optimizer state.
        stored = FileSystemReader(place / SHARDS_FOLDER).read_metadata().state_dict_metadata
        state = {key: value for key, value in empty_state(trained).items() if key in stored}
        with warnings.catch_warnings():
            # PyTorch warns about reading with a single process, even if that was requested.
            warnings.simplefilter("ignore", UserWarning)
            load(state, checkpoint_id=str(place / SHARDS_FOLDER), no_dist=distributed.world() == 1)
        return log, state
    from safetensors.torch import load_file

    # Copy the tensors, because a memory-mapped file can't be replaced on a network disk.
    tensors = {key: value.clone() for key, value in load_file(place / OPTIMIZER_FILE).items()}
    if is_sharded(model):
        state = empty_state(trained)
        tensors = {key: shard_like(value, like=state[key]) for key, value in tensors.items()}
    return log, tensors


def _what_training_depends_on(recipe: Recipe) -> dict[str, Any]:
    values = what_counts(recipe)
    return {key: values[key] for key in ("seed", "model", "data", "prompt", "train")}
