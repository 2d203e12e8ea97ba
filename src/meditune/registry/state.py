"""registry.json: which version is served, which one is tried beside it, which ones came before, and what happened."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from meditune.errors import DataError
from meditune.files import read_json, write_json

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
        return replace(self, history=(*self.history, Event(now(), what, version, why, forced)))

    def taken_up(self) -> Event | None:
        """What made the current version the one that is served: its promotion, or that of a later one being undone."""
        return next((each for each in reversed(self.history) if each.what in ("promoted", "rolled back")), None)


def now() -> str:
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
