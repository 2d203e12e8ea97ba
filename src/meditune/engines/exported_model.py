"""Reading the folder of an exported model (export.json), and importing packages that only some engines need."""

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
from meditune.prompts import end_tokens, load_format

EXPORT = "export.json"
"""Name of the file that describes an exported model, in its folder"""
EXPORTS = "export"
"""Name of the folder with a run's exported models; each model has a folder in it, named after the export's kind"""

WEIGHTS = ("*.safetensors", "*.bin", "*.gguf")
READ_BYTES = 2_000_000_000
"""Weights up to this total size are always hashed to check an export; larger weights only if newer than the export"""


@dataclass(frozen=True)
class ExportedModel:
    """The content of export.json that an engine needs."""

    folder: Path
    kind: str
    engine: str
    weights: str
    """Number format: int8, Q8_0, Q4_K_M, bfloat16"""
    stop_tokens: tuple[int, ...]
    context_tokens: int
    files: tuple[str, ...]
    made_from: dict[str, Any]

    def config(self) -> dict[str, Any]:
        """Return the configuration of the model's part that reads and writes text."""
        config: dict[str, Any] = read_json(self.folder / "config.json")
        text_config: dict[str, Any] = config.get("text_config", config)
        return text_config

    def cached_vectors(self) -> tuple[int, int]:
        """Return the number of cached vectors per token, keys and values of all layers, and the vectors' length."""
        config = self.config()
        # GPT-2 has names of its own.
        heads = config.get("num_attention_heads") or config["n_head"]
        layers = config.get("num_hidden_layers") or config["n_layer"]
        size = config.get("head_dim") or (config.get("hidden_size") or config["n_embd"]) // heads
        return 2 * layers * (config.get("num_key_value_heads") or heads), size


def is_exported(model: str) -> bool:
    """Return whether this is the folder of an exported model."""
    return (Path(model).expanduser() / EXPORT).is_file()


def read_exported_model(folder: Path) -> ExportedModel:
    """Return an exported model. Raises ModelError if its folder is incomplete, DataError if export.json is damaged."""
    record = read_json(folder / EXPORT)
    try:
        names = ("kind", "engine", "weights", "stop_tokens", "context_tokens", "sha256", "made_from")
        kind, engine, weights, stop_tokens, context_tokens, files, made_from = (record[name] for name in names)
        found = ExportedModel(
            folder, kind, engine, weights, tuple(stop_tokens), context_tokens, tuple(files), made_from
        )
    except (KeyError, TypeError) as error:
        raise ModelError(f"{folder / EXPORT} lacks {error}. Export the model again.") from error
    missing = [name for name in found.files if not (folder / name).is_file()]
    if missing:
        raise ModelError(f"{folder} lacks {', '.join(missing)}, which {EXPORT} names. Export the model again.")
    return found


def stop_tokens(folder: Path) -> list[int]:
    """Return the tokens that end an answer of the transformers model in a folder. Raises ModelError if it has none."""
    settings = folder / "generation_config.json"
    configured = read_json(settings).get("eos_token_id") if settings.is_file() else None
    return end_tokens(PlainTokenizer(folder).eos_token_id, configured, str(folder))


def weights_digest(place: Path) -> dict[str, str]:
    """Return the SHA-256 of each weights file in a model's folder and of its adapter config; empty for a hub id."""
    return {path.name: sha256(path) for path in _weights(place)}


def weights_state(model: str) -> dict[str, str]:
    """Return each weights file's SHA-256, or its size and modification time if large; empty for a hub id."""
    place = Path(model).expanduser()
    place = place / "model" if (place / "model").is_dir() else place
    files = [place / name for name in read_exported_model(place).files] if is_exported(model) else _weights(place)
    facts = {path.name: path.stat() for path in files}
    if sum(fact.st_size for fact in facts.values()) > READ_BYTES:
        return {name: f"{fact.st_size} bytes, {fact.st_mtime_ns}" for name, fact in facts.items()}
    return {path.name: sha256(path) for path in files}


def why_outdated(export: Path, model: Path) -> str:
    """Return what an outdated export was made with, such as "different weights"; "" if the export is up to date."""
    if (load_format(model) or PromptFormat()) != (load_format(export) or PromptFormat()):
        return "a different prompt format"
    files = _weights(model)
    exported_at = (export / EXPORT).stat().st_mtime
    if sum(path.stat().st_size for path in files) > READ_BYTES and all(
        path.stat().st_mtime <= exported_at for path in files
    ):
        return ""
    return "different weights" if weights_digest(model) != read_exported_model(export).made_from.get("sha256") else ""


def _weights(place: Path) -> list[Path]:
    return sorted(path for pattern in (*WEIGHTS, ADAPTER_FILE) for path in place.glob(pattern))


EXTRAS = {"openvino": ("openvino", "openvino_genai"), "llamacpp": ("xllamacpp",), "onnx": ("onnxruntime",)}
"""Engine -> packages that its extra installs"""


def is_installed(engine: str) -> bool:
    """Return whether an engine's packages are installed."""
    return all(find_spec(package) is not None for package in EXTRAS.get(engine, ()))


def import_package(extra: str, name: str, subject: str = "") -> Any:
    """Import and return a module that an engine or `subject` needs. Raises ModelError if it isn't installed."""
    no_telemetry()
    try:
        return importlib.import_module(name)
    except ImportError as error:
        package, needed_by = name.split(".")[0], subject or f"The {extra} engine"
        raise ModelError(
            f"{needed_by} needs the package {package} ({error}). Install it: {install_command(extra)}"
        ) from error
