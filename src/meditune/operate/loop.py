"""The whole cycle in one process, for small installations: each stage when it is due, and again after a failure.

What `meditune loop CONFIG` reads: which stages there are, and how often each is due.

The loop: what is due is done, what failed is tried again later, and nothing is lost when it is stopped.

What each stage does, and what it says of it; errors are the caller's.

How far the loop got: a file that is whole at any time, so that the next call goes on.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import BeforeValidator, Field, ValidationError

from meditune.config.data_options import Spec
from meditune.config.recipe_keys import Document, UnreadableError
from meditune.errors import DataError, MedituneError, RecipeError
from meditune.files import read_json, read_text, write_json
from meditune.model_registry import Registry
from meditune.operate.drift.alerts import SEVERITIES, Severity
from meditune.operate.retraining.retrain import Then

_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


def seconds(given: Any) -> float:
    """Seconds of "90s", "10m", "6h" or "7d"."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smhd])", str(given).strip())
    if not found or float(found[1]) <= 0:
        raise ValueError(f"{given!r} is no time: write 10m, 6h or 7d")
    return float(found[1]) * _SECONDS[found[2]]


def _path(given: Any) -> Any:
    return Path(given) if isinstance(given, str) else given


def _key(given: Any) -> Any:
    if isinstance(given, str) and not given.strip():
        raise ValueError("an empty name would trust callers without a key: name a key's id (meditune keys list)")
    return given


Seconds = Annotated[float, BeforeValidator(seconds)]
Place = Annotated[Path, BeforeValidator(_path)]
Key = Annotated[str, BeforeValidator(_key)]


class UpdateStage(Spec):
    """New research."""

    library: Place = Field(description="The library's folder.")
    queries: list[str] = Field(default_factory=list, description="PubMed queries.")
    files: str | None = Field(None, description="MEDLINE's update files: a folder or an address.")
    email: str | None = Field(None, description="Where NCBI can write to you.")
    tests: list[Place] = Field(default_factory=list, description="Items to keep out of the training pairs.")
    every: Seconds = Field("1d", validate_default=True, description="10m, 6h, 7d.")


class DriftStage(Spec):
    """Requests held against a reference."""

    reference: Place = Field(description="What `meditune drift fit` wrote.")
    least: Severity = Field("small", description=f"{', '.join(SEVERITIES)}: smaller changes are no alert.")
    notify: bool = Field(
        False, description="Send alerts, the canaries' too, to the channels that the environment names."
    )
    every: Seconds = Field("1h", validate_default=True, description="10m, 6h, 7d.")


class CanaryStage(Spec):
    """Questions with known answers."""

    questions: Place = Field(description="Their file.")
    results: Place = Field(description="Runs are added to this file.")
    url: str = Field("http://127.0.0.1:8000", description="The server. Its key is taken from MEDITUNE_KEY.")
    every: Seconds = Field("6h", validate_default=True, description="10m, 6h, 7d.")


class GuardStage(Spec):
    """Taking back what made answers worse."""

    every: Seconds = Field("10m", validate_default=True, description="10m, 6h, 7d.")


class QueueStage(Spec):
    """What experts are asked next."""

    folder: Place = Field(description="Each queue becomes a folder in it, for `meditune annotate serve`.")
    budget: int = Field(50, ge=1, description="So many are asked at most.")
    strategy: str = Field("mix", description="mix, random, uncertainty, disagreement, diversity, feedback or novelty.")
    embedding: str | None = Field(None, description="The embedding model.")
    every: Seconds = Field("7d", validate_default=True, description="10m, 6h, 7d.")
    on_alert: bool = Field(True, description="Also as soon as a drift alert opens.")


