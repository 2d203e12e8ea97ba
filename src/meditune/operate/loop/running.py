"""The loop: what is due is done, what failed is tried again later, and nothing is lost when it is stopped."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from meditune.errors import MedituneError
from meditune.operate.loop import stages
from meditune.operate.loop import state as states
from meditune.operate.loop.config import STAGES, Config
from meditune.operate.loop.state import State

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
            state = states.load(place)
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
        outcome, said = stages.BY_NAME[name](config, state)
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
