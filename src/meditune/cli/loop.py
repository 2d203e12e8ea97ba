"""The scheduler behind `meditune loop CONFIG`, which runs the commands of the stages at intervals, in one process.

When a stage ends, its outcome is saved in the registry. An interrupted stage is therefore due again at the next start.
`deploy/schedule/` runs the same commands with systemd, cron or Kubernetes instead.
"""

from __future__ import annotations

import contextlib
import difflib
import logging
import os.path
import re
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import typer

from meditune.config.recipe_keys import Document, UnreadableError
from meditune.errors import DataError, DriftError, GateError, MedituneError, RecipeError
from meditune.files import exclusive_lock, read_json, read_text, write_json
from meditune.model_registry import Registry
from meditune.operate.label_queue import NothingToAskError
from meditune.operate.retraining.retrain import next_step

if TYPE_CHECKING:
    from typer.core import TyperCommand

USAGE_ERROR: Any = typer.BadParameter.__base__
log = logging.getLogger(__name__)
Options = dict[str, Any]


STAGES = {
    "update": ("update", "1d"),
    "drift": ("drift check", "1h"),
    "canary": ("drift canary", "6h"),
    "guard": ("registry guard", "10m"),
    "queue": ("learn queue", "7d"),
    "retrain": ("retrain", "7d"),
    "promote": ("", "10m"),
}  # Stage -> its command (promotion has none) and its default interval. Due stages run in this order.
SHARED = {"registry": ("registry",), "store": ("store", "source", "sources"), "index": ("index",)}
"""Key of the configuration -> the command parameters that it sets, unless a stage sets them itself"""
OWN: dict[str, Options] = {"queue": {"folder": "queues"}, "promote": {"after": "2d", "answers": 100}}
"""Options that the loop reads itself, with their defaults"""
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


def seconds(duration: Any) -> float:
    """Return the seconds in a duration such as "90s", "10m", "6h" or "7d". Raises DataError if it isn't a duration."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smhd])", str(duration).strip())
    if not found or float(found[1]) <= 0:
        raise DataError(f"{duration!r} is not a duration, such as 10m, 6h or 7d")
    return float(found[1]) * _SECONDS[found[2]]


def _count(value: Any) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise DataError(f"{value!r} is not a whole number of at least 0")


def _text(value: Any) -> None:
    if not isinstance(value, str):
        raise DataError(f"{value!r} is not text")


CHECKS: dict[str, Callable[[Any], object]] = {
    **{"every": seconds, "after": seconds, "answers": _count, "on_pass": next_step},
    **{"folder": _text, "output": _text, "reference": _text},
}  # Checks of some options of the stages; the commands check the other options


class Config:
    """The configuration of the loop. Only the stages in it are run."""

    def __init__(self, path: Path, commands: Any) -> None:
        """Read a YAML file. Raises RecipeError, which lists every problem with its line."""
        try:
            document = Document(read_text(path))
        except UnreadableError as error:
            raise RecipeError(f"{path}, line {error.line}: {error.why}.") from error
        values = _expanded(document.value) if isinstance(document.value, dict) else {}
        self.folder = path.resolve().parent
        self.registry = self.folder / str(values.get("registry", ""))
        self.shared = {key: value for key, value in values.items() if key in SHARED}
        self.stages: dict[str, Options] = {
            name: dict(values[name]) if isinstance(values[name], dict) else {} for name in STAGES if name in values
        }
        self.commands = {name: _command(commands, STAGES[name][0]) for name in self.stages if name != "promote"}
        problems = [(line, ".".join(map(str, key)), text) for key, line, text in document.problems]
        problems += [
            (document.lines.get(key, document.lines.get(key[:1], 1)), ".".join(key), text)
            for key, text in self._problems(values)
        ]
        if problems:
            raise RecipeError("\n".join(f"{path}, line {line}: {key}: {text}" for line, key, text in sorted(problems)))
        self.every = {name: seconds(options.pop("every", STAGES[name][1])) for name, options in self.stages.items()}

    def options(self, name: str) -> Options:
        """Return a stage's own options, and the shared options that its command accepts."""
        taken = parameters(self.commands[name])
        return {to: self.shared[key] for key in self.shared for to in SHARED[key] if to in taken} | self.stages[name]

    def _problems(self, values: Mapping[str, Any]) -> Iterator[tuple[tuple[str, ...], str]]:
        """Yield (key, problem) for each wrong key."""
        yield from (((key,), "no such key") for key in values if key not in {*SHARED, *STAGES})
        if not isinstance(values.get("registry"), str):
            yield ("registry",), "missing; set it to the folder of the registry"
        if not self.stages:
            yield ("stages",), f"no stage is named, so there is nothing to do; the stages are {', '.join(STAGES)}"
        for name, given in self.stages.items():
            if values[name] is not None and not isinstance(values[name], dict):
                yield (name,), "give options, for example {every: 1h}"
            command = self.commands.get(name)
            taken = parameters(command) if command else {}
            names = [*taken, *OWN.get(name, ()), "every"]
            unknown = [key for key in given if key not in names]
            for key in unknown:
                near = difflib.get_close_matches(key, names, n=1)
                hint = f"; did you mean {near[0]}?" if near else f" of meditune {STAGES[name][0]}"
                yield (name, key), f"no such option{hint}"
            for key, check in CHECKS.items():
                try:
                    check(given[key]) if key in given else None
                except DataError as error:
                    yield (name, key), str(error)
            for key, value in given.items():
                if getattr(taken.get(key), "is_flag", False) and value not in (True, False, None):
                    yield (name, key), f"write true or false, not {value!r}"
            if command and not unknown:
                options = {key: each for key, each in self.options(name).items() if key not in ("every", "folder")}
                try:
                    command.make_context(name, words(command, options | ({"output": "."} if name == "queue" else {})))
                except USAGE_ERROR as error:
                    yield (name,), error.format_message()


