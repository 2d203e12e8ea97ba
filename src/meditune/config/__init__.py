"""Recipes: the YAML files that describe a whole run, the shipped ones and the user's own.

`loading` turns a file and `--set` options into a Recipe, `writing` turns a Recipe into text again.
"""

from __future__ import annotations

from pathlib import Path

FOLDER = Path(__file__).parent / "recipes"


def shipped() -> dict[str, Path]:
    """The recipes that come with Meditune: name and file, by name."""
    return {path.stem: path for path in sorted(FOLDER.glob("*.yaml"))}
