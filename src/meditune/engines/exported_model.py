"""An exported model's folder, as the engines find it: export.json says what it is.

Packages that only some engines need, imported with a sentence where they are missing.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from meditune.config.data_options import PromptFormat
from meditune.engines.tokenizer import PlainTokenizer
from meditune.errors import ModelError, install_command
from meditune.files import read_json, sha256
from meditune.models.catalogue import ADAPTER_FILE
from meditune.models.quiet_libraries import no_telemetry
from meditune.prompts import load_format

EXPORT = "export.json"
"""In the folder of an exported model"""
EXPORTS = "export"
"""In a run's folder: its exported models, each in a folder that is called by its kind"""

WEIGHTS = ("*.safetensors", "*.bin", "*.gguf")
READ_BYTES = 2_000_000_000
"""Weights up to this size are read to see whether an export is of them; larger ones where they are newer than it"""


@dataclass(frozen=True)
class ExportedModel:
    """What export.json says that an engine must know."""

    folder: Path
    kind: str
    """merged, openvino, gguf ..."""
    engine: str
    """Which engine opens it"""
    weights: str
    """Number format: int8, Q8_0, bfloat16"""
    stop_tokens: tuple[int, ...]
    context_tokens: int
    files: tuple[str, ...]
    """The files of the model itself"""
    made_from: dict[str, Any]


def is_exported(model: str) -> bool:
    """Whether the name is the folder of an exported model."""
    return (Path(model).expanduser() / EXPORT).is_file()


def read_exported_model(folder: Path) -> ExportedModel:
    """What an exported model's folder holds. Raises ModelError where it isn't whole, DataError for a damaged file."""
    said = read_json(folder / EXPORT)
    try:
        found = ExportedModel(
            folder,
            said["kind"],
            said["engine"],
            said["weights"],
            tuple(said["stop_tokens"]),
            said["context_tokens"],
            tuple(said["sha256"]),
            said["made_from"],
        )
    except (KeyError, TypeError) as error:
        raise ModelError(f"{folder / EXPORT} lacks {error}. Export the model again.") from error
    missing = [name for name in found.files if not (folder / name).is_file()]
    if missing:
        raise ModelError(f"{folder} lacks {', '.join(missing)}, which {EXPORT} names. Export the model again.")
    return found


def stop_tokens(folder: Path) -> list[int]:
    """The tokens that end an answer of the plain model in a folder. Raises ModelError where there are none."""
    settings = folder / "generation_config.json"
    named = read_json(settings).get("eos_token_id") if settings.is_file() else None
    known = [PlainTokenizer(folder).eos_token_id, *(named if isinstance(named, list) else [named])]
    found = list(dict.fromkeys(token for token in known if token is not None))
    if not found:
        raise ModelError(f"{folder} names no end-of-sequence token, so answers would never end.")
    return found


def weights_digest(place: Path) -> dict[str, str]:
    """The SHA-256 of each file of weights in a model's folder, and of an adapter's configuration; empty at the hub."""
    return {path.name: sha256(path) for path in _weights(place)}


def weights_state(model: str) -> dict[str, str]:
    """What tells the weights in a folder from others: the SHA-256 of each file, of large ones size and time of change.

    `model` may be the folder of a run, a model or an exported model; empty for any other name.
    """
    place = Path(model).expanduser()
    place = place / "model" if (place / "model").is_dir() else place
    files = [place / name for name in read_exported_model(place).files] if is_exported(model) else _weights(place)
    facts = {path.name: path.stat() for path in files}
    if sum(fact.st_size for fact in facts.values()) > READ_BYTES:
        return {name: f"{fact.st_size} bytes, {fact.st_mtime_ns}" for name, fact in facts.items()}
    return {path.name: sha256(path) for path in files}


def why_outdated(export: Path, model: Path) -> str:
    """What of the model in a folder isn't what its export was made from, in words; empty where all is."""
    if (load_format(model) or PromptFormat()) != (load_format(export) or PromptFormat()):
        return "another prompt format"
    files = _weights(model)
    made = (export / EXPORT).stat().st_mtime
    if sum(path.stat().st_size for path in files) > READ_BYTES and all(path.stat().st_mtime <= made for path in files):
        return ""
    return "other weights" if weights_digest(model) != read_exported_model(export).made_from.get("sha256") else ""


def _weights(place: Path) -> list[Path]:
    if not place.is_dir():
        return []
    files = [path for pattern in WEIGHTS for path in place.glob(pattern)]
    return sorted([*files, *([place / ADAPTER_FILE] if (place / ADAPTER_FILE).is_file() else [])])


EXTRAS = {"openvino": ("openvino", "openvino_genai"), "llamacpp": ("xllamacpp",), "onnx": ("onnxruntime",)}
"""By engine: the packages that its extra installs"""


def is_installed(engine: str) -> bool:
    """Whether an engine's packages are here."""
    return all(find_spec(package) is not None for package in EXTRAS.get(engine, ()))


def import_package(engine: str, name: str) -> Any:
    """A package of an engine's. Raises ModelError, with the line that installs it, where it isn't here."""
    no_telemetry()
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ModelError(
            f"The {engine} engine needs the package {name.split('.')[0]} ({error}). Install it: "
            f"{install_command(engine)}"
        ) from error