class RetrainStage(Spec):
    """The next version."""

    trust: list[Key] = Field(default_factory=list, description="Keys whose corrections count; all: anybody's.")
    labels: list[Place] = Field(
        default_factory=list, description="Files of experts' rows; those that aren't there yet are passed over."
    )
    literature: list[Place] = Field(default_factory=list, description="Libraries or files of pairs.")
    settings: list[str] = Field(default_factory=list, description="Recipe keys to change: train.epochs=1.")
    replay: float = Field(1.0, ge=0, description="Old rows for each new one.")
    held_out: float = Field(0.3, gt=0, lt=0.9, description="Share of the new rows to measure on.")
    least: int = Field(50, ge=1, description="With fewer new rows nothing is trained.")
    gate: Place | None = Field(None, description="A policy for the old items.")
    gate_new: Place | None = Field(None, description="... and one for the new ones.")
    then: Then = Field("promote", description=f"{', '.join(get_args(Then))}: what becomes of a version that passes.")
    percent: float = Field(10.0, gt=0, le=100, description="Of the conversations, for a canary or shadow.")
    every: Seconds = Field("7d", validate_default=True, description="10m, 6h, 7d.")
    on_alert: bool = Field(True, description="Also as soon as a drift alert opens.")


class PromoteStage(Spec):
    """A canary that stood its time becomes the version that is served."""

    after: Seconds = Field("2d", validate_default=True, description="So long it must have stood: 10m, 6h, 7d.")
    answers: int = Field(100, ge=0, description="... and given so many answers.")
    every: Seconds = Field("10m", validate_default=True, description="10m, 6h, 7d.")


class Config(Spec):
    """The whole cycle. A stage that isn't named isn't run."""

    registry: Place = Field(description="The registry's folder.")
    store: str | None = Field(None, description="Where the server keeps its answers.")
    index: str | None = Field(None, description="The index that is served.")
    update: UpdateStage | None = None
    drift: DriftStage | None = None
    canary: CanaryStage | None = None
    guard: GuardStage | None = None
    queue: QueueStage | None = None
    retrain: RetrainStage | None = None
    promote: PromoteStage | None = None


STAGES = ("update", "drift", "canary", "guard", "queue", "retrain", "promote")
"""In the order in which they run where several are due"""
PLACES = {
    "": ("registry", "store"),
    "update": ("library", "tests"),
    "drift": ("reference",),
    "canary": ("questions", "results"),
    "queue": ("folder",),
    "retrain": ("labels", "literature", "gate", "gate_new"),
}
"""Keys whose values are places beside the configuration's file"""


def load(path: Path) -> Config:
    """The configuration in a YAML file; places in it are beside that file.

    Raises RecipeError that lists every problem with its line.
    """
    try:
        document = Document(read_text(path))
    except UnreadableError as error:
        raise RecipeError(f"{path}, line {error.line}: {error.why}.") from error
    problems = [(line, ".".join(map(str, key)), text) for key, line, text in document.problems]
    said = document.value if isinstance(document.value, dict) else {}
    try:
        made = Config.model_validate(_beside(said, path.resolve().parent))
        problems += [] if any(getattr(made, name) for name in STAGES) else [(1, "stages", _NONE)]
    except ValidationError as error:
        problems += [_problem(document, each["loc"], each["msg"]) for each in error.errors()]
    if problems:
        lines = (f"{path}, line {line}: {name}: {text}" for line, name, text in sorted(problems))
        raise RecipeError("\n".join(dict.fromkeys(lines)))
    return made


_NONE = f"none is named, so there is nothing to do; there are {', '.join(STAGES)}"


