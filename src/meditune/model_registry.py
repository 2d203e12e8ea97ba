"""Versions of a model with their lineage: what was made of what, which one is served, and which came before it.

A folder of versions: added, tried, promoted, rolled back; whole or not at all, and by one program at a time.

registry.json: which version is served, which one is tried beside it, which ones came before, and what happened.

One version: a finished run's folder, kept for good, with a list of its files and what is known of its making.

Whether a version fails more often than the one beside it.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import meditune
from meditune.config.load_recipe import load_recipe
from meditune.data.prepare import stored_data
from meditune.engines.exported_model import EXPORTS
from meditune.errors import DataError, GateError, MedituneError, ModelError
from meditune.files import read_json, replace_folder, sha256, write_json
from meditune.models.catalogue import ADAPTER_FILE, PRUNED, START
from meditune.run_folder import RECIPE, STAGES, refuse_unfinished

FILE = "registry.json"
FORMAT = 1
What = Literal["added", "promoted", "tried", "trial ended", "rolled back", "refused"]
Mode = Literal["canary", "shadow"]


@dataclass(frozen=True)
class Trial:
    """A version that is tried beside the one that is served."""

    version: str
    mode: Mode
    """canary: it answers a share of the conversations; shadow: it answers unseen beside the other"""
    percent: float
    """Of the conversations"""
    since: str


@dataclass(frozen=True)
class Event:
    """Something that happened to a version."""

    when: str
    what: What
    version: str
    why: str = ""
    forced: bool = False
    """Against the gate, or without one"""


@dataclass(frozen=True)
class State:
    """What registry.json holds."""

    standing: tuple[str, ...] = ()
    """Versions that were promoted and not rolled back since, the one that is served last"""
    trial: Trial | None = None
    withdrawn: tuple[str, ...] = ()
    """Rolled back: nothing promotes them by itself again"""
    versions: dict[str, str] = field(default_factory=dict)
    """Id -> SHA-256 of its version.json"""
    history: tuple[Event, ...] = ()

    @property
    def current(self) -> str | None:
        """The version that is served."""
        return self.standing[-1] if self.standing else None

    def with_event(self, what: What, version: str, why: str = "", forced: bool = False) -> State:
        """The same with one more event, now."""
        return replace(self, history=(*self.history, Event(utc_now(), what, version, why, forced)))

    def taken_up(self) -> Event | None:
        """What made the current version the one that is served: its promotion, or that of a later one being undone."""
        return next((each for each in reversed(self.history) if each.what in ("promoted", "rolled back")), None)


def utc_now() -> str:
    """UTC, ISO 8601, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def write(folder: Path, state: State) -> None:
    """Write registry.json, whole or not at all."""
    write_json(folder / FILE, {"format": FORMAT, "current": state.current, **asdict(state)})


def read(folder: Path) -> State:
    """What registry.json holds. Raises DataError where there is none, or it is damaged."""
    path = folder / FILE
    if not path.is_file():
        raise DataError(f"{folder} is no registry: {FILE} is missing. Make one: meditune registry add {folder} RUN")
    said = read_json(path)
    if not isinstance(said, dict) or said.get("format") != FORMAT:
        raise DataError(f"{path}: not a registry of this version of Meditune. Update Meditune, or put a copy there.")
    return _state(said, path)


def _state(said: dict[str, Any], path: Path) -> State:
    try:
        return State(
            tuple(said["standing"]),
            Trial(**said["trial"]) if said["trial"] else None,
            tuple(said["withdrawn"]),
            dict(said["versions"]),
            tuple(Event(**each) for each in said["history"]),
        )
    except (KeyError, TypeError) as error:
        raise DataError(f"{path} is damaged ({error}). Put a copy in its place.") from error


VERSION_FILE = "version.json"
GATES = "gates"
"""In a version's folder: the comparisons that it was judged by"""
LEFT = {"checkpoint", "training.jsonl", STAGES}
"""What of a run isn't needed to serve it, to measure it or to go on from it"""
INTERMEDIATE = ("merged", "ollama")
"""Exports that no server opens"""


