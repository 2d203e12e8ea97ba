"""Run the whole cycle in one process, for small installations: `meditune loop CONFIG`.

The configuration names the stages (import literature, check drift, ask canaries, roll back, queue questions, retrain,
promote) and how often each runs. A failed stage is tried again later. The state is saved in the registry after each
stage, so a loop that is stopped resumes.
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
    """Return the seconds in "90s", "10m", "6h" or "7d". Raises ValueError for anything else."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smhd])", str(given).strip())
    if not found or float(found[1]) <= 0:
        raise ValueError(f"{given!r} is not a duration; write for example 10m, 6h or 7d")
    return float(found[1]) * _SECONDS[found[2]]


def _path(given: Any) -> Any:
    return Path(given) if isinstance(given, str) else given


def _key(given: Any) -> Any:
    if isinstance(given, str) and not given.strip():
        raise ValueError("an empty name would trust callers without a key; give a key's id (meditune keys list)")
    return given


Seconds = Annotated[float, BeforeValidator(seconds)]
Place = Annotated[Path, BeforeValidator(_path)]
Key = Annotated[str, BeforeValidator(_key)]


class UpdateStage(Spec):
    """Import new literature."""

    library: Place = Field(description="Folder of the literature library.")
    queries: list[str] = Field(default_factory=list, description="PubMed queries whose articles are imported.")
    files: str | None = Field(None, description="MEDLINE update files: a folder or a server's URL.")
    email: str | None = Field(None, description="Email address at which NCBI can reach you.")
    tests: list[Place] = Field(default_factory=list, description="Test items to keep out of the training pairs.")
    every: Seconds = Field("1d", validate_default=True, description="How often to run: 10m, 6h, 7d.")


class DriftStage(Spec):
    """Compare new requests with a reference."""

    reference: Place = Field(description="The reference that `meditune drift fit` wrote.")
    least: Severity = Field("small", description=f"{', '.join(SEVERITIES)}: smaller changes raise no alert.")
    notify: bool = Field(
        False, description="Send alerts, including those of the canaries, to the channels set in the environment."
    )
    every: Seconds = Field("1h", validate_default=True, description="How often to run: 10m, 6h, 7d.")


class CanaryStage(Spec):
    """Ask questions with known answers."""

    questions: Place = Field(description="File of the canary questions.")
    results: Place = Field(description="File to which each run's results are appended.")
    url: str = Field("http://127.0.0.1:8000", description="URL of the server. Its key is read from MEDITUNE_KEY.")
    every: Seconds = Field("6h", validate_default=True, description="How often to run: 10m, 6h, 7d.")


class GuardStage(Spec):
    """Roll back a version that made answers worse."""

    every: Seconds = Field("10m", validate_default=True, description="How often to run: 10m, 6h, 7d.")


class QueueStage(Spec):
    """Select the questions that experts should answer next."""

    folder: Place = Field(description="Each queue becomes a subfolder here, for `meditune annotate serve`.")
    budget: int = Field(50, ge=1, description="Maximum number of questions in a queue.")
    strategy: str = Field(
        "mix", description="How to select: mix, random, uncertainty, disagreement, diversity, feedback or novelty."
    )
    embedding: str | None = Field(None, description="The embedding model.")
    every: Seconds = Field("7d", validate_default=True, description="How often to run: 10m, 6h, 7d.")
    on_alert: bool = Field(True, description="Also run as soon as a drift alert opens.")


class RetrainStage(Spec):
    """Train and evaluate the next version."""

    trust: list[Key] = Field(default_factory=list, description="Keys whose corrections are used; all: anyone's.")
    labels: list[Place] = Field(
        default_factory=list, description="Files of rows that experts labelled; files that don't exist yet are skipped."
    )
    literature: list[Place] = Field(
        default_factory=list, description="Literature libraries, or files of training pairs."
    )
    settings: list[str] = Field(default_factory=list, description="Recipe keys to change, for example train.epochs=1.")
    replay: float = Field(1.0, ge=0, description="Old rows to replay for each new row.")
    held_out: float = Field(0.3, gt=0, lt=0.9, description="Share of the new rows to hold out for evaluation.")
    least: int = Field(50, ge=1, description="Minimum number of new rows; with fewer, nothing is trained.")
    gate: Place | None = Field(None, description="Policy file of the release gate for the old test items.")
    gate_new: Place | None = Field(None, description="Policy file of the release gate for the new test items.")
    then: Then = Field("promote", description=f"{', '.join(get_args(Then))}: what to do with a version that passes.")
    percent: float = Field(
        10.0, gt=0, le=100, description="Percentage of the conversations that a canary or shadow receives."
    )
    every: Seconds = Field("7d", validate_default=True, description="How often to run: 10m, 6h, 7d.")
    on_alert: bool = Field(True, description="Also run as soon as a drift alert opens.")