def _beside(said: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The same with places that don't depend on where the command was called."""

    def placed(value: Any) -> Any:
        if isinstance(value, list):
            return [placed(each) for each in value]
        is_place = isinstance(value, str) and "://" not in value
        return str(folder / Path(value).expanduser()) if is_place else value

    found = dict(said)
    for group, keys in PLACES.items():
        part = found if not group else dict(found[group]) if isinstance(found.get(group), dict) else None
        if part is None:
            continue
        part |= {key: placed(part[key]) for key in keys if key in part}
        if group:
            found[group] = part
    return found


def _problem(document: Document, location: tuple[Any, ...], text: str) -> tuple[int, str, str]:
    """Line, key and what is wrong."""
    name, key = ".".join(map(str, location)), tuple(location)
    while key and key not in document.lines:
        key = key[:-1]
    said = "no such key" if "Extra inputs" in text else text.removeprefix("Value error, ")
    return document.lines.get(key, 1), name, said[:1].lower() + said[1:]


FIRST_RETRY_S = 60.0
Outcome = Literal["", "done", "alert", "failed"]


@dataclass
class Stage:
    """One stage's past."""

    ended: float = 0.0
    """When it last ended, seconds since 1970; 0: never"""
    outcome: Outcome = ""
    said: str = ""
    failures: int = 0
    """In a row"""
    runs: int = 0

    def due_in(self, every: float, now: float) -> float:
        """Seconds until it is due; a clock that was set back makes it due at once."""
        wait = every if not self.failures else min(every, FIRST_RETRY_S * 2 ** (self.failures - 1))
        past = now - self.ended
        return 0.0 if not self.ended or past < 0 else max(0.0, wait - past)

    def note(self, outcome: Outcome, said: str) -> None:
        """It has ended just now."""
        self.ended, self.outcome, self.said = time.time(), outcome, said
        self.failures = self.failures + 1 if outcome == "failed" else 0
        self.runs += 1


@dataclass
class State:
    """The loop's past."""

    stages: dict[str, Stage] = field(default_factory=dict)
    alerts: list[str] = field(default_factory=list)
    """Drift alerts that were open when it was last looked"""
    waiting: list[str] = field(default_factory=list)
    """Stages that a new alert has made due"""

    def stage(self, name: str) -> Stage:
        """A stage's past."""
        return self.stages.setdefault(name, Stage())

    def save(self, path: Path) -> None:
        """Write it, whole or not at all."""
        write_json(path, asdict(self))


def load_state(path: Path) -> State:
    """What was saved, or nothing yet. Raises DataError where the file is damaged."""
    if not path.is_file():
        return State()
    said: dict[str, Any] = read_json(path)
    try:
        stages = {name: Stage(**each) for name, each in said["stages"].items()}
        return State(stages, list(said["alerts"]), list(said["waiting"]))
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path} is damaged ({error}). Remove it; every stage is due then.") from error


def lines(state: State) -> list[str]:
    """In the terminal."""
    return [
        f"{name:8} {stage.outcome or 'never':6} "
        + (datetime.fromtimestamp(stage.ended, UTC).isoformat(" ", "seconds")[:19] if stage.ended else "")
        + (f"  {stage.said}" if stage.said else "")
        for name, stage in state.stages.items()
    ]


Done = tuple[Outcome, str]


def update(config: Config, _: State) -> Done:
    """New research."""
    from meditune.operate.literature import pubmed_client
    from meditune.operate.literature import update as updating

    spec = config.update
    assert spec is not None, "only what is named is run"
    wanted = updating.Wanted(
        queries=tuple(spec.queries),
        files=spec.files,
        index=config.index,
        email=spec.email,
        eutils=pubmed_client.URL,
        store=config.store,
        tests=tuple(spec.tests),
    )
    report = updating.update(spec.library, wanted)
    if report.failures:
        raise report.failures[-1]
    pairs = f", {len(report.pairs.examples):,} training pairs" if report.pairs else ""
    return "done", f"{sum(report.read.values()):,} articles, {len(report.retracted):,} retracted{pairs}"


def drift(config: Config, state: State) -> Done:
    """New requests held against the reference; a new alert makes the stages due that wait for one."""
    from meditune.operate.drift import check as evidence
    from meditune.operate.drift import notifications
    from meditune.operate.drift.alerts import Policy
    from meditune.operate.drift.check import RequestSource, check
    from meditune.operate.drift.drift_watcher import outbox_of, state_of
    from meditune.operate.drift.monitor import Monitor
    from meditune.operate.drift.reference import load

    spec = config.drift
    assert spec is not None, "only what is named is run"
    if config.store is None:
        raise DataError("The drift stage needs `store`: where the server keeps its answers.")
    place, reference = state_of(spec.reference), load(spec.reference)
    if _is_held(place):
        # The server watches by itself (meditune serve --drift), and tells those who are to know.
        monitor, said = Monitor.load(place, reference) if place.is_file() else Monitor(reference), "the server watches"
    else:
        found = check(
            RequestSource(config.store), reference, place, Policy(least=spec.least), None, evidence.gather_evidence
        )
        monitor, said = found.monitor, f"{found.new:,} new requests"
        if spec.notify:
            news = notifications.messages(monitor.all_alerts, None, "")
            notifications.Outbox(outbox_of(spec.reference)).send(news, notifications.from_environment())
    alerts = monitor.alerts()
    ids = [alert.id for alert in alerts]
    if set(ids) - set(state.alerts):
        hurried = {name for name in ("queue", "retrain") if (each := getattr(config, name)) and each.on_alert}
        state.waiting = sorted({*state.waiting, *hurried})
    state.alerts = ids
    if alerts:
        return "alert", "; ".join(f"{alert.signal} ({alert.severity}): {alert.said}" for alert in alerts)
    return "done", f"{said}, no alert"


