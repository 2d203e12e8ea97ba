"""The prose that people read is plain English: words and phrases that make a native reader stop don't come back."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[1]
PAGES = sorted([*PROJECT.glob("*.md"), *(PROJECT / "docs").rglob("*.md")])
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


def prose_of(path: Path) -> Iterator[tuple[int, str]]:
    """Yield line numbers and texts that a person reads."""
    if path.suffix == ".py":
        yield from prose_of_module(path)
    elif path.suffix == ".md":
        yield from prose_of_page(path)
    else:
        yield from enumerate(path.read_text(encoding="utf-8").splitlines(), 1)


@pytest.mark.parametrize(("pattern", "replacement"), AVOIDED.items(), ids=AVOIDED.values())
def test_avoided_phrases_stay_away(pattern, replacement):
    found = [
        f"{path.relative_to(PROJECT)}:{line}: {match[0]!r}"
        for path in (*PAGES, *SOURCES, *TEMPLATES)
        for line, text in prose_of(path)
        for match in re.finditer(pattern, text)
    ]
    assert not found, f"Write {replacement!r} instead:\n" + "\n".join(found)


GENERATED = {"command-line.md", "http-api.md", "recipes.md"}


@pytest.mark.parametrize("page", [page for page in PAGES if page.name not in GENERATED], ids=lambda page: page.name)
def test_percent_signs_follow_their_number_without_a_space(page):
    found = [
        f"{page.name}:{line}: {match[0]!r}" for line, text in prose_of(page) for match in re.finditer(r"\d %", text)
    ]
    assert not found, "Write '95%' instead:\n" + "\n".join(found)
