"""Which engine opens a model, and opening it.

An exported model's folder says which engine it is for. Of a run, that one of its exports is taken whose engine was
measured to be the fastest among those that are installed; without any, transformers opens the run's own model. An
export of what the run was before isn't opened.
"""

from __future__ import annotations

import difflib
import logging
import os
from pathlib import Path

from meditune.engines.engine import Engine
from meditune.engines.exported_model import EXPORT, EXPORTS, is_installed, read_exported_model, why_outdated
from meditune.errors import ModelError

log = logging.getLogger(__name__)
NAMES = ("auto", "openvino", "llamacpp", "transformers", "onnx", "vllm")
KEY_VARIABLE = "MEDITUNE_ENGINE_KEY"
"""Holds the key of a server that runs the model"""
EXPORTED = {"openvino": "openvino", "llamacpp": "gguf", "onnx": "onnx"}
"""Engines, each with the kind of export that it opens"""
AUTO = ("openvino", "llamacpp")
"""What auto takes, the fastest first, by what benchmarks/engines.py measured"""


def open_engine(
    model: str,
    engine: str = "auto",
    at_once: int = 32,
    url: str | None = None,
    key: str | None = None,
    apart: bool = False,
    scores: bool = False,
) -> Engine:
    """A model ready to answer: by catalogue name, hub id, or folder of a run, a model or an exported model.

    `engine` is one of `NAMES`; auto takes what is fastest for what the folder holds. `at_once` bounds the answers that
    are written together. With vllm the model runs at a server, `url` up to /v1 and perhaps a `key`
    (else MEDITUNE_ENGINE_KEY holds it), and `model` is the folder of the same model here, for its tokenizer. Where that
    server has several, MEDITUNE_ENGINE_MODEL holds the model's id there.
    `apart`, for servers, gives an engine that would hold up its process one of its own (subprocess_engine.py). `scores`
    has what it needs to tell how likely texts are made ready meanwhile, instead of when that is first asked.

    Raises ModelError where the model can't be had or the engine can't open it.
    """
    if engine not in NAMES:
        near = difflib.get_close_matches(engine, NAMES, n=1)
        hint = f" Did you mean {near[0]}?" if near else ""
        raise ModelError(f"There is no engine {engine!r}.{hint} Engines: {', '.join(NAMES)}.")
    if engine == "vllm":
        return _at_server(model, at_once, url, key)
    if url:
        raise ModelError(f"An address goes with --engine vllm, and the engine is {engine}.")
    place = _exported_at(Path(model).expanduser(), engine)
    if place is None:
        if engine in EXPORTED:
            raise ModelError(
                f"{model} holds no model that the {engine} engine opens. Make one: meditune export {model} --to "
                f"{EXPORTED[engine]}"
            )
        return _with_transformers(model, at_once)
    found = read_exported_model(place)
    if engine not in {"auto", found.engine}:
        raise ModelError(f"{place} was exported for the {found.engine} engine, and {engine} can't open it.")
    if found.engine == "openvino" and apart and os.name == "posix":
        from meditune.engines.subprocess_engine import SubprocessEngine

        return SubprocessEngine(place, at_once, scores)
    if found.engine == "openvino":
        from meditune.engines.openvino_engine import OpenvinoEngine

        return OpenvinoEngine(place, at_once)
    if found.engine == "llamacpp":
        from meditune.engines.llamacpp_engine import LlamacppEngine

        return LlamacppEngine(place, at_once)
    if found.engine == "onnx":
        from meditune.engines.onnx_engine import OnnxEngine

        return OnnxEngine(place, at_once)
    return _with_transformers(str(place), at_once)


def _at_server(model: str, at_once: int, url: str | None, key: str | None) -> Engine:
    from meditune.engines.openai_engine import MODEL_VARIABLE, OpenAIEngine
    from meditune.engines.tokenizer import PlainTokenizer

    if not url:
        raise ModelError("--engine vllm needs the server's address: --url http://localhost:8000/v1")
    folder = Path(model).expanduser()
    folder = folder / "model" if (folder / "model").is_dir() else folder
    key, served_as = key or os.environ.get(KEY_VARIABLE), os.environ.get(MODEL_VARIABLE) or None
    return OpenAIEngine(url, PlainTokenizer(folder), key, at_once, served_as)


def _with_transformers(model: str, at_once: int) -> Engine:
    from meditune.engines.transformers_engine import TransformersEngine
    from meditune.models.load import load

    return TransformersEngine(load(model), at_once)


def _exported_at(place: Path, engine: str) -> Path | None:
    """The folder of the exported model that is meant; None where the engine transformers opens the model itself."""
    if (place / EXPORT).is_file():
        return place
    if engine != "transformers":
        for name, kind in EXPORTED.items():
            folder = place / EXPORTS / kind
            if not (folder / EXPORT).is_file() or not (
                engine == name or (engine == "auto" and name in AUTO and is_installed(name))
            ):
                continue
            changed = why_outdated(folder, place / "model" if (place / "model").is_dir() else place)
            if not changed:
                return folder
            said = (
                f"{folder} was made from {changed} than {place} has now. Make it again: meditune export {place} "
                f"--to {kind}"
            )
            if engine == name:
                raise ModelError(said)
            log.warning("%s; until then another engine answers", said)
    return None
