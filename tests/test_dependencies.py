"""What is installed with this package: licences that go with Apache-2.0, lower bounds, and nothing that contradicts."""

import re
import shlex
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from meditune.errors import install_command

PROJECT = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
ALLOWED = re.compile(
    r"\b(MIT(-CMU)?|Apache|BSD|0BSD|BSL-1\.0|ISC|PSF|PSFL|Python Software Foundation|Zlib|CC0-1\.0|CNRI-Python|HPND"
    r"|Unlicense|MPL|LLVM-exception|matplotlib|Dual License)\b",
    re.IGNORECASE,
)
"""The MPL asks for its own files alone to be passed on with their source"""
REFUSED = re.compile(r"\b(A?GPL|BUSL|SSPL|Commons Clause|non-?commercial)", re.IGNORECASE)
LINKED = re.compile(r"\bLGPL", re.IGNORECASE)
LOOSE = {"psycopg", "psycopg-binary", "psycopg-pool"}
"""Under the LGPL: an extra, used as a library that anyone may replace"""
KNOWN = {"locate": "MIT"}
"""Licences that a package's metadata don't tell, as its licence file says"""


def requirements() -> list[Requirement]:
    """Of the package and all its extras."""
    extras = [text for texts in PROJECT["optional-dependencies"].values() for text in texts]
    return [Requirement(text) for text in [*PROJECT["dependencies"], *extras]]


def installed() -> dict[str, metadata.Distribution]:
    """All packages that ours need, and those that these need, by their name; what isn't installed here is left out."""
    found: dict[str, metadata.Distribution] = {}
    left = requirements()
    while left:
        wanted = left.pop()
        name = wanted.name.lower().replace("_", "-")
        extras = ["", *wanted.extras]
        if name in found or (wanted.marker and not wanted.marker.evaluate({"extra": ""})):
            continue
        try:
            found[name] = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            continue
        for text in found[name].requires or []:
            needed = Requirement(text)
            if needed.marker is None or any(needed.marker.evaluate({"extra": extra}) for extra in extras):
                needed.marker = None
                left.append(needed)
    return found


def licence(package: metadata.Distribution) -> str:
    """What a package's metadata say of its licence."""
    said = package.metadata
    classes = [text.rpartition(" :: ")[2] for text in said.get_all("Classifier") or [] if text.startswith("License")]
    return " ".join([said.get("License-Expression") or "", *classes, (said.get("License") or "")[:200]])


@pytest.mark.parametrize("wanted", requirements(), ids=str)
def test_a_requirement_has_a_lower_bound(wanted):
    assert any(bound.operator in {">=", "==", "~="} for bound in wanted.specifier)


def test_every_licence_goes_with_ours():
    packages = installed()
    assert len(packages) > 60
    said = {name: KNOWN.get(name) or licence(package) for name, package in packages.items()}
    assert {name: text for name, text in said.items() if not ALLOWED.search(text) and not LINKED.search(text)} == {}
    assert {name: text for name, text in said.items() if REFUSED.search(LINKED.sub("", text))} == {}
    assert {name for name, text in said.items() if LINKED.search(text)} <= LOOSE


def named_extras() -> dict[str, set[str]]:
    """The extras that each module and page tells people to install."""
    root = Path(__file__).parents[1]
    files = [*(root / "src").rglob("*.py"), *(root / "docs").glob("*.md"), root / "README.md"]
    found = {}
    for path in files:
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"pip install\s+[\"']?meditune\b", text), f"{path}: nobody has published that package"
        commands = re.findall(r"install_command\(['\"](\w+)|pip install --editable '\.\[([\w,]+)\]'", text)
        found[str(path)] = {extra for pair in commands for part in pair if part for extra in part.split(",")}
    return found


def test_commands_to_install_work_from_a_checkout_and_name_extras_that_exist():
    found = named_extras()
    assert sum(map(bool, found.values())) > 15
    known = set(PROJECT["optional-dependencies"])
    assert {path: extras - known for path, extras in found.items() if extras - known} == {}


def test_the_command_works_from_any_folder(tmp_path, monkeypatch):
    source = Path(__file__).parents[1].resolve()
    monkeypatch.chdir(tmp_path)
    assert shlex.split(install_command("serve", "otel")) == ["pip", "install", "--editable", f"{source}[serve,otel]"]
    monkeypatch.chdir(source)
    assert install_command("serve") == "pip install --editable '.[serve]'"


def test_what_is_installed_fits_together():
    done = subprocess.run([sys.executable, "-m", "pip", "check"], capture_output=True, text=True, check=False)
    ours = installed()
    broken = [line for line in done.stdout.splitlines() if line.partition(" ")[0].lower().replace("_", "-") in ours]
    assert broken == []
