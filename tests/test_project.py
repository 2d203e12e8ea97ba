"""The project's own files: how it is built, cited, tested, and which way its imports run.

What is installed with this package: licences that go with Apache-2.0, lower bounds, and nothing that contradicts.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

import meditune
from meditune import errors
from meditune.errors import install_command
from tests import check_dist

PROJECT = Path(__file__).parents[1]
PACKAGE = PROJECT / "src" / "meditune"
TARGETS = (
    *("run", "test", "lint", "format", "docs", "dist", "check-dist", "audit"),
    *("install", "install-dev", "clean", "help"),
)


@pytest.mark.skipif(shutil.which("make") is None, reason="make isn't installed")
@pytest.mark.parametrize("target", TARGETS)
def test_make_has_the_target(target: str) -> None:
    done = _make("--dry-run", target)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(shutil.which("make") is None, reason="make isn't installed")
def test_make_test_lints_and_make_run_does_the_quickstart(tmp_path: Path) -> None:
    done = _make("--dry-run", "test", f"VENV={tmp_path / 'new'}")
    for part in ("-m venv", "ruff check .", "ruff format --check .", "mypy", "bin/pytest"):
        assert part in done.stdout
    done = _make("--dry-run", "run", f"VENV={tmp_path / 'new'}")
    assert 'meditune run "quickstart" --output "runs/quickstart"' in done.stdout
    done = _make("--dry-run", "run", "RECIPE=own recipes/my data.yaml")
    assert 'meditune run "own recipes/my data.yaml" --output "runs/my data"' in done.stdout


@pytest.mark.skipif(shutil.which("make") is None, reason="make isn't installed")
def test_an_old_python_is_refused_in_a_sentence(tmp_path: Path) -> None:
    old = tmp_path / "python3.9"
    old.write_text('#!/bin/sh\n[ "$1" = --version ] && echo Python 3.9.1 && exit\nexit 1\n', encoding="utf-8")
    old.chmod(0o755)
    done = _make("install", f"PYTHON={old}", f"VENV={tmp_path / 'new'}")
    assert done.returncode != 0
    assert f"needs Python 3.11 or newer, but {old} is Python 3.9.1" in done.stderr
    assert not (tmp_path / "new").exists()


@pytest.mark.skipif(shutil.which("make") is None, reason="make isn't installed")
def test_clean_removes_a_virtual_environment_and_nothing_else(tmp_path: Path) -> None:
    shutil.copy(PROJECT / "Makefile", tmp_path)
    for folder in ("src", "tests", "runs", "mine", "env", "build"):
        (tmp_path / folder).mkdir()
    (tmp_path / "env" / "pyvenv.cfg").touch()
    for venv in ("env", "mine"):
        assert _make("clean", f"VENV={venv}", folder=tmp_path).returncode == 0
    assert {path.name for path in tmp_path.iterdir()} == {"Makefile", "src", "tests", "runs", "mine"}


def test_continuous_integration_calls_make_test() -> None:
    script = PROJECT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    assert re.search(r"^make dist >&2\nexec make test$", script.read_text(encoding="utf-8"), re.MULTILINE)
    assert subprocess.run(["bash", "-n", str(script)], check=False).returncode == 0


def _integration(folder: Path, apt: str = "exit 1", **environment: str) -> "subprocess.CompletedProcess[str]":
    """Run .ci/run in a checkout of its own on a machine without the programs that some tests need.

    `apt` is what its apt-get does; `make` tells its folder, target and environment.
    """
    checkout, tools = folder / "checkout", folder / "tools"
    (checkout / ".ci").mkdir(parents=True)
    shutil.copy(PROJECT / ".ci" / "run", checkout / ".ci")
    tools.mkdir()
    for name in ("bash", "dirname", "cat", "chmod", "touch"):
        (tools / name).symlink_to(shutil.which(name) or name)
    told = 'echo "$PWD $1 ${MEDITUNE_DATA:-}"; echo "$CI $PYTEST_ADDOPTS"'
    for name, does in (("make", told), ("sleep", 'echo "sleep $1" >&2'), ("apt-get", f'echo "apt-get $*"; {apt}')):
        (tools / name).write_text(f"#!/bin/sh\n{does}\n", encoding="utf-8")
        (tools / name).chmod(0o755)
    given = {"PATH": str(tools), "POSTGRESQL_FOLDER": str(folder / "none")} | environment
    return subprocess.run([checkout / ".ci" / "run"], env=given, capture_output=True, text=True, check=False)


INSTALLS = """case "$1" in install)
    for program in chromium initdb promtool systemd-analyze g++ ps haproxy; do
        touch "${0%/*}/$program"; chmod +x "${0%/*}/$program"
    done;;
