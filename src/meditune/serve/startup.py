"""Opening a service: the model with its engine, the index with its assistant, and the store with its keys."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import TypeVar

from meditune.assistant.assistant import AssistantSettings, follow_index, open_assistant, open_index
from meditune.assistant.writers import EngineWriter
from meditune.config.data_options import PromptFormat
from meditune.config.training_options import ApiSpec
from meditune.engines.engine import Engine
from meditune.engines.exported_model import EXPORTS
from meditune.engines.open_engine import exported_at, measure_exports, open_engine
from meditune.engines.supervised_engine import SupervisedEngine
from meditune.errors import DataError, ModelError
from meditune.model_registry import Registry, Version, is_registry
from meditune.models.catalogue import SENTENCE_MODEL_INT8
from meditune.models.sentence_encoder import onnx_sentence_model
from meditune.prompts import load_format
from meditune.retrieve.citations import Judge
from meditune.retrieve.cross_encoder import refuse_without_torch
from meditune.retrieve.index import Index
from meditune.retrieve.storage import import_lancedb_without_pandas
from meditune.serve.auth import Authenticator
from meditune.serve.chat_prompts import ChatPrompts
from meditune.serve.http_server import LOCAL, ListenConfig
from meditune.serve.metrics import Metrics
from meditune.serve.service import Served, Service
from meditune.serve.settings import Settings
from meditune.serve.version_router import RegistryService, VersionParts, VersionRouter, fingerprint
from meditune.store import StoreLocation, open_store
from meditune.store.answers import Answers
from meditune.store.api_keys import Keys, Usage

AnyService = TypeVar("AnyService", bound=Service)


@dataclass(frozen=True)
class ServerOptions:
    """The model, index and engine to serve."""

    model: str
    """A run's folder, a model's folder or file, a catalogue name, or a hub id"""
    index: str | None = None
    engine: str = "auto"
    name: str | None = None
    """The model's name for clients; None: the folder's name"""
    country: str = ""
    """The ISO 3166 code of the country whose emergency numbers the assistant gives"""
    url: str | None = None
    """The address of the server that runs the model, if the engine is a server"""
    judge: str | None = None
    """The judge that checks each sentence of the answers: a judge's run, the folder or hub id of an NLI model, or
    minicheck:NAME, hhem:NAME or lettucedetect:NAME"""
    judge_threshold: float | None = None
    """The probability of support with which a sentence is shown; None: the judge's own threshold for answers"""
    cross_encoder: str | None = None
    """The folder or hub id of a cross-encoder, which scores the best passages of a search again"""


def safe(settings: Settings, place: ListenConfig, keys: Keys, allow_anonymous: bool) -> Settings:
    """Return the settings, with access restricted as the address requires.

    Keys are required if the store contains any. Keys are also required if other machines can reach the server, unless
    `allow_anonymous` is true. A server that requires keys but has none lets nobody in.
    """
    beyond = not place.local or bool(place.proxies)
    needed = settings.keys_needed or keys.any() or (beyond and not allow_anonymous)
    # Without keys, a page whose host name resolves to this machine (DNS rebinding) could call the server.
    hosts = tuple(LOCAL) if not needed and not beyond else settings.hosts
    return replace(settings, keys_needed=needed, anonymous_access=beyond and not needed, hosts=hosts)


def lockout(settings: Settings, keys: Keys) -> str:
    """Return instructions if nobody can get in yet; empty if somebody can."""
    if not settings.keys_needed or any(key.state == "usable" for key in keys.all()):
        return ""
    return f"Nobody can get in yet: {keys.base.place} has no usable key. Create one: meditune keys create NAME"