@dataclass(frozen=True)
class Version:
    """What version.json holds."""

    id: str
    made: str
    """UTC, ISO 8601"""
    came_from: str
    """The run's folder"""
    parents: tuple[str, ...]
    """Versions that it was trained from"""
    base_model: str
    recipe: str
    """Its name"""
    data: dict[str, Any]
    """`train`, `dev`, `test`, `test_set`, `sha256`"""
    fed: dict[str, Any] = field(default_factory=dict)
    """What it learnt beyond its parents, by source: rows and SHA-256 of each; empty for a first version"""
    figures: dict[str, float] = field(default_factory=dict)
    """On its own test items"""
    gate: dict[str, Any] | None = None
    """`passed`, and for each set of items its `checks`, `figures` and `comparison`; None where nothing was compared"""
    index: str = ""
    """The hash of the content of the index that was served when it was made; empty without one"""
    meditune: str = ""
    note: str = ""
    files: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Path in the folder -> `sha256` and `bytes`"""

    @property
    def passed(self) -> bool:
        """Whether it was held against the version before it and met the policy."""
        return bool(self.gate and self.gate["passed"])

    @property
    def weights(self) -> str:
        """The first digits of a hash of all that answers depend on: weights, adapter, tokenizer, prompt format."""
        from hashlib import sha256 as digest

        parts = ("model", START, PRUNED, EXPORTS)
        named = [f"{path} {row['sha256']}" for path, row in sorted(self.files.items()) if path.split("/")[0] in parts]
        return digest("\n".join(named).encode()).hexdigest()[:12]


def copy_run(run: Path, folder: Path) -> None:
    """Copy of a run what a version holds into `folder`."""
    for item in sorted(run.iterdir()):
        if item.name in LEFT or item.name.startswith("."):
            continue
        if item.is_dir():
            skipped = shutil.ignore_patterns(".*", *(INTERMEDIATE if item.name == EXPORTS else ()))
            shutil.copytree(item, folder / item.name, ignore=skipped)
        else:
            shutil.copyfile(item, folder / item.name)


def list_files(folder: Path) -> dict[str, dict[str, Any]]:
    """SHA-256 and size of every file below the folder, but for version.json."""
    return {
        str(path.relative_to(folder)): {"sha256": sha256(path), "bytes": path.stat().st_size}
        for path in _files(folder)
        if path.name != VERSION_FILE
    }


def damaged_files(folder: Path, version: Version) -> str:
    """What is wrong with a version's files, in words; empty where nothing is."""
    for name, row in version.files.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != row["bytes"]:
            return f"{name} has {path.stat().st_size:,} bytes instead of {row['bytes']:,}"
        if sha256(path) != row["sha256"]:
            return f"{name} isn't what it was (its SHA-256 differs)"
    return ""


def write_version(folder: Path, version: Version) -> str:
    """Write version.json; its SHA-256."""
    write_json(folder / VERSION_FILE, asdict(version))
    return sha256(folder / VERSION_FILE)


def read_version(folder: Path) -> Version:
    """The version in a folder. Raises DataError where version.json is missing or none of ours."""
    said = read_json(folder / VERSION_FILE)
    try:
        return Version(**said | {"parents": tuple(said["parents"])})
    except (KeyError, TypeError) as error:
        raise DataError(
            f"{folder / VERSION_FILE}: not a version of this Meditune ({error}). Put a copy in its place."
        ) from error


def refuse_unservable(run: Path) -> None:
    """Raise ModelError where the run's model isn't here: a server couldn't open it."""
    model = run / "model"
    if not any((model / name).is_file() for name in ("config.json", ADAPTER_FILE)):
        raise ModelError(
            f"{run} holds no model that can be served from here (neither config.json nor {ADAPTER_FILE} in {model}). A "
            "model behind an API is served there."
        )
    if not (run / RECIPE).is_file():
        raise ModelError(f"{run} holds no {RECIPE}. Give the folder of a finished `meditune run`.")


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.rglob("*")) if path.is_file() and not path.name.startswith("."))


VERSIONS = "versions"
LOCK = ".lock"
LOCK_S = 60.0


def is_registry(place: Path) -> bool:
    """Whether a folder is a registry."""
    return (place / FILE).is_file()


