"""Versions are kept whole, promoted by their gate, rolled back, and damage is named.

A version that fails more often than the one beside it.

For other tests: a finished run of a tiny model, and a registry with versions of it.
"""

from __future__ import annotations

import errno
import multiprocessing
import os
import shutil
import time
from math import comb
from pathlib import Path

import pytest

from meditune import model_registry
from meditune.errors import DataError, GateError
from meditune.model_registry import VERSIONS, Counts, Registry, Version, is_failing
from meditune.statistics import fisher
from tests.commands import Bench, meditune

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
    place.run(name, **changes).ok()
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


@pytest.fixture(scope="module")
def run(place: Bench) -> Path:
    return finished(place)


def test_a_run_becomes_a_version_that_stands_by_itself(place: Bench, run: Path, tmp_path: Path) -> None:
    copy, registry = tmp_path / "copy", tmp_path / "registry"
    shutil.copytree(run, copy)
    done = meditune("registry", "add", registry, copy, "--note", "the first").ok()
    assert "v0001 is now served" in done.out
    shutil.rmtree(copy)
    shown = meditune("registry", "show", registry, "v0001").out
    assert "undamaged" in shown
    assert "Note: the first" in shown
    assert "promoted: the first version" in shown
    # A version is a run's folder, with which all that is done to runs can be done.
    meditune("report", registry / "versions" / "v0001").ok()
    listed = meditune("registry", "list", registry).out
    assert listed.startswith("v0001  served        no gate")


def test_what_is_no_finished_run_is_refused(place: Bench, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    meditune("registry", "add", tmp_path / "registry", tmp_path / "empty").refused(3, "contains no run")
    assert not (tmp_path / "registry").exists()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "letter.txt").write_text("hello")
    meditune("registry", "list", tmp_path / "other").refused(3, "is not a registry", "meditune registry add")


def test_a_full_disk_is_said_and_leaves_no_version(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = shutil.copyfile

    def full(source: Path, target: Path, **options: bool) -> object:
        if Path(target).suffix == ".safetensors":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(target))
        return copy(source, target, **options)

    registry = tmp_path / "registry"
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "copyfile", full)
        result = meditune("registry", "add", registry, run)
        result.refused(1, f"The disk is full: {registry / VERSIONS / 'v0001'}", "Free some space")
    assert not list((registry / VERSIONS).iterdir())
    meditune("registry", "add", registry, run).ok()