esac"""
needs_root = pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="only root installs packages")


@needs_root
@pytest.mark.parametrize("given", [None, "elsewhere"])
def test_continuous_integration_finds_the_data_beside_the_checkout(given: str | None, tmp_path: Path) -> None:
    (tmp_path / "shared" / "data").mkdir(parents=True)
    done = _integration(tmp_path, INSTALLS, **({"MEDITUNE_DATA": given} if given else {}))
    first = done.stdout.splitlines()[0]
    assert first == f"{tmp_path / 'checkout'} test {given or tmp_path / 'shared' / 'data'}", done.stderr


@needs_root
def test_continuous_integration_installs_what_tests_need_and_tells_skips_and_slow_tests(tmp_path: Path) -> None:
    done = _integration(tmp_path, INSTALLS)
    assert done.returncode == 0, done.stderr
    for package in ("chromium", "postgresql", "prometheus", "systemd"):
        assert f"--no-install-recommends {package}\n" in done.stderr
    assert done.stdout.splitlines()[1].split() == ["true", "-rs", "--durations=30"]


@needs_root
def test_continuous_integration_tries_three_times_and_no_test_runs_without_a_service(tmp_path: Path) -> None:
    done = _integration(tmp_path, "exit 1", MEDITUNE_BROWSER="/opt/browser")
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.count("--no-install-recommends postgresql\n") == 6
    assert done.stderr.count("apt-get update -qq\n") == 6
    last = done.stderr.splitlines()[-1]
    assert "not installed and could not be: postgresql prometheus systemd g++ procps haproxy." in last
    assert "No test was run" in last


@needs_root
def test_continuous_integration_gets_over_a_registry_that_fails_once(tmp_path: Path) -> None:
    once = f"[ -e {tmp_path}/tried ] || {{ : > {tmp_path}/tried; exit 100; }}; {INSTALLS}"
    done = _integration(tmp_path, once)
    assert done.returncode == 0
    assert "Attempt 1 of 3 failed: apt-get update" in done.stderr
    assert "Attempt 2" not in done.stderr


SKIPS = """
import pytest
def test_allowed(): pytest.skip("could not import 'mlflow': No module named 'mlflow'")
def test_other(): pytest.importorskip("a_package_that_is_not_there")
"""


@pytest.mark.parametrize(("integration", "code"), [("true", 1), ("", 0)])
def test_a_skip_that_is_not_allowed_fails_continuous_integration(integration: str, code: int, tmp_path: Path) -> None:
    (tmp_path / "test_some.py").write_text(SKIPS, encoding="utf-8")
    module = "import pytest\npytest.importorskip('another_package')\ndef test_nothing(): pass\n"
    (tmp_path / "test_module.py").write_text(module, encoding="utf-8")
    (tmp_path / "pytest.ini").write_text("[pytest]\n", encoding="utf-8")
    words = [sys.executable, "-m", "pytest", "-p", "tests.conftest", "-p", "no:cacheprovider", str(tmp_path)]
    environment = os.environ | {"CI": integration, "PYTHONPATH": f"{PROJECT / 'src'}:{PROJECT}", "PYTEST_ADDOPTS": ""}
    done = subprocess.run(words, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stdout
    for line in (
        "test_some.py::test_other: could not import 'a_package_that_is_not_there'",
        "test_module.py: could not import 'another_package'",
        "Install what is missing",
    ):
        assert (line in done.stdout) == bool(code), done.stdout
    assert "test_allowed" not in done.stdout


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"meditune/serve/pages/index.html": None}, "lacks meditune/serve/pages/index.html"),
        ({"tests/tiny.py": ""}, "must not contain tests/tiny.py"),
        ({}, None),
    ],
)
def test_a_wheel_with_a_file_too_few_or_too_many_is_refused(
    change: dict[str, str | None], message: str | None, tmp_path: Path
) -> None:
    files = {str(path.relative_to(PACKAGE.parent)): "" for path in PACKAGE.rglob("*") if path.is_file()}
    held = {name: text for name, text in files.items() if "__pycache__" not in name} | change
    with zipfile.ZipFile(tmp_path / "made.whl", "w") as wheel:
        wheel.writestr("meditune-0.1.0.dist-info/METADATA", "Metadata-Version: 2.4\nName: meditune\nVersion: 0.1.0\n")
        for name, text in held.items():
            if text is not None:
                wheel.writestr(name, text)
    if message is None:
        assert check_dist.contents(tmp_path / "made.whl").name == "meditune"
    else:
        with pytest.raises(SystemExit, match=message):
            check_dist.contents(tmp_path / "made.whl")


def test_the_changelog_begins_with_this_version() -> None:
    headings = re.findall(r"^## (\S+)", (PROJECT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert headings[0] == meditune.__version__
    assert len(headings) == len(set(headings))


def test_the_citation_names_this_version() -> None:
    citation = yaml.safe_load((PROJECT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == meditune.__version__
    assert citation["license"] == "Apache-2.0"
    assert {"cff-version", "message", "title", "authors", "abstract"} <= set(citation)


def test_the_licence_is_the_whole_apache_licence() -> None:
    text = (PROJECT / "LICENSE").read_text(encoding="utf-8")
    assert "Version 2.0, January 2004" in text
    assert "9. Accepting Warranty or Additional Liability." in text
    assert "END OF TERMS AND CONDITIONS" in text


def _make(*arguments: str, folder: Path = PROJECT) -> "subprocess.CompletedProcess[str]":
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    return subprocess.run(["make", *arguments], cwd=folder, env=environment, capture_output=True, text=True)


METADATA = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
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
    extras = [text for texts in METADATA["optional-dependencies"].values() for text in texts]
    return [Requirement(text) for text in [*METADATA["dependencies"], *extras]]


def licence(package: metadata.Distribution) -> str:
    """What a package's metadata say of its licence."""
    said = package.metadata
    classes = [text.rpartition(" :: ")[2] for text in said.get_all("Classifier") or [] if text.startswith("License")]
    return " ".join([said.get("License-Expression") or "", *classes, (said.get("License") or "")[:200]])