class Registry:
    """The versions in a folder. Reading takes no lock: registry.json is whole at any time."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def state(self) -> State:
        """What is served and what happened. Raises DataError where there is no registry."""
        return read(self.folder)

    def place(self, id: str) -> Path:
        """A version's folder, which is that of a finished run."""
        return self.folder / VERSIONS / id

    def get(self, id: str) -> Version:
        """What is known of a version. Raises DataError where there is none, or its version.json was changed."""
        known = self.state().versions
        if id not in known:
            raise DataError(f"{self.folder} has no version {id!r}. There are {', '.join(known) or 'none'}.")
        path = self.place(id) / VERSION_FILE
        if not path.is_file() or sha256(path) != known[id]:
            raise DataError(
                f"{path} is missing or was changed after {id} was added. Put a copy in its place; `meditune registry "
                f"rollback {self.folder}` serves the version before it."
            )
        return read_version(self.place(id))

    def checked(self, id: str) -> Version:
        """The same, when all of its files are what they were. Raises DataError that names the file otherwise."""
        found = self.get(id)
        if wrong := damaged_files(self.place(id), found):
            raise DataError(f"{id} in {self.folder} is damaged: {wrong}. Put a copy of that file in its place.")
        return found

    def servable(self, told: Callable[[str], None]) -> Version:
        """The version that is served, or the last one before it whose files are whole; `told` hears of damaged ones.

        Raises DataError where there is none.
        """
        standing = self.state().standing
        if not standing:
            raise DataError(
                f"Nothing in {self.folder} was promoted yet. Name the version to serve: meditune registry promote "
                f"{self.folder} VERSION"
            )
        for id in reversed(standing):
            try:
                return self.checked(id)
            except DataError as error:
                told(str(error))
        raise DataError(
            f"No version in {self.folder} that was ever promoted is whole. Put copies of their files there."
        )

    def add(
        self,
        run: Path,
        parents: tuple[str, ...] = (),
        fed: dict[str, Any] | None = None,
        gate: dict[str, Any] | None = None,
        index: str = "",
        note: str = "",
    ) -> Version:
        """Keep a finished run as a version; the run's folder stays as it is.

        Raises DataError where the run isn't finished, ModelError where its model can't be served from here.
        """
        refuse_unfinished(run)
        refuse_unservable(run)
        recipe, report = load_recipe(str(run / RECIPE)).recipe, read_json(run / "report.json")
        with self._changing(new=True) as was:
            unknown = [id for id in parents if id not in was.versions]
            if unknown:
                raise DataError(f"{self.folder} has no version {', '.join(unknown)}.")
            for leftover in (self.folder / VERSIONS).glob(".*"):  # of a program that was killed: the lock is ours
                shutil.rmtree(leftover, ignore_errors=True)
            id = f"v{max((int(each[1:]) for each in was.versions), default=0) + 1:04}"
            with replace_folder(self.place(id)) as partial:
                copy_run(run, partial)
                stored_data(partial / "data")
                made = Version(
                    id,
                    utc_now(),
                    str(run.resolve()),
                    parents,
                    recipe.model.base,
                    recipe.name,
                    {name: report["data"][name] for name in ("train", "dev", "test", "test_set", "sha256")},
                    fed or {},
                    report["tuned"],
                    gate,
                    index,
                    meditune.__version__,
                    note,
                    list_files(partial),
                )
                digest = write_version(partial, made)
            now = replace(was, versions=was.versions | {id: digest}).with_event("added", id, note)
            write(self.folder, now)
        return made

    def promote(self, id: str, why: str = "", force: bool = False) -> None:
        """Serve this version from now on; a trial of it ends.

        The first version needs no gate, nor does one that was served before and not rolled back. Raises GateError where
        it didn't pass the gate against the one that is served and isn't forced, DataError where a forced one has no
        reason, or its files are damaged.
        """
        if force and not why.strip():
            raise DataError("--force needs a reason, which is kept: --why 'why the gate is overruled'")
        found = self.checked(id)
        with self._changing() as was:
            if was.current == id:
                raise DataError(f"{id} is the version that is served already.")
            unfit = "" if not was.standing or id in was.standing else _unfit(found, was)
            if unfit and not force:
                raise GateError(f"{id} {unfit}. To promote it all the same: --force --why REASON")
            standing = (*(each for each in was.standing if each != id), id)
            trial = None if was.trial and was.trial.version == id else was.trial
            withdrawn = tuple(each for each in was.withdrawn if each != id)
            now = replace(was, standing=standing, trial=trial, withdrawn=withdrawn)
            write(self.folder, now.with_event("promoted", id, why, bool(unfit)))

    def rollback(self, why: str, of: str | None = None) -> str:
        """Serve the version before the current one, whose files must be whole; its id. A trial ends, too.

        With `of` only where that version is still the current one, so that a late alarm rolls nothing else back.
        Raises DataError where there is no version to go back to.
        """
        with self._changing() as was:
            if of is not None and was.current != of:
                raise DataError(f"{of} isn't served any more, so it isn't rolled back.")
            if was.current is None:
                raise DataError(f"Nothing in {self.folder} was promoted yet, so there is nothing to roll back.")
            gone, left = was.current, list(was.standing[:-1])
            while left and not self._is_whole(left[-1]):
                left.pop()
            if not left:
                raise DataError(
                    f"There is no whole version before {gone} to go back to. Promote another: "
                    f"meditune registry promote {self.folder} VERSION"
                )
            now = replace(was, standing=tuple(left), trial=None, withdrawn=(*was.withdrawn, gone))
            write(self.folder, now.with_event("rolled back", gone, why))
            return left[-1]

    def try_out(self, id: str, mode: Mode, percent: float, why: str = "", force: bool = False) -> None:
        """Try a version beside the one that is served. Raises GateError, DataError as `promote` does."""
        if not 0 < percent <= 100:
            raise DataError(f"{percent:g} is no share of the conversations: give more than 0 and at most 100 percent.")
        if force and not why.strip():
            raise DataError("--force needs a reason, which is kept: --why 'why the gate is overruled'")
        found = self.checked(id)
        with self._changing() as was:
            if was.current is None or was.current == id:
                raise DataError(f"{id} can't be tried beside {was.current or 'nothing'}: promote one version first.")
            unfit = _unfit(found, was) if mode == "canary" else ""
            if unfit and not force:
                raise GateError(f"{id} {unfit}. Unseen it may be tried (--shadow), or with --force.")
            trial = Trial(id, mode, percent, utc_now())
            said = f"{mode}, {percent:g} % of the conversations" + (f": {why}" if why else "")
            write(self.folder, replace(was, trial=trial).with_event("tried", id, said, bool(unfit)))

    def end_trial(self, why: str, of: str | None = None, withdraw: bool = False) -> None:
        """End the trial that is on; with `withdraw` its version isn't promoted by itself any more."""
        with self._changing() as was:
            if was.trial is None or of not in (None, was.trial.version):
                raise DataError("No version is being tried, or another one.")
            gone = was.trial.version
            withdrawn = (*was.withdrawn, gone) if withdraw and gone not in was.withdrawn else was.withdrawn
            now = replace(was, trial=None, withdrawn=withdrawn)
            write(self.folder, now.with_event("trial ended", gone, why))

    def _is_whole(self, id: str) -> bool:
        try:
            self.checked(id)
        except DataError:
            return False
        return True

    @contextmanager
    def _changing(self, new: bool = False) -> Iterator[State]:
        """The state, which nobody else changes inside the block; with `new` a registry is made where there is none."""
        from filelock import FileLock, Timeout

        if not new or is_registry(self.folder):
            self.state()
        elif self.folder.exists() and any(item.name != LOCK for item in self.folder.iterdir()):
            raise DataError(f"{self.folder} is there already and is no registry. Name another folder.")
        self.folder.mkdir(parents=True, exist_ok=True)
        if not os.access(self.folder, os.W_OK):
            raise DataError(f"{self.folder} can't be written to, so it stays as it is.")
        try:
            with FileLock(self.folder / LOCK, timeout=LOCK_S):
                yield self.state() if is_registry(self.folder) else State()
        except Timeout as error:
            raise MedituneError(f"Another program is changing {self.folder}. Try again when it is done.") from error


