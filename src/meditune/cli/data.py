"""`meditune data`: prepare, audit, survey and publish data, and print the results."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer import Argument, Option

from meditune.cli.options import Group, Overrides, RecipeName, Text, Texts, approval, refuse_upload, resolve
from meditune.cli.tables import console, print_lines, print_table
from meditune.errors import DataError, ModelError
from meditune.files import write_json
from meditune.text import counted, counted_reasons

if TYPE_CHECKING:
    from meditune.data.example import Example
    from meditune.data.prepare import Prepared

app = Group("data", "Prepare, audit, survey, restore, de-identify and publish data.", "explanation/data-preparation.md")


@app.command(example="quickstart --output survey", page="how-to/measure-diversity.md")
def diversity(
    source: Annotated[
        str, Argument(metavar="RECIPE|RUN", help="A recipe, or the output folder of `data prepare` or `run`.")
    ],
    output: Annotated[Path, Option("--output", "-o", help="Folder for diversity.json and diversity.html.")],
    compare: Annotated[Text, Option(metavar="RECIPE|RUN", help="Earlier data to compare the data with.")] = None,
    clusters: Annotated[int, Option(min=0, max=24, help="Number of clusters of similar questions; 0: none.")] = 12,
    overrides: Overrides = None,
) -> None:
    """Survey what the data cover: sources, topics, people, reading grades and clusters of questions."""
    from meditune.data import diversity as surveys
    from meditune.evaluate.report.data_sections import render_page
    from meditune.models.sentence_encoder import sentence_model

    data = _data(source, output, overrides or [])
    before = _data(compare, output / "before", []) if compare else None
    result: dict[str, Any] = {"of": source, "sha256": data.sha256, "synthetic": data.synthetic}
    result |= surveys.diversity(data.splits)
    sets: dict[str, Sequence[Example]] = {"train": data.splits.train, "test": data.splits.test}
    if before:
        result["compared"] = {"with": compare} | surveys.compared(before.splits.train, data.splits.train, SEED)
        sets = {"before": before.splits.train, "after": data.splits.train}
    if clusters:
        questions = surveys.chosen(sets, SEED)
        try:
            encode = partial(sentence_model().encode, label="Embedding questions")
            result["clusters"] = surveys.clusters(questions, encode, clusters, SEED)
        except ModelError as error:
            typer.echo(f"The survey has no clusters: {error}", err=True)
    output.mkdir(parents=True, exist_ok=True)
    write_json(output / "diversity.json", result)
    render_page(result, output / "diversity.html")
    print_lines(_survey_lines(result))
    typer.echo(f"Page: {(output / 'diversity.html').resolve()}")


@app.command(example="runs/quickstart OWNER/NAME", page="reference/licences.md")
def push(
    folder: Annotated[Path, Argument(metavar="DIR", help="A run's folder, or the data folder in it.")],
    repository: Annotated[
        str, Argument(metavar="REPO", help="Name of the data set on the Hugging Face hub: OWNER/NAME.")
    ],
    public: Annotated[bool, Option("--public", help="Make the data set public; it is private by default.")] = False,
    yes: Annotated[bool, Option("--yes", help="Upload without asking.")] = False,
) -> None:
    """Upload a prepared data set and its dataset card to the Hugging Face hub. The command refuses restricted rows."""
    from meditune.data import hub_upload

    upload = hub_upload.plan_upload(folder, repository, private=not public)
    approval(yes, refuse_upload)(upload.text())
    address = hub_upload.send(repository, "dataset", upload.folder, hub_upload.FILES, upload.private)
    typer.echo(f"Uploaded: {address}")


class Engine(StrEnum):
    """The engine that checks the rows of a stream."""

    LOCAL = "local"
    RAY = "ray"


@app.command(example="quickstart --output runs/quickstart", page="how-to/train-and-evaluate.md")
def prepare(
    recipe: RecipeName,
    output: Annotated[Path, Option("--output", "-o", help="Folder of the run. An unfinished preparation is resumed.")],
    overrides: Overrides = None,
) -> None:
    """Read, audit and split a recipe's data, and write them to OUTPUT/data."""
    from meditune import pipeline

    print_data(pipeline.prepare_only(resolve(recipe, overrides).recipe, output), output / "data")


