"""The files of deploy/schedule for canaries, retraining and the loop, as far as it can be told without a cluster."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
import typer.main
import yaml

from meditune.cli import app
from tests.operate.test_schedule import ANALYZE, SCHEDULE, text, unit

UNITS = ("meditune-canary.service", "meditune-retrain.service", "meditune-loop.service")
TIMERS = ("meditune-canary.timer", "meditune-retrain.timer")
CRONS = {"meditune-canary.cron": 2, "meditune-retrain.cron": 1}
PROGRAM = "/opt/meditune/bin/meditune"


def parsed(words: list[str]) -> dict[str, Any]:
    """The options of a command, read as the command line reads them."""
    command: Any = typer.main.get_command(app)
    context = None
    while hasattr(command, "commands"):
        name, *words = words
        context, command = (
            command.make_context(name, [], parent=context, resilient_parsing=True),
            command.commands[name],
        )
    return dict(command.make_context("", words, parent=context).params)


def commands(line: str) -> list[list[str]]:
    """The words of each call of meditune in a shell's line."""
    words, found = shlex.split(line.replace(";", " ; ").replace("\n", " ; ")), []
    for place, word in enumerate(words):
        if word in (PROGRAM, "meditune") and words[place + 1 : place + 2] not in ([], [";"], ["set"]):
            rest = words[place + 1 :]
            found.append(rest[: rest.index(";")] if ";" in rest else rest)
    return found


def test_every_file_is_one_of_these_or_of_the_updates() -> None:
    ours = {*UNITS, *TIMERS, *CRONS, "release.yaml"}
    there = {path.name for path in SCHEDULE.iterdir()}
    assert ours <= there
    assert {name for name in there - ours if "update" not in name} == {"kubernetes.yaml"}


@pytest.mark.parametrize("name", UNITS)
def test_services_run_commands_that_the_command_line_takes(name: str) -> None:
    lines = [line.partition("=")[2] for line in text(name).splitlines() if line.startswith("ExecStart=")]
    assert lines
    for line in lines:
        program, *words = shlex.split(line)
        assert program.removeprefix("-") == PROGRAM
        taken = parsed(words)
        places = [value for value in taken.values() if isinstance(value, Path) and str(value).startswith("/var")]
        assert all(str(value).startswith("/var/lib/meditune/") for value in places)
    assert unit(name)["Service"]["StateDirectory"] == "meditune"
    assert unit(name)["Service"]["DynamicUser"] == "yes"


def test_a_canary_that_got_worse_still_lets_the_guard_look() -> None:
    first, second = (line for line in text("meditune-canary.service").splitlines() if line.startswith("ExecStart="))
    assert "=-" in first
    assert "registry guard" in second


@pytest.mark.skipif(not ANALYZE, reason="no systemd here")
def test_systemd_reads_them(tmp_path: Path) -> None:
    for name in (*UNITS, *TIMERS):
        (tmp_path / name).write_text(text(name).replace(PROGRAM, "/bin/true"), encoding="utf-8")
    words = [str(ANALYZE), "verify", "--man=no", *map(str, sorted(tmp_path.iterdir()))]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert [line for line in done.stderr.splitlines() if "meditune" in line] == [], done.stderr
    for name in TIMERS:
        when = unit(name)["Timer"]["OnCalendar"]
        done = subprocess.run([str(ANALYZE), "calendar", when], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", CRONS)
def test_cron_lines_are_lines_that_a_shell_reads(name: str) -> None:
    lines = [line for line in text(name).splitlines() if line and not line.startswith("#")]
    (job,) = [line for line in lines if re.match(r"[\d*]", line)]
    found = re.fullmatch(r"((?:\S+ ){4}\S+) (\S+) (.+)", job)
    assert found
    assert found[2] == "meditune"
    assert "%" not in found[3]
    assert subprocess.run(["sh", "-n", "-c", found[3]], check=False).returncode == 0
    called = commands(found[3])
    assert len(called) == CRONS[name]
    for words in called:
        parsed(words)


def test_cronjobs_forbid_two_at_once_and_run_as_nobody() -> None:
    jobs = list(yaml.safe_load_all(text("release.yaml")))
    assert [job["metadata"]["name"] for job in jobs] == ["meditune-canary", "meditune-retrain"]
    for job in jobs:
        assert (job["apiVersion"], job["kind"]) == ("batch/v1", "CronJob")
        assert job["spec"]["concurrencyPolicy"] == "Forbid"
        pod = job["spec"]["jobTemplate"]["spec"]["template"]["spec"]
        (container,) = pod["containers"]
        assert pod["restartPolicy"] == "Never"
        assert pod["securityContext"]["runAsNonRoot"]
        assert container["securityContext"]["readOnlyRootFilesystem"]
        mounted = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
        assert set(mounted.values()) == {volume["name"] for volume in pod["volumes"]}
        called = [container["args"]] if container["command"] == ["meditune"] else commands(container["args"][0])
        assert called
        for words in called:
            taken = parsed(words)
            places = [value for value in taken.values() if isinstance(value, Path)]
            assert places
            assert {f"/{place.parts[1]}" for place in places} <= mounted.keys()
