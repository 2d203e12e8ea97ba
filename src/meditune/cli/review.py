"""`meditune review` and `meditune annotate`: let people rate answers and check rows of the data."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated, Any

import typer
from typer import Argument, Option

from meditune.cli.options import ExcludeRater, Group, Overlap, Overrides, Raters, Seed, Text
from meditune.cli.tables import (
    VERDICTS,
    Cell,
    console,
    interval,
    number,
    p_value,
    print_lines,
    print_remarks,
    print_table,
)
from meditune.errors import MedituneError

app = Group("review", "Let people rate blinded answers, and report the results.", "how-to/rate-answers.md")

Set = Annotated[Path, Argument(metavar="DIR", help="Folder of the rating set.")]
Host = Annotated[
    str, Option(help="Address to listen on. Raters on other machines need the token that the command prints.")
]
Port = Annotated[int, Option(min=0, max=65535, help="Port; 0 selects a free port.")]
Adjudicate = Annotated[bool, Option("--adjudicate", help="Show only items on which raters disagree.")]
To = Annotated[Path | None, Option("--to", help="Output file; DIR/ratings.csv or DIR/label-studio.json by default.")]
Format = Annotated[Text, Option(help="Format: csv or label-studio; by default, the file's extension decides.")]


@app.command(example="runs/quickstart --questions 30")
def create(
    run: Annotated[Path, Argument(metavar="RUN", help="Folder of a finished run.")],
    output: Annotated[
        Path | None, Option("--output", "-o", help="Folder of the rating set; RUN/review by default.")
    ] = None,
    questions: Annotated[int, Option(min=1, help="Number of questions to sample.")] = 30,
    form: Annotated[str, Option(help="Rating form: expert or lay.")] = "expert",
    raters: Raters = None,
    overlap: Overlap = None,
    seed: Seed = 17,
) -> None:
    """Make a blinded rating set from a run: answers of the base model and of the tuned model, and reference answers."""
    from meditune.review.rating_set import create as make

    folder = output or run / "review"
    counts = make(run, folder, questions, form, raters, overlap, seed)
    typer.echo(f"{counts['answers']} answers to {counts['questions']} questions, in random order, with hidden origin.")
    if counts["alike"]:
        typer.echo(
            f"{counts['alike']} of these answers were given by two or more of base model, tuned model and reference. "
            "Each is rated once."
        )
    start = shlex.join(["meditune", "review", "serve", str(folder)])
    typer.echo(f"Rating set: {folder.resolve()}. Start the page for raters: {start}")


@app.command(example="runs/quickstart/review")
def serve(folder: Set, host: Host = "127.0.0.1", port: Port = 8765, adjudicate: Adjudicate = False) -> None:
    """Serve the rating page until you press ctrl-C."""
    from meditune.review.review_server import in_dispute
    from meditune.review.review_server import serve as run_server

    disputes = in_dispute(folder) if adjudicate else None
    run_server(folder, host, port, typer.echo, disputes)


@app.command(example="runs/quickstart/review")
def results(folder: Set) -> None:
    """Report scores with intervals, agreement and disputed answers."""
    from meditune.review.results import write_results

    _print_results(write_results(folder))
    typer.echo(f"Results: {(folder / 'results.html').resolve()}")


@app.command(example="runs/quickstart/review --to ratings.csv")
def export(
    folder: Set,
    to: To = None,
    format: Format = None,
    unblind: Annotated[
        bool,
        Option(
            "--unblind", help="Also write whether each answer is from the base model, the tuned model or the reference."
        ),
    ] = False,
) -> None:
    """Export ratings with raters' names as CSV or Label Studio tasks."""
    from meditune.review.import_export import export as write

    print_lines(f"Written: {path.resolve()}" for path in write(folder, to, format, unblind))


@app.command("import", example="runs/quickstart/review ratings.csv")
def import_set(
    folder: Set,
    file: Annotated[Path, Argument(metavar="FILE", help="File of ratings: CSV, or a JSON export from Label Studio.")],
) -> None:
    """Import ratings from a file. Imported ratings replace earlier ratings by the same rater."""
    from meditune.review.import_export import import_ratings as take

    print_lines(take(folder, file).lines())


@app.command(example="runs/quickstart/review --output pairs.jsonl")
def pairs(
    folder: Set,
    output: Annotated[
        Path, Option("--output", "-o", help="JSON Lines file to write; train.preference.path can name it.")
    ],
    margin: Annotated[
        float, Option(min=0.01, max=4, help="Minimum difference between the scores (1 to 5) of the two answers.")
    ] = 1.0,
    per_question: Annotated[int, Option(min=1, help="Maximum number of pairs per question.")] = 10,
) -> None:
    """Make pairs of a better and a worse answer for preference tuning."""
    from meditune.review.results import write_pairs

    summary = write_pairs(folder, output, margin, per_question)
    typer.echo(f"{summary.rated} pairs of rated answers, {summary.corrected} with an answer that a rater wrote.")
    for reason, count in summary.left_out.items():
        typer.echo(f"Left out: {count} {reason}")
    typer.echo(f"Pairs: {output.resolve()}. A run doesn't train on pairs whose questions are test items.")