class PromoteStage(Spec):
    """Promote a canary that has run long enough."""

    after: Seconds = Field("2d", validate_default=True, description="How long the canary must have run: 10m, 6h, 7d.")
    answers: int = Field(100, ge=0, description="How many answers the canary must have given.")
    every: Seconds = Field("10m", validate_default=True, description="How often to run: 10m, 6h, 7d.")


class Config(Spec):
    """The configuration of the loop. Only the stages that it names are run."""

    registry: Place = Field(description="Folder of the model registry.")
    store: str | None = Field(None, description="The store in which the server keeps its answers.")
    index: str | None = Field(None, description="The index that is served.")
    update: UpdateStage | None = None
    drift: DriftStage | None = None
    canary: CanaryStage | None = None
    guard: GuardStage | None = None
    queue: QueueStage | None = None
    retrain: RetrainStage | None = None
    promote: PromoteStage | None = None


STAGES = ("update", "drift", "canary", "guard", "queue", "retrain", "promote")
"""The order in which stages run when several are due."""
PLACES = {
    "": ("registry", "store"),
    "update": ("library", "tests"),
    "drift": ("reference",),
    "canary": ("questions", "results"),
    "queue": ("folder",),
    "retrain": ("labels", "literature", "gate", "gate_new"),
}
"""Keys whose values are paths, relative to the configuration file."""


def load(path: Path) -> Config:
    """Return the configuration in a YAML file; its relative paths are resolved against the file's folder.

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


_NONE = f"no stage is named, so there is nothing to do; the stages are {', '.join(STAGES)}"


def _beside(said: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Return the configuration with paths that don't depend on the working directory."""

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
    """Return the line, the key and what is wrong with it."""
    name, key = ".".join(map(str, location)), tuple(location)
    while key and key not in document.lines:
        key = key[:-1]
    said = "no such key" if "Extra inputs" in text else text.removeprefix("Value error, ")
    return document.lines.get(key, 1), name, said[:1].lower() + said[1:]


FIRST_RETRY_S = 60.0
Outcome = Literal["", "done", "alert", "failed"]


@dataclass
class Stage:
    """The history of one stage."""

    ended: float = 0.0
    """When the last run ended, in seconds since 1970; 0 if it never ran"""
    outcome: Outcome = ""
    said: str = ""
    failures: int = 0
    """Consecutive failures"""
    runs: int = 0

    def due_in(self, every: float, now: float) -> float:
        """Return the seconds until the stage is due; it is due at once if the clock was set back."""
        wait = every if not self.failures else min(every, FIRST_RETRY_S * 2 ** (self.failures - 1))
        past = now - self.ended
        return 0.0 if not self.ended or past < 0 else max(0.0, wait - past)

    def note(self, outcome: Outcome, said: str) -> None:
        """Record that a run has just ended."""
        self.ended, self.outcome, self.said = time.time(), outcome, said
        self.failures = self.failures + 1 if outcome == "failed" else 0
        self.runs += 1


@dataclass
class State:
    """The state of the loop."""

    stages: dict[str, Stage] = field(default_factory=dict)
    alerts: list[str] = field(default_factory=list)
    """Drift alerts that were open at the last check"""
    waiting: list[str] = field(default_factory=list)
    """Stages that a new alert made due"""

    def stage(self, name: str) -> Stage:
        """Return the history of a stage."""
        return self.stages.setdefault(name, Stage())

    def save(self, path: Path) -> None:
        """Save the state atomically."""
        write_json(path, asdict(self))


