"""`meditune data`: prepare, audit, survey and publish data; print what was read, split and found."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from meditune.cli.options import Overrides, RecipeName, approval, refuse_upload, resolve
from meditune.cli.tables import console, print_table
from meditune.errors import ModelError
from meditune.files import write_json

if TYPE_CHECKING:
    from rich.console import Console

    from meditune.data.example import Example
    from meditune.data.prepare import Prepared
    from meditune.data.read_sources import Terms

app = typer.Typer(
    help="Prepare, audit, survey, restore, de-identify and publish data.\n\nGuide: docs/how-to/check-data.md.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


@app.command()
def diversity(
    source: Annotated[
        str,
        typer.Argument(
            metavar="RECIPE|RUN", help="A recipe, or a folder of `meditune data prepare` or `meditune run`."
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for diversity.json and diversity.html.")],
    compare: Annotated[
        str | None, typer.Option(metavar="RECIPE|RUN", help="An earlier state of the data, to show side by side.")
    ] = None,
    clusters: Annotated[
        int, typer.Option(min=0, max=24, help="Number of clusters of similar questions; 0 is none.")
    ] = 12,
    overrides: Overrides = None,
) -> None:
    """Survey what data cover: sources, topics, people, reading grades, clusters.

    Example: `meditune data diversity quickstart --output survey`.

    Guide: docs/how-to/measure-diversity.md.
    """
    for line in survey_lines(survey(source, output, compare, clusters, overrides or [])):
        typer.echo(line)
    typer.echo(f"Page: {(output / 'diversity.html').resolve()}")


@app.command()
def push(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A run's folder, or the data folder in it.")],
    repository: Annotated[
        str, typer.Argument(metavar="REPO", help="Name of the data set on the Hugging Face hub: OWNER/NAME.")
    ],
    public: Annotated[
        bool, typer.Option("--public", help="Make the data set public; it is private by default.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Upload without asking.")] = False,
) -> None:
    """Upload a prepared data set with its card to the Hugging Face hub.

    Data sets with restricted rows are refused.

    Example: `meditune data push runs/quickstart OWNER/NAME`.

    Reference: docs/reference/licences.md.
    """
    from meditune.data import hub_upload

    upload = hub_upload.plan_upload(folder, repository, private=not public)
    approval(yes, refuse_upload)(upload.text())
    address = hub_upload.send(repository, "dataset", upload.folder, hub_upload.FILES, upload.private)
    typer.echo(f"Uploaded: {address}")


class Engine(StrEnum):
    """Where rows of a stream are checked."""

    LOCAL = "local"
    RAY = "ray"


@app.command()
def prepare(
    recipe: RecipeName,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder of the run. Unfinished preparation in it is resumed.")
    ],
    overrides: Overrides = None,
) -> None:
    """Read, audit and split a recipe's data into OUTPUT/data.

    Example: `meditune data prepare quickstart --output runs/quickstart`.

    Guide: docs/how-to/train-and-evaluate.md.
    """
    from meditune import pipeline

    print_data(pipeline.prepare_only(resolve(recipe, overrides).recipe, output), output / "data")


@app.command()
def audit(
    source: Annotated[
        str, typer.Argument(metavar="RECIPE", help="A recipe, or your own file (.jsonl, .json, .csv, .parquet).")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the table, page and ledger.")],
    overrides: Overrides = None,
    stream: Annotated[
        bool | None,
        typer.Option("--stream/--no-stream", help="Read your own file in batches; by default, only large files are."),
    ] = None,
    engine: Annotated[
        Engine, typer.Option(help="Where to check rows of a stream: in local processes or on Ray.")
    ] = Engine.LOCAL,
    workers: Annotated[int, typer.Option(min=1, help="Number of processes that check rows of a stream.")] = 1,
) -> None:
    """Run quality control alone and show what each rule finds.

    The command writes a table, a page and a ledger, and stores no split.

    Example: `meditune data audit pairs.csv --output audit`.

    Guide: docs/how-to/check-data.md.
    """
    from meditune.data.quality.audit_folder import audit_folder, recipe_for
    from meditune.evaluate.report.data_sections import render_quality

    quality = audit_folder(recipe_for(source, overrides or []), output, stream, engine.value, workers)
    page = render_quality(output)
    print_audit(quality, console())
    typer.echo(f"Page: {page.resolve()}")


@app.command()
def restore(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of a run or an audit.")],
    identifier: Annotated[str, typer.Argument(metavar="ID", help="The row's id in the ledger.")],
    to: Annotated[Path | None, typer.Option("--to", help="Add the row to this JSON Lines file.")] = None,
) -> None:
    """Print a dropped or changed row as it was read.

    Example: `meditune data restore audit pairs-17 --to restored.jsonl`.

    Guide: docs/how-to/check-data.md.
    """
    from meditune.data.quality.ledger import append_row
    from meditune.data.quality.ledger import restore as find

    example, entries = find(folder, identifier)
    typer.echo(example.model_dump_json(indent=2))
    for row in entries:
        typer.echo(f"{row['rule']}: {row['action']} ({row['detail']})", err=True)
    if to is not None:
        added = append_row(example, to)
        typer.echo(f"{'Added to' if added else 'Already in'}: {to.resolve()}", err=True)
    typer.echo(f"To keep it in the next run: --set 'data.quality.keep=[\"{identifier}\"]'", err=True)


@app.command()
def phi(
    source: Annotated[str, typer.Argument(metavar="FILE|RECIPE", help="A text, CSV or JSON Lines file, or a recipe.")],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="OUT", help="Write a copy of FILE without identifiers to this file."),
    ] = None,
    action: Annotated[
        str | None,
        typer.Option(help="Replace identifiers in the copy by: mask (placeholders) or surrogate (invented)."),
    ] = None,
    patient_column: Annotated[
        str | None,
        typer.Option(metavar="COLUMN", help="Column that identifies the patient, for consistent surrogates."),
    ] = None,
    kinds: Annotated[list[str] | None, typer.Option("--kind", help="Look only for this kind. Repeatable.")] = None,
    engine: Annotated[str | None, typer.Option(help="Detector: rules or presidio.")] = None,
    show: Annotated[
        int, typer.Option(min=0, help="Show this many findings in context, with the identifier masked.")
    ] = 0,
    overrides: Overrides = None,
) -> None:
    """Count identifiers of patients, and write a copy of a file without them.

    Example: `meditune data phi notes.txt --output notes-masked.txt`.

    Guide: docs/how-to/find-identifiers.md.
    """
    from meditune.data.phi_scan import scan, scan_lines

    result = scan(source, output, action, patient_column, kinds or [], engine, show, overrides or [])
    for line in scan_lines(result):
        typer.echo(line)
    if output:
        typer.echo(f"Written: {output.resolve()}")


FILE = "diversity.json"
SEED = 17


def survey(source: str, output: Path, other: str | None, count: int, overrides: Sequence[str]) -> dict[str, Any]:
    """Return a survey of a recipe's or a run's data; write it as diversity.json and diversity.html to `output`.

    A recipe's data are prepared in `output`, as by `meditune data prepare`, unless they are there already. `other` is
    an earlier state of the data; if it is a recipe, its data are prepared in `output/before`. The survey has `count`
    clusters of questions if the sentence model is available. Raises DataError and RecipeError like `prepare`.
    """
    from meditune.data.diversity import coverage
    from meditune.evaluate.report.data_sections import render_page

    data = _data(source, output, overrides)
    before = _data(other, output / "before", []) if other else None
    result: dict[str, Any] = {"of": source, "sha256": data.sha256, "synthetic": data.synthetic}
    result |= coverage.diversity(data.splits)
    sets: dict[str, Sequence[Example]] = {"train": data.splits.train, "test": data.splits.test}
    if before:
        result["compared"] = {"with": other} | coverage.compared(before.splits.train, data.splits.train, SEED)
        sets = {"before": before.splits.train, "after": data.splits.train}
    if count and (found := _clusters(sets, count)):
        result["clusters"] = found
    output.mkdir(parents=True, exist_ok=True)
    write_json(output / FILE, result)
    render_page(result, output / "diversity.html")
    return result


def survey_lines(result: dict[str, Any]) -> Iterator[str]:
    """Yield the survey in a few lines for the terminal."""
    train = result["splits"]["train"]
    yield f"{train['examples']:,} training examples."
    for name, dimension in train["dimensions"].items():
        if dimension["distinct"] > 1 and name not in ("people", "reading_grade", "answer_length", "question_length"):
            top = max(dimension["groups"], key=lambda row: row["count"])
            yield (
                f"{name.replace('_', ' ')}: {dimension['distinct']:,} groups, effective number "
                f"{dimension['shannon']:,.1f}; most frequent {top['group']} ({top['share']:.0f} %)"
            )
    for name, source in result["sources"].items():
        if "reading_grade" in source:
            yield f"{name}: {source['examples']:,} examples, median reading grade {source['reading_grade']['median']}"
    if found := result.get("clusters"):
        yield (
            f"{len(found['clusters'])} clusters of questions, effective number {found['effective']:.1f}; largest: "
            f"{found['clusters'][0]['name']}"
        )
    for remark in result["remarks"]:
        yield f"! {remark['message']} {remark['advice']}"


def _data(source: str, output: Path, overrides: Sequence[str]) -> Prepared:
    from meditune import pipeline
    from meditune.data.prepare import stored_data

    for folder in (Path(source) / "data", Path(source)):
        if (folder / "quality.json").is_file():
            return stored_data(folder)
    return pipeline.prepare_only(resolve(source, list(overrides)).recipe, output)


def _clusters(sets: dict[str, Sequence[Example]], count: int) -> dict[str, Any] | None:
    from meditune.data.diversity.clusters import chosen, clusters
    from meditune.models.sentence_encoder import sentence_model

    try:
        questions = chosen(sets, SEED)
        return clusters(questions, lambda texts: sentence_model().encode(texts, "Embedding questions"), count, SEED)
    except ModelError as error:
        print(f"The survey has no clusters: {error}", file=sys.stderr)
        return None


PHI_DONE = {"report": "unchanged", "mask": "masked", "surrogate": "replaced by invented ones"}


def print_leakage(*checks: dict[str, Any]) -> None:
    """Print the leakage that was found, in red."""
    from meditune.data.leakage import described

    for checked in checks:
        for sentence in described(checked):
            console().print(f"[bold red]LEAKAGE (allowed by the recipe):[/] {escape(sentence)}")


def print_data(data: Prepared, folder: Path) -> None:
    """Print what the data stage read, left out and split."""
    out = console()
    print_synthetic(data.synthetic)
    for name, row in data.quality["sources"].items():
        refused = ", ".join(f"{count:,} {reason}" for reason, count in row["rejected"].items()) or "nothing"
        out.print(f"{name}: {row['read']:,} examples read ({row['licence']}); left out: {refused}")
    print_audit(data.quality, out)
    for name, row in data.quality["splits"].items():
        decisions = ", ".join(f"{count} {label}" for label, count in row["decisions"].items())
        out.print(
            f"{name}: {row['examples']:,} examples in {row['groups']:,} groups {f'({decisions})' if decisions else ''}"
        )
    if "decisions" in data.quality:
        done = ", ".join(f"{count:,} {action}" for action, count in data.quality["decisions"]["actions"].items())
        missing = data.quality["decisions"]["not_in_the_data"]
        out.print(f"decisions of people: {done or 'none'}; {missing:,} about rows that aren't in the data")
    phi = data.quality["phi"]
    for name, row in phi["sources"].items():
        if row["with_identifiers"]:
            kinds = ", ".join(f"{count:,} {kind}" for kind, count in row["kinds"].items())
            done = PHI_DONE[phi["action"]]
            out.print(f"{name}: identifiers in {row['with_identifiers']:,} examples, {done} ({kinds})")
    print_leakage(data.quality["leakage"])
    if found := data.quality.get("rebalanced"):
        rules = "; ".join(f"{rule} {sum(by_source.values()):,}" for rule, by_source in found["rules"].items())
        out.print(f"Rebalanced: {found['before']:,} to {found['after']:,} training examples ({rules})")
    remarks = data.quality["diversity"]["remarks"]
    for remark in remarks:
        # Earlier versions stored the message as `said`.
        out.print(f"Coverage: {escape(remark.get('message') or remark['said'])}")
    if remarks:
        out.print(
            f"For an explanation and advice, run: meditune data diversity {folder.parent} --output DIR", markup=False
        )
    print_terms(data.quality["terms"])
    out.print(f"Data: {folder.resolve()}")


def print_terms(terms: Terms) -> None:
    """Print what several licences require together, and a warning about restricted rows."""
    from meditune.data.read_sources import warning
    from meditune.data.sources import licence_requirements

    if len(terms) > 1:
        for sentence in licence_requirements(terms):
            console().print(sentence, markup=False)
    if warning(terms):
        console().print(warning(terms), style="bold yellow", markup=False)


def print_synthetic(synthetic: bool) -> None:
    """Print a notice if the data are synthetic."""
    if synthetic:
        console().print(
            "[bold yellow]SYNTHETIC sample: the studies are invented, so the metrics say nothing about medicine.[/]"
        )


AUDIT_DONE = {
    "drop": "left out",
    "merge": "merged",
    "mend": "corrected",
    "flag": "flagged",
    "group": "kept in one split",
}


def print_audit(quality: dict[str, Any], out: Console) -> None:
    """Print a line for each rule that found something, and how many rows were left out and changed."""
    audit = quality["audit"]
    rows = []
    for name, row in audit["rules"].items():
        if row["rows"]:
            done = ", ".join(f"{count:,} {AUDIT_DONE[action]}" for action, count in row["done"].items())
            rows.append((name, f"{row['rows']:,}", f"{row['share']:.1%}", done))
    print_table(("Rule", "Rows", "Share", "Action"), rows, left_aligned=["Action"])
    silent = [name for name, row in audit["rules"].items() if not row["rows"] and row["action"] != "off"]
    if silent:
        out.print(f"Nothing found by: {', '.join(silent)}", style="dim")
    touched = audit["dropped"] or audit["changed"]
    out.print(
        f"Quality control: {audit['rows']:,} rows, {audit['dropped']:,} left out, {audit['changed']:,} changed."
        + (" ledger.parquet lists them; `meditune data restore DIR ID` prints the original." if touched else "")
    )
    if quality.get("not_split"):
        out.print(f"Not split: {quality['not_split']}", markup=False)