def _print_results(results: dict[str, Any]) -> None:
    from meditune.statistics import LEVEL

    rows = []
    axes = {"All criteria": results["overall"]} | {axis["title"]: axis for axis in results["axes"].values()}
    for title, row in axes.items():
        cells: list[Cell] = [number(row["origins"][name]["score"], 1) or "–" for name in ("base", "tuned", "reference")]
        if difference := row["difference"]:
            p = difference.get("p_holm")
            unsure = difference["better"] and p is not None and p >= LEVEL
            verdict = VERDICTS[None if unsure else difference["better"]]
            cells += [number(difference["delta"], 1, "+"), interval(difference, 1), p_value(p), verdict]
        else:
            cells += [""] * 4
        alpha = number(row["agreement"]["alpha"]["value"], 2) or "–" if "agreement" in row else ""
        rows.append((title, *cells, alpha))
    titles = ("criterion", "base", "tuned", "reference", "tuned - base", "95% interval", "p, Holm", "verdict", "alpha")
    print_table(titles, rows, left_aligned=["verdict"])
    out = console()
    out.print(
        "Score 100: the best option in every rating. Alpha (Krippendorff): 1 is full agreement, 0 agreement by chance."
    )
    out.print(
        f"{results['ratings']:,} ratings of {results['answers']:,} answers by {results['raters']} raters "
        f"(can't judge: {results['cannot']:,}); {len(results['disputed'])} answers disputed, "
        f"{results['adjudicated']} ratings settled."
    )
    print_remarks(results["remarks"])


annotate_app = Group("annotate", "Let people check rows of data, and apply their decisions.", "how-to/check-data.md")

AnnotationSetFolder = Annotated[Path, Argument(metavar="DIR", help="Folder of the annotation set.")]
ExcludeCareless = Annotated[
    bool,
    Option(
        "--exclude-careless", help="Exclude raters who gave a wrong verdict on too many items with a known verdict."
    ),
]


@annotate_app.command("create", example="quickstart --rows 60 --output checks")
def create_annotation_set(
    source: Annotated[str, Argument(metavar="SOURCE", help="A recipe, a run's folder, or your own table.")],
    output: Annotated[Path, Option("--output", "-o", help="Folder of the annotation set.")],
    rows: Annotated[int, Option(min=1, help="Number of rows to check.")] = 100,
    sample: Annotated[
        str, Option(help="Sample of rows: random, or suspicious (the rows with the most signs of errors).")
    ] = "random",
    stratify_by: Annotated[
        str,
        Option(
            help="source, decision or question_type: choose the same number of rows for each of its values; none: off."
        ),
    ] = "none",
    raters: Raters = None,
    overlap: Overlap = None,
    shared_rows: Annotated[int, Option(min=0, help="Number of rows that every rater judges.")] = 0,
    gold: Annotated[
        Path | None, Option(help="File of items with a known verdict (column verdict), to find careless raters.")
    ] = None,
    synthetic_gold: Annotated[
        int,
        Option(min=0, help="Number of wrong items (rows with another row's answer) to add, to find careless raters."),
    ] = 0,
    include_test: Annotated[
        bool, Option("--include-test", help="Also choose test items; decisions never change test items.")
    ] = False,
    seed: Seed = 17,
    overrides: Overrides = None,
) -> None:
    """Choose rows of the data for people to check."""
    from meditune.review.annotation_set import AnnotationSetOptions
    from meditune.review.annotation_set import create as make

    chosen = (rows, sample, stratify_by, raters, overlap, shared_rows, gold, synthetic_gold, include_test, seed)
    counts = make(source, output, AnnotationSetOptions(*chosen, tuple(overrides or ())))
    typer.echo(f"{counts.rows} rows to check, and {counts.known} known items among them.")
    for count, what in (
        (counts.decided, "rows were checked before and aren't included again."),
        (counts.rejected, "rows of the table couldn't be read."),
        (counts.restricted, "rows are restricted: only people who may read the restricted data may check these rows."),
    ):
        if count:
            typer.echo(f"{count} {what}")
    start = shlex.join(["meditune", "annotate", "serve", str(output)])
    typer.echo(f"Annotation set: {output.resolve()}. Start the page for raters: {start}")


