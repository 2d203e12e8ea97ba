"""`meditune doctor` and `meditune models`: what is there on this machine, and what can be had."""

import importlib.metadata
import shutil
import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from meditune.cli import doctor, models
from meditune.cli.doctor import Finding, examine, render
from meditune.models.catalogue import CATALOGUE
from meditune.train.resource_plan import Target
from tests import layouts
from tests.commands import meditune
from tests.http_servers import free_port


@pytest.fixture(autouse=True)
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDITUNE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("MEDITUNE_OFFLINE", "1")
    monkeypatch.setattr(doctor, "memory_gb", lambda: (16.0, 8.0))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    for name in ("MEDITUNE_DATA", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def listening() -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}/simple"


@pytest.fixture
def closed() -> str:
    return f"http://127.0.0.1:{free_port()}/simple"


def findings() -> dict[str, Finding]:
    return {finding.name: finding for finding in examine()}


def base_model(cache: Path) -> None:
    folder = cache / "models" / "smollm2-135m"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}", encoding="utf-8")


def test_offline_nothing_is_tried_and_a_missing_base_model_stops_a_run(tmp_path: Path) -> None:
    found = findings()
    assert found["Offline switches"].value == "MEDITUNE_OFFLINE=1"
    assert found["Package registry"].value == "not tried: MEDITUNE_OFFLINE is set"
    assert found["Model hub"].value == "not tried: MEDITUNE_OFFLINE is set"
    missing = found["Base model smollm2-135m"]
    assert missing.verdict == "bad"
    assert str(tmp_path / "cache" / "models" / "smollm2-135m") in missing.advice
    assert render(list(found.values())).endswith("`make run` can't work yet because of: Base model smollm2-135m.")


def test_offline_with_everything_here_nothing_stops_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base_model(tmp_path / "cache")
    found = findings()
    assert found["Local models"].value == "smollm2-135m"
    assert "Base model smollm2-135m" not in found
    assert render(list(found.values())).endswith("`make run` can work here.")


def test_the_installed_versions_are_shown() -> None:
    found = findings()
    for name in ("torch", "transformers", "peft"):
        assert found[name].value == importlib.metadata.version(name)


def test_a_package_that_is_missing_or_too_old_stops_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = ["transformers>=99", "no-such-package>=1", 'datasets>=4; extra == "hub"']
    monkeypatch.setattr("importlib.metadata.requires", lambda _: wanted)
    found = findings()
    assert (found["transformers"].verdict, found["transformers"].advice) == ("bad", 'pip install "transformers>=99"')
    assert (found["no-such-package"].verdict, found["no-such-package"].value) == ("bad", "not installed")
    assert "datasets" not in found


@pytest.mark.parametrize(("free", "verdict"), [(8.0, "ok"), (4.0, "warn"), (1.0, "bad")])
def test_memory(free: float, verdict: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "memory_gb", lambda: (16.0, free))
    memory = findings()["Memory"]
    assert memory.value == f"{free:.1f} GB free of 16.0 GB"
    assert memory.verdict == verdict
    assert bool(memory.advice) == (verdict != "ok")


@pytest.mark.parametrize(("free", "verdict"), [(50e9, "ok"), (1e9, "warn"), (0.1e9, "bad")])
def test_disk(free: float, verdict: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=free))
    cache = findings()["Cache"]
    assert cache.value == f"{tmp_path / 'cache'}, {free / 1e9:.1f} GB free"
    assert cache.verdict == verdict


def test_a_cache_that_is_a_file_stops_a_run(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("", encoding="utf-8")
    assert findings()["Cache"].verdict == "bad"


def test_a_gpu_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "gpu", lambda: ("A card", 80.0))
    assert findings()["GPU"].value == "A card, 80 GB"
    monkeypatch.setattr(doctor, "gpu", lambda: None)
    assert findings()["GPU"].value == "none"


def test_data_is_shown_where_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    layouts.pubmedqa(tmp_path / "mine" / "pubmedqa", {"1": layouts.pubmedqa_item(1)})
    monkeypatch.setenv("MEDITUNE_DATA", str(tmp_path / "mine"))
    found = findings()
    assert found["Data: pubmedqa"].value == str(tmp_path / "mine" / "pubmedqa")
    assert found["Data: medquad"].value == "not here, and downloads are disabled"
    assert "https://github.com/abachaa/MedQuAD" in found["Data: medquad"].advice
    assert "physionet.org" in found["Data: mimic"].advice
    assert found["Data: sample"].verdict == "ok"
    assert "MEDITUNE_DATA" not in found


def test_missing_data_warns_where_the_sample_would_be_used(monkeypatch: pytest.MonkeyPatch) -> None:
    pubmedqa = findings()["Data: pubmedqa"]
    assert pubmedqa.verdict == "warn"
    assert "synthetic sample" in pubmedqa.advice
    monkeypatch.setenv("MEDITUNE_DATA", "/no/such/folder")
    assert findings()["MEDITUNE_DATA"].verdict == "warn"


def test_a_reachable_registry_and_an_unreachable_hub(
    monkeypatch: pytest.MonkeyPatch, listening: str, closed: str
) -> None:
    monkeypatch.delenv("MEDITUNE_OFFLINE")
    monkeypatch.setenv("PIP_INDEX_URL", listening)
    monkeypatch.setenv("HF_ENDPOINT", closed)
    found = findings()
    assert found["Package registry"].value == "127.0.0.1 answers"
    assert found["Model hub"].verdict == "warn"
    assert "127.0.0.1 doesn't answer" in found["Model hub"].value
    assert found["Base model smollm2-135m"].verdict == "ok"
    assert found["Data: medquad"].advice == "Downloaded from github.com when a recipe needs it."