def _unfit(found: Version, state: State) -> str:
    """Why the gate doesn't let a version pass; empty where it does."""
    if found.id in state.withdrawn:
        return "was rolled back before"
    if found.gate is None:
        return "was never held against the version that is served (meditune retrain does that)"
    if found.passed:
        against = found.gate["against"]
        held = f"was held against {against}, and {state.current} is served now"
        return "" if against == state.current else held
    failed = [
        f"{check['metric']} on {items} items is not {check['rule'].replace('_', ' ')} ({check['why']})"
        for items, judged in found.gate["on"].items()
        for check in judged["checks"]
        if not check["passed"]
    ]
    failed += [text for judged in found.gate["on"].values() if (text := judged.get("unjudged"))]
    return "did not pass the gate: " + "; ".join(failed or ["it was refused"])


LEAST = 3
LEVEL = 0.001
"""Of Fisher's exact test (Fisher 1922), one-sided. It is looked at with every failure, so false alarms come more often;
they cost a trial, and a true one unseen costs answers."""
PRIOR_FAILED, PRIOR = 1, 20
"""What a server that hasn't answered much yet is taken to have done"""


@dataclass
class Counts:
    """Requests, and how many of them the server failed."""

    all: int = 0
    failed: int = 0

    def add(self, failed: bool) -> None:
        """One more."""
        self.all += 1
        self.failed += failed

    def since(self, then: Counts) -> Counts:
        """What came to it since it stood there."""
        return Counts(self.all - then.all, self.failed - then.failed)


def is_failing(counts: Counts, beside: Counts) -> bool:
    """Whether `counts` has surely more failures than `beside`, and than a server has that hasn't answered much yet."""
    return is_worse(counts, Counts(beside.all + PRIOR, beside.failed + PRIOR_FAILED))


def is_worse(counts: Counts, beside: Counts) -> bool:
    """Whether `counts` has surely more failures than `beside`, by what was counted alone."""
    return counts.failed >= LEAST and fisher(counts.failed, counts.all, beside.failed, beside.all) < LEVEL


def fisher(failed: int, all: int, others_failed: int, others: int) -> float:
    """Return Fisher's exact one-sided p-value for the first of two groups failing more often than the second."""
    from scipy.stats import hypergeom

    return float(hypergeom.sf(failed - 1, all + others, failed + others_failed, all))
