"""Recipes: YAML files that describe a complete run. The module `load_recipe` reads, prints and saves recipes."""

from __future__ import annotations

from pathlib import Path

FOLDER = Path(__file__).parent / "recipes"


def shipped() -> dict[str, Path]:
    """Return name -> file for the recipes that come with Meditune, sorted by name."""
    return {path.stem: path for path in sorted(FOLDER.glob("*.yaml"))}
