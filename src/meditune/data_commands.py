"""`meditune data`: commands about prepared data. Heavy libraries are imported by what they call."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help="The data stage on its own.", no_args_is_help=True, rich_markup_mode=None)


@app.command()
def diversity(
    what: Annotated[
        str, typer.Argument(metavar="RECIPE|RUN", help="A recipe, or a folder of `meditune data prepare` or of a run.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for diversity.json and diversity.html.")],
    compare: Annotated[
        str | None, typer.Option(metavar="RECIPE|RUN", help="What the data were before: shown side by side.")
    ] = None,
    clusters: Annotated[int, typer.Option(min=0, max=24, help="Clusters of questions in meaning; 0 leaves out.")] = 12,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a key of the recipe. Repeatable.")
    ] = None,
) -> None:
    """What prepared data cover and hardly cover, as a page: sources, topics, people, reading grades, clusters."""
    from meditune.surveying import said, survey

    for line in said(survey(what, output, compare, clusters, overrides or [])):
        typer.echo(line)
    typer.echo(f"Page: {(output / 'diversity.html').resolve()}")


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
