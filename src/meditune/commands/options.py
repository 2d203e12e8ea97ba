"""Arguments and options that several commands have, and the recipe that they mean."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from meditune.recipes.loading import Resolved

RecipeName = Annotated[str, typer.Argument(metavar="RECIPE", help="A shipped recipe's name or a YAML file.")]
Output = Annotated[
    Path, typer.Option("--output", "-o", help="Folder of the run; the same one goes on where it stopped.")
]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change a recipe key: train.epochs=1. Repeatable."),
]
Yes = Annotated[bool, typer.Option("--yes", help="Send data to a model behind an API, and spend, without asking.")]
Run = Annotated[Path, typer.Argument(metavar="DIR", help="The run's folder.")]


def resolve(name: str, overrides: list[str] | None) -> Resolved:
    """The recipe with its overrides. Raises DataError with all that is wrong with it."""
    from meditune.recipes import loading

    return loading.load_recipe(name, overrides or [])
