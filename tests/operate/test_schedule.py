"""The files of deploy/schedule, as far as they can be tested without a cluster and without root."""

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
from tests.waiting import output_of

SCHEDULE = Path(__file__).parents[2] / "deploy" / "schedule"
UNITS = ("meditune-update.service", "meditune-canary.service", "meditune-retrain.service", "meditune-loop.service")
TIMERS = ("meditune-update.timer", "meditune-canary.timer", "meditune-retrain.timer")
CRONS = {"meditune-update.cron": 1, "meditune-canary.cron": 2, "meditune-retrain.cron": 1}
"""File -> number of commands in its line"""
CRONJOBS = {"kubernetes.yaml": ["meditune-update"], "release.yaml": ["meditune-canary", "meditune-retrain"]}
NIGHT = "30 21 * * *"
ANALYZE = shutil.which("systemd-analyze")
PROGRAM = "/opt/meditune/bin/meditune"


def parsed(words: list[str]) -> dict[str, Any]:
    """The options of a command, read as the command line reads them."""
    command: Any = typer.main.get_command(cli_app)
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


def unit(name: str) -> configparser.ConfigParser:
    made = configparser.ConfigParser(strict=False, interpolation=None)
    made.optionxform = str  # type: ignore[assignment,method-assign]
    made.read(SCHEDULE / name, encoding="utf-8")
    return made


def text(name: str) -> str:
    return (SCHEDULE / name).read_text(encoding="utf-8")


def test_all_files_are_tested() -> None:
    assert {path.name for path in SCHEDULE.iterdir()} == {*UNITS, *TIMERS, *CRONS, *CRONJOBS}


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
        if words[0] == "update":
            assert taken["query"] == ["${MEDITUNE_QUERY}"]
            assert taken["index"] == "/var/lib/meditune/index"
    assert unit(name)["Service"]["StateDirectory"] == "meditune"
    assert unit(name)["Service"]["DynamicUser"] == "yes"


def test_a_canary_that_got_worse_still_lets_the_guard_look() -> None:
    first, second = (line for line in text("meditune-canary.service").splitlines() if line.startswith("ExecStart="))
    assert "=-" in first
    assert "registry guard" in second


@pytest.mark.skipif(not ANALYZE, reason="no systemd here")
def test_systemd_reads_services_and_timers(tmp_path: Path) -> None:
    for name in (*UNITS, *TIMERS):
        # What isn't installed here would be complained of.
        (tmp_path / name).write_text(text(name).replace(PROGRAM, "/bin/true"), encoding="utf-8")
    words = [str(ANALYZE), "verify", "--man=no", *map(str, sorted(tmp_path.iterdir()))]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert [line for line in done.stderr.splitlines() if "meditune" in line] == [], done.stderr
    for name in TIMERS:
        when = unit(name)["Timer"]["OnCalendar"]
        output_of(ANALYZE, "calendar", when)


@pytest.mark.parametrize("name", CRONS)
def test_cron_lines_are_lines_that_a_shell_reads(name: str) -> None:
    lines = [line for line in text(name).splitlines() if line and not line.startswith("#")]
    (job,) = [line for line in lines if re.match(r"[\d*]", line)]
    found = re.fullmatch(r"((?:\S+ ){4}\S+) (\S+) (.+)", job)
    assert found
    assert found[2] == "meditune"
    assert "%" not in found[3]
    output_of("sh", "-n", "-c", found[3])
    called = commands(found[3])
    assert len(called) == CRONS[name]
    for words in called:
        taken = parsed(words)
        if words[0] == "update":
            assert (found[1], taken["query"]) == (NIGHT, ["$MEDITUNE_QUERY"])
            assert "CRON_TZ=America/New_York" in lines


@pytest.mark.parametrize("name", CRONJOBS)
def test_cronjobs_forbid_two_at_once_and_run_as_nobody(name: str) -> None:
    jobs = list(yaml.safe_load_all(text(name)))
    assert [job["metadata"]["name"] for job in jobs] == CRONJOBS[name]
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
        in_shell = container.get("command", ["meditune"]) != ["meditune"]
        called = commands(container["args"][0]) if in_shell else [container["args"]]
        assert called
        for words in called:
            taken = parsed(words)
            places = [Path(str(taken[key])) for key in taken if isinstance(taken[key], Path) or key == "index"]
            assert {f"/{place.parts[1]}" for place in places if place.is_absolute()} <= mounted.keys()
            if words[0] == "update":
                assert (job["spec"]["schedule"], job["spec"]["timeZone"]) == (NIGHT, "America/New_York")
                assert {each["name"] for each in container["env"]} >= {"MEDITUNE_CONTACT", "NCBI_API_KEY"}


