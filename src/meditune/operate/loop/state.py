"""How far the loop got: a file that is whole at any time, so that the next call goes on."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from meditune.errors import DataError
from meditune.files import read_json, write_json

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


def load(path: Path) -> State:
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
