"""A registry of model versions: add, try out, promote and roll back versions, and trace their lineage.

registry.json records the served version, the version on trial, the versions served before, and all events. A version is
a permanent copy of a finished run's folder, with a list of the files and a record of the origin. Changes are atomic,
and only one program at a time can make them. `is_failing` decides whether a version fails more often than the version
that it is compared with.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import TypeAdapter, ValidationError

import meditune
from meditune.config.load_recipe import load_recipe
from meditune.data.prepare import stored_data
from meditune.engines.exported_model import EXPORTS
from meditune.errors import DataError, GateError, MedituneError, ModelError
from meditune.files import exclusive_lock, read_json, replace_folder, sha256, write_json
from meditune.models.catalogue import ADAPTER_FILE, PRUNED, START
from meditune.run_folder import RECIPE, STAGES, refuse_unfinished

FILE = "registry.json"
FORMAT = 1
Content = TypeVar("Content")
EventKind = Literal["added", "promoted", "tried", "trial ended", "rolled back", "refused"]


@dataclass(frozen=True)
class Trial:
    """A version that is tried as a canary: it answers a share of the conversations."""

    version: str
    percent: float
    """Share of the conversations, in percent"""
    since: str


@dataclass(frozen=True)
class Event:
    """An event in a version's history."""

    when: str
    what: EventKind
    version: str
    why: str = ""
    forced: bool = False
    """True if the event overruled the gate, or if there was no gate result"""


@dataclass(frozen=True)
class State:
    """The content of registry.json."""

    promoted: tuple[str, ...] = ()
    """Versions that were promoted and not rolled back since; the last one is served"""
    trial: Trial | None = None
    withdrawn: tuple[str, ...] = ()
    """Versions that were rolled back; they are no longer promoted automatically"""
    versions: dict[str, str] = field(default_factory=dict)
    """Id of each version -> SHA-256 of its version.json"""
    history: tuple[Event, ...] = ()

    @property
    def current(self) -> str | None:
        """The served version."""
        return self.promoted[-1] if self.promoted else None

    def with_event(self, kind: EventKind, version: str, reason: str = "", forced: bool = False) -> State:
        """Return a copy with one more event, at the current time."""
        return replace(self, history=(*self.history, Event(utc_now(), kind, version, reason, forced)))

    def latest_promotion(self) -> Event | None:
        """Return the event that put the current version into service: its promotion, or a rollback to it."""
        return next((each for each in reversed(self.history) if each.what in ("promoted", "rolled back")), None)


def utc_now() -> str:
    """Return the current UTC time in ISO 8601, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def write(folder: Path, state: State) -> None:
    """Write registry.json atomically."""
    write_json(folder / FILE, {"format": FORMAT, **asdict(state)})


VERSION_FILE = "version.json"
NOT_COPIED = {"checkpoint", "training.jsonl", STAGES}
"""Parts of a run that aren't needed to serve, evaluate or further train its model"""
INTERMEDIATE = ("merged", "ollama*", "gguf-*", "vllm")
"""Exports that no server opens by itself"""


@dataclass(frozen=True)
class Version:
    """The content of version.json."""

    id: str
    made: str
    """UTC, ISO 8601"""
    came_from: str
    """The run's folder"""
    parents: tuple[str, ...]
    """Ids of the versions that this version was trained from"""
    base_model: str
    recipe: str
    """Name of the recipe"""
    data: dict[str, Any]
    """The facts about the data in the run's report: `train`, `dev`, `test`, `test_set`, `sha256`"""
    fed: dict[str, Any] = field(default_factory=dict)
    """New training data that the parents lack, by source: number of rows and SHA-256; empty for a first version"""
    figures: dict[str, float] = field(default_factory=dict)
    """Metrics of this version on its own test items"""
    gate: dict[str, Any] | None = None
    """Result of the release gate: `against` (a version), `passed` and `on` (by test items); None if not judged"""
    index: str = ""
    """Content hash of the index that was served when the version was made; empty without an index"""
    meditune: str = ""
    note: str = ""
    files: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Path of each file in the folder -> its `sha256` and `bytes`"""

    @property
    def passed(self) -> bool:
        """True if the version passed the release gate; False if it failed or wasn't compared."""
        return bool(self.gate and self.gate["passed"])

    @property
    def weights(self) -> str:
        """The first 12 digits of a hash of what answers depend on: weights, adapter, tokenizer, prompt format."""
        from hashlib import sha256 as digest

        parts = ("model", START, PRUNED, EXPORTS)
        named = [f"{path} {row['sha256']}" for path, row in sorted(self.files.items()) if path.split("/")[0] in parts]
        return digest("\n".join(named).encode()).hexdigest()[:12]