def test_only_what_passed_its_gate_is_promoted_unless_forced_with_a_reason(run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "registry"
    with_versions(folder, run, REFUSED, None)
    meditune("registry", "promote", folder, "v0002").refused(5, "did not pass the gate", "accuracy on old", "-3.0")
    meditune("registry", "promote", folder, "v0003").refused(5, "never compared with", "meditune retrain")
    meditune("registry", "promote", folder, "v0002", "--force").refused(3, "needs a reason", "--reason")
    assert Registry(folder).state().current == "v0001"
    meditune("registry", "promote", folder, "v0002", "--force", "--reason", "a recall").ok()
    (last,) = [each for each in Registry(folder).state().history if each.version == "v0002" and each.forced]
    assert last.why == "a recall"
    assert "(forced): a recall" in meditune("registry", "show", folder, "v0002").out


def test_a_run_is_compared_with_the_served_version_before_it_is_added(place: Bench, run: Path, tmp_path: Path) -> None:
    folder, policy = tmp_path / "registry", tmp_path / "policy.yaml"
    other = tmp_path / "other"
    shutil.copytree(run, other)
    added = ("registry", "add", folder, other, "--gate", policy)
    policy.write_text("not_worse: [accuracy]", encoding="utf-8")
    meditune(*added).refused(3, "is not a registry")
    with_versions(folder, run)
    passing = meditune(*added).ok()
    assert "ok     accuracy: " in passing.out
    assert "v0002 passed its gate. Serve it: meditune registry promote" in passing.out
    policy.write_text("better: [accuracy]", encoding="utf-8")
    failing = meditune(*added)
    assert (failing.code, "FAILED accuracy" in failing.out) == (5, True)
    assert "v0003 didn't pass its gate" in failing.err
    meditune("registry", "promote", folder, "v0003").refused(5, "accuracy on test items does not meet 'better'")
    meditune("registry", "promote", folder, "v0002").ok()
    assert not Registry(folder).state().history[-1].forced
    differing = ("registry", "add", folder, finished(place, "differing", seed=18), "--gate", policy)
    meditune(*differing).refused(3, "was measured on different items")
    assert len(Registry(folder).state().versions) == 3


def test_a_version_can_be_named_in_short(run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "registry"
    with_versions(folder, run, PASSED, PASSED)
    assert meditune("registry", "canary", folder, "v3").out == "v0003 is a canary in 10% of the conversations.\n"
    assert meditune("registry", "promote", folder, "v2").out == "v0002 is now served.\n"
    assert meditune("registry", "show", folder, "v2").out.startswith("v0002: served")
    meditune("registry", "add", folder, run, "--parent", "v2").ok()
    assert Registry(folder).get("v0004").parents == ("v0002",)
    meditune("registry", "promote", folder, "v9").refused(3, "has no version 'v0009'")


def test_a_rollback_goes_to_the_version_before_and_stays(run: Path, tmp_path: Path) -> None:
    registry = with_versions(tmp_path / "registry", run, PASSED, passed("v0002"))
    with pytest.raises(GateError, match="was compared with v0002, but v0001 is served now"):
        registry.promote("v0003")
    registry.promote("v0002")
    registry.promote("v0003")
    assert registry.rollback("ratings fell", expected="v0003") == "v0002"
    assert registry.state().current == "v0002"
    with pytest.raises(DataError, match="is no longer served"):
        registry.rollback("a late alarm", expected="v0003")
    with pytest.raises(GateError, match="rolled back before"):
        registry.promote("v0003")
    assert registry.rollback("again") == "v0001"
    with pytest.raises(DataError, match="no undamaged version before v0001"):
        registry.rollback("and again")
    assert [each.what for each in registry.state().history][-2:] == ["rolled back", "rolled back"]


def test_damage_is_named_refused_and_gone_around(run: Path, tmp_path: Path) -> None:
    registry = with_versions(tmp_path / "registry", run, PASSED, passed("v0002"))
    registry.promote("v0002")
    weights = registry.place("v0002") / "model" / "adapter_model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    told: list[str] = []
    assert registry.servable(told.append).id == "v0001"
    assert "v0002" in told[0]
    assert "model/adapter_model.safetensors was changed" in told[0]
    assert "DAMAGED: model/adapter_model.safetensors" in meditune("registry", "show", registry.folder, "v0002").out
    (registry.place("v0003") / "model" / "adapter_model.safetensors").unlink()
    meditune("registry", "promote", registry.folder, "v0003").refused(
        3, "v0003", "adapter_model.safetensors is missing"
    )
    assert registry.state().current == "v0002"
    path = registry.place("v0003") / "version.json"
    path.write_text(path.read_text().replace("v0001", "v0009"))
    meditune("registry", "show", registry.folder, "v0003").refused(3, "version.json", "changed after v0003 was added")
    (registry.folder / "registry.json").write_text("{")
    meditune("registry", "list", registry.folder).refused(3, "registry.json, line 1")


def test_a_trial_begins_and_ends(run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "registry"
    registry = with_versions(folder, run, REFUSED, PASSED)
    meditune("registry", "canary", folder, "v0002").refused(5, "did not pass the gate", "--force --reason")
    meditune("registry", "canary", folder, "v0003", "--percent", 0).refused(3, "not a valid share")
    served = registry.state().current
    meditune("registry", "canary", folder, served, "--force", "--reason", "x").refused(3, "is the served version")
    meditune("registry", "canary", folder, "v0003", "--percent", 5).ok()
    assert "canary 5%" in meditune("registry", "list", folder).out
    trial = registry.state().trial
    assert trial
    assert trial.version == "v0003"
    meditune("registry", "stop", folder, "--reason", "enough").ok()
    assert registry.state().trial is None
    meditune("registry", "stop", folder).refused(3, "No version is on trial")
    registry.start_canary("v0003", 10)
    registry.promote("v0003")
    assert registry.state().trial is None


def test_programs_that_add_at_once_each_get_a_version(run: Path, tmp_path: Path) -> None:
    """Four processes of their own; and what one that was killed left behind is no version."""
    folder = tmp_path / "registry"
    with_versions(folder, run)
    half = folder / "versions" / ".v0002.1.partial"
    half.mkdir()
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_added, args=(folder, run)) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    assert not half.exists()
    state = Registry(folder).state()
    assert list(state.versions) == ["v0001", "v0002", "v0003", "v0004", "v0005"]
    for id in state.versions:
        Registry(folder).checked(id)


def _added(folder: Path, run: Path) -> None:
    Registry(folder).add(run)


def test_failing_is_seen_early_and_not_by_chance() -> None:
    assert fisher((3, 0), (0, 20), "greater") == pytest.approx(1 / 1771)
    assert not is_failing(Counts(2, 2), Counts(500, 0))
    assert is_failing(Counts(3, 3), Counts(500, 0))
    assert not is_failing(Counts(100, 3), Counts(500, 5))
    assert not is_failing(Counts(50, 25), Counts(50, 25))


def test_the_probability_is_the_exact_one() -> None:
    cases = [(0, 5, 3, 20), (7, 7, 0, 3), (3, 90, 40, 95), (60, 100, 45, 300), (1, 1, 1, 1)]
    for failed, all, others_failed, others in cases:
        total, failures = all + others, failed + others_failed
        most = min(all, failures)
        ways = sum(comb(failures, n) * comb(total - failures, all - n) for n in range(failed, most + 1))
        first, second = (failed, all - failed), (others_failed, others - others_failed)
        assert fisher(first, second, "greater") == pytest.approx(ways / comb(total, all), rel=1e-9)


def test_many_answers_are_judged_as_quickly_as_few() -> None:
    begun = time.monotonic()
    assert fisher((2_000, 18_000), (2_000, 18_000), "greater") == pytest.approx(0.5, abs=0.01)
    assert fisher((3, 999_997), (500_000, 500_000), "greater") == pytest.approx(1)
    assert 0 <= fisher((500_000, 500_000), (3, 999_997), "greater") < 1e-300
    assert time.monotonic() - begun < 1
