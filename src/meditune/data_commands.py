"""`meditune data`: commands about prepared data. Heavy libraries are imported by what they call."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help="The data stage on its own.", no_args_is_help=True, rich_markup_mode=None)


@app.command()
def push(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A run's folder, or the data folder in it.")],
    repository: Annotated[
        str, typer.Argument(metavar="REPO", help="The data set at the Hugging Face hub: OWNER/NAME.")
    ],
    public: Annotated[bool, typer.Option("--public", help="Let everyone see it; else only you and yours.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Send it without asking.")] = False,
) -> None:
    """Send a prepared set with its card to the hub; restricted sets are refused."""
    from meditune import terminal
    from meditune.data import pushing

    upload = pushing.planned(folder, repository, private=not public)
    terminal.approval(yes, terminal.refuse_upload)(upload.text())
    typer.echo(f"Sent: {pushing.push(upload)}")
