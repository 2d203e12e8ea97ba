"""Choosing and opening the engine for a model.

An exported model's folder names its engine. For a run, the export with the fastest installed engine is opened; without
an export, transformers opens the run's own model. Outdated exports aren't opened.
"""

from __future__ import annotations

import difflib
import logging
import os
from collections.abc import Sequence
from pathlib import Path

from meditune.engines.engine import Engine
from meditune.engines.exported_model import EXPORT, EXPORTS, is_installed, read_exported_model, why_outdated
from meditune.errors import ModelError

log = logging.getLogger(__name__)
NAMES = ("auto", "openvino", "llamacpp", "transformers", "onnx", "vllm")
KEY_VARIABLE = "MEDITUNE_ENGINE_KEY"
"""Environment variable with the key of a server that runs the model"""
EXPORTED = {"openvino": "openvino", "llamacpp": "gguf", "onnx": "onnx"}
"""Engines, each with the kind of export that it opens"""
AUTO = ("openvino", "llamacpp")
"""Engines that auto considers, the fastest first (measured by benchmarks/engines.py)"""


def open_engine(
    model: str,
    engine: str = "auto",
    concurrency: int = 32,
    url: str | None = None,
    key: str | None = None,
    in_subprocess: bool = False,
    scores: bool = False,
) -> Engine:
    """Open a model by catalogue name, hub id, or folder of a run, a model or an exported model.

    `engine` is one of `NAMES`; auto chooses the fastest engine for the folder's content. `concurrency` limits the
    number of answers that are generated together. With vllm, the model runs on the server at `url` (up to /v1), with
    the `key` or that in MEDITUNE_ENGINE_KEY, and `model` is a local folder of the same model, for its tokenizer.
    `in_subprocess`, for servers, starts a separate process for an engine that would block its process
    (subprocess_engine.py); `scores` prepares that process for scoring texts while it opens.

    Raises ModelError if the model is unavailable or the engine can't open it.
    """
    if engine not in NAMES:
        near = difflib.get_close_matches(engine, NAMES, n=1)
        hint = f" Did you mean {near[0]}?" if near else ""
        raise ModelError(f"There is no engine {engine!r}.{hint} Engines: {', '.join(NAMES)}.")
    if engine == "vllm":
        return _at_server(model, concurrency, url, key)
    if url:
        raise ModelError(f"--url needs --engine vllm, but the engine is {engine}.")
    place = exported_at(Path(model).expanduser(), engine)
    if place is None:
        if engine in EXPORTED:
            raise ModelError(
                f"{model} holds no model for the {engine} engine. Export one: meditune export {model} --to "
                f"{EXPORTED[engine]}"
            )
        return _with_transformers(model, concurrency)
    found = read_exported_model(place)
    if engine not in {"auto", found.engine}:
        raise ModelError(f"{place} was exported for the {found.engine} engine; {engine} can't open it.")
    if found.engine == "openvino" and in_subprocess and os.name == "posix":
        from meditune.engines.subprocess_engine import SubprocessEngine

        return SubprocessEngine(place, concurrency, scores)
    if found.engine == "openvino":
        from meditune.engines.openvino_engine import OpenvinoEngine

        return OpenvinoEngine(place, concurrency)
    if found.engine == "llamacpp":
        from meditune.engines.llamacpp_engine import LlamacppEngine

        return LlamacppEngine(place, concurrency)
    if found.engine == "onnx":
        from meditune.engines.onnx_engine import OnnxEngine

        return OnnxEngine(place, concurrency)
    return _with_transformers(str(place), concurrency)


def _at_server(model: str, concurrency: int, url: str | None, key: str | None) -> Engine:
    from meditune.engines.openai_engine import MODEL_VARIABLE, OpenAIEngine
    from meditune.engines.tokenizer import PlainTokenizer

    if not url:
        raise ModelError("--engine vllm needs the server's address: --url http://localhost:8000/v1")
    folder = Path(model).expanduser()
    folder = folder / "model" if (folder / "model").is_dir() else folder
    key, served_as = key or os.environ.get(KEY_VARIABLE), os.environ.get(MODEL_VARIABLE) or None
    return OpenAIEngine(url, PlainTokenizer(folder), key, concurrency, served_as)


def _with_transformers(model: str, concurrency: int) -> Engine:
    from meditune.engines.transformers_engine import TransformersEngine
    from meditune.models.load import load

    return TransformersEngine(load(model), concurrency)


def exported_at(place: Path, engine: str, automatic: Sequence[str] = AUTO) -> Path | None:
    """Return the folder of the exported model to open; None if the transformers engine opens the model itself.

    `automatic` holds the engines among which `auto` chooses. Raises ModelError if the export that `engine` names is
    outdated.
    """
    if (place / EXPORT).is_file():
        return place
    for name, kind in EXPORTED.items():
        folder = place / EXPORTS / kind
        is_meant = engine == name or (engine == "auto" and name in automatic and is_installed(name))
        if not is_meant or not (folder / EXPORT).is_file():
            continue
        changed = why_outdated(folder, place / "model" if (place / "model").is_dir() else place)
        if not changed:
            return folder
        outdated = (
            f"{folder} is outdated: it was exported with {changed} than {place} has now. Export it again: meditune "
            f"export {place} --to {kind}"
        )
        if engine == name:
            raise ModelError(outdated)
        log.warning("%s; until then another engine answers", outdated)
    return None