def _expanded(value: Any) -> Any:
    """Return the value with the user's home folder in place of each leading `~`."""
    if isinstance(value, dict):
        return {key: _expanded(each) for key, each in value.items()}
    if isinstance(value, list):
        return list(map(_expanded, value))
    return os.path.expanduser(value) if isinstance(value, str) else value  # noqa: PTH111 (not every text is a path)


def _key(flag: str) -> str:
    """Return the configuration key for a command-line option, such as min_rows for --min-rows."""
    return flag.removeprefix("--").replace("-", "_")


def _command(group: Any, name: str) -> TyperCommand:
    for word in name.split():
        group = group.commands[word]
    found: TyperCommand = group
    return found


def parameters(command: TyperCommand) -> dict[str, Any]:
    """Return a command's parameters by name and, for options, also by configuration key (see `_key`)."""
    named = {_key(flag): each for each in command.params for flag in each.opts if flag.startswith("--")}
    return named | {str(each.name): each for each in command.params}


def words(command: TyperCommand, options: Options) -> list[str]:
    """Return options as command-line arguments: one option for each item of a list, and no option for false."""
    known = parameters(command)
    flags: list[str] = []
    arguments: list[str] = []
    for key, value in options.items():
        for each in value if isinstance(value, list) else [] if value is None else [value]:
            word = str(each)
            if known[key].param_type_name == "argument":
                arguments.append(word)
            elif not known[key].is_flag:
                flags += [known[key].opts[0], word]
            elif each:
                flags.append(known[key].opts[0])
    return [*flags, "--", *arguments]


Outcome = Literal["", "done", "alert", "failed"]


def run_stage(config: Config, name: str) -> tuple[Outcome, str]:
    """Run a stage; return its outcome and a message, which is empty if the command printed its own."""
    registry = Registry(config.registry)
    if name == "promote":
        return _promote(config, registry)
    state, options = registry.state(), config.options(name)
    if name in ("drift", "guard"):
        # Both commands use the reference of the stage drift and the results of the stage canary.
        drift, results = config.stages.get("drift", {}), config.stages.get("canary", {}).get("output")
        options = ({"reference": drift["reference"]} if drift else {}) | options
        options = ({"canary": results} if results and Path(results).is_file() else {}) | options
    elif name == "queue":
        folder = Path(options.pop("folder", "queues"))
        served = [registry.place(state.current)] if state.current else []
        options = Options(training_data=served, earlier_queue=_queues(config)) | options
        options["output"] = folder / datetime.now(UTC).strftime("%Y%m%dT%H%M%S")
    elif name == "retrain":
        if state.trial:
            return "done", "another version is on trial, so retraining waits"
        for key in {"labels", "literature"} & options.keys():  # files that experts and updates may not have written yet
            given = options[key] if isinstance(options[key], list) else [options[key]]
            options[key] = [each for each in given if Path(str(each)).exists()]
        options = {"queue": _queues(config), "min_rows": 50, "restart_if_changed": True} | options
    command = config.commands[name]
    with command.make_context(name, words(command, options)) as context:
        if name == "retrain" and not any(context.params[key] for key in ("store", "labels", "queue", "literature")):
            return "done", "no training data yet"
        command.invoke(context)
    return "done", ""


