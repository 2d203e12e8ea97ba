"""Arguments and options that several commands have, and the recipe that they mean.

What every command shows with: standard output, and the question whether data may leave the machine.

What the commands show.
"""

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
    from meditune.config import load_recipe

    return load_recipe.load_recipe(name, overrides or [])


WIDE = 200


def console() -> Console:
    """Standard output; plain text where it isn't a terminal, and wide, because nothing there needs wrapping."""
    return Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else WIDE)


def refuse_upload(text: str) -> None:
    """Approve of no upload."""
    raise MedituneError(f"Nothing was sent. Data would leave this machine:\n{text}\nTo agree, add --yes.")


def approval(yes: bool, refusal: Approve | None = None) -> Approve:
    """What answers for the user before anything is sent: --yes, or an answer typed into a terminal, else `refusal`."""
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
