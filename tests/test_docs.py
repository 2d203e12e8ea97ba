"""The documentation: commands run, links lead somewhere, options exist, pages are up to date and in plain English.

A bash block after the comment `<!-- run -->` is run as it stands.
"""

import ast
import doctest
import importlib.util
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import typer.main
import yaml

from meditune.cli.loop import Config as LoopConfig
from meditune.cli.main import cli_app
from meditune.config import load_recipe, shipped
from meditune.evaluate.quality_gate import load_policy
from meditune.models.package_download import note_unpacked
from tests import tiny
from tests.commands import meditune

PROJECT = Path(__file__).parents[1]
PAGES = [PROJECT / name for name in ("README.md", "ARCHITECTURE.md", "CONTRIBUTING.md")]
PAGES += sorted((PROJECT / "docs").rglob("*.md"))
README = PAGES[0]

FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
RUNNABLE = re.compile(r"^<!-- run -->\n```bash\n(.*?)^```$", re.MULTILINE | re.DOTALL)

pages = pytest.mark.parametrize("page", PAGES, ids=[str(page.relative_to(PROJECT)) for page in PAGES])


@pytest.mark.slow
def test_the_readmes_commands_run_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    note_unpacked(tiny.save(tmp_path / "cache" / "models" / "smollm2-135m"))
    monkeypatch.delenv("MEDITUNE_DATA", raising=False)
    monkeypatch.setenv("MEDITUNE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("MEDITUNE_OFFLINE", "1")
    monkeypatch.setenv("PATH", str(Path(sys.executable).absolute().parent), prepend=os.pathsep)
    monkeypatch.chdir(tmp_path)
    blocks = RUNNABLE.findall(README.read_text(encoding="utf-8"))
    assert len(blocks) >= 3
    first = True
    for line in (line for block in blocks for line in block.splitlines()):
        if line.startswith("meditune ") and not first:
            done = meditune(*shlex.split(line)[1:])  # in this process, which has everything imported
            assert done.code == 0, f"{line}\n{done}"
        else:
            ended = subprocess.run(["bash", "-euo", "pipefail", "-c", line], capture_output=True, text=True)
            assert ended.returncode == 0, f"{line}\n{ended}"
        first = False
    assert Path("runs/rehearsal/report.html").is_file()


@pages
def test_links_lead_to_files_and_headings(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", _prose(page)):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, heading = target.partition("#")
        linked = page.parent / name if name else page
        assert linked.exists(), f"{page.name} links to {target}"
        if heading:
            titles = re.findall(r"^#+ (.*)$", _prose(linked), re.MULTILINE)
            slugs = {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}
            assert heading in slugs, f"{page.name} links to {target}"


@pages
def test_paths_of_the_repository_exist(page: Path) -> None:
    for span in re.findall(r"`([^`\n]+)`", _prose(page)):
        if re.fullmatch(r"(src|tests|docs|\.ci)/[\w./-]*", span):
            assert (PROJECT / span).exists(), f"{page.name} names {span}"


@pytest.mark.parametrize("page", [README, PROJECT / "ARCHITECTURE.md"], ids=["README.md", "ARCHITECTURE.md"])
def test_the_tree_shows_what_is_there(page: Path) -> None:
    (tree,) = [body for kind, body in FENCE.findall(page.read_text(encoding="utf-8")) if kind == "text"]
    folders: list[str] = []
    for line in tree.splitlines():
        name = line.split()[0]
        depth = (len(line) - len(line.lstrip())) // 2
        path = PROJECT.joinpath(*folders[:depth], name)
        assert path.is_dir() if name.endswith("/") else path.is_file(), f"{page.name} shows {path}"
        folders[depth:] = [name]


@pages
def test_every_command_parses(page: Path) -> None:
    for command in _commands(page):
        _parse(_program(), shlex.split(command)[1:], command)


@pages
def test_every_set_option_names_a_key_and_a_fitting_value(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    # Options of one command are read together and with its recipe, because one may need another.
    for found in re.finditer(r"(?:--set\s+(?:'[^'\n]+'|[^\s`)]+)[\s\\]*)+", text):
        command = text[text.rfind("meditune ", 0, found.start()) : found.start()].split()
        named = [word for word in command if word in shipped()]
        # Plain style needs a recipe with a cue for plain words.
        default = "patient-friendly" if "style: plain" in found[0] else "quickstart"
        options = [option for option in shlex.split(found[0])[1::2] if "=" in option and not option.startswith("KEY")]
        load_recipe.load_recipe(named[0] if named and len(command) < 8 else default, options)


@pages
def test_every_recipe_shown_is_valid(page: Path, tmp_path: Path) -> None:
    for kind, body in FENCE.findall(page.read_text(encoding="utf-8")):
        if kind == "yaml":
            shown = tmp_path / "shown.yaml"
            shown.write_text(body, encoding="utf-8")
            if body.startswith("not_worse:"):
                load_policy(shown)
            elif body.startswith("registry:"):
                LoopConfig(shown, _program())
            else:
                load_recipe.load_recipe(str(shown))


@pages
def test_every_dotted_key_is_one_of_a_recipe(page: Path) -> None:
    groups = "model|data|prompt|train|evaluate"
    for span in re.findall(r"`([^`\n]+)`", _prose(page)):
        name = span.partition(":")[0]
        is_file = name.endswith((".py", ".json", ".jsonl", ".source", ".target", ".doi"))
        if page.name != "report.md" and re.fullmatch(rf"(?:{groups})\.[a-z_.]+", name) and not is_file:
            assert load_recipe.recipe_keys.slot(tuple(name.split("."))), f"{page.name} names {span}"


@pages
def test_python_sessions_say_what_really_comes_out(page: Path) -> None:
    for kind, body in FENCE.findall(page.read_text(encoding="utf-8")):
        if kind == "python" and body.startswith(">>> "):
            session = doctest.DocTestParser().get_doctest(body, {}, page.name, str(page), 0)
            assert session.examples
            report: list[str] = []
            doctest.DocTestRunner(verbose=False).run(session, out=report.append)
            assert not report, "".join(report)


@pages
def test_no_section_stands_twice(page: Path) -> None:
    headings = re.findall(r"^## .+$", _prose(page), re.MULTILINE)
    assert sorted(headings) == sorted(set(headings))


@pages
def test_make_targets_exist(page: Path) -> None:
    makefile = (PROJECT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
    text = page.read_text(encoding="utf-8")
    named = re.findall(r"`make ([a-z-]+)|^make ([a-z-]+)", text, re.MULTILINE)
    for target in (first or second for first, second in named):
        assert target in targets, f"{page.name} names make {target}"


@cache
def _program() -> Any:
    return typer.main.get_command(cli_app)


def _prose(page: Path) -> str:
    return FENCE.sub("", page.read_text(encoding="utf-8"))


def _commands(page: Path) -> list[str]:
    """Every `meditune ...` of a page, from its bash blocks and its code spans."""
    text = page.read_text(encoding="utf-8")
    blocks = [body for kind, body in FENCE.findall(text) if kind == "bash"]
    lines = [line for block in blocks for line in block.splitlines() if line.startswith("meditune ")]
    spans = [" ".join(span.split()) for span in re.findall(r"`(meditune [^`]+)`", FENCE.sub("", text))]
    return [re.split(r" [>|] ", command)[0].partition(" # ")[0] for command in lines + spans]


def _parse(command: Any, arguments: list[str], whole: str) -> None:
    """Parse without running; a command alone, without its arguments, only has to exist."""
    if not hasattr(command, "commands"):
        if arguments:
            command.make_context(command.name, arguments)
        return
    if not arguments or arguments[0].startswith("-") or arguments[0] == "COMMAND":
        assert set(arguments) <= {"--help", "--version", "COMMAND"}, whole
        return
    assert arguments[0] in command.commands, whole
    _parse(command.commands[arguments[0]], arguments[1:], whole)


def test_every_shipped_recipe_is_in_the_docs() -> None:
    text = (PROJECT / "docs" / "reference" / "recipes.md").read_text(encoding="utf-8")
    assert all(f"`{name}`" in text for name in shipped())


DOCS = PROJECT / "docs"
CONFIG = yaml.safe_load((PROJECT / "mkdocs.yml").read_text(encoding="utf-8"))


def _generator() -> ModuleType:
    """Import docs/generate.py, which is no part of a package."""
    spec = importlib.util.spec_from_file_location("generate_docs", DOCS / "generate.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


generate = _generator()


@pytest.mark.parametrize("name", generate.PAGES)
@pytest.mark.filterwarnings("ignore:Duplicate Operation ID")
def test_a_generated_page_is_up_to_date(name: str) -> None:
    stored = (DOCS / "reference" / name).read_text(encoding="utf-8")
    assert stored == generate.PAGES[name](), f"{name} is stale. Write it again: .venv/bin/python docs/generate.py"


def _pages(nav: Any) -> Iterator[str]:
    """Yield every page of a navigation."""
    if isinstance(nav, str):
        yield nav
    else:
        for item in nav.values() if isinstance(nav, dict) else nav:
            yield from _pages(item)


def test_the_navigation_has_every_page_once() -> None:
    notebooks = [path.with_suffix(".md") for path in DOCS.rglob("*.ipynb")]  # docs/generate.py makes their pages
    there = sorted(str(path.relative_to(DOCS)) for path in [*DOCS.rglob("*.md"), *notebooks])
    assert sorted(_pages(CONFIG["nav"])) == there


def test_the_site_is_strict_and_loads_nothing_from_other_hosts() -> None:
    assert CONFIG["strict"] is True
    assert CONFIG["theme"]["font"] is False
    assert "analytics" not in CONFIG["extra"]
    assert not CONFIG.keys() & {"extra_javascript", "extra_css", "repo_url"}
    assert all(level == "warn" for group in CONFIG["validation"].values() for level in group.values())


def test_make_docs_builds_strictly() -> None:
    done = subprocess.run(["make", "--dry-run", "docs"], cwd=PROJECT, capture_output=True, text=True, check=True)
    assert "mkdocs build --strict\n" in done.stdout


@pytest.mark.parametrize(
    ("link", "shown"),
    [
        ("[the tree](../../ARCHITECTURE.md)", "the tree (`ARCHITECTURE.md`)"),
        ("[start](../../README.md#start)", "start (`README.md`)"),
        ("[`README.md`](../../README.md)", "`README.md`"),
        ("[tasks](../../integrations/lm-eval/README.md)", "tasks (`integrations/lm-eval/README.md`)"),
        ("[serving](../how-to/serve.md#asking)", "[serving](../how-to/serve.md#asking)"),
        ("[here](#asking)", "[here](#asking)"),
        ("[uv](https://docs.astral.sh/uv/)", "[uv](https://docs.astral.sh/uv/)"),
        ("`[x](../../README.md)`", "`[x](../../README.md)`"),
    ],
)
def test_a_link_out_of_the_site_becomes_a_path(link: str, shown: str) -> None:
    assert generate.outside_links_as_paths(f"See {link}.", Path("reference")) == f"See {shown}."


def test_headings_have_githubs_anchors() -> None:
    assert generate.github_slug("Who's first? A & B, `--set`") == "whos-first-a--b---set"


PROSE = sorted([*PROJECT.glob("*.md"), *(PROJECT / "docs").rglob("*.md")])
SOURCES = sorted((PROJECT / "src" / "meditune").rglob("*.py"))
TEMPLATES = sorted(
    path for path in (PROJECT / "src" / "meditune").rglob("*") if path.suffix in {".html", ".js"} and path.is_file()
)
AVOIDED = {
    r"\b(?:is|are|was|were|be|not) borne out\b|\bbears? out\b": "supported, supports",
    r"\b(?:written|writes?|drawn|chosen|picked|answers?) by chance\b": "at random, sampled",
    r"\blikeness(?:es)?\b": "similarity",
    r"\bjourney\b": "pipeline, run",
    r"\bcan(?:'t|not)? be had\b|\bhad back\b": "is (un)available, restored",
    r"\b(?:go|goes|going|went) on where\b": "resumes",
    r"\bheld against\b": "compared with",
    r"\bput right\b": "corrected",
    r"\bshown to be (?:better|worse)\b": "significantly better, significantly worse",
    r"\bkept back\b": "withheld",
    r"\bmade ready\b": "prepared",
    r"\bas far as (?:they|it) ha(?:ve|s)\b": "say what is used",
    r"\b[Ww]ho asked may\b": "callers can",
    r"\bis told by\b|\bis said with\b": "is reported",
    r"\bof the kind\b|\bof its kind\b": "name the thing",
    r"\bso many (?:hours|minutes|seconds|days)\b": "this many ..., the number of ...",
    r"\bthat is said\b": "the message says so",
    r"\bother work (?:was running|is running|ran)\b": "other programs were running",
    r"\b[Ii]t (?:isn't|is not|is) reached (?:on|by|over|with|if)\b": "name what reaches or misses the goal",
    r"\blooked at (?:before|afterwards)\b": "used before, used afterwards",
    r"\bwhile settings were chosen\b": "to choose settings",
    r"\bfalsified by\b": "what was changed",
    r"\bas it ships\b": "as shipped, the shipped ...",
    r"\bby the same measure\b": "name what was measured",
    r"\bwith (?:all|the) results known\b": "when the results were known",
    r"\bthe second look\b": "the classifier",
}
"""Each pattern with what to write in its place."""


def prose_of_page(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the lines of a page outside code blocks."""
    inside = False
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if line.lstrip().startswith("```"):
            inside = not inside
        elif not inside:
            yield number, re.sub(r"`[^`]*`", "", line)


def prose_of_module(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the texts of a module that hold a blank: docstrings, messages and help texts."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and " " in node.value:
            yield from ((node.lineno + offset, line) for offset, line in enumerate(node.value.splitlines()))


@cache
def prose_of(path: Path) -> list[tuple[int, str]]:
    """Line numbers and texts that a person reads."""
    if path.suffix == ".py":
        return [*prose_of_module(path)]
    if path.suffix == ".md":
        return [*prose_of_page(path)]
    return [*enumerate(path.read_text(encoding="utf-8").splitlines(), 1)]


@pytest.mark.parametrize(("pattern", "replacement"), AVOIDED.items(), ids=AVOIDED.values())
def test_avoided_phrases_stay_away(pattern, replacement):
    found = [
        f"{path.relative_to(PROJECT)}:{line}: {match[0]!r}"
        for path in (*PROSE, *SOURCES, *TEMPLATES)
        for line, text in prose_of(path)
        for match in re.finditer(pattern, text)
    ]
    assert not found, f"Write {replacement!r} instead:\n" + "\n".join(found)


GENERATED = {"command-line.md", "http-api.md", "recipes.md"}


@pytest.mark.parametrize("page", [page for page in PROSE if page.name not in GENERATED], ids=lambda page: page.name)
def test_percent_signs_follow_their_number_without_a_space(page):
    found = [
        f"{page.name}:{line}: {match[0]!r}" for line, text in prose_of(page) for match in re.finditer(r"\d %", text)
    ]
    assert not found, "Write '95%' instead:\n" + "\n".join(found)
