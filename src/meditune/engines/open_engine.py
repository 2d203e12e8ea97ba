"""Choosing and opening the engine for a model.

The folder of an exported model names its engine. If a run has several exports, `auto` opens the fastest of those that
hardly deviate from the original model; a server measures their speeds once on each machine, for the number of requests
that it answers at the same time. If a run has no export, transformers opens the run's own model. Outdated exports
aren't opened.
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
from dataclasses import dataclass
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
from meditune.errors import ModelError, install_command
from meditune.files import cache_folder, read_json, write_json
from meditune.hardware import cores, processor
from meditune.models.catalogue import refuse_missing_folder

log = logging.getLogger(__name__)
NAMES = ("auto", "openvino", "llamacpp", "transformers", "onnx", "vllm")
KEY_VARIABLE = "MEDITUNE_ENGINE_KEY"
"""Environment variable with the API key for a server that runs the model"""
EXPORTED = {"openvino": "openvino", "llamacpp": "gguf", "onnx": "onnx"}
"""Engine -> kind of export that it opens"""
AUTO = ("openvino", "llamacpp")
"""Engines that `auto` considers. It prefers the first until a server has measured speeds (benchmarks/engines.py)."""
MEASURED_REQUESTS, MEASURED_TOKENS = 8, 32
"""The maximum number of concurrent requests with which speeds are measured, and the length of their answers"""
MAX_PERPLEXITY_RISE, MIN_AGREEMENT = 0.01, 0.95
"""Maximum relative increase in perplexity, and minimum share of identical decisions, measured at export, with which an
export is close enough to the original for `auto`"""


def open_engine(
    model: str,
    engine: str = "auto",
    concurrency: int = 32,
    url: str | None = None,
    key: str | None = None,
    in_subprocess: bool = False,
    scores: bool = False,
) -> Engine:
    """Open a model, given by its catalogue name, its hub id, or the folder of a run, a model or an exported model.

    `engine` is one of `NAMES`; "auto" chooses the fastest engine for the content of the folder. `concurrency` is the
    maximum number of answers that are generated at the same time.

    With "vllm", the model runs on the server at `url` (up to and including /v1), with the API key `key` or, by default,
    the value of MEDITUNE_ENGINE_KEY. `model` is then a local folder with the same model, from which the tokenizer is
    loaded.

    With `in_subprocess`, which is for servers, an engine that would block the server's process runs in a separate one
    (subprocess_engine.py). `scores` makes this separate process prepare for scoring texts when it starts.

    Raises ModelError if the model is unavailable or the engine can't open it.
    """
    if engine not in NAMES:
        near = difflib.get_close_matches(engine, NAMES, n=1)
        hint = f" Did you mean {near[0]}?" if near else ""
        raise ModelError(f"There is no engine {engine!r}.{hint} Engines: {', '.join(NAMES)}.")
    refuse_missing_folder(model)
    if engine == "vllm":
        return _at_server(model, concurrency, url, key)
    if url:
        raise ModelError(f"--url needs --engine vllm, but the engine is {engine}.")
    place = exported_at(Path(model).expanduser(), engine, concurrency=concurrency)
    if place is None:
        if engine in EXPORTED:
            raise ModelError(
                f"{model} contains no model for the {engine} engine. Export one: meditune export {model} --to "
                f"{EXPORTED[engine]}"
            )
        return _with_transformers(model, concurrency)
    found = read_exported_model(place)
    if engine not in {"auto", found.engine}:
        raise ModelError(f"{place} was exported for the {found.engine} engine; {engine} can't open it.")
    return _opened(place, concurrency, in_subprocess, scores)


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


def exported_at(
    place: Path, engine: str, automatic: Sequence[str] = AUTO, concurrency: int = MEASURED_REQUESTS
) -> Path | None:
    """Return the folder of the exported model to open; None if the transformers engine opens the model itself.

    `choose_export` describes the arguments and errors.
    """
    return choose_export(place, engine, automatic, concurrency).folder


@dataclass(frozen=True)
class EngineChoice:
    """The exported model to open, and why."""

    folder: Path | None
    """None if the transformers engine opens the model itself"""
    reason: str
    candidates: Sequence[Path] = ()
    """The exports between which speed decides"""

    def __str__(self) -> str:
        engine = f"{read_exported_model(self.folder).engine} opens {self.folder}" if self.folder else "transformers"
        return f"Engine: {engine}, because {self.reason}."


def choose_export(
    place: Path, engine: str = "auto", automatic: Sequence[str] = AUTO, concurrency: int = MEASURED_REQUESTS
) -> EngineChoice:
    """Return which exported model the engine opens, and why.

    `automatic` contains the engines among which `auto` chooses. `auto` ignores exports that deviate too much from the
    original model; if all do, it chooses the export that deviates least. If a server has measured speeds for this
    `concurrency`, `auto` prefers the fastest of the other exports, and otherwise the export for the first of these
    engines. Raises ModelError if `engine` isn't `auto` and its export is outdated.
    """
    if (place / EXPORT).is_file():
        return EngineChoice(place, "this is an exported model")
    found, left_out = _exports(place, engine, automatic)
    speeds = _measured(found, concurrency)
    folder = max(found, key=lambda each: (speeds or {}).get(each.name, 0.0), default=None)
    if engine != "auto":
        reason = f"--engine {engine} was chosen"
    elif folder is None:
        reason = "none of the exports can be used" if left_out else "there is no export"
    elif len(found) > 1 and speeds:
        listed = ", ".join(f"{name} {speed:.0f}" for name, speed in sorted(speeds.items(), key=lambda item: -item[1]))
        reason = (
            f"it is the fastest export (tokens per second: {listed}; to measure again, delete "
            f"{_speeds_file(found, concurrency)})"
        )
    elif len(found) > 1:
        reason = f"the speeds of {', '.join(each.name for each in found)} haven't been measured here yet"
    elif _deviation(folder) > 1:
        reason = f"no export is close enough to the original model, and it is the closest one ({_described(folder)})"
    else:
        reason = "it is the only suitable export" if left_out else "it is the only export"
    return EngineChoice(folder, "; ".join([reason, *left_out]), found)


def _exports(place: Path, engine: str, automatic: Sequence[str]) -> tuple[list[Path], list[str]]:
    """Return the folders of the exports that can be opened, and for each other export, why it isn't used.

    The folders are in the order of EXPORTED, those with an engine's usual quantization first.
    """
    kinds = EXPORTED if engine == "auto" else {engine: EXPORTED[engine]} if engine in EXPORTED else {}
    named = [(name, place / EXPORTS / kind) for name, kind in kinds.items()]
    if engine == "auto":
        others = {name: sorted((place / EXPORTS).glob(f"{kind}-*")) for name, kind in kinds.items()}
        named += [(name, folder) for name, folders in others.items() for folder in folders]
    found, left_out = [], []
    for name, folder in named:
        if not (folder / EXPORT).is_file():
            continue
        if engine == "auto" and name not in automatic:
            left_out.append(f"{folder.name} needs --engine {name}")
            continue
        if engine == "auto" and not is_installed(name):
            left_out.append(f"{folder.name} needs packages that aren't installed: {install_command(name)}")
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
        log.warning("%s; until then, another engine is used", outdated)
        left_out.append(f"{folder.name} is outdated")
    if engine != "auto":
        return found, left_out
    close = [each for each in found if _deviation(each) <= 1] or sorted(found, key=_deviation)[:1]
    return close, [f"{each.name} deviates more ({_described(each)})" for each in found if each not in close] + left_out


def _drift(folder: Path) -> tuple[float, float]:
    """Return an export's relative increase in perplexity and its share of identical decisions, measured at export.

    The increase is infinite if it wasn't measured, and NaN if a perplexity isn't a number.
    """
    drift = read_json(folder / EXPORT).get("drift")
    if not drift:
        return math.inf, 0.0
    before, after = drift.get("perplexity") or (1.0, 1.0)
    shares = [drift.get("agreement"), (drift.get("claims") or {}).get("agreement")]
    return after / before - 1, min((share for share in shares if share is not None), default=1.0)


def _deviation(folder: Path) -> float:
    """Return how much an export deviates from the original model; it is close enough up to 1."""
    rise, agreement = _drift(folder)
    rise = math.inf if math.isnan(rise) else rise
    return round(max(rise / MAX_PERPLEXITY_RISE, (1 - agreement) / (1 - MIN_AGREEMENT)), 6)


def _described(folder: Path) -> str:
    """Return in what respects an export deviates too much."""
    rise, agreement = _drift(folder)
    if math.isinf(rise):
        return "its deviation wasn't measured"
    found = ["its perplexity isn't a number"] if math.isnan(rise) else []
    # rounded away from the limits
    risen = math.ceil(1000 * rise - 1e-6) / 10 if math.isfinite(rise) else rise
    if rise > MAX_PERPLEXITY_RISE:
        found.append(f"perplexity rose by {risen:.1f}%, at most {100 * MAX_PERPLEXITY_RISE:g}% is allowed")
    if agreement < MIN_AGREEMENT:
        share = math.floor(1000 * agreement + 1e-6) / 10
        found.append(f"{share:g}% of the decisions are the same, {100 * MIN_AGREEMENT:g}% are required")
    return "; ".join(found)


def measure_exports(place: Path, concurrency: int) -> None:
    """Measure the speeds of a run's exports for `auto`, unless this machine has already measured exports like these.

    A run with fewer than two suitable exports needs no measurement. The speeds are stored in Meditune's cache folder.
    They are measured with MEASURED_REQUESTS requests at once, or with `concurrency` requests if these are fewer. In
    every case, the log then says which engine `auto` chooses, and why.
    """
    choice = choose_export(place, concurrency=concurrency)
    if len(choice.candidates) > 1 and _measured(choice.candidates, concurrency) is None:
        found, path = choice.candidates, _speeds_file(choice.candidates, concurrency)
        log.info("Measuring %s once to choose the fastest engine", " and ".join(map(str, found)))
        speeds = {folder.name: _tokens_per_s(folder, min(concurrency, MEASURED_REQUESTS)) for folder in found}
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_json(path, _conditions(found, concurrency) | {"tokens_per_s": speeds})
        except OSError as error:
            log.warning("The measured speeds can't be stored in %s (%s), so each start measures again", path, error)
        choice = choose_export(place, concurrency=concurrency)
    log.info("%s", choice)


def _measured(found: Sequence[Path], concurrency: int) -> dict[str, float] | None:
    """Return the stored tokens per second of each export; None if this machine hasn't measured them."""
    if len(found) < 2 or not (path := _speeds_file(found, concurrency)).is_file():
        return None
    record = read_json(path)
    return dict(record["tokens_per_s"]) if isinstance(record, dict) and "tokens_per_s" in record else None