@pytest.mark.parametrize("wanted", requirements(), ids=str)
def test_a_requirement_has_a_lower_bound(wanted):
    assert any(bound.operator in {">=", "==", "~="} for bound in wanted.specifier)


def test_every_licence_goes_with_ours():
    packages = check_dist.installed(requirements())
    assert len(packages) > 60
    said = {name: KNOWN.get(name) or licence(package) for name, package in packages.items()}
    assert {name: text for name, text in said.items() if not ALLOWED.search(text) and not LINKED.search(text)} == {}
    assert {name: text for name, text in said.items() if REFUSED.search(LINKED.sub("", text))} == {}
    assert {name for name, text in said.items() if LINKED.search(text)} <= LOOSE


def named_extras() -> dict[str, set[str]]:
    """The extras that each module and page tells people to install."""
    root = Path(__file__).parents[1]
    files = [*(root / "src").rglob("*.py"), *(root / "docs").rglob("*.md"), root / "README.md"]
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
    known = set(METADATA["optional-dependencies"])
    assert {path: extras - known for path, extras in found.items() if extras - known} == {}


def test_the_command_works_from_any_folder(tmp_path, monkeypatch):
    source = Path(__file__).parents[1].resolve()
    monkeypatch.chdir(tmp_path)
    assert shlex.split(install_command("serve", "otel")) == ["pip", "install", "--editable", f"{source}[serve,otel]"]
    monkeypatch.chdir(source)
    assert install_command("serve") == "pip install --editable '.[serve]'"
    monkeypatch.setattr(errors, "__file__", str(tmp_path / "site-packages" / "meditune" / "errors.py"))
    assert install_command("serve") == "pip install 'meditune[serve]'"


def test_what_is_installed_fits_together():
    done = subprocess.run([sys.executable, "-m", "pip", "check"], capture_output=True, text=True, check=False)
    ours = check_dist.installed(requirements())
    broken = [line for line in done.stdout.splitlines() if line.partition(" ")[0].lower().replace("_", "-") in ours]
    assert broken == []
