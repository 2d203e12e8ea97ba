"""From names to a service: the model with its engine, the index with its assistant, the store with its keys."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from meditune.assistant.assistant import AssistantSettings, follow_index, open_assistant, open_index
from meditune.config.data_options import PromptFormat
from meditune.config.training_options import ApiSpec
from meditune.engines.engine import Engine
from meditune.engines.exported_model import EXPORTS
from meditune.engines.open_engine import open_engine
from meditune.engines.supervised_engine import SupervisedEngine
from meditune.errors import ModelError
from meditune.model_registry import Registry, Version, is_registry
from meditune.models.catalogue import SENTENCE_MODEL_INT8
from meditune.prompts import load_format
from meditune.retrieve.index import Index
from meditune.serve.auth import Authenticator
from meditune.serve.chat_prompts import ChatPrompts
from meditune.serve.http_server import LOCAL, Place
from meditune.serve.metrics import Metrics
from meditune.serve.service import EmbedsTexts, Served, Service
from meditune.serve.settings import Settings
from meditune.serve.version_router import VersionParts, VersionRouter, fingerprint
from meditune.store.answers import Answers
from meditune.store.api_keys import Keys, Usage
from meditune.store.open_store import Place as StorePlace
from meditune.store.open_store import open_store


@dataclass(frozen=True)
class ServerOptions:
    """What is to be served."""

    model: str
    """A run's folder, a model's folder or file, a catalogue name, or a hub id"""
    index: str | None = None
    engine: str = "auto"
    name: str | None = None
    """As clients are to call it; else the folder's name"""
    country: str = ""
    """ISO 3166, for the emergency numbers that the assistant names"""
    url: str | None = None
    """Of the server that runs the model, where the engine is one"""


def safe(settings: Settings, place: Place, keys: Keys, open_to_all: bool) -> Settings:
    """The settings with what follows from the place: keys are needed where there are any, and beyond this machine.

    Beyond it nobody gets in until there is a key, unless the server is to be `open_to_all`.
    """
    beyond = not place.local or bool(place.proxies)
    needed = settings.keys_needed or keys.any() or (beyond and not open_to_all)
    # Without keys a name that a page's author chose for this machine would let that page in.
    hosts = tuple(LOCAL) if not needed and not beyond else settings.hosts
    return replace(settings, keys_needed=needed, strangers=beyond and not needed, hosts=hosts)


def lockout(settings: Settings, keys: Keys) -> str:
    """What to do where nobody can get in yet; empty where somebody can."""
    if not settings.keys_needed or any(key.state == "usable" for key in keys.all()):
        return ""
    return f"Nobody gets in yet: there is no usable key in {keys.base.place}. Make one: meditune keys create NAME"


def open_service(wanted: ServerOptions, settings: Settings, store: StorePlace) -> Service:
    """Load everything. Raises DataError and ModelError where something can't be had."""
    base, metrics = open_store(store), Metrics()
    place = Path(wanted.model).expanduser()

    @cache
    def index() -> Index | None:
        """Opened once, after the first engine, which says whether torch is here."""
        return open_index(wanted.index) if wanted.index else None

    def made(parts: VersionParts) -> Service:
        return Service(
            parts.served,
            parts.engine,
            parts.prompts,
            settings,
            Authenticator(settings, Keys(base), Usage(base)),
            Answers(base),
            parts.assistant,
            metrics=metrics,
            embeds=sentence_model,
            embedding=SENTENCE_MODEL_INT8.name,
        )

    if is_registry(place):
        registry = Registry(place)

        def load(found: Version) -> VersionParts:
            known = replace(wanted, model=str(registry.place(found.id)), name=wanted.name or place.resolve().name)
            return _parts(known, settings, index, f"{found.id}-{found.weights}", lambda: False, metrics)

        releases = VersionRouter(registry, load, settings.follow_s)
        service, changed = releases.begin(made), releases.goes_over_to
    else:
        version = _version(place)
        service = made(_parts(wanted, settings, index, version, lambda: _version(place) != version, metrics))
        changed = service.goes_over_to
    if (opened := index()) is not None:
        follow_index(opened, changed)
    return service


def _parts(
    wanted: ServerOptions,
    settings: Settings,
    index: Callable[[], Index | None],
    version: str,
    changed: Callable[[], bool],
    metrics: Metrics,
) -> VersionParts:
    """The model with its engine and assistant. `changed`: whether the model's files are others than at the start."""
    place = Path(wanted.model).expanduser()
    form = _format(place)
    # A model that never learnt to decide in this format isn't asked how likely decisions are (assistant/assistant.py).
    scores = bool(wanted.index and form)
    begun = False

    def opened() -> Engine:
        nonlocal begun
        if begun and changed():
            raise ModelError(f"{place} is gone, or holds another model than when the server started.")
        begun = True
        return open_engine(wanted.model, wanted.engine, settings.at_once, wanted.url, apart=True, scores=scores)

    # A model at another server comes back when that server does: to end this process would help nobody.
    restarts = None if wanted.url else settings.restarts
    engine = SupervisedEngine(opened, restarts, settings.stalled_s, metrics.engine_restarts.inc)
    prompts = ChatPrompts(engine.tokenizer, form, engine.context_tokens)
    asked = AssistantSettings(country=wanted.country, elsewhere=_elsewhere(wanted.url))
    try:
        assistant = open_assistant(engine, place, form, index(), asked, {"model": version})
        engine.opened()
    except BaseException:
        engine.close()
        raise
    name = wanted.name or _name(place, wanted.model)
    served = Served(name, version, int(time.time()), assistant.versions["index"])
    return VersionParts(served, engine, prompts, assistant)


@cache
def sentence_model() -> EmbedsTexts:
    """The sentence model in 8 bits, without torch. Raises ModelError where it can't be had."""
    from meditune.models import sentence_encoder_onnx

    return sentence_encoder_onnx.sentence_model()


def _elsewhere(url: str | None) -> str:
    """The server that writes the answers, where it isn't on this machine."""
    if not url:
        return ""
    spec = ApiSpec(url=url, key_variable=None)
    return "" if spec.is_local else spec.host


def _format(place: Path) -> PromptFormat | None:
    """The format that the model in a folder, or beside a file, was tuned with."""
    for folder in (place / "model", place, place.parent if place.is_file() else place):
        if folder.is_dir() and (found := load_format(folder)):
            return found
    return None


def _name(place: Path, model: str) -> str:
    """The folder's name, or the run's of which it is the model or an export."""
    if not place.exists():
        return model
    folder = place.resolve()
    while folder.parent.name == EXPORTS or folder.name in {"model", EXPORTS}:
        folder = folder.parent
    return folder.name


def _version(place: Path) -> str:
    return (fingerprint(place) if place.exists() else "")[:16] or "unknown"
