"""`meditune api`: a run's training job at an API. Heavy libraries are imported by what the commands call."""

from __future__ import annotations

import typer

from meditune.commands.options import Run

app = typer.Typer(help="A run's training job at an API.", no_args_is_help=True, rich_markup_mode=None)


@app.command()
def status(folder: Run) -> None:
    """How a run's training job is."""
    from meditune.remote import journey

    typer.echo(journey.status(folder))


@app.command()
def cancel(folder: Run) -> None:
    """End a run's training job at the API."""
    from meditune.remote import journey

    typer.echo(journey.cancel(folder))