def list_files(folder: Path) -> dict[str, dict[str, Any]]:
    """Return the SHA-256 and size of every file in the folder, except version.json and hidden files."""
    return {
        str(path.relative_to(folder)): {"sha256": sha256(path), "bytes": path.stat().st_size}
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.startswith(".") and path.name != VERSION_FILE
    }


def damaged_files(folder: Path, version: Version) -> str:
    """Return a description of the first damaged file of a version; empty if all are intact."""
    for name, row in version.files.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != row["bytes"]:
            return f"{name} has {path.stat().st_size:,} bytes instead of {row['bytes']:,}"
        if sha256(path) != row["sha256"]:
            return f"{name} was changed (its SHA-256 differs)"
    return ""


def write_version(folder: Path, version: Version) -> str:
    """Write version.json and return its SHA-256."""
    write_json(folder / VERSION_FILE, asdict(version))
    return sha256(folder / VERSION_FILE)


VERSIONS = "versions"
LOCK = ".lock"
LOCK_S = 60.0


def version_id(name: str) -> str:
    """Return the id that a short form such as v2 stands for (v0002); return any other name as it is."""
    return f"v{int(name[1:]):04}" if re.fullmatch("v[0-9]+", name) else name


def check_percent(percent: float) -> None:
    """Raise DataError if a canary can't answer this percentage of the conversations."""
    if not 0 < percent <= 100:
        raise DataError(
            f"{percent:g} is not a valid share of the conversations: use a percentage above 0 and up to 100."
        )


def is_registry(location: Path) -> bool:
    """Return whether a folder is a registry."""
    return (location / FILE).is_file()


