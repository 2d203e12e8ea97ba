"""A folder of versions: added, tried, promoted, rolled back; whole or not at all, and by one program at a time."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import meditune
from meditune.data.prepare import stored
from meditune.errors import DataError, GateError, MedituneError
from meditune.files import read_json, replacing_folder, sha256
from meditune.folder import RECIPE, refuse_unfinished
from meditune.recipes.loading import load_recipe
from meditune.registry import state as states
from meditune.registry import version as versions
from meditune.registry.state import Mode, State, Trial
from meditune.registry.version import Version

VERSIONS = "versions"
LOCK = ".lock"
LOCK_S = 60.0


def is_registry(place: Path) -> bool:
    """Whether a folder is a registry."""
    return (place / states.FILE).is_file()


class Registry:
    """The versions in a folder. Reading takes no lock: registry.json is whole at any time."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def state(self) -> State:
        """What is served and what happened. Raises DataError where there is no registry."""
        return states.read(self.folder)

    def place(self, id: str) -> Path:
        """A version's folder, which is that of a finished run."""
        return self.folder / VERSIONS / id

    def get(self, id: str) -> Version:
        """What is known of a version. Raises DataError where there is none, or its version.json was changed."""
        known = self.state().versions
        if id not in known:
            raise DataError(f"{self.folder} has no version {id!r}. There are {', '.join(known) or 'none'}.")
        path = self.place(id) / versions.FILE
        if not path.is_file() or sha256(path) != known[id]:
            raise DataError(
                f"{path} is missing or was changed after {id} was added. Put a copy in its place; `meditune registry "
                f"rollback {self.folder}` serves the version before it."
            )
        return versions.read(self.place(id))

    def checked(self, id: str) -> Version:
        """The same, when all of its files are what they were. Raises DataError that names the file otherwise."""
        found = self.get(id)
        if wrong := versions.damage(self.place(id), found):
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
        versions.refuse_unservable(run)
        recipe, report = load_recipe(str(run / RECIPE)).recipe, read_json(run / "report.json")
        with self._changing(new=True) as was:
            unknown = [id for id in parents if id not in was.versions]
            if unknown:
                raise DataError(f"{self.folder} has no version {', '.join(unknown)}.")
            for leftover in (self.folder / VERSIONS).glob(".*"):  # of a program that was killed: the lock is ours
                shutil.rmtree(leftover, ignore_errors=True)
            id = f"v{max((int(each[1:]) for each in was.versions), default=0) + 1:04}"
            with replacing_folder(self.place(id)) as partial:
                versions.copied(run, partial)
                stored(partial / "data")
                made = Version(
                    id,
                    states.now(),
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
                    versions.listed(partial),
                )
                digest = versions.write(partial, made)
            now = replace(was, versions=was.versions | {id: digest}).with_event("added", id, note)
            states.write(self.folder, now)
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
            states.write(self.folder, now.with_event("promoted", id, why, bool(unfit)))

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
            states.write(self.folder, now.with_event("rolled back", gone, why))
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
            trial = Trial(id, mode, percent, states.now())
            said = f"{mode}, {percent:g} % of the conversations" + (f": {why}" if why else "")
            states.write(self.folder, replace(was, trial=trial).with_event("tried", id, said, bool(unfit)))

    def end_trial(self, why: str, of: str | None = None, withdraw: bool = False) -> None:
        """End the trial that is on; with `withdraw` its version isn't promoted by itself any more."""
        with self._changing() as was:
            if was.trial is None or of not in (None, was.trial.version):
                raise DataError("No version is being tried, or another one.")
            gone = was.trial.version
            withdrawn = (*was.withdrawn, gone) if withdraw and gone not in was.withdrawn else was.withdrawn
            now = replace(was, trial=None, withdrawn=withdrawn)
            states.write(self.folder, now.with_event("trial ended", gone, why))

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