def _queues(config: Config) -> list[Path]:
    folder = Path(config.stages["queue"].get("folder", "queues")) if "queue" in config.stages else None
    return sorted(path for path in folder.glob("[!.]*") if path.is_dir()) if folder else []


def _promote(config: Config, registry: Registry) -> tuple[Outcome, str]:
    from meditune.operate.retraining.rollback import counts_by_version
    from meditune.store import default_place, open_store
    from meditune.store.answers import Answers

    trial, options = registry.state().trial, OWN["promote"] | config.stages["promote"]
    if trial is None:
        return "done", "no version is on trial"
    since = datetime.fromisoformat(trial.since).timestamp()
    store = open_store(config.shared.get("store", default_place()))
    counts = counts_by_version(Answers(store), since).get(trial.version)
    lasted, answers = time.time() - since, counts["abstained"].all if counts else 0
    so_far = f"{lasted / 3600:.1f} hours and {answers:,} answers"
    if lasted < seconds(options["after"]) or answers < int(options["answers"]):
        return "done", f"{trial.version} stays a canary, after {so_far}"
    registry.promote(trial.version, f"was a canary for {so_far}")
    return "done", f"{trial.version} is now served, after {so_far} as a canary"


FILE = "loop.json"  # Name of the state file in the registry
LOCK = ".loop.lock"
FIRST_RETRY_S = 60.0
MAX_SLEEP_S = 60.0  # Short enough to notice a changed clock soon


@dataclass
class StageState:
    """The last run of a stage."""

    ended: float = 0.0  # When the run ended, in seconds since 1970; 0 if the stage never ran
    outcome: Outcome = ""
    message: str = ""
    failures: int = 0  # Number of consecutive failures

    def due_in(self, every: float) -> float:
        """Return the seconds until the stage is due: 0 if it never ran, or if the clock was set back since."""
        wait = every if not self.failures else min(every, FIRST_RETRY_S * 2 ** (self.failures - 1))
        past = time.time() - self.ended
        return 0.0 if not self.ended or past < 0 else max(0.0, wait - past)

    def line(self, name: str) -> str:
        """Return the state as a line for the terminal."""
        return f"{name:8} {self.outcome:6} {datetime.fromtimestamp(self.ended, UTC):%Y-%m-%d %H:%M:%S}  {self.message}"


def load_states(registry: Path) -> dict[str, StageState]:
    """Return the saved states by stage, or {} if none was saved. Raises DataError if the file is damaged."""
    path = registry / FILE
    try:
        stored = read_json(path)["stages"] if path.is_file() else {}
        return {stage: StageState(**row) for stage, row in stored.items()}
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path} is damaged ({error}). Delete the file; all stages are then due.") from error


def run(config: Config, report: Callable[[str], None], once: bool = False) -> int:
    """Run the due stages, either forever or `once`; return the number of stages whose last run failed.

    `report` is called with a line about each run. Raises MedituneError if another loop is running in the registry.
    """
    registry = config.registry
    Registry(registry).state()
    busy = MedituneError(f"Another loop is already running in {registry}. Run only one loop per registry.")
    with exclusive_lock(registry / LOCK, busy), contextlib.chdir(config.folder):
        while True:
            states = load_states(registry)
            for name, every in config.every.items():
                state = states.setdefault(name, StageState())
                if state.due_in(every) > 0:
                    continue
                try:
                    state.outcome, state.message = run_stage(config, name)
                except NothingToAskError as error:
                    state.outcome, state.message = "done", str(error)
                except (DriftError, GateError) as error:
                    state.outcome, state.message = "alert", str(error)
                except Exception as error:
                    # Unexpected errors (out of memory, a dropped connection) must not stop the other stages.
                    expected = isinstance(error, MedituneError | OSError)
                    if not expected:
                        log.exception("The stage %s failed unexpectedly", name)
                    state.outcome, state.message = "failed", f"{'' if expected else f'{type(error).__name__}: '}{error}"
                state.ended = time.time()
                state.failures = state.failures + 1 if state.outcome == "failed" else 0
                write_json(registry / FILE, {"stages": {each: asdict(states[each]) for each in states}})
                outcome = state.outcome if state.outcome == "done" else state.outcome.upper()
                report(f"{name}: {outcome}{f': {state.message}' if state.message else ''}")
            if once:
                return sum(states[name].outcome == "failed" for name in config.every)
            due_in = min(states[name].due_in(every) for name, every in config.every.items())
            time.sleep(min(MAX_SLEEP_S, max(1.0, due_in)))
