"""The documentation site: generated pages are up to date, and the navigation has every page."""

import importlib.util
import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

PROJECT = Path(__file__).parents[1]
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
    there = sorted(str(path.relative_to(DOCS)) for path in DOCS.rglob("*.md"))
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
