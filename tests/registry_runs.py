"""A finished run of a tiny model, made once, and a registry with versions of it."""

from __future__ import annotations

from pathlib import Path

from meditune import model_registry
from meditune.model_registry import VERSIONS, Registry, Version
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


def bare(folder: Path, count: int) -> Registry:
    """A registry with so many versions that hold no model, the first of which is served."""
    digests = {}
    for number in range(1, count + 1):
        id = f"v{number:04}"
        place = folder / VERSIONS / id
        place.mkdir(parents=True)
        digests[id] = model_registry.write_version(place, Version(id, model_registry.utc_now(), "", (), "", "", {}))
    state = model_registry.State(("v0001",), versions=digests)
    model_registry.write(folder, state.with_event("promoted", "v0001"))
    return Registry(folder)
