"""The project's own files: how it is built, cited, tested, and which way its imports run."""

import ast
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

import meditune

PROJECT = Path(__file__).parents[1]
PACKAGE = PROJECT / "src" / "meditune"
TARGETS = ("run", "test", "lint", "format", "audit", "install", "install-dev", "clean", "help")


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
    assert "meditune run quickstart --output runs/quickstart" in done.stdout


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
    assert re.search(r"^exec make test$", script.read_text(encoding="utf-8"), re.MULTILINE)
    assert subprocess.run(["bash", "-n", str(script)], check=False).returncode == 0


@pytest.mark.parametrize("given", [None, "elsewhere"])
def test_continuous_integration_finds_the_data_beside_the_checkout(given: str | None, tmp_path: Path) -> None:
    checkout, data, tools = tmp_path / "checkout", tmp_path / "shared" / "data", tmp_path / "tools"
    for folder in (checkout / ".ci", data, tools):
        folder.mkdir(parents=True)
    shutil.copy(PROJECT / ".ci" / "run", checkout / ".ci")
    (tools / "make").write_text('#!/bin/sh\necho "$PWD $1 $MEDITUNE_DATA"\n', encoding="utf-8")
    (tools / "chromium").write_text("#!/bin/sh\n", encoding="utf-8")
    for tool in tools.iterdir():
        tool.chmod(0o755)
    environment = {"PATH": f"{tools}{os.pathsep}{os.environ['PATH']}"} | ({"MEDITUNE_DATA": given} if given else {})
    done = subprocess.run([checkout / ".ci" / "run"], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == f"{checkout} test {given or data}\n"


@pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="only root installs packages")
@pytest.mark.parametrize("works", [True, False])
def test_continuous_integration_installs_what_tests_need_where_it_can(works: bool, tmp_path: Path) -> None:
    checkout, tools = tmp_path / "checkout", tmp_path / "tools"
    (checkout / ".ci").mkdir(parents=True)
    shutil.copy(PROJECT / ".ci" / "run", checkout / ".ci")
    tools.mkdir()
    for name in ("bash", "dirname"):
        (tools / name).symlink_to(shutil.which(name) or name)
    installs = (
        f'case "$1" in install) : > {tools}/chromium; /bin/chmod +x {tools}/chromium;; esac' if works else "exit 1"
    )
    for name, does in (("make", "echo tested"), ("apt-get", f'echo "apt-get $*"; {installs}')):
        (tools / name).write_text(f"#!/bin/sh\n{does}\n", encoding="utf-8")
        (tools / name).chmod(0o755)
    done = subprocess.run(
        [checkout / ".ci" / "run"], env={"PATH": str(tools)}, capture_output=True, text=True, check=True
    )
    assert done.stdout == "tested\n"
    for package in ("chromium", "prometheus"):
        assert (f"--no-install-recommends {package}\n" in done.stderr) == works
    assert ("will be skipped" in done.stderr) == (not works)


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


def test_imports_run_down_the_list_in_architecture() -> None:
    page = (PROJECT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    listed = page.partition("## Which way imports run")[2].partition("\n## ")[0]
    layers = [line.strip().split(", ") for line in listed.splitlines() if line.startswith("    ")]
    level = {name: number for number, names in enumerate(layers) for name in names}
    for file in sorted(PACKAGE.rglob("*.py")):
        part = file.relative_to(PACKAGE).parts[0].removesuffix(".py")
        if part.startswith("__"):
            continue
        assert part in level, f"ARCHITECTURE.md doesn't say where {part} stands"
        for other in _imported(file) - {part, "__version__"}:
            assert level[other] >= level[part], f"{file.relative_to(PROJECT)} imports {other}, which stands above it"


def _imported(file: Path) -> set[str]:
    """The parts of the package that a file imports, anywhere in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module == "meditune":
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("meditune."):
            found.add(str(node.module).split(".")[1])
    return found


def _make(*arguments: str, folder: Path = PROJECT) -> "subprocess.CompletedProcess[str]":
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    return subprocess.run(["make", *arguments], cwd=folder, env=environment, capture_output=True, text=True)
