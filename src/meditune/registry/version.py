"""One version: a finished run's folder, kept for good, with a list of its files and what is known of its making."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from meditune.engines.exported import EXPORTS
from meditune.errors import DataError, ModelError
from meditune.files import read_json, sha256, write_json
from meditune.folder import RECIPE, STAGES
from meditune.models.names import ADAPTER_FILE, PRUNED, START

FILE = "version.json"
GATES = "gates"
"""In a version's folder: the comparisons that it was judged by"""
LEFT = {"checkpoint", "training.jsonl", STAGES}
"""What of a run isn't needed to serve it, to measure it or to go on from it"""
INTERMEDIATE = ("merged", "ollama")
"""Exports that no server opens"""


@dataclass(frozen=True)
class Version:
    """What version.json holds."""

    id: str
    made: str
    """UTC, ISO 8601"""
    came_from: str
    """The run's folder"""
    parents: tuple[str, ...]
    """Versions that it was trained from"""
    base_model: str
    recipe: str
    """Its name"""
    data: dict[str, Any]
    """`train`, `dev`, `test`, `test_set`, `sha256`"""
    fed: dict[str, Any] = field(default_factory=dict)
    """What it learnt beyond its parents, by source: rows and SHA-256 of each; empty for a first version"""
    figures: dict[str, float] = field(default_factory=dict)
    """On its own test items"""
    gate: dict[str, Any] | None = None
    """`passed`, and for each set of items its `checks`, `figures` and `comparison`; None where nothing was compared"""
    index: str = ""
    """The hash of the content of the index that was served when it was made; empty without one"""
    meditune: str = ""
    note: str = ""
    files: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Path in the folder -> `sha256` and `bytes`"""

    @property
    def passed(self) -> bool:
        """Whether it was held against the version before it and met the policy."""
        return bool(self.gate and self.gate["passed"])

    @property
    def weights(self) -> str:
        """The first digits of a hash of all that answers depend on: weights, adapter, tokenizer, prompt format."""
        from hashlib import sha256 as digest

        parts = ("model", START, PRUNED, EXPORTS)
        named = [f"{path} {row['sha256']}" for path, row in sorted(self.files.items()) if path.split("/")[0] in parts]
        return digest("\n".join(named).encode()).hexdigest()[:12]


def copied(run: Path, folder: Path) -> None:
    """Copy of a run what a version holds into `folder`."""
    for item in sorted(run.iterdir()):
        if item.name in LEFT or item.name.startswith("."):
            continue
        if item.is_dir():
            skipped = shutil.ignore_patterns(".*", *(INTERMEDIATE if item.name == EXPORTS else ()))
            shutil.copytree(item, folder / item.name, ignore=skipped)
        else:
            shutil.copyfile(item, folder / item.name)


def listed(folder: Path) -> dict[str, dict[str, Any]]:
    """SHA-256 and size of every file below the folder, but for version.json."""
    return {
        str(path.relative_to(folder)): {"sha256": sha256(path), "bytes": path.stat().st_size}
        for path in _files(folder)
        if path.name != FILE
    }


def damage(folder: Path, version: Version) -> str:
    """What is wrong with a version's files, in words; empty where nothing is."""
    for name, row in version.files.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != row["bytes"]:
            return f"{name} has {path.stat().st_size:,} bytes instead of {row['bytes']:,}"
        if sha256(path) != row["sha256"]:
            return f"{name} isn't what it was (its SHA-256 differs)"
    return ""


def write(folder: Path, version: Version) -> str:
    """Write version.json; its SHA-256."""
    write_json(folder / FILE, asdict(version))
    return sha256(folder / FILE)


def read(folder: Path) -> Version:
    """The version in a folder. Raises DataError where version.json is missing or none of ours."""
    said = read_json(folder / FILE)
    try:
        return Version(**said | {"parents": tuple(said["parents"])})
    except (KeyError, TypeError) as error:
        raise DataError(
            f"{folder / FILE}: not a version of this Meditune ({error}). Put a copy in its place."
        ) from error


def refuse_unservable(run: Path) -> None:
    """Raise ModelError where the run's model isn't here: a server couldn't open it."""
    model = run / "model"
    if not any((model / name).is_file() for name in ("config.json", ADAPTER_FILE)):
        raise ModelError(
            f"{run} holds no model that can be served from here (neither config.json nor {ADAPTER_FILE} in {model}). A "
            "model behind an API is served there."
        )
    if not (run / RECIPE).is_file():
        raise ModelError(f"{run} holds no {RECIPE}. Give the folder of a finished `meditune run`.")


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.rglob("*")) if path.is_file() and not path.name.startswith("."))