def canary(config: Config, _: State) -> Done:
    """Canaries asked, and held against their first run."""
    from meditune.operate.drift import canaries, notifications
    from meditune.operate.drift.drift_watcher import outbox_of

    spec = config.canary
    assert spec is not None, "only what is named is run"
    canaries.keep(canaries.ask(canaries.read(spec.questions), spec.url), spec.results)
    verdict = canaries.verdict(spec.results)
    if config.drift and config.drift.notify:
        news = notifications.messages([], verdict, "")
        notifications.Outbox(outbox_of(config.drift.reference)).send(news, notifications.from_environment())
    return ("alert" if verdict["alert"] else "done"), str(verdict["said"])


def guard(config: Config, _: State) -> Done:
    """Whatever made answers worse is taken back."""
    from meditune.operate.retraining.rollback import guard as look

    results = config.canary.results if config.canary else None
    found = look(
        config.registry,
        config.store,
        config.drift.reference if config.drift else None,
        None,
        results if results and results.is_file() else None,
    )
    if found.taken_back:
        return "alert", f"{found.taken_back} was taken back, {found.served} is served: {'; '.join(found.why)}"
    return "done", "; ".join(found.why)


def queue(config: Config, state: State) -> Done:
    """What experts are asked next, without what the current version learnt and what they were asked before."""
    from meditune.operate.active_learning import annotation_queue
    from meditune.operate.active_learning.candidates import NothingToAskError

    spec = config.queue
    assert spec is not None, "only what is named is run"
    if config.store is None:
        raise DataError("The queue stage needs `store`: where the server keeps its answers.")
    registry = Registry(config.registry)
    current = registry.state().current
    known = (registry.place(current),) if current else ()
    done = tuple(queues(spec.folder))
    wanted = annotation_queue.Wanted(
        spec.budget, spec.strategy, known, done, index=config.index, embedding=spec.embedding
    )
    folder = spec.folder / datetime.now(UTC).strftime("%Y%m%dT%H%M%S")
    state.waiting = [name for name in state.waiting if name != "queue"]
    try:
        found = annotation_queue.queue([config.store], folder, wanted)
    except NothingToAskError as error:
        return "done", f"nothing to ask experts: {error}"
    return "done", f"{len(found.chosen):,} for experts: meditune annotate serve {folder}"


def queues(folder: Path) -> list[Path]:
    """The queues that were made there, the oldest first."""
    return sorted(path for path in folder.glob("*") if path.is_dir() and not path.name.startswith("."))


def retrain(config: Config, state: State) -> Done:
    """The next version, where there is enough to learn from."""
    from meditune.operate.retraining import retrain as retraining
    from meditune.operate.retraining.new_training_data import Shares, Wanted

    spec = config.retrain
    assert spec is not None, "only what is named is run"
    if Registry(config.registry).state().trial:
        return "done", "a version is being tried, so the next one waits"
    store = config.store
    labels = tuple(path for path in spec.labels if path.is_file())
    asked = tuple(queues(config.queue.folder)) if config.queue else ()
    literature = tuple(path for path in spec.literature if path.exists())
    wanted = Wanted(store, tuple(spec.trust), labels, asked, literature, config.index)
    if wanted.is_empty:
        return "done", "there is nothing to learn from yet"
    options = retraining.Options(
        wanted,
        Shares(spec.held_out, replay=spec.replay),
        tuple(spec.settings),
        None,
        spec.gate,
        spec.gate_new,
        spec.least,
        None,
        spec.then,
        spec.percent,
        or_anew=True,
    )
    outcome = retraining.retrain(config.registry, options, f"meditune retrain {config.registry}")
    if outcome.version is None:
        return "done", outcome.said[-1]
    state.waiting = [name for name in state.waiting if name != "retrain"]
    return ("done" if outcome.version.passed else "alert"), outcome.said[-1]