@app.command(example="pairs.csv --output audit")
def audit(
    source: Annotated[
        str, Argument(metavar="RECIPE", help="A recipe, or a data file (.jsonl, .json, .csv, .tsv, .parquet).")
    ],
    output: Annotated[Path, Option("--output", "-o", help="Folder for the HTML page, the ledger and quality.json.")],
    overrides: Overrides = None,
    stream: Annotated[
        bool | None,
        Option(
            "--stream/--no-stream",
            help="Whether to read the file in batches (stream it); by default, only large files are streamed.",
        ),
    ] = None,
    engine: Annotated[
        Engine, Option(help="Engine that checks the rows of a streamed file: local (processes on this machine) or ray.")
    ] = Engine.LOCAL,
    workers: Annotated[int, Option(min=1, help="Number of processes that check the rows of a streamed file.")] = 1,
) -> None:
    """Run only quality control: show what each rule finds, and write an HTML page and a ledger of the findings."""
    from meditune.data.quality.audit_folder import audit_folder, recipe_for
    from meditune.evaluate.report.data_sections import render_quality

    quality = audit_folder(recipe_for(source, overrides or []), output, stream, engine.value, workers)
    page = render_quality(output)
    _print_audit(quality)
    for row in quality["unusable"]:
        where = f", {'at' if row['rows'] == 1 else 'first at'} {row['first']}" if row["first"] else ""
        typer.echo(f"{row['source']}: {counted(row['rows'], 'row')} couldn't be used{where}: {row['reason']}")
    typer.echo(f"Page: {page.resolve()}")


@app.command(example="audit pairs-17 --to restored.jsonl")
def restore(
    folder: Annotated[Path, Argument(metavar="DIR", help="Folder of a run or an audit.")],
    identifier: Annotated[str, Argument(metavar="ID", help="The row's id in the ledger (ledger.parquet).")],
    to: Annotated[Path | None, Option("--to", help="Also add the row to this JSON Lines file.")] = None,
) -> None:
    """Print the original version of a dropped or changed row."""
    from meditune.data.quality.ledger import append_row
    from meditune.data.quality.ledger import restore as find

    example, entries = find(folder, identifier)
    typer.echo(example.model_dump_json(indent=2))
    for row in entries:
        typer.echo(f"{row['rule']}: {row['action']} ({row['detail']})", err=True)
    if to is not None:
        added = append_row(example, to)
        typer.echo(f"{'Added to' if added else 'Already in'}: {to.resolve()}", err=True)
    typer.echo(f"To keep this row in the next run: --set 'data.quality.keep=[\"{identifier}\"]'", err=True)


@app.command(example="notes.txt --output notes-masked.txt", page="how-to/find-identifiers.md")
def phi(
    source: Annotated[str, Argument(metavar="FILE|RECIPE", help="A text, CSV or JSON Lines file, or a recipe.")],
    output: Annotated[
        Path | None,
        Option(
            "--output",
            "-o",
            metavar="OUT",
            help="New file for a copy of FILE in which the identifiers found are masked.",
        ),
    ] = None,
    action: Annotated[
        Text,
        Option(help="With --output: write placeholders (mask, the default) or invented identifiers (surrogate)."),
    ] = None,
    patient_column: Annotated[
        Text,
        Option(
            metavar="COLUMN",
            help="Column with the patient's id; a patient's identifiers get the same surrogates in all rows.",
        ),
    ] = None,
    kinds: Annotated[
        Texts, Option("--kind", help="Look only for this kind of identifier, for example name. Repeatable.")
    ] = None,
    engine: Annotated[Text, Option(help="Detector: rules (the default for a file) or presidio.")] = None,
    show: Annotated[int, Option(min=0, help="Number of findings to show in context, with identifiers masked.")] = 0,
    overrides: Overrides = None,
) -> None:
    """Count patient identifiers; --output writes a copy in which the identifiers found are masked."""
    from meditune.data.phi_scan import scan, scan_lines

    result = scan(source, output, action, patient_column, kinds or [], engine, show, overrides or [])
    print_lines(scan_lines(result))
    if output:
        typer.echo(f"Written: {output.resolve()}")


SEED = 17