def test_the_hours_are_those_that_ncbi_asks_for() -> None:
    timer = unit("meditune-update.timer")["Timer"]
    assert timer["OnCalendar"].endswith("America/New_York")
    begins = int(re.search(r"(\d\d):\d\d:\d\d", timer["OnCalendar"])[1])  # type: ignore[index]
    latest = begins + int(timer["RandomizedDelaySec"].removesuffix("h"))
    assert begins >= 21
    assert latest < 24 + 5


def server() -> tuple[str, dict[str, str], Any]:
    """Of the server's deployment: the path of its store, the claim at each path, and its network policy."""
    made = list(yaml.safe_load_all((SCHEDULE.parent / "kubernetes.yaml").read_text(encoding="utf-8")))
    by_kind = {each["kind"]: each for each in made}
    pod = by_kind["Deployment"]["spec"]["template"]["spec"]
    image = (SCHEDULE.parent / "Containerfile").read_text(encoding="utf-8")
    found = re.search(r"MEDITUNE_STORE=(\S+)", image)
    assert found
    return found[1], claims(pod), by_kind["NetworkPolicy"]


def claims(pod: dict[str, Any]) -> dict[str, str]:
    """The claim that a pod mounts at each path."""
    (container,) = pod["containers"]
    named = {
        each["name"]: each["persistentVolumeClaim"]["claimName"]
        for each in pod["volumes"]
        if "persistentVolumeClaim" in each
    }
    return {each["mountPath"]: named[each["name"]] for each in container["volumeMounts"] if each["name"] in named}


@pytest.mark.parametrize("name", ["release.yaml", "kubernetes.yaml"])
def test_jobs_read_the_store_that_the_server_writes(name: str) -> None:
    store, of_server, policy = server()
    for job in yaml.safe_load_all(text(name)):
        template = job["spec"]["jobTemplate"]["spec"]["template"]
        pod = template["spec"]
        (container,) = pod["containers"]
        set_here = {each["name"]: each.get("value") for each in container["env"]}
        assert set_here["MEDITUNE_STORE"] == store
        mounted = claims(pod)
        assert mounted[store] == of_server[store]
        assert set_here.get("MEDITUNE_DATA", "/sources") != store
        # The claim is for one node.
        (near,) = pod["affinity"]["podAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
        assert near["labelSelector"]["matchLabels"] == policy["spec"]["podSelector"]["matchLabels"]
        words = " ".join([*container["command"], *container["args"]])
        assert all(place.startswith(f"{store}/") for place in re.findall(r"\S+/registry\b", words))
        if "MEDITUNE_URL" in set_here:
            admitted = [each.get("podSelector", {}) for each in policy["spec"]["ingress"][0]["from"]]
            assert {"matchLabels": template["metadata"]["labels"]} in admitted


def test_units_and_cron_lines_use_the_folders_that_the_server_uses() -> None:
    served = (SCHEDULE.parent / "meditune.service").read_text(encoding="utf-8")
    of_server = dict(re.findall(r"(MEDITUNE_\w+)=(\S+)", served))
    assert of_server.keys() >= {"MEDITUNE_STORE", "MEDITUNE_CACHE"}
    literature, sources, registries = set(), set(), set()
    for path in (each for each in SCHEDULE.iterdir() if each.suffix in {".service", ".cron"}):
        said = "\n".join(line for line in path.read_text(encoding="utf-8").splitlines() if not line.startswith("#"))
        named = dict(re.findall(r"(MEDITUNE_(?:STORE|CACHE|DATA))=(\S+?)[;\s]", said))
        assert {key: named[key] for key in ("MEDITUNE_STORE", "MEDITUNE_CACHE")} == {
            key: of_server[key] for key in ("MEDITUNE_STORE", "MEDITUNE_CACHE")
        }, path.name
        sources.add(named["MEDITUNE_DATA"])
        literature |= set(re.findall(r"\S+/literature\b", said))
        registries |= set(re.findall(r"\S+/registry\b", said))
    assert (len(literature), len(sources)) == (1, 1)
    assert registries == {f"{of_server['MEDITUNE_STORE']}/registry"}
    assert "StateDirectory=meditune" in served