class Registry:
    """A folder of model versions. Reading needs no lock, because registry.json is replaced atomically."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def state(self) -> State:
        """Return the content of registry.json. Raises DataError if it is missing or damaged."""
        path = self.folder / FILE
        if not path.is_file():
            raise DataError(
                f"{self.folder} is not a registry: {FILE} is missing. Create one: meditune registry add {self.folder} "
                "RUN"
            )
        stored = read_json(path)
        if not isinstance(stored, dict) or stored.get("format") != FORMAT:
            raise DataError(
                f"{path}: this version of Meditune can't read the file. Update Meditune, or restore the file from a "
                "backup."
            )
        return _validated(State, stored, path)

    def place(self, id: str) -> Path:
        """Return a version's folder, which has the structure of a finished run."""
        return self.folder / VERSIONS / id

    def get(self, id: str) -> Version:
        """Return a version's record. Raises DataError if it is missing, or its version.json was changed."""
        known = self.state().versions
        if id not in known:
            raise DataError(f"{self.folder} has no version {id!r}. Versions: {', '.join(known) or 'none'}.")
        path = self.place(id) / VERSION_FILE
        if not path.is_file() or sha256(path) != known[id]:
            raise DataError(
                f"{path} is missing or was changed after {id} was added. Restore it from a backup, or "
                f"serve the previous version: meditune registry rollback {self.folder}"
            )
        return _validated(Version, read_json(path), path)

    def checked(self, id: str) -> Version:
        """Return a version's record after checking its files. Raises DataError that names the first damaged file."""
        found = self.get(id)
        if wrong := damaged_files(self.place(id), found):
            raise DataError(f"{id} in {self.folder} is damaged: {wrong}. Restore that file from a backup.")
        return found

    def servable(self, report: Callable[[str], None], refused: Collection[str] = ()) -> Version:
        """Return the latest promoted version whose files are intact and that isn't in `refused`.

        If all versions are in `refused`, it is ignored. `report` is called with a message for each damaged version.
        Raises DataError if no version is intact.
        """
        standing = self.state().promoted
        if not standing:
            raise DataError(
                f"No version in {self.folder} was promoted yet. Promote the version to serve: meditune registry "
                f"promote {self.folder} VERSION"
            )
        for id in reversed([each for each in standing if each not in refused] or standing):
            try:
                return self.checked(id)
            except DataError as error:
                report(str(error))
        raise DataError(f"Every promoted version in {self.folder} is damaged. Restore the files from a backup.")

    def add(
        self,
        run: Path,
        parents: tuple[str, ...] = (),
        data_sources: dict[str, Any] | None = None,
        gate: dict[str, Any] | None = None,
        index: str = "",
        note: str = "",
    ) -> Version:
        """Store a finished run as a version; the run's folder stays unchanged.

        Raises DataError if the run isn't finished, and ModelError if its model can't be served from this machine.
        """
        refuse_unfinished(run)
        if not any((run / "model" / name).is_file() for name in ("config.json", ADAPTER_FILE)):
            raise ModelError(
                f"{run} contains no model that can be served locally: {run / 'model'} has neither config.json nor "
                f"{ADAPTER_FILE}. A model behind an API is served by that API."
            )
        recipe, report = load_recipe(str(run / RECIPE)).recipe, read_json(run / "report.json")
        with self._changing(new=True) as was:
            unknown = [id for id in parents if id not in was.versions]
            if unknown:
                raise DataError(f"{self.folder} has no version {', '.join(unknown)}.")
            # This program holds the lock, so any hidden folders were left by a killed program.
            for leftover in (self.folder / VERSIONS).glob(".*"):
                shutil.rmtree(leftover, ignore_errors=True)
            id = f"v{max((int(each[1:]) for each in was.versions), default=0) + 1:04}"
            with replace_folder(self.place(id)) as partial:
                _copy_run(run, partial)
                stored_data(partial / "data")
                version = Version(
                    id,
                    utc_now(),
                    str(run.resolve()),
                    parents,
                    recipe.model.base,
                    recipe.name,
                    {name: report["data"][name] for name in ("train", "dev", "test", "test_set", "sha256")},
                    data_sources or {},
                    report["tuned"],
                    gate,
                    index,
                    meditune.__version__,
                    note,
                    list_files(partial),
                )
                digest = write_version(partial, version)
            now = replace(was, versions=was.versions | {id: digest}).with_event("added", id, note)
            write(self.folder, now)
        return version

    def promote(self, id: str, reason: str = "", force: bool = False) -> None:
        """Serve this version, and end its trial if it is on trial.

        The first version needn't pass the gate, and neither does a version that was served before and not rolled back.
        Raises GateError if the version didn't pass the gate against the served version and `force` is False. Raises
        DataError if `force` is used without a reason or the version's files are damaged.
        """
        found = self._checked_for_release(id, reason, force)
        with self._changing() as was:
            if was.current == id:
                raise DataError(f"{id} is already the served version.")
            needs_gate = was.promoted and id not in was.promoted
            forced = _overrules_gate(found, was, force, "promote") if needs_gate else False
            now = replace(
                was,
                promoted=(*(each for each in was.promoted if each != id), id),
                trial=None if was.trial and was.trial.version == id else was.trial,
                withdrawn=tuple(each for each in was.withdrawn if each != id),
            )
            write(self.folder, now.with_event("promoted", id, reason, forced))

    def rollback(self, reason: str, expected: str | None = None) -> str:
        """Serve the last intact version before the current one and return its id. A trial in progress ends, too.

        If `expected` is given, roll back only if `expected` is still the current version, so that a late alarm doesn't
        roll back another version. Raises DataError if it isn't, or if there is no version to roll back to.
        """
        with self._changing() as was:
            if expected is not None and was.current != expected:
                raise DataError(f"{expected} is no longer served, so it isn't rolled back.")
            if was.current is None:
                raise DataError(f"No version in {self.folder} was promoted yet, so there is nothing to roll back.")
            gone, left = was.current, list(was.promoted[:-1])
            while left:
                try:
                    self.checked(left[-1])
                    break
                except DataError:
                    left.pop()
            else:
                raise DataError(
                    f"There is no undamaged version before {gone} to roll back to. Promote another version: "
                    f"meditune registry promote {self.folder} VERSION"
                )
            now = replace(was, promoted=tuple(left), trial=None, withdrawn=(*was.withdrawn, gone))
            write(self.folder, now.with_event("rolled back", gone, reason))
            return left[-1]

    def start_canary(self, id: str, percent: float, reason: str = "", force: bool = False) -> None:
        """Try a version as a canary beside the served one. Raises GateError and DataError like `promote`."""
        check_percent(percent)
        found = self._checked_for_release(id, reason, force)
        with self._changing() as was:
            if was.current is None:
                raise DataError(f"{id} can't be a canary, because no version is served yet. Promote a version first.")
            if was.current == id:
                raise DataError(f"{id} is the served version, so it can't be a canary. Choose another version.")
            forced = _overrules_gate(found, was, force, "try")
            trial = Trial(id, percent, utc_now())
            summary = f"canary, {percent:g}% of the conversations" + (f": {reason}" if reason else "")
            write(self.folder, replace(was, trial=trial).with_event("tried", id, summary, forced))

    def end_trial(self, reason: str, expected: str | None = None, withdraw: bool = False) -> None:
        """End the current trial; with `withdraw`, its version is no longer promoted automatically."""
        with self._changing() as was:
            if was.trial is None or expected not in (None, was.trial.version):
                raise DataError("No version is on trial, or another version is.")
            gone = was.trial.version
            withdrawn = (*was.withdrawn, gone) if withdraw and gone not in was.withdrawn else was.withdrawn
            now = replace(was, trial=None, withdrawn=withdrawn)
            write(self.folder, now.with_event("trial ended", gone, reason))

    def _checked_for_release(self, id: str, reason: str, force: bool) -> Version:
        if force and not reason.strip():
            raise DataError("--force needs a reason, which is recorded: --reason 'why the gate is overruled'")
        return self.checked(id)

    @contextmanager
    def _changing(self, new: bool = False) -> Iterator[State]:
        """Yield the state while holding the lock; with `new`, create the registry if there is none."""
        if not new or is_registry(self.folder):
            self.state()
        elif self.folder.exists() and any(self._unknown_files()):
            raise DataError(f"{self.folder} already exists and is not a registry. Choose another folder.")
        self.folder.mkdir(parents=True, exist_ok=True)
        if not os.access(self.folder, os.W_OK):
            raise DataError(f"{self.folder} is not writable, so the registry stays unchanged.")
        busy = MedituneError(f"Another program is changing {self.folder}. Try again when it has finished.")
        with exclusive_lock(self.folder / LOCK, busy, LOCK_S):
            yield self.state() if is_registry(self.folder) else State()

    def _unknown_files(self) -> Iterator[Path]:
        """Yield what a first `add` that failed, for example on a full disk, doesn't leave in the folder."""
        yield from (item for item in self.folder.iterdir() if item.name not in (LOCK, VERSIONS))
        yield from (self.folder / VERSIONS).glob("[!.]*")


