"""`meditune review`: the commands around human judgements. Heavy libraries are imported by what they call.

Results in the terminal.

`meditune annotate`: the commands for checking data. Heavy libraries are imported by what they call.

Results in the terminal.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from meditune.errors import MedituneError

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
    from meditune.review.rating_set import create as make

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
    from meditune.review.review_server import in_dispute
    from meditune.review.review_server import serve as run_server

    disputes = in_dispute(folder) if adjudicate else None
    run_server(folder, host, port, lambda line: typer.echo(line), disputes)


@app.command()
def results(folder: Set) -> None:
    """What the ratings say: scores with intervals, tuned against base, agreement, disputed answers."""
    from meditune.cli.options import console
    from meditune.review.results import write_results

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
    from meditune.review.exchange import import_ratings as take

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
    from meditune.review.results import write_pairs

    made = write_pairs(folder, output, margin, per_question)
    typer.echo(f"{made.rated} pairs of rated answers, {made.corrected} with an answer that a rater wrote.")
    for reason, count in made.left_out.items():
        typer.echo(f"Left out: {count} {reason}")
    typer.echo(f"Pairs: {output.resolve()}. A run that measures on these very questions won't train on them.")


VERDICTS = {True: "[green]better[/]", False: "[red]worse[/]", None: "not shown"}


def print_results(found: dict[str, Any], out: Console) -> None:
    """Each line of the form: scores of base, tuned and reference, tuned against base, agreement."""
    table = Table(box=None, pad_edge=False)
    titles = ("asked", "base", "tuned", "reference", "tuned - base", "95 % interval", "p, Holm", "verdict", "alpha")
    for title in titles:
        table.add_column(title, justify="left" if title in {"asked", "verdict"} else "right")
    for title, row in (
        ("Over all lines", found["overall"]),
        *((axis["title"], axis) for axis in found["axes"].values()),
    ):
        scores = [_number(row["origins"][name]["score"], 1) for name in ("base", "tuned", "reference")]
        table.add_row(title, *scores, *_difference(row["difference"]), _alpha(row))
    out.print(table)
    out.print("Scores: 100 is the best option every time. Alpha: Krippendorff's; 1 is full agreement, 0 chance.")
    out.print(
        f"{found['ratings']:,} ratings of {found['answers']:,} answers by {found['raters']} raters "
        f"({found['cannot']:,} couldn't judge); {len(found['disputed'])} answers disputed, "
        f"{found['adjudicated']} ratings settled."
    )
    for remark in found["remarks"]:
        out.print(remark, style="yellow", markup=False)


def _alpha(row: dict[str, Any]) -> str:
    return _number(row["agreement"]["alpha"]["value"], 2) if "agreement" in row else ""


def _difference(row: dict[str, Any] | None) -> tuple[str, str, str, str]:
    from meditune.evaluate.compare import LEVEL

    if not row:
        return "", "", "", ""
    low, high = row["ci95"]
    p = row.get("p_holm")
    shown = "" if p is None else "<0.001" if p < 0.001 else f"{p:.3f}"
    chance = row["better"] and p is not None and p >= LEVEL
    return f"{row['delta']:+.1f}", f"{low:+.1f} to {high:+.1f}", shown, VERDICTS[row["better"]] + "?" * bool(chance)


def _number(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


annotate_app = typer.Typer(
    help="People check rows of the data; what they decide goes back into it.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

AnnotationSetFolder = Annotated[Path, typer.Argument(metavar="DIR", help="An annotation set's folder.")]
Without = Annotated[
    list[str] | None, typer.Option("--without", metavar="RATER", help="Leave this rater out, by name or code.")
]
Careless = Annotated[
    bool, typer.Option("--without-careless", help="Leave out who judged too many known items wrongly.")
]


@annotate_app.command("create")
def create_annotation_set(
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
    from meditune.review.annotation_set import Wanted
    from meditune.review.annotation_set import create as make

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


@annotate_app.command("serve")
def serve_annotation_set(
    folder: AnnotationSetFolder,
    host: Annotated[str, typer.Option(help="Where to listen; beyond this machine, with a token.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8765,
    adjudicate: Annotated[bool, typer.Option("--adjudicate", help="Show only what raters disagree on.")] = False,
    without: Without = None,
    without_careless: Careless = False,
) -> None:
    """Serve the page to check rows on, until ctrl-C."""
    from meditune.review.annotation_results import open_disputes
    from meditune.review.rating_set import VALIDATE
    from meditune.review.review_server import serve as run_server

    disputes = open_disputes(folder, without or (), without_careless) if adjudicate else None
    run_server(folder, host, port, lambda line: typer.echo(line), disputes, VALIDATE)


@annotate_app.command("results")
def annotation_results(
    folder: AnnotationSetFolder, without: Without = None, without_careless: Careless = False
) -> None:
    """Verdicts, agreement, careless raters, and what is disputed."""
    from meditune.cli.options import console
    from meditune.review.annotation_results import write_results

    print_annotation_results(write_results(folder, without or (), without_careless), console())
    typer.echo(f"Results: {(folder / 'results.json').resolve()}")


@annotate_app.command("export")
def export_annotations(
    folder: AnnotationSetFolder,
    to: Annotated[Path | None, typer.Option("--to", help="The file; DIR/ratings.csv or DIR/label-studio.json.")] = None,
    format: Annotated[str | None, typer.Option(help="csv or label-studio; else by the file's ending.")] = None,
    unblind: Annotated[
        bool, typer.Option("--unblind", help="Also say which row each is, and which are known.")
    ] = False,
) -> None:
    """Write what raters said, with their names, as CSV or as Label Studio's tasks."""
    from meditune.review.exchange import export as write
    from meditune.review.rating_set import VALIDATE

    for path in write(folder, to, format, unblind, VALIDATE):
        typer.echo(f"Written: {path.resolve()}")