def load_state(path: Path) -> State:
    """Return the saved state, or an empty one if none was saved. Raises DataError if the file is damaged."""
    if not path.is_file():
        return State()
    said: dict[str, Any] = read_json(path)
    try:
        stages = {name: Stage(**each) for name, each in said["stages"].items()}
        return State(stages, list(said["alerts"]), list(said["waiting"]))
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path} is damaged ({error}). Delete it; every stage is then due.") from error


def lines(state: State) -> list[str]:
    """Return one line for each stage, for the terminal."""
    return [
        f"{name:8} {stage.outcome or 'never':6} "
        + (datetime.fromtimestamp(stage.ended, UTC).isoformat(" ", "seconds")[:19] if stage.ended else "")
        + (f"  {stage.said}" if stage.said else "")
        for name, stage in state.stages.items()
    ]


Done = tuple[Outcome, str]


def update(config: Config, _: State) -> Done:
    """Import new literature."""
    from meditune.operate.literature import pubmed_client
    from meditune.operate.literature import update as literature_update

    spec = config.update
    assert spec is not None, "only stages in the configuration are run"
    wanted = literature_update.Wanted(
        queries=tuple(spec.queries),
        files=spec.files,
        index=config.index,
        email=spec.email,
        eutils=pubmed_client.URL,
        store=config.store,
        tests=tuple(spec.tests),
    )
    report = literature_update.update(spec.library, wanted)
    if report.failures:
        raise report.failures[-1]
    pairs = f", {len(report.pairs.examples):,} training pairs" if report.pairs else ""
    return "done", f"{sum(report.read.values()):,} articles, {len(report.retracted):,} retracted{pairs}"


def drift(config: Config, state: State) -> Done:
    """Compare new requests with the reference; a new alert makes the stages due that wait for alerts."""
    from meditune.operate.drift import notifications
    from meditune.operate.drift.alerts import Policy
    from meditune.operate.drift.check import RequestSource, check, gather_evidence
    from meditune.operate.drift.drift_watcher import outbox_of, state_of
    from meditune.operate.drift.monitor import Monitor
    from meditune.operate.drift.reference import load

    spec = config.drift
    assert spec is not None, "only stages in the configuration are run"
    if config.store is None:
        raise DataError("The drift stage needs `store`, where the server keeps its answers.")
    place, reference = state_of(spec.reference), load(spec.reference)
    if _is_held(place):
        # The server checks for drift and sends notifications itself (meditune serve --drift).
        monitor, said = (
            Monitor.load(place, reference) if place.is_file() else Monitor(reference),
            "the server checks for drift itself",
        )
    else:
        found = check(RequestSource(config.store), reference, place, Policy(least=spec.least), None, gather_evidence)
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
    """Ask the canaries, and compare their answers with those of the first run."""
    from meditune.operate.drift import canaries, notifications
    from meditune.operate.drift.drift_watcher import outbox_of

    spec = config.canary
    assert spec is not None, "only stages in the configuration are run"
    canaries.keep(canaries.ask(canaries.read(spec.questions), spec.url), spec.results)
    verdict = canaries.verdict(spec.results)
    if config.drift and config.drift.notify:
        news = notifications.messages([], verdict, "")
        notifications.Outbox(outbox_of(config.drift.reference)).send(news, notifications.from_environment())
    return ("alert" if verdict["alert"] else "done"), str(verdict["said"])


def guard(config: Config, _: State) -> Done:
    """Roll back a version that made answers worse."""
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
        return "alert", f"{found.taken_back} was rolled back, {found.served} is served: {'; '.join(found.why)}"
    return "done", "; ".join(found.why)


def queue(config: Config, state: State) -> Done:
    """Select questions for experts, except those in the current version's training data or in earlier queues."""
    from meditune.operate.active_learning import annotation_queue
    from meditune.operate.active_learning.candidates import NothingToAskError

    spec = config.queue
    assert spec is not None, "only stages in the configuration are run"
    if config.store is None:
        raise DataError("The queue stage needs `store`, where the server keeps its answers.")
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
    return "done", f"{len(found.chosen):,} queued for experts: meditune annotate serve {folder}"


