"""A finished run of a tiny model, made once, and a registry with versions of it."""

from __future__ import annotations

from pathlib import Path

from meditune.registry.registry import Registry
from tests.commands import Bench

PASSED = {"against": "v0001", "passed": True, "on": {}}


def passed(against: str) -> dict[str, object]:
    """A gate that was passed against another version than the first."""
    return PASSED | {"against": against}


REFUSED = {
    "against": "v0001",
    "passed": False,
    "on": {"old": {"checks": [{"metric": "accuracy", "rule": "not_worse", "passed": False, "why": "-3.0"}]}},
}


def finished(place: Bench, name: str = "run", **changes: object) -> Path:
    """The folder of a finished run."""
    done = place.run(name, **changes)
    assert done.code == 0, done
    return place.folder / name


def with_versions(folder: Path, run: Path, *gates: dict[str, object] | None) -> Registry:
    """A registry whose first version is served, and more versions of the same run with these gates."""
    made = Registry(folder)
    made.promote(made.add(run).id)
    for gate in gates:
        made.add(run, ("v0001",), gate=gate)
    return made