def _validated(kind: type[Content], stored: Any, path: Path) -> Content:
    """Return the content of a JSON file as a dataclass. Raises DataError if the content has another structure."""
    try:
        return TypeAdapter(kind).validate_python(stored)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise DataError(f"{path} is damaged ({place}: {first['msg']}). Restore it from a backup.") from error


def _copy_run(run: Path, folder: Path) -> None:
    """Copy the parts of a run that a version consists of into `folder`."""
    for item in sorted(run.iterdir()):
        if item.name in NOT_COPIED or item.name.startswith("."):
            continue
        if item.is_dir():
            skipped = shutil.ignore_patterns(".*", *(INTERMEDIATE if item.name == EXPORTS else ()))
            shutil.copytree(item, folder / item.name, ignore=skipped)
        else:
            shutil.copyfile(item, folder / item.name)


def _overrules_gate(version: Version, state: State, force: bool, verb: str) -> bool:
    """Return whether a release overrules the gate. Raises GateError if it would and `force` is False."""
    unfit = _unfit(version, state)
    if unfit and not force:
        raise GateError(f"{version.id} {unfit}. To {verb} it anyway: --force --reason TEXT")
    return bool(unfit)


def _unfit(version: Version, state: State) -> str:
    """Return why the gate rejects a version; empty if it passes."""
    if version.id in state.withdrawn:
        return "was rolled back before"
    if version.gate is None:
        return (
            "was never compared with the served version (`meditune retrain` and `meditune registry add --gate FILE` do "
            "that)"
        )
    if version.passed:
        against = version.gate["against"]
        held = f"was compared with {against}, but {state.current} is served now"
        return "" if against == state.current else held
    failed = [
        f"{check['metric']} on {items} items does not meet '{check['rule'].replace('_', ' ')}' ({check['why']})"
        for items, judged in version.gate["on"].items()
        for check in judged["checks"]
        if not check["passed"]
    ]
    failed += [text for judged in version.gate["on"].values() if (text := judged.get("unjudged"))]
    return "did not pass the gate: " + "; ".join(failed or ["it was refused"])


MIN_FAILURES = 3
LEVEL = 0.001
"""Significance level of the one-sided Fisher's exact test (Fisher 1922). The test is repeated with every failure, so
false alarms are more frequent than this level. A false alarm costs only a trial, but a missed alarm costs answers."""
PRIOR_FAILED, PRIOR = 1, 20
"""Failures and requests that are added to the baseline, which may have few requests"""


@dataclass
class Counts:
    """The number of requests, and the number of failed requests."""

    all: int = 0
    failed: int = 0

    def add(self, failed: bool) -> None:
        """Count one more request."""
        self.all += 1
        self.failed += failed

    def since(self, earlier: Counts) -> Counts:
        """Return these counts minus `earlier`."""
        return Counts(self.all - earlier.all, self.failed - earlier.failed)


def is_failing(counts: Counts, baseline: Counts) -> bool:
    """Return whether `counts` has significantly more failures than `baseline` plus PRIOR requests."""
    return is_worse(counts, Counts(baseline.all + PRIOR, baseline.failed + PRIOR_FAILED))


def is_worse(counts: Counts, baseline: Counts) -> bool:
    """Return whether `counts` has significantly more failures than `baseline`."""
    if counts.failed < MIN_FAILURES:
        return False
    from meditune.statistics import fisher

    shares = [(each.failed, each.all - each.failed) for each in (counts, baseline)]
    return fisher(shares[0], shares[1], "greater") < LEVEL