@annotate_app.command("import")
def import_annotations(
    folder: AnnotationSetFolder,
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
    from meditune.review.annotation_results import write_decisions
    from meditune.review.exchange import import_ratings as take
    from meditune.review.rating_set import VALIDATE

    if file is None and output is None:
        raise MedituneError("Give a FILE to take ratings from, or --output for the decisions, or both.")
    if file is not None:
        taken = take(folder, file, VALIDATE)
        typer.echo(f"{taken.new} new ratings, {taken.changed} changed, {taken.same} as they were.")
    if output is not None:
        made = write_decisions(folder, output, without or (), without_careless)
        typer.echo(f"{made.decided} rows decided, {made.undecided} undecided; {made.others} of other sets stay.")
        typer.echo(f"Decisions: {output.resolve()}. Use them: --set data.decisions={output}")


def print_annotation_results(found: dict[str, Any], out: Console) -> None:
    """Verdicts, agreement, raters, signals, and what is open."""
    table = Table(box=None, pad_edge=False)
    for title in ("verdict", "rows", "ratings"):
        table.add_column(title, justify="left" if title == "verdict" else "right")
    for verdict, rows in found["rows_by_verdict"].items():
        table.add_row(verdict, str(rows), str(found["ratings_by_verdict"][verdict]))
    table.add_row("undecided", str(len(found["undecided"])), "")
    out.print(table)
    out.print(
        f"{found['judged']} of {found['rows']} rows judged, {found['ratings']} ratings ({found['cannot']} couldn't "
        f"judge). Texts changed: {found['changed']}. Rows that rest on one rater's word: {found['by_one_rater']}."
    )
    for name, share in {"all": found["correct"], **found["sources"], **found["kinds"]}.items():
        if share["decided"]:
            low, high = share["ci95"]
            out.print(
                f"Correct as they stand, {name}: {share['percent']:.0f} % of {share['decided']} "
                f"(95 % interval {low:.0f} to {high:.0f}).",
                highlight=False,
            )
    if "decisions" in found:
        given = ", ".join(f"{name} {count}" for name, count in found["decisions"].items())
        out.print(f"Decisions: {given}.", highlight=False)
    alpha = found["agreement"]["alpha"]
    if alpha["value"] is not None:
        out.print(f"Agreement: Krippendorff's alpha {alpha['value']:.2f} on {alpha['items']} rows.")
    for name, seen in found["suspicions"].items():
        if seen["decided"]:
            out.print(f"Suspicion {name}: {seen['faulty']} of {seen['decided']} such rows aren't correct.")
    for rater in found["raters"]:
        known = f"{rater['known_right']} of {rater['known_judged']} known items right"
        out.print(f"{rater['code']} {rater['name']}: {known}.", markup=False, highlight=False)
    open_ = [row for row in found["disputed"] if not row["settled"]]
    if open_:
        out.print(f"Disputed rows: {len(open_)}. To settle them: meditune annotate serve DIR --adjudicate")
    for remark in found["remarks"]:
        out.print(remark, style="yellow", markup=False)
