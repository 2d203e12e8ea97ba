"""`meditune review`: the commands around human judgements. Heavy libraries are imported by what they call."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    help="People rate answers without knowing whose they are.", no_args_is_help=True, rich_markup_mode=None
)

Set = Annotated[Path, typer.Argument(metavar="DIR", help="A rating set's folder.")]


@app.command()
def create(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A finished run.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder of the rating set; RUN/review unless given.")
    ] = None,
    questions: Annotated[int, typer.Option(min=1, help="So many questions, a seeded choice.")] = 30,
    axes: Annotated[str, typer.Option(help="What is asked of each answer: expert or lay.")] = "expert",
    raters: Annotated[int | None, typer.Option(min=1, help="So many share the work; else each rates all.")] = None,
    overlap: Annotated[int | None, typer.Option(min=1, help="So many of them rate each question.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Chooses the questions.")] = 17,
) -> None:
    """Make a blinded rating set of a run's answers: base, tuned and reference, mixed."""
    from meditune.review.create import create as make

    folder = output or run / "review"
    made = make(run, folder, questions, axes, raters, overlap, seed)
    typer.echo(f"{made['answers']} answers to {made['questions']} questions, in random order, without their origin.")
    if made["alike"]:
        typer.echo(
            f"{made['alike']} of them are what more than one of base, tuned and reference said, each rated once."
        )
    typer.echo(f"Rating set: {folder.resolve()}. Let people rate it: meditune review serve {folder}")


@app.command()
def serve(
    folder: Set,
    host: Annotated[str, typer.Option(help="Where to listen; beyond this machine, with a token.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8765,
    adjudicate: Annotated[bool, typer.Option("--adjudicate", help="Show only what raters disagree on.")] = False,
) -> None:
    """Serve the page to rate on, until ctrl-C."""
    from meditune.review.serve import serve as run_server

    run_server(folder, host, port, adjudicate, lambda line: typer.echo(line))
