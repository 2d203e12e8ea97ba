"""Arguments and options that several commands share, their console, and the question before an upload."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from meditune.errors import MedituneError

if TYPE_CHECKING:
    from meditune.config.load_recipe import Resolved
    from meditune.hosted_pipeline import Approve

RecipeName = Annotated[str, typer.Argument(metavar="RECIPE", help="Name of a shipped recipe, or a YAML file.")]
Output = Annotated[Path, typer.Option("--output", "-o", help="Folder of the run. An unfinished run in it is resumed.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change a recipe key, for example train.epochs=1. Repeatable."),
]
Yes = Annotated[
    bool, typer.Option("--yes", help="For a model behind an API: send data and spend money without asking.")
]
Run = Annotated[Path, typer.Argument(metavar="DIR", help="The run's folder.")]


def resolve(name: str, overrides: list[str] | None) -> Resolved:
    """Return the recipe with its overrides. Raises RecipeError, which lists every problem, if it is invalid."""
    from meditune.config import load_recipe

    return load_recipe.load_recipe(name, overrides or [])


WIDE = 200


def console() -> Console:
    """Return a console on standard output; outside a terminal it prints plain text and doesn't wrap."""
    return Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else WIDE)


def refuse_upload(text: str) -> None:
    """Raise MedituneError, which asks for --yes."""
    raise MedituneError(f"Nothing was sent. This would leave the machine:\n{text}\nTo agree, add --yes.")


def approval(yes: bool, refusal: Approve | None = None) -> Approve:
    """Return the function that gets the user's consent before an upload.

    With `yes` it agrees, in a terminal it asks, and elsewhere it calls `refusal`.
    """
    from meditune.hosted_pipeline import refuse

    def approve(text: str) -> None:
        if not yes and not sys.stdin.isatty():
            (refusal or refuse)(text)
        print(text, file=sys.stderr)
        if not yes:
            print("Send it? [y/N] ", end="", file=sys.stderr, flush=True)
            if sys.stdin.readline().strip().lower() not in {"y", "yes"}:
                raise MedituneError("Nothing was sent.")

    return approve