def _speeds_file(found: Sequence[Path], concurrency: int) -> Path:
    """Return the path of the file with the speeds of exports like these."""
    conditions = json.dumps(_conditions(found, concurrency), sort_keys=True)
    return cache_folder("engines") / f"{hashlib.sha256(conditions.encode()).hexdigest()[:16]}.json"


def _conditions(found: Sequence[Path], concurrency: int) -> dict[str, Any]:
    """Return the conditions on which speeds depend: the requests, the machine, the engines' packages, the sizes."""
    engines = {folder: read_exported_model(folder).engine for folder in found}
    return {
        "requests": min(concurrency, MEASURED_REQUESTS),
        "machine": f"{processor()}, {cores()} cores",
        "packages": {package: version(package) for engine in engines.values() for package in EXTRAS[engine]},
        # A retrained model has files of the same sizes, and therefore the same speed.
        "bytes": {folder.name: max(path.stat().st_size for path in folder.iterdir()) for folder in found},
    }


def _tokens_per_s(folder: Path, requests: int) -> float:
    """Return the tokens read and written per second, with concurrent requests; the faster of two attempts."""
    text = "Regular exercise lowers blood pressure and improves sleep in most adults. "
    speeds = []
    with closing(_opened(folder, requests, False)) as engine:
        for attempt in range(2):
            # Each prompt begins differently, so that no engine can reuse a cached prompt.
            prompts = [engine.tokenizer.encode(f"{number + 10 * attempt}. {text * 12}") for number in range(requests)]
            jobs = [GenerationRequest(prompt[: engine.context_tokens // 2], MEASURED_TOKENS) for prompt in prompts]
            begun = time.perf_counter()
            written = sum(len(answer.tokens) for _, answer in generate_all(engine, jobs))
            speeds.append((written + sum(len(job.prompt) for job in jobs)) / (time.perf_counter() - begun))
    return max(speeds)
