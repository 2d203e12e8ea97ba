"""Check the wheel in dist/: `make check-dist`, which `make dist` calls after building.

The wheel must contain every file of src/meditune and nothing else. It is then installed into a new virtual environment,
without the checkout, and used from an empty folder: `meditune doctor`, a small run with a tiny model, a served answer.

The new environment contains only what the wheel declares: its requirements and the extra `serve`. To save minutes and
gigabytes, these packages are links to those installed here. This shows that the wheel is complete and declares what it
imports. It doesn't show that its requirements can be downloaded together: `--fresh` lets pip install them instead.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import urllib.request
import venv
import zipfile
from collections.abc import Iterable, Mapping
from importlib import metadata
from pathlib import Path

from packaging.metadata import Metadata
from packaging.requirements import Requirement

PROJECT = Path(__file__).parents[1]
SOURCE = PROJECT / "src"
EXTRA = "serve"
RUN = ["meditune", "run", "quickstart", "--output", "run", "--set", "data.sources=[{name: sample, limit: 40}]"]
for setting in ("train.epochs=1", "evaluate.max_new_tokens=16", "evaluate.resamples=200"):
    RUN += ["--set", setting]


def contents(wheel: Path) -> Metadata:
    """Return the wheel's metadata. Ends the program if files are missing or superfluous, or a link leads nowhere."""
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
        (info,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        found = Metadata.from_email(archive.read(info))
    files = [path for path in (SOURCE / "meditune").rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    expected = {path.relative_to(SOURCE).as_posix() for path in files}
    for problem, wrong in (("lacks", expected - names), ("must not contain", names - expected)):
        if wrong:
            sys.exit(f"{wheel.name} {problem} {', '.join(sorted(wrong))}.")
    if dead := re.findall(r"\]\((?!https?:)[^)]*\)", found.description or ""):
        sys.exit(f"{wheel.name}: links of the README lead nowhere on a package index: {', '.join(dead)}.")
    return found


def installed(requirements: Iterable[Requirement]) -> dict[str, metadata.Distribution]:
    """Return the requirements, and what these need, by name; packages that aren't installed here are left out."""
    found: dict[str, metadata.Distribution] = {}
    left = list(requirements)
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


def install(wheel: Path, folder: Path, declared: Metadata, fresh: bool) -> None:
    """Install the wheel into a new virtual environment, with its requirements or with links to those installed here."""
    venv.EnvBuilder(symlinks=True).create(folder)
    python = folder / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet"]
    if fresh:
        call([*pip, f"{wheel}[{EXTRA}]"], PROJECT, os.environ)
        return
    call([*pip, "--no-deps", "--no-index", str(wheel)], PROJECT, os.environ)
    (packages,) = folder.glob("lib/python*/site-packages")
    wanted = [Requirement(str(each)) for each in declared.requires_dist or []]
    wanted = [each for each in wanted if each.marker is None or each.marker.evaluate({"extra": EXTRA})]
    for each in wanted:
        each.marker = None
    for package in installed(wanted).values():
        for name in {file.parts[0] for file in package.files or []} - {"..", "__pycache__"}:
            link = packages / name
            if not link.exists():
                link.symlink_to(Path(str(package.locate_file(name))))


def call(words: list[str], folder: Path, environment: Mapping[str, str], codes: tuple[int, ...] = (0,)) -> str:
    """Return the output of a command. Ends the program with all output if the exit code isn't among `codes`."""
    done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    if done.returncode not in codes:
        sys.exit(f"{' '.join(words)} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    return done.stdout


def use(folder: Path, environment: Mapping[str, str]) -> None:
    """Use the installed wheel from an empty folder. Ends the program if something doesn't work."""
    place = call(["python", "-c", "import meditune; print(meditune.__file__)"], folder, environment)
    if not place.startswith(environment["VIRTUAL_ENV"]):
        sys.exit(f"The environment imports {place.strip()}, not the wheel.")
    # Too little memory or disk also makes doctor end with 1, but is no fault of the wheel.
    findings = call(["meditune", "doctor"], folder, environment, codes=(0, 1))
    if "pip install" in findings or "`make run`" not in findings:
        sys.exit(f"meditune doctor finds the installation incomplete:\n{findings}")
    call(RUN, folder, environment)
    if "<html" not in (folder / "run" / "report.html").read_text(encoding="utf-8"):
        sys.exit("The run wrote no report.")
    print("doctor and a run work.", file=sys.stderr)
    serve = ["meditune", "serve", "run", "--port", "0", "--store", "store"]
    with subprocess.Popen(serve, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout
            found = re.search(r"http://\S+/", server.stdout.readline())
            if not found:
                sys.exit("meditune serve printed no address; its messages are above.")
            with urllib.request.urlopen(found[0], timeout=60) as page:
                assert b"<html" in page.read(), "the chat page is empty"
            question = json.dumps({"question": "Does walking help with back pain?", "max_new_tokens": 16}).encode()
            request = urllib.request.Request(f"{found[0]}v1/ask", question, {"Content-Type": "application/json"})
            with urllib.request.urlopen(request, timeout=60) as reply:
                answer = json.load(reply)
        finally:
            server.terminate()
    print(f"The server's answer: {answer['outcome']}, {answer['text'][:60]!r}", file=sys.stderr)


def main(fresh: bool) -> None:
    """Check the only wheel in dist/."""
    wheels = sorted((PROJECT / "dist").glob("*.whl"))
    if len(wheels) != 1:
        sys.exit(f"dist/ must contain one wheel, but contains {len(wheels)}. Build it with: make dist")
    declared = contents(wheels[0])
    from meditune.models.package_download import note_unpacked
    from tests import tiny

    with tempfile.TemporaryDirectory() as name:
        folder, environment = Path(name) / "empty", Path(name) / "environment"
        folder.mkdir()
        install(wheels[0], environment, declared, fresh)
        note_unpacked(tiny.save(Path(name) / "cache" / "models" / "smollm2-135m"))
        kept = {key: value for key, value in os.environ.items() if key not in {"MEDITUNE_DATA", "PYTHONPATH"}}
        use(
            folder,
            kept
            | {
                "PATH": f"{environment / 'bin'}{os.pathsep}{os.environ['PATH']}",
                "VIRTUAL_ENV": str(environment),
                "HOME": name,
                "PYTHONNOUSERSITE": "1",
                "PYTHONUNBUFFERED": "1",
                "MEDITUNE_CACHE": f"{name}/cache",
                "MEDITUNE_OFFLINE": "1",
                "HF_HUB_OFFLINE": "1",
            },
        )
    print(f"{wheels[0].name} is complete and works.", file=sys.stderr)


if __name__ == "__main__":
    main("--fresh" in sys.argv[1:])