def _survey_lines(result: dict[str, Any]) -> Iterator[str]:
    train = result["splits"]["train"]
    yield f"{train['examples']:,} training examples."
    for name, dimension in train["dimensions"].items():
        if dimension["distinct"] > 1 and name not in ("people", "reading_grade", "answer_length", "question_length"):
            top = max(dimension["groups"], key=lambda row: row["count"])
            yield (
                f"{name.replace('_', ' ')}: {dimension['distinct']:,} groups, effective number "
                f"{dimension['shannon']:,.1f}; most frequent {top['group']} ({top['share']:.0f}%)"
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
            if overrides:
                raise DataError(f"--set changes a key of a recipe, but {source} contains prepared data. Omit --set.")
            return stored_data(folder)
    return pipeline.prepare_only(resolve(source, list(overrides)).recipe, output)


PHI_DONE = {"report": "unchanged", "mask": "masked", "surrogate": "replaced by invented ones"}


def print_leakage(*checks: dict[str, Any]) -> None:
    """Print the leakage that was found, in red."""
    from meditune.data.leakage import described

    for checked in checks:
        for sentence in described(checked):
            console().print("LEAKAGE (allowed by the recipe):", style="bold red", end=" ")
            console().print(sentence)


def print_data(data: Prepared, folder: Path) -> None:
    """Print what the data stage read, left out and split, and what the licences require."""
    from meditune.data.read_sources import warning
    from meditune.data.sources import licence_requirements

    out = console()
    print_synthetic(data.synthetic)
    for name, row in data.quality["sources"].items():
        refused = counted_reasons(row["rejected"]) or "nothing"
        out.print(f"{name}: {row['read']:,} examples read ({row['licence']}); left out: {refused}")
    _print_audit(data.quality)
    for name, row in data.quality["splits"].items():
        decisions = ", ".join(f"{count} {label}" for label, count in row["decisions"].items())
        out.print(
            f"{name}: {row['examples']:,} examples in {row['groups']:,} groups {f'({decisions})' if decisions else ''}"
        )
    if "decisions" in data.quality:
        done = ", ".join(f"{count:,} {action}" for action, count in data.quality["decisions"]["actions"].items())
        missing = data.quality["decisions"]["not_in_the_data"]
        out.print(f"People's decisions: {done or 'none'}; {missing:,} about rows that aren't in the data")
    phi = data.quality["phi"]
    for name, row in phi["sources"].items():
        if row["with_identifiers"]:
            kinds = ", ".join(f"{count:,} {kind}" for kind, count in row["kinds"].items())
            done = PHI_DONE[phi["action"]]
            out.print(f"{name}: identifiers in {counted(row['with_identifiers'], 'example')}, {done} ({kinds})")
    print_leakage(data.quality["leakage"])
    if found := data.quality.get("rebalanced"):
        rules = "; ".join(f"{rule} {sum(by_source.values()):,}" for rule, by_source in found["rules"].items())
        out.print(f"Rebalanced: from {found['before']:,} to {found['after']:,} training examples ({rules})")
    if remarks := data.quality["diversity"]["remarks"]:
        for remark in remarks:
            out.print(f"Coverage: {remark['message']}")
        out.print(f"For advice, run: meditune data diversity {shlex.quote(str(folder.parent))} --output DIR")
    terms = data.quality["terms"]
    for sentence in licence_requirements(terms) if len(terms) > 1 else ():
        out.print(sentence)
    if restricted := warning(terms):
        out.print(restricted, style="bold yellow")
    out.print(f"Data: {folder.resolve()}")


def print_synthetic(synthetic: bool) -> None:
    """Print a notice if the data are synthetic."""
    if synthetic:
        console().print(
            "SYNTHETIC sample: the studies are invented, so the metrics say nothing about medicine.",
            style="bold yellow",
        )


AUDIT_DONE = {
    "drop": "left out",
    "merge": "merged",
    "mend": "corrected",
    "flag": "flagged",
    "group": "kept in one split",
}


def _print_audit(quality: dict[str, Any]) -> None:
    out, audit = console(), quality["audit"]
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
        + (" ledger.parquet lists these rows; `meditune data restore DIR ID` prints the original." if touched else "")
    )
    if quality.get("not_split"):
        out.print(f"Not split: {quality['not_split']}")
