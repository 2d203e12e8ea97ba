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
    from meditune.review.serve import in_dispute
    from meditune.review.serve import serve as run_server

    disputes = in_dispute(folder) if adjudicate else None
    run_server(folder, host, port, lambda line: typer.echo(line), disputes)


@app.command()
def results(folder: Set) -> None:
    """What the ratings say: scores with intervals, tuned against base, agreement, disputed answers."""
    from meditune.review.results import write_results
    from meditune.review.table import print_results
    from meditune.terminal.console import console

    print_results(write_results(folder), console())
    typer.echo(f"Results: {(folder / 'results.html').resolve()}")


@app.command()
def export(
    folder: Set,
    to: Annotated[Path | None, typer.Option("--to", help="The file; DIR/ratings.csv or DIR/label-studio.json.")] = None,
    format: Annotated[str | None, typer.Option(help="csv or label-studio; else by the file's ending.")] = None,
    unblind: Annotated[bool, typer.Option("--unblind", help="Also say whose each answer is.")] = False,
) -> None:
    """Write the ratings, with raters' names, as CSV or as Label Studio's tasks."""
    from meditune.review.exchange import export as write

    for path in write(folder, to, format, unblind):
        typer.echo(f"Written: {path.resolve()}")


@app.command("import")
def take_in(
    folder: Set, file: Annotated[Path, typer.Argument(metavar="FILE", help="CSV, or Label Studio's JSON.")]
) -> None:
    """Take ratings over from a file; what the same rater said before is replaced."""
    from meditune.review.exchange import take_in as take

    taken = take(folder, file)
    typer.echo(f"{taken.new} new ratings, {taken.changed} changed, {taken.same} as they were.")


@app.command()
def pairs(
    folder: Set,
    output: Annotated[Path, typer.Option("--output", "-o", help="A JSON Lines file for train.preference.path.")],
    margin: Annotated[
        float, typer.Option(min=0.01, max=4, help="Least gap of two answers, on a scale of 1 to 5.")
    ] = 1.0,
    per_question: Annotated[int, typer.Option(min=1, help="Most pairs of one question's rated answers.")] = 10,
) -> None:
    """Make pairs of a better and a worse answer, to tune a model's preferences on."""
    from meditune.review.pairs import write_pairs

    made = write_pairs(folder, output, margin, per_question)
    typer.echo(f"{made.rated} pairs of rated answers, {made.corrected} with an answer that a rater wrote.")
    for reason, count in made.left_out.items():
        typer.echo(f"Left out: {count} {reason}")
    typer.echo(f"Pairs: {output.resolve()}. A run that measures on these very questions won't train on them.")