def test_the_hubs_switch_leaves_the_registry_alone(monkeypatch: pytest.MonkeyPatch, listening: str) -> None:
    monkeypatch.delenv("MEDITUNE_OFFLINE")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("PIP_INDEX_URL", listening)
    found = findings()
    assert found["Package registry"].value == "127.0.0.1 answers"
    assert found["Model hub"].value == "not tried: HF_HUB_OFFLINE is set"


def test_a_proxy_is_asked_instead_of_the_host(monkeypatch: pytest.MonkeyPatch, listening: str, closed: str) -> None:
    monkeypatch.setenv("https_proxy", listening)
    assert doctor.connection_problems(["https://registry.invalid/simple"]) == {"https://registry.invalid/simple": ""}
    monkeypatch.setenv("https_proxy", closed)
    assert doctor.connection_problems(["https://registry.invalid/simple"])["https://registry.invalid/simple"]


def test_the_judge_that_would_check_answers_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert findings()["Evidence judge"].value == "none in runs/"
    (tmp_path / "runs" / "evidence" / "model").mkdir(parents=True)
    (tmp_path / "runs" / "evidence" / "model" / "claims.json").write_text("{}", encoding="utf-8")
    finding = findings()["Evidence judge"]
    assert finding.value == "runs/evidence (transformers)"
    assert "--judge runs/evidence" in finding.advice
    assert "Without --judge, the lexical detector checks" in finding.advice, "a judge in runs/ isn't used by itself"


def test_advice_stands_below_its_finding() -> None:
    text = render([Finding("One", "1"), Finding("Longer", "2", "bad", "Do this."), Finding("Third", "3", "bad")])
    assert text.splitlines() == [
        "ok    One     1",
        "bad   Longer  2",
        "              Do this.",
        "bad   Third   3",
        "",
        "`make run` can't work yet because of: Longer, Third.",
    ]


def test_data_that_no_recipe_needs_yet_are_no_fault_and_explained_only_on_demand() -> None:
    assert findings()["Data: mimic"].verdict == "-"
    shown, explained = meditune("doctor").out, meditune("doctor", "--data").out
    assert "-     Data: mimic " in shown
    assert "physionet.org" not in shown
    assert "meditune doctor --data" in shown
    assert "physionet.org" in explained


LAPTOP = Target("a laptop", 16.0, 1e12, "cpu", torch.bfloat16, "assumed")
SMALL_GPU = Target("a card", 8.0, 40e12, "cuda", torch.bfloat16, "assumed")


def by_name(target: Target = LAPTOP) -> dict[str, models.Row]:
    return {row.name: row for row in models.rows(target)}


def test_every_catalogue_model_is_listed_with_where_it_comes_from(tmp_path: Path) -> None:
    rows = by_name()
    assert set(rows) == set(CATALOGUE)
    assert rows["smollm2-135m"].availability == "from a Python package (93 MB)"
    assert rows["distilgpt2"].availability == "from the hub"
    assert rows["medgemma1.5-4b"].availability == "from the hub, after you accept its licence there"
    assert rows["gpt-3.5-turbo"].availability == "API only"
    base_model(tmp_path / "cache")
    assert by_name()["smollm2-135m"].availability == "here"


def test_a_model_in_the_hubs_cache_is_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "huggingface_hub.try_to_load_from_cache",
        lambda hub_id, file: "/weights" if (hub_id, file) == ("openai-community/gpt2", "model.safetensors") else None,
    )
    rows = by_name()
    assert rows["gpt2"].availability == "here"
    assert rows["distilgpt2"].availability == "from the hub"


def test_what_suits_the_machine_comes_first() -> None:
    laptop = by_name()
    assert [laptop[name].fits for name in ("smollm2-135m", "qwen3-1.7b", "mistral-7b")] == ["yes", "yes", "no"]
    assert by_name(replace(LAPTOP, flops=1e11))["qwen3-1.7b"].fits == "slow"
    names = list(laptop)
    assert names.index("qwen3-1.7b") < names.index("smollm2-135m") < names.index("gpt2") < names.index("mistral-7b")
    assert names[-1] == "gpt-3.5-turbo"
    assert laptop["gpt-3.5-turbo"].memory == ""
    gpu = by_name(SMALL_GPU)
    assert (gpu["mistral-7b"].fits, gpu["qwen3-4b"].fits, gpu["qwen3-1.7b"].fits) == ("no", "in 4 bits", "yes")
    assert list(gpu)[:3] == ["gemma3-4b", "medgemma1.5-4b", "qwen3-4b"]


def test_the_table_is_aligned_and_names_the_recipe_for_the_machine(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("meditune.train.machine_speed.target_of", lambda *_: SMALL_GPU)
    rows = models.rows(SMALL_GPU)
    models.models()
    heading, *lines = capsys.readouterr().out.splitlines()
    for line, row in zip(lines, rows, strict=False):
        assert line.startswith(row.name)
        assert line[heading.index("Licence") :].startswith(row.licence)
        assert line[heading.index("Where") :].startswith(row.availability)
    assert lines[len(rows)] == ""
    assert "Recipe for this machine: gpu-8gb, with qwen3-4b." in lines[-1]
