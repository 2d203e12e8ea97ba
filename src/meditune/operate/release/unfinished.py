"""A retraining that isn't finished: what it was asked for, and whether another call goes on with it.

It lies in the registry's `work/` until its version was promoted, tried or kept, whatever stops it before.
"""

from __future__ import annotations

import secrets
import shutil
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from meditune.errors import MedituneError
from meditune.files import read_json, write_json
from meditune.registry import state as states
from meditune.registry.registry import Registry
from meditune.registry.version import Version

WORK, ROWS = "work", "rows"
FILE = "retrain.json"


@dataclass(frozen=True)
class Unfinished:
    """What `work/retrain.json` holds."""

    id: str
    """No other retraining's; its run's folder is named so, and thereby where its version came from"""
    begun: str
    """UTC, ISO 8601"""
    parent: str
    """The version that it goes on from"""
    asked: dict[str, Any]
    """Its options, as far as they decide how the version turns out"""


class Work:
    """The work in a registry's folder; one program at a time."""

    def __init__(self, registry: Registry) -> None:
        self.registry = registry
        self.folder = registry.folder / WORK

    def read(self) -> Unfinished | None:
        """What isn't finished, if anything."""
        path = self.folder / FILE
        return Unfinished(**read_json(path)) if path.is_file() else None

    @property
    def run(self) -> Path:
        """The run's folder."""
        return self.folder / self._begun.id

    @property
    def rows(self) -> Path:
        """Where what is gathered is kept for good: the version's recipe names it."""
        return (self.registry.folder / ROWS / self._begun.id).resolve()

    @property
    def facts(self) -> Path:
        """Says what was gathered, once it is laid out as the run's data."""
        return self.folder / "gathered.json"

    def made(self) -> Version | None:
        """The version that was made of what isn't finished, where the command was stopped right after that."""
        begun = self.read()
        known = map(self.registry.get, self.registry.state().versions) if begun else ()
        return next((each for each in known if begun and Path(each.came_from).name == begun.id), None)

    def claim(self, parent: str, asked: Mapping[str, Any], or_anew: bool = False) -> None:
        """Go on with what was begun, or begin.

        Sources that were named since then wait for the next retraining. Raises MedituneError where other options were
        asked for, unless it is to begin `or_anew`.
        """
        before = self.read()
        if before and self.facts.is_file() and self._goes_on(before, parent, asked, or_anew):
            return
        self.drop()
        begun = states.now()
        id = f"{begun.partition('+')[0].replace(':', '')}-{secrets.token_hex(3)}"
        write_json(self.folder / FILE, asdict(Unfinished(id, begun, parent, dict(asked))))

    def drop(self) -> None:
        """Remove it with what was gathered for it, which no version was made of."""
        if self.read():
            shutil.rmtree(self.rows, ignore_errors=True)
        self.end()

    def end(self) -> None:
        """Remove it; what was gathered stays."""
        if self.folder.exists():
            shutil.rmtree(self.folder)

    @property
    def _begun(self) -> Unfinished:
        begun = self.read()
        assert begun is not None, "the caller has claimed it"
        return begun

    def _goes_on(self, before: Unfinished, parent: str, asked: Mapping[str, Any], or_anew: bool) -> bool:
        if before.parent != parent:
            _say(
                f"The retraining that was begun at {before.begun} isn't finished and goes on from {before.parent}. "
                f"{parent} is served by now, so it is dropped, and another begun."
            )
            return False
        differing = [name for name in asked if name != "wanted" and before.asked.get(name) != asked[name]]
        if differing and not or_anew:
            raise MedituneError(
                f"A retraining that was begun at {before.begun} isn't finished, and was asked for something else "
                f"({', '.join(differing)}). Give its options again to go on with it, or --afresh to drop it."
            )
        if differing:
            _say(
                f"The retraining that was begun at {before.begun} was asked for something else "
                f"({', '.join(differing)}), so it is dropped, and another begun."
            )
            return False
        _say(f"Going on with the retraining that was begun at {before.begun}.")
        if before.asked.get("wanted") != asked.get("wanted"):
            _say("It learns what was gathered then; other sources wait for the next one.")
        return True


def _say(text: str) -> None:
    print(text, file=sys.stderr)