def queues(folder: Path) -> list[Path]:
    """Return the queues in a folder, oldest first."""
    return sorted(path for path in folder.glob("*") if path.is_dir() and not path.name.startswith("."))


def retrain(config: Config, state: State) -> Done:
    """Train the next version if there is enough new data."""
    from meditune.operate.retraining import retrain as retraining
    from meditune.operate.retraining.new_training_data import Shares, Wanted

    spec = config.retrain
    assert spec is not None, "only stages in the configuration are run"
    if Registry(config.registry).state().trial:
        return "done", "another version is on trial, so retraining waits"
    store = config.store
    labels = tuple(path for path in spec.labels if path.is_file())
    asked = tuple(queues(config.queue.folder)) if config.queue else ()
    literature = tuple(path for path in spec.literature if path.exists())
    wanted = Wanted(store, tuple(spec.trust), labels, asked, literature, config.index)
    if wanted.is_empty:
        return "done", "no training data yet"
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
    """Promote a canary that has run long enough and given enough answers."""
    from meditune.store.answers import SHADOW, Answers
    from meditune.store.open_store import open_store

    spec = config.promote
    assert spec is not None, "only stages in the configuration are run"
    registry = Registry(config.registry)
    trial = registry.state().trial
    if trial is None or trial.mode != "canary":
        return "done", "no version is on trial as a canary"
    if config.store is None:
        raise DataError("The promote stage needs `store`, in which the canary's answers are counted.")
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
        return "done", f"{trial.version} has run as a canary for {stood / 3600:.1f} hours and given {answers:,} answers"
    registry.promote(trial.version, f"ran as a canary for {stood / 3600:.1f} hours and gave {answers:,} answers")
    return "done", f"{trial.version} is served from now on"


def _is_held(place: Path) -> bool:
    """Return whether another process holds the lock of this state."""
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
"""Name of the state file in the registry"""
LOCK = ".loop.lock"
URGENT_S = 3600.0
LONGEST_NAP_S = 60.0
"""Short enough to notice soon that the clock was set"""
Told = Callable[[str], None]


def loop(config: Config, told: Told, once: bool = False) -> int:
    """Run the stages that are due, forever or `once`; return how many stages failed in their last run.

    Raises MedituneError if another loop is running in the registry. An interrupt (Ctrl-C) passes through: the
    interrupted stage is due at once in the next call, and resumes.
    """
    with _alone(config.registry):
        place = config.registry / FILE
        while True:
            state = load_state(place)
            for name, every in _named(config):
                if _is_due(name, every, state):  # an earlier stage may just have made it due
                    _do(name, config, state, place, told)
            if once:
                return sum(stage.outcome == "failed" for stage in state.stages.values())
            time.sleep(min(LONGEST_NAP_S, max(1.0, next_in(config, state))))


def next_in(config: Config, state: State) -> float:
    """Return the seconds until a stage is due."""
    now = time.time()
    return min(state.stage(name).due_in(every, now) for name, every in _named(config))


def _is_due(name: str, every: float, state: State) -> bool:
    past, now = state.stage(name), time.time()
    # After an alert, experts need time, so stages that wait for their answers are tried only once an hour.
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
        # Unexpected errors (out of memory, a dropped connection) must not end the other stages or be retried at once.
        log.error("The stage %s failed unexpectedly", name, exc_info=error)
        outcome, said = "failed", f"{type(error).__name__}: {error}"
    state.stage(name).note(outcome, said)
    state.save(place)
    told(f"{name}: {'' if outcome == 'done' else f'{outcome.upper()}: '}{said}")


@contextmanager
def _alone(registry: Path) -> Iterator[None]:
    from filelock import FileLock, Timeout

    if not registry.is_dir():
        raise MedituneError(f"{registry} is not a model registry. Create one: meditune registry add {registry} RUN")
    lock = FileLock(registry / LOCK)
    try:
        lock.acquire(blocking=False)
    except Timeout as error:
        raise MedituneError(
            f"Another loop is already running in {registry}. Run only one loop per registry."
        ) from error
    try:
        yield
    finally:
        lock.release()
