"""What a model's files and folders are called, for those who look for them without loading anything."""

from __future__ import annotations

from pathlib import Path

ADAPTER_FILE = "adapter_config.json"
"""In the folder of a PEFT adapter."""
MERGED = "merged.json"
"""In the folder of a model into which an adapter was merged: what it was made from."""
PRUNED = "pruned"
"""In a run's folder, beside `model/`: the pruned base that an adapter was trained on."""
PRUNING = "pruning.json"
"""In a pruned model's folder: what was done, and what came of it."""
START = "start"
"""In a run's folder: the model that it starts from, if that had to be made (train/start.py)."""


def split_revision(name: str) -> tuple[str, str | None]:
    """Return a model's name and revision: `owner/name@commit` has one, a name without `@` and a folder have none."""
    model, at, revision = name.rpartition("@")
    return (name, None) if not at or Path(name).expanduser().exists() else (model, revision)
