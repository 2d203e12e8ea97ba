"""Recipes: YAML files that describe a whole run. `load_recipe` reads, prints and saves them."""

from __future__ import annotations

from pathlib import Path

FOLDER = Path(__file__).parent / "recipes"


def shipped() -> dict[str, Path]:
    """Return the files of the shipped recipes by name, sorted by name."""
    return {path.stem: path for path in sorted(FOLDER.glob("*.yaml"))}
