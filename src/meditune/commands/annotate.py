"""`meditune annotate`: the commands for checking data. Heavy libraries are imported by what they call."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from meditune.errors import MedituneError

app = typer.Typer(
    help="People check rows of the data; what they decide goes back into it.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

Set = Annotated[Path, typer.Argument(metavar="DIR", help="An annotation set's folder.")]
Without = Annotated[
    list[str] | None, typer.Option("--without", metavar="RATER", help="Leave this rater out, by name or code.")
]
Careless = Annotated[
    bool, typer.Option("--without-careless", help="Leave out who judged too many known items wrongly.")
]


@app.command("create")
def create(
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="A recipe, a run's folder, or a table of your own.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the annotation set.")],
    rows: Annotated[int, typer.Option(min=1, help="So many rows.")] = 100,
    sample: Annotated[str, typer.Option(help="Which: random, or suspicious (the most suspicious first).")] = "random",
    strata: Annotated[
        str, typer.Option(help="As many of each: source, decision or question_type; none of that.")
    ] = "none",
    raters: Annotated[int | None, typer.Option(min=1, help="So many share the work; else each judges all.")] = None,
    overlap: Annotated[
        int | None, typer.Option(min=1, help="So many of them judge each row; two unless given.")
    ] = None,
    shared: Annotated[int, typer.Option(min=0, help="So many rows are judged by all of them.")] = 0,
    gold: Annotated[
        Path | None, typer.Option(help="A table of known items with a column verdict, which catch careless raters.")
    ] = None,
    planted: Annotated[int, typer.Option(min=0, help="So many known items made of rows with another's answer.")] = 0,
    test: Annotated[bool, typer.Option("--test", help="Also test items; decisions never change those.")] = False,
    seed: Annotated[int, typer.Option(min=0, help="Chooses the rows.")] = 17,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a key of the recipe. Repeatable.")
    ] = None,
) -> None:
    """Choose rows of the data for people to check."""
    from meditune.review.annotate.create import Wanted
    from meditune.review.annotate.create import create as make

    made = make(
        source,
        output,
        Wanted(rows, sample, strata, raters, overlap, shared, gold, planted, test, seed, tuple(overrides or ())),
    )
    typer.echo(f"{made.rows} rows to check, and {made.known} known items among them.")
    for count, what in (
        (made.decided, "rows were checked before and aren't offered again."),
        (made.rejected, "rows of the table couldn't be read."),
        (made.restricted, "rows are restricted: only people who may read that data may check them."),
    ):
        if count:
            typer.echo(f"{count} {what}")
    typer.echo(f"Annotation set: {output.resolve()}. Let people check it: meditune annotate serve {output}")


@app.command("serve")
def serve(
    folder: Set,
    host: Annotated[str, typer.Option(help="Where to listen; beyond this machine, with a token.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8765,
    adjudicate: Annotated[bool, typer.Option("--adjudicate", help="Show only what raters disagree on.")] = False,
    without: Without = None,
    without_careless: Careless = False,
) -> None:
    """Serve the page to check rows on, until ctrl-C."""
    from meditune.review.annotate.checked import open_disputes
    from meditune.review.serve import serve as run_server
    from meditune.review.tasks import VALIDATE

    disputes = open_disputes(folder, without or (), without_careless) if adjudicate else None
    run_server(folder, host, port, lambda line: typer.echo(line), disputes, VALIDATE)


@app.command("results")
def results(folder: Set, without: Without = None, without_careless: Careless = False) -> None:
    """Verdicts, agreement, careless raters, and what is disputed."""
    from meditune.review.annotate.results import write_results
    from meditune.review.annotate.table import print_results
    from meditune.terminal.console import console

    print_results(write_results(folder, without or (), without_careless), console())
    typer.echo(f"Results: {(folder / 'results.json').resolve()}")


@app.command("export")
def export(
    folder: Set,
    to: Annotated[Path | None, typer.Option("--to", help="The file; DIR/ratings.csv or DIR/label-studio.json.")] = None,
    format: Annotated[str | None, typer.Option(help="csv or label-studio; else by the file's ending.")] = None,
    unblind: Annotated[
        bool, typer.Option("--unblind", help="Also say which row each is, and which are known.")
    ] = False,
) -> None:
    """Write what raters said, with their names, as CSV or as Label Studio's tasks."""
    from meditune.review.exchange import export as write
    from meditune.review.tasks import VALIDATE

    for path in write(folder, to, format, unblind, VALIDATE):
        typer.echo(f"Written: {path.resolve()}")


@app.command("import")
def take_in(
    folder: Set,
    file: Annotated[
        Path | None, typer.Argument(metavar="FILE", help="CSV, or Label Studio's JSON, to take in.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write what was decided to this file, for data.decisions.")
    ] = None,
    without: Without = None,
    without_careless: Careless = False,
) -> None:
    """Take ratings over from a file, and turn what raters said into decisions about the data."""
    from meditune.review.annotate.decide import write_decisions
    from meditune.review.exchange import take_in as take
    from meditune.review.tasks import VALIDATE

    if file is None and output is None:
        raise MedituneError("Give a FILE to take ratings from, or --output for the decisions, or both.")
    if file is not None:
        taken = take(folder, file, VALIDATE)
        typer.echo(f"{taken.new} new ratings, {taken.changed} changed, {taken.same} as they were.")
    if output is not None:
        made = write_decisions(folder, output, without or (), without_careless)
        typer.echo(f"{made.decided} rows decided, {made.undecided} undecided; {made.others} of other sets stay.")
        typer.echo(f"Decisions: {output.resolve()}. Use them: --set data.decisions={output}")