def open_service(options: ServerOptions, settings: Settings, store: StoreLocation) -> Service:
    """Load everything and return the service. Raises DataError or ModelError if something is unavailable."""
    if options.judge and not options.index:
        raise DataError("--judge checks answers against the passages of an index, so it needs --index.")
    if options.judge_threshold is not None and not options.judge:
        raise DataError("--judge-threshold is the threshold of a judge; name the judge with --judge.")
    if options.cross_encoder and not options.index:
        raise DataError("--cross-encoder scores the passages of an index, so it needs --index.")
    if options.cross_encoder:
        refuse_without_torch()
    base, metrics = open_store(store), Metrics()
    place = Path(options.model).expanduser()

    @cache
    def index() -> Index | None:
        """Open the index once, after the first engine, which determines whether torch is loaded."""
        if not options.index:
            return None
        import_lancedb_without_pandas()
        return open_index(options.index, options.cross_encoder)

    @cache
    def judge() -> Judge | None:
        """Open the judge once, after the index, because the judge loads torch."""
        from meditune.engines.evidence_judge import open_judge

        return open_judge(options.judge, options.judge_threshold) if options.judge else None

    def service_for(kind: type[AnyService], parts: VersionParts) -> AnyService:
        return kind(
            **vars(parts),
            settings=settings,
            access=Authenticator(settings, Keys(base), Usage(base)),
            answers=Answers(base),
            metrics=metrics,
            embeds=onnx_sentence_model,
            embedding=SENTENCE_MODEL_INT8.name,
        )

    if is_registry(place):
        registry = Registry(place)

        def load(version: Version) -> VersionParts:
            known = replace(options, model=str(registry.place(version.id)), name=options.name or place.resolve().name)
            return _parts(known, settings, index, lambda: f"{version.id}-{version.weights}", metrics, judge)

        make = partial(service_for, RegistryService)
        releases = VersionRouter(registry, load, make, settings.follow_s)
        service: Service = releases.service
        changed = releases.switch_index
    else:
        version_now = partial(version_of, place, options.engine, settings.concurrency)
        service = service_for(Service, _parts(options, settings, index, version_now, metrics, judge))
        changed = service.switch_index
    if (opened := index()) is not None:
        follow_index(opened, changed)
    return service


def _parts(
    options: ServerOptions,
    settings: Settings,
    index: Callable[[], Index | None],
    version_now: Callable[[], str],
    metrics: Metrics,
    judge: Callable[[], Judge | None],
) -> VersionParts:
    """Open the model with its engine and assistant. `version_now` returns the version of its files."""
    place = Path(options.model).expanduser()
    if options.engine == "auto":
        measure_exports(place, settings.concurrency)
    version = version_now()
    form = _format(place)
    # Only a model that was tuned to decide in this format scores decisions (assistant/assistant.py).
    scores = bool(options.index and form)
    begun = False

    def opened() -> Engine:
        nonlocal begun
        if begun and version_now() != version:
            raise ModelError(f"{place} is missing or has changed since the server started. Restart the server.")
        begun = True
        places, url = settings.concurrency, options.url
        return open_engine(options.model, options.engine, places, url, in_subprocess=True, scores=scores)

    # A model on another server is available again when that server is, so ending this process wouldn't help.
    restarts = None if options.url else settings.restarts
    engine = SupervisedEngine(opened, restarts, settings.stalled_s, metrics.engine_restarts.inc)
    prompts = ChatPrompts(engine.tokenizer, form, engine.context_tokens)
    api = ApiSpec(url=options.url, key_variable=None) if options.url else None
    third_party = "" if api is None or api.is_local else api.host
    try:
        writer, limits = EngineWriter(engine, form, third_party), AssistantSettings(options.country)
        assistant = open_assistant(writer, place, index(), limits, {"model": version}, judge())
        engine.opened()
    except BaseException:
        engine.close()
        raise
    name = options.name or (name_of(place.resolve()) if place.exists() else options.model)
    served = Served(name, version, int(time.time()), assistant.versions["index"])
    return VersionParts(served, engine, prompts, assistant)


def _format(place: Path) -> PromptFormat | None:
    """Return the prompt format that a model (a folder or file) was tuned with; None if it wasn't tuned."""
    for folder in (place / "model", place, place.parent if place.is_file() else place):
        if folder.is_dir() and (found := load_format(folder)):
            return found
    return None


def name_of(folder: Path) -> str:
    """Return the name of a model's folder; for a run's model or export, the name of the run's folder.

    A folder such as /model, to which containers mount a run, keeps its own name, because its parent has no name.
    """
    while folder.parent.name and (folder.parent.name == EXPORTS or folder.name in {"model", EXPORTS}):
        folder = folder.parent
    return folder.name


def version_of(place: Path, engine: str, concurrency: int) -> str:
    """Return a hash of a model's files, including the export that the engine opens; "unknown" without files."""
    opened = exported_at(place, engine, concurrency=concurrency)
    places = dict.fromkeys(each for each in (place, opened) if each and each.exists())
    found = "".join(map(fingerprint, places))
    return hashlib.sha256(found.encode()).hexdigest()[:16] if found else "unknown"
