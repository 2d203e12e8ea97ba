"""The files of deploy/schedule, as far as it can be told without a cluster and without being root."""

from __future__ import annotations

import configparser
import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import typer.main
import yaml

from meditune.cli.main import cli_app

SCHEDULE = Path(__file__).parents[2] / "deploy" / "schedule"
UPDATE = ("meditune-update.service", "meditune-update.timer", "meditune-update.cron", "kubernetes.yaml")
NIGHT = "30 21 * * *"
ANALYZE = shutil.which("systemd-analyze")


def parsed(words: list[str]) -> dict[str, Any]:
    """The options of `meditune update ...`, read as the command line reads them."""
    command = typer.main.get_command(cli_app).commands["update"]  # type: ignore[attr-defined]
    assert words[0] == "update"
    return dict(command.make_context("update", words[1:]).params)


def unit(name: str) -> configparser.ConfigParser:
    made = configparser.ConfigParser(strict=False, interpolation=None)
    made.optionxform = str  # type: ignore[assignment,method-assign]
    made.read(SCHEDULE / name, encoding="utf-8")
    return made


def text(name: str) -> str:
    return (SCHEDULE / name).read_text(encoding="utf-8")


def test_all_files_for_updates_are_looked_at() -> None:
    there = {path.name for path in SCHEDULE.iterdir()}
    assert set(UPDATE) <= there


def test_the_service_runs_an_update_that_the_command_line_takes(tmp_path: Path) -> None:
    service = unit("meditune-update.service")["Service"]
    program, *words = shlex.split(service["ExecStart"])
    assert program.endswith("/bin/meditune")
    taken = parsed(words)
    assert taken["query"] == ["${MEDITUNE_QUERY}"]
    assert taken["index"] == "/var/lib/meditune/index"
    assert str(taken["library"]).startswith(f"/var/lib/{service['StateDirectory']}/")
    assert service["Type"] == "oneshot"


@pytest.mark.skipif(not ANALYZE, reason="no systemd here")
def test_systemd_reads_service_and_timer(tmp_path: Path) -> None:
    for name in ("meditune-update.service", "meditune-update.timer"):
        # What isn't installed here would be complained of.
        shown = text(name).replace("/opt/meditune/bin/meditune", "/bin/true")
        (tmp_path / name).write_text(shown, encoding="utf-8")
    words = [str(ANALYZE), "verify", "--man=no", *map(str, sorted(tmp_path.iterdir()))]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    ours = [line for line in done.stderr.splitlines() if "meditune" in line]
    assert ours == [], done.stderr
    when = unit("meditune-update.timer")["Timer"]["OnCalendar"]
    done = subprocess.run([str(ANALYZE), "calendar", when], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_cron_line_is_a_line_that_a_shell_reads() -> None:
    lines = [line for line in text("meditune-update.cron").splitlines() if line and not line.startswith("#")]
    settings, jobs = [line for line in lines if re.match(r"\w+=", line)], [line for line in lines if line[0].isdigit()]
    assert "CRON_TZ=America/New_York" in settings
    (job,) = jobs
    found = re.fullmatch(r"((?:\S+ ){4}\S+) (\S+) (.+)", job)
    assert found
    assert (found[1], found[2]) == (NIGHT, "meditune")
    assert "%" not in found[3]
    assert subprocess.run(["sh", "-n", "-c", found[3]], check=False).returncode == 0
    words = shlex.split(found[3])
    assert parsed(words[words.index("/opt/meditune/bin/meditune") + 1 :])["query"] == ["$MEDITUNE_QUERY"]


def test_the_cronjob_forbids_two_at_once_and_runs_as_nobody() -> None:
    (job,) = yaml.safe_load_all(text("kubernetes.yaml"))
    assert (job["apiVersion"], job["kind"]) == ("batch/v1", "CronJob")
    spec = job["spec"]
    assert (spec["schedule"], spec["timeZone"]) == (NIGHT, "America/New_York")
    assert spec["concurrencyPolicy"] == "Forbid"
    pod = spec["jobTemplate"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert pod["restartPolicy"] == "Never"
    assert pod["securityContext"]["runAsNonRoot"]
    assert container["securityContext"]["readOnlyRootFilesystem"]
    taken = parsed(container["args"])
    mounted = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
    assert {f"/{Path(str(taken[name])).parts[1]}" for name in ("library", "index")} <= mounted.keys()
    assert set(mounted.values()) == {volume["name"] for volume in pod["volumes"]}
    assert {each["name"] for each in container["env"]} >= {"MEDITUNE_CONTACT", "NCBI_API_KEY"}


def test_the_hours_are_those_that_ncbi_asks_for() -> None:
    timer = unit("meditune-update.timer")["Timer"]
    assert timer["OnCalendar"].endswith("America/New_York")
    begins = int(re.search(r"(\d\d):\d\d:\d\d", timer["OnCalendar"])[1])  # type: ignore[index]
    latest = begins + int(timer["RandomizedDelaySec"].removesuffix("h"))
    assert begins >= 21
    assert latest < 24 + 5