@annotate_app.command("serve", example="checks")
def serve_annotation_set(
    folder: AnnotationSetFolder,
    host: Host = "127.0.0.1",
    port: Port = 8765,
    adjudicate: Adjudicate = False,
    exclude_rater: ExcludeRater = None,
    exclude_careless: ExcludeCareless = False,
) -> None:
    """Serve the page on which people check rows, until you press ctrl-C."""
    from meditune.review.annotation_results import open_disputes
    from meditune.review.rating_set import VALIDATE
    from meditune.review.review_server import serve as run_server

    disputes = open_disputes(folder, exclude_rater or (), exclude_careless) if adjudicate else None
    run_server(folder, host, port, typer.echo, disputes, VALIDATE)


@annotate_app.command("results", example="checks")
def annotation_results(
    folder: AnnotationSetFolder, exclude_rater: ExcludeRater = None, exclude_careless: ExcludeCareless = False
) -> None:
    """Report verdicts, agreement, careless raters and disputes."""
    from meditune.review.annotation_results import write_results

    _print_annotation_results(write_results(folder, exclude_rater or (), exclude_careless))
    typer.echo(f"Results: {(folder / 'results.json').resolve()}")


@annotate_app.command("export", example="checks --to ratings.csv")
def export_annotations(
    folder: AnnotationSetFolder,
    to: To = None,
    format: Format = None,
    unblind: Annotated[
        bool, Option("--unblind", help="Also write each item's row id, and whether the item has a known verdict.")
    ] = False,
) -> None:
    """Export judgements with raters' names as CSV or Label Studio tasks."""
    from meditune.review.import_export import export as write
    from meditune.review.rating_set import VALIDATE

    print_lines(f"Written: {path.resolve()}" for path in write(folder, to, format, unblind, VALIDATE))


@annotate_app.command("import", example="checks --output decisions.jsonl")
def import_annotations(
    folder: AnnotationSetFolder,
    file: Annotated[
        Path | None, Argument(metavar="FILE", help="File of ratings: CSV, or a JSON export from Label Studio.")
    ] = None,
    output: Annotated[
        Path | None,
        Option("--output", "-o", help="File for the decisions, which the recipe key data.decisions can name."),
    ] = None,
    exclude_rater: ExcludeRater = None,
    exclude_careless: ExcludeCareless = False,
) -> None:
    """Import ratings, turn ratings into decisions about the data, or both."""
    from meditune.review.annotation_results import write_decisions
    from meditune.review.import_export import import_ratings as take
    from meditune.review.rating_set import VALIDATE

    if file is None and output is None:
        raise MedituneError("Specify a FILE of ratings to import, --output for the decisions, or both.")
    if file is not None:
        print_lines(take(folder, file, VALIDATE).lines())
    if output is not None:
        counts = write_decisions(folder, output, exclude_rater or (), exclude_careless)
        typer.echo(
            f"{counts.decided} rows decided, {counts.undecided} undecided. "
            f"Decisions from other sets kept: {counts.from_other_sets}."
        )
        typer.echo(f"Decisions: {output.resolve()}. Use them: --set data.decisions={output}")


def _print_annotation_results(results: dict[str, Any]) -> None:
    from meditune.operate.label_queue import REASON_TITLES

    out, given = console(), results["ratings_by_verdict"]
    rows = [(verdict, str(count), str(given[verdict])) for verdict, count in results["rows_by_verdict"].items()]
    print_table(("verdict", "rows", "ratings"), [*rows, ("undecided", str(len(results["undecided"])), "")])
    out.print(
        f"{results['judged']} of {results['rows']} rows judged, {results['ratings']} ratings "
        f"(can't judge: {results['cannot']}). Texts changed: {results['changed']}. "
        f"Rows decided by one rater: {results['by_one_rater']}."
    )
    for name, share in {"all": results["correct"], **results["sources"], **results["kinds"]}.items():
        if share["decided"]:
            low, high = share["ci95"]
            out.print(
                f"Correct rows, {name}: {share['percent']:.0f}% of {share['decided']} "
                f"(95% interval {low:.0f} to {high:.0f})."
            )
    if "decisions" in results:
        given = ", ".join(f"{name} {count}" for name, count in results["decisions"].items())
        out.print(f"Decisions: {given}.")
    alpha = results["agreement"]["alpha"]
    if alpha["value"] is not None:
        out.print(f"Agreement: Krippendorff's alpha {alpha['value']:.2f} on {alpha['items']} rows.")
    for name, seen in results["suspicions"].items():
        if seen["decided"]:
            title = REASON_TITLES.get(name, name)
            out.print(f"Suspicion {title}: {seen['faulty']} of {seen['decided']} suspected rows are incorrect.")
    for rater in results["raters"]:
        known = f"{rater['known_right']} of {rater['known_judged']} known items judged correctly"
        out.print(f"{rater['code']} {rater['name']}: {known}.")
    open_ = [row for row in results["disputed"] if not row["settled"]]
    if open_:
        out.print(f"Disputed rows: {len(open_)}. To settle them: meditune annotate serve DIR --adjudicate")
    print_remarks(results["remarks"])
