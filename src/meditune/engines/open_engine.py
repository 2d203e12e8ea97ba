"""Choosing and opening the engine for a model.

An exported model's folder names its engine. For a run with several exports, `auto` opens the fastest one: a server
measures them once on each machine. Without an export, transformers opens the run's own model. Outdated exports aren't
opened.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import logging
import math
import os
import time
from collections.abc import Sequence
from contextlib import closing
from importlib.metadata import version
from pathlib import Path
from typing import Any

from meditune.engines.engine import Engine, GenerationRequest, generate_all
from meditune.engines.exported_model import (
    EXPORT,
    EXPORTS,
    EXTRAS,
    is_installed,
    read_exported_model,
    why_outdated,
)
from meditune.errors import ModelError
from meditune.files import cache_folder, read_json, write_json
from meditune.hardware import cores, processor

log = logging.getLogger(__name__)
NAMES = ("auto", "openvino", "llamacpp", "transformers", "onnx", "vllm")
KEY_VARIABLE = "MEDITUNE_ENGINE_KEY"
"""Environment variable with the key of a server that runs the model"""
EXPORTED = {"openvino": "openvino", "llamacpp": "gguf", "onnx": "onnx"}
"""Engines, each with the kind of export that it opens"""
AUTO = ("openvino", "llamacpp")
"""Engines that auto considers. Until a server has measured them, it prefers the first (benchmarks/engines.py)."""
MEASURED_REQUESTS, MEASURED_TOKENS = 8, 32
MAX_PERPLEXITY_RISE = 0.02
"""Largest relative rise of perplexity, in the check of the export, with which `auto` considers a quantization"""


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
    return _opened(place, concurrency, in_subprocess and os.name == "posix", scores)


def _opened(place: Path, concurrency: int, in_subprocess: bool, scores: bool = False) -> Engine:
    """Open the exported model in a folder with its engine."""
    engine = read_exported_model(place).engine
    if engine == "openvino" and in_subprocess:
        from meditune.engines.subprocess_engine import SubprocessEngine

        return SubprocessEngine(place, concurrency, scores)
    if engine == "openvino":
        from meditune.engines.openvino_engine import OpenvinoEngine

        return OpenvinoEngine(place, concurrency)
    if engine == "llamacpp":
        from meditune.engines.llamacpp_engine import LlamacppEngine

        return LlamacppEngine(place, concurrency)
    if engine == "onnx":
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

    `automatic` holds the engines among which `auto` chooses: it prefers the export that was fastest when a server
    measured, and otherwise the first of these engines. Raises ModelError if the export that `engine` names is outdated.
    """
    if (place / EXPORT).is_file():
        return place
    found = _exports(place, engine, automatic)
    speeds = _measured(found) or {}
    return max(found, key=lambda folder: speeds.get(folder.name, 0.0), default=None)


def _exports(place: Path, engine: str, automatic: Sequence[str]) -> list[Path]:
    """Return the folders of the exports that are up to date, in the order of EXPORTED.

    With `auto`, folders of other quantizations are included if they are as exact as 8 bits.
    """
    if engine == "auto":
        kinds = [kind for name, kind in EXPORTED.items() if name in automatic and is_installed(name)]
    else:
        kinds = [EXPORTED[engine]] if engine in EXPORTED else []
    folders = [place / EXPORTS / kind for kind in kinds]
    if engine == "auto":
        others = [folder for kind in kinds for folder in sorted((place / EXPORTS).glob(f"{kind}-*"))]
        folders += [folder for folder in others if _is_exact(folder)]
    found = []
    for folder in folders:
        if not (folder / EXPORT).is_file():
            continue
        changed = why_outdated(folder, place / "model" if (place / "model").is_dir() else place)
        if not changed:
            found.append(folder)
            continue
        outdated = (
            f"{folder} is outdated: it was exported with {changed} than {place} has now. Export it again: meditune "
            f"export {place} --to {read_exported_model(folder).kind}"
        )
        if engine != "auto":
            raise ModelError(outdated)
        log.warning("%s; until then another engine answers", outdated)
    return found


def _is_exact(folder: Path) -> bool:
    """Return whether an export's check found about the perplexity of the original model."""
    if not (folder / EXPORT).is_file():
        return False
    before, after = (read_json(folder / EXPORT).get("drift") or {}).get("perplexity") or (1.0, math.inf)
    return bool(after <= before * (1 + MAX_PERPLEXITY_RISE))


def measure_exports(place: Path, concurrency: int) -> None:
    """Measure the exports of a run among which `auto` chooses, unless this machine has measured such exports before.

    Does nothing for a run with fewer than two exports. The speeds are stored in Meditune's cache folder. They are
    measured with MEASURED_REQUESTS requests at once, or with `concurrency` requests if that is less.
    """
    found = [] if (place / EXPORT).is_file() else _exports(place, "auto", AUTO)
    if len(found) < 2:
        return
    speeds, path = _measured(found), _speeds_file(found)
    if speeds is None:
        log.info("Measuring %s once to choose the fastest engine", " and ".join(map(str, found)))
        speeds = {folder.name: _tokens_per_s(folder, min(concurrency, MEASURED_REQUESTS)) for folder in found}
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_json(path, _conditions(found) | {"tokens_per_s": speeds})
        except OSError as error:
            log.warning("The measured speeds can't be stored in %s (%s), so each start measures again", path, error)
    listed = ", ".join(f"{name} {speed:.0f}" for name, speed in sorted(speeds.items(), key=lambda item: -item[1]))
    log.info("Tokens per second of each export: %s. To measure again, delete %s", listed, path)


def _measured(found: Sequence[Path]) -> dict[str, float] | None:
    """Return the stored tokens per second of each export; None if this machine hasn't measured them."""
    if len(found) < 2 or not (path := _speeds_file(found)).is_file():
        return None
    record = read_json(path)
    return dict(record["tokens_per_s"]) if isinstance(record, dict) and "tokens_per_s" in record else None


def _speeds_file(found: Sequence[Path]) -> Path:
    """Return where the speeds of exports like these are stored."""
    conditions = json.dumps(_conditions(found), sort_keys=True)
    return cache_folder("engines") / f"{hashlib.sha256(conditions.encode()).hexdigest()[:16]}.json"


def _conditions(found: Sequence[Path]) -> dict[str, Any]:
    """Return what the speeds depend on: the machine, the packages of the engines, and the exports."""
    engines = {folder: read_exported_model(folder).engine for folder in found}
    return {
        "machine": f"{processor()}, {cores()} cores",
        "packages": {package: version(package) for engine in engines.values() for package in EXTRAS[engine]},
        # A retrained model has the same sizes, and the same speeds.
        "bytes": {folder.name: max(path.stat().st_size for path in folder.iterdir()) for folder in found},
    }


def _tokens_per_s(folder: Path, requests: int) -> float:
    """Return the tokens per second, read and written, of so many requests at once; the faster of two attempts."""
    text = "Regular exercise lowers blood pressure and improves sleep in most adults. "
    speeds = []
    with closing(_opened(folder, requests, False)) as engine:
        for attempt in range(2):
            # Each prompt begins differently, so no engine finds it in its cache.
            prompts = [engine.tokenizer.encode(f"{number + 10 * attempt}. {text * 12}") for number in range(requests)]
            jobs = [GenerationRequest(prompt[: engine.context_tokens // 2], MEASURED_TOKENS) for prompt in prompts]
            begun = time.perf_counter()
            written = sum(len(answer.tokens) for _, answer in generate_all(engine, jobs))
            speeds.append((written + sum(len(job.prompt) for job in jobs)) / (time.perf_counter() - begun))
    return max(speeds)