def promote(config: Config, _: State) -> Done:
    """A canary that stood its time becomes the version that is served."""
    from meditune.store.answers import SHADOW, Answers
    from meditune.store.open_store import open_store

    spec = config.promote
    assert spec is not None, "only what is named is run"
    registry = Registry(config.registry)
    trial = registry.state().trial
    if trial is None or trial.mode != "canary":
        return "done", "no canary is out"
    if config.store is None:
        raise DataError("The promote stage needs `store`, where the canary's answers are counted.")
    since = datetime.fromisoformat(trial.since).timestamp()
    stood = time.time() - since
    answers = sum(
        each.model.rpartition(" ")[2].startswith(f"{trial.version}-")
        and each.time >= since
        and each.route != SHADOW
        and each.outcome in ("answered", "abstained")
        for _, each, _ in Answers(open_store(config.store)).in_order()
    )
    if stood < spec.after or answers < spec.answers:
        return "done", f"{trial.version} has stood for {stood / 3600:.1f} hours and given {answers:,} answers"
    registry.promote(trial.version, f"a canary for {stood / 3600:.1f} hours and {answers:,} answers")
    return "done", f"{trial.version} is served from now on"


def _is_held(place: Path) -> bool:
    """Whether somebody else goes on from this state at the moment."""
    from filelock import FileLock, Timeout

    try:
        with FileLock(place.with_name(f".{place.name}.lock"), timeout=0):
            return False
    except Timeout:
        return True


BY_NAME = {
    "update": update,
    "drift": drift,
    "canary": canary,
    "guard": guard,
    "queue": queue,
    "retrain": retrain,
    "promote": promote,
}


log = logging.getLogger(__name__)
FILE = "loop.json"
"""In the registry: how far the loop got"""
LOCK = ".loop.lock"
URGENT_S = 3600.0
LONGEST_NAP_S = 60.0
"""So that a clock that was set is noticed soon"""
Told = Callable[[str], None]


def loop(config: Config, told: Told, once: bool = False) -> int:
    """Do what is due, for ever or `once`; how many stages failed the last time.

    Raises MedituneError where another loop is at work in the registry. What stops it (ctrl-C) passes through: the stage
    that was at work is due again at once and goes on where it was.
    """
    with _alone(config.registry):
        place = config.registry / FILE
        while True:
            state = load_state(place)
            for name, every in _named(config):
                if _is_due(name, every, state):  # also by what a stage before it has just found
                    _do(name, config, state, place, told)
            if once:
                return sum(stage.outcome == "failed" for stage in state.stages.values())
            time.sleep(min(LONGEST_NAP_S, max(1.0, next_in(config, state))))


def next_in(config: Config, state: State) -> float:
    """Seconds until something is due."""
    now = time.time()
    return min(state.stage(name).due_in(every, now) for name, every in _named(config))


def _is_due(name: str, every: float, state: State) -> bool:
    past, now = state.stage(name), time.time()
    # After an alert experts need their time, so what waits for them looks every hour.
    urgent = name in state.waiting and not past.failures and past.due_in(min(every, URGENT_S), now) == 0
    return urgent or past.due_in(every, now) == 0


def _named(config: Config) -> Iterator[tuple[str, float]]:
    for name in STAGES:
        spec = getattr(config, name)
        if spec is not None:
            yield name, spec.every


def _do(name: str, config: Config, state: State, place: Path, told: Told) -> None:
    try:
        outcome, said = BY_NAME[name](config, state)
    except (MedituneError, OSError) as error:
        outcome, said = "failed", str(error)
    except Exception as error:
        # Memory that ran out, a server that hung up: it must neither end the other stages nor be tried at once again.
        log.error("The stage %s broke", name, exc_info=error)
        outcome, said = "failed", f"{type(error).__name__}: {error}"
    state.stage(name).note(outcome, said)
    state.save(place)
    told(f"{name}: {'' if outcome == 'done' else f'{outcome.upper()}: '}{said}")


@contextmanager
def _alone(registry: Path) -> Iterator[None]:
    from filelock import FileLock, Timeout

    if not registry.is_dir():
        raise MedituneError(f"{registry} is no registry. Make one: meditune registry add {registry} RUN")
    lock = FileLock(registry / LOCK)
    try:
        lock.acquire(blocking=False)
    except Timeout as error:
        raise MedituneError(f"Another loop is at work in {registry}. One is enough.") from error
    try:
        yield
    finally:
        lock.release()
