"""`meditune data`: the data stage on its own. Heavy libraries are imported by what the commands call.

`meditune data diversity`: a survey of what prepared data cover, as diversity.json and diversity.html.

What was prepared, its terms, and what is wrong with it.

What quality control found, for the terminal.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from meditune.cli.options import console
from meditune.errors import ModelError
from meditune.files import write_json

if TYPE_CHECKING:
    from rich.console import Console

    from meditune.data.example import Example
    from meditune.data.prepare import Prepared
    from meditune.data.read_sources import Terms

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
    from meditune.cli.options import approval, refuse_upload
    from meditune.data import hub_upload

    upload = hub_upload.plan_upload(folder, repository, private=not public)
    approval(yes, refuse_upload)(upload.text())
    typer.echo(f"Sent: {hub_upload.push(upload)}")


class Engine(StrEnum):
    """Where a stream's rows are looked at."""

    LOCAL = "local"
    RAY = "ray"


RecipeName = Annotated[str, typer.Argument(metavar="RECIPE", help="A shipped recipe's name or a YAML file.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change a recipe key: data.split=group. Repeatable."),
]


@app.command()
def prepare(
    recipe: RecipeName,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder of the run; the same one goes on where it stopped.")
    ],
    overrides: Overrides = None,
) -> None:
    """Read, audit and split the recipe's data into OUTPUT/data."""
    from meditune import pipeline
    from meditune.config.load_recipe import load_recipe

    resolved = load_recipe(recipe, overrides or [])
    print_data(pipeline.prepare_only(resolved.recipe, output), output / "data")


@app.command()
def audit(
    what: Annotated[
        str, typer.Argument(metavar="RECIPE", help="A recipe, or a file of your own (.jsonl, .json, .csv, .parquet).")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the findings.")],
    overrides: Overrides = None,
    stream: Annotated[
        bool | None,
        typer.Option(
            "--stream/--no-stream", help="Read a file of your own in batches, however large; by its size if not given."
        ),
    ] = None,
    engine: Annotated[
        Engine, typer.Option(help="Where a stream's rows are looked at: here, or on Ray.")
    ] = Engine.LOCAL,
    workers: Annotated[int, typer.Option(min=1, help="Processes that look at a stream's rows.")] = 1,
) -> None:
    """Quality control alone: what each rule finds, as a table, a page and a ledger; no split is kept."""
    from meditune.cli.options import console
    from meditune.data.quality.audit_folder import audit_folder, recipe_for
    from meditune.evaluate.report.data_sections import render_quality

    quality = audit_folder(recipe_for(what, overrides or []), output, stream, engine.value, workers)
    page = render_quality(output)
    print_audit(quality, console())
    typer.echo(f"Page: {page.resolve()}")


@app.command()
def restore(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A run's folder, or that of an audit.")],
    identifier: Annotated[str, typer.Argument(metavar="ID", help="The row's id, as the ledger has it.")],
    to: Annotated[Path | None, typer.Option("--to", help="Add the row to this JSON Lines file.")] = None,
) -> None:
    """Give back a row that quality control dropped or changed, as it was read."""
    from meditune.data.quality.ledger import put_back
    from meditune.data.quality.ledger import restore as find

    found = find(folder, identifier)
    typer.echo(found.example.model_dump_json(indent=2))
    for row in found.done:
        typer.echo(f"{row['rule']}: {row['action']} ({row['detail']})", err=True)
    if to is not None:
        added = put_back(found.example, to)
        typer.echo(f"{'Added to' if added else 'Already in'}: {to.resolve()}", err=True)
    typer.echo(f"To keep it in the next run: --set 'data.quality.keep=[\"{identifier}\"]'", err=True)


@app.command()
def phi(
    what: Annotated[str, typer.Argument(metavar="FILE|RECIPE", help="A text, CSV, JSON Lines ... file, or a recipe.")],
    output: Annotated[
        Path | None, typer.Option("--mask", metavar="OUT", help="Write a copy without what was found to this file.")
    ] = None,
    action: Annotated[
        str | None, typer.Option(help="What takes its place there: mask (placeholders) or surrogate (invented).")
    ] = None,
    group: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="Whose rows are one patient's, for surrogates.")
    ] = None,
    kinds: Annotated[list[str] | None, typer.Option("--kind", help="Look for this kind only. Repeatable.")] = None,
    engine: Annotated[str | None, typer.Option(help="What looks: rules or presidio.")] = None,
    show: Annotated[int, typer.Option(min=0, help="Show so many places, with what was found blotted out.")] = 0,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a key of the recipe. Repeatable.")
    ] = None,
) -> None:
    """Count identifiers of patients in a file or a recipe's data, and write a copy of the file without them."""
    from meditune.data.phi_scan import scan, scan_lines

    result = scan(what, output, action, group, kinds or [], engine, show, overrides or [])
    for line in scan_lines(result):
        typer.echo(line)
    if output:
        typer.echo(f"Written: {output.resolve()}")


FILE = "diversity.json"
SEED = 17


def survey(what: str, output: Path, other: str | None, count: int, overrides: Sequence[str]) -> dict[str, Any]:
    """Survey a recipe's or a run's data and leave diversity.json and diversity.html in `output`.

    A recipe's data are prepared in `output`, as `meditune data prepare` does, unless they are there already; those of
    `other`, what the data were before, in `output/before`. With `count` clusters of questions, where the sentence model
    can be had. Raises DataError and RecipeError as preparing does.
    """
    from meditune.data.diversity.coverage import compared
    from meditune.data.diversity.coverage import diversity as diversity_of_profile
    from meditune.evaluate.report.data_sections import render_page

    data = _data(what, output, overrides)
    before = _data(other, output / "before", []) if other else None
    result: dict[str, Any] = {"of": what, "sha256": data.sha256, "synthetic": data.synthetic} | diversity_of_profile(
        data.splits
    )
    if before:
        result["compared"] = {"with": other} | compared(before.splits.train, data.splits.train, SEED)
    if count:
        sets: dict[str, Sequence[Example]] = {"train": data.splits.train, "test": data.splits.test}
        if before:
            sets = {"before": before.splits.train, "after": data.splits.train}
        found = _clusters(sets, count)
        if found:
            result["clusters"] = found
    output.mkdir(parents=True, exist_ok=True)
    write_json(output / FILE, result)
    render_page(result, output / "diversity.html")
    return result


def said(result: dict[str, Any]) -> Iterator[str]:
    """The survey in a few lines for the terminal."""
    train = result["splits"]["train"]
    yield f"{train['examples']:,} training examples."
    for name, dimension in train["dimensions"].items():
        if dimension["distinct"] > 1 and name not in ("people", "reading_grade", "answer_length", "question_length"):
            top = max(dimension["groups"], key=lambda row: row["count"])
            yield (
                f"{name.replace('_', ' ')}: {dimension['distinct']:,} groups, effective number "
                f"{dimension['shannon']:,.1f}; most often {top['group']} ({top['share']:.0f} %)"
            )
    for name, source in result["sources"].items():
        if "reading_grade" in source:
            yield f"{name}: {source['examples']:,} examples, median reading grade {source['reading_grade']['median']}"
    if "clusters" in result:
        found = result["clusters"]
        yield (
            f"{len(found['clusters'])} clusters of questions count for {found['effective']:.1f}; largest: "
            f"{found['clusters'][0]['name']}"
        )
    for remark in result["remarks"]:
        yield f"! {remark['said']} {remark['advice']}"


def _data(what: str, output: Path, overrides: Sequence[str]) -> Prepared:
    from meditune import pipeline
    from meditune.config.load_recipe import load_recipe
    from meditune.data.prepare import stored_data

    for folder in (Path(what) / "data", Path(what)):
        if (folder / "quality.json").is_file():
            return stored_data(folder)
    return pipeline.prepare_only(load_recipe(what, list(overrides)).recipe, output)


def _clusters(sets: dict[str, Sequence[Example]], count: int) -> dict[str, Any] | None:
    from meditune.data.diversity.clusters import chosen, clusters
    from meditune.models.sentence_encoder import embed

    try:
        return clusters(chosen(sets, SEED), lambda texts: embed(texts, "Questions as vectors"), count, SEED)
    except ModelError as error:
        print(f"Clusters are left out: {error}", file=sys.stderr)
        return None


DONE = {"report": "left as they are", "mask": "masked", "surrogate": "replaced by invented ones"}


def print_leakage(*checks: dict[str, Any]) -> None:
    """What the check for leakage found, in red; nothing where it found nothing."""
    from meditune.data.leakage import described as said_of_leakage

    for checked in checks:
        for sentence in said_of_leakage(checked):
            console().print(f"[bold red]LEAKAGE (allowed by the recipe):[/] {escape(sentence)}")


def print_data(data: Prepared, folder: Path) -> None:
    """What the data stage read, left out and split."""

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
        out.print(f"decisions of people: {done or 'none'}; {missing:,} about rows that aren't here")
    looked_at = data.quality.get("phi", {})
    for name, row in looked_at.get("sources", {}).items():
        if row["with_identifiers"]:
            kinds = ", ".join(f"{count:,} {kind}" for kind, count in row["kinds"].items())
            what = DONE[looked_at["action"]]
            out.print(f"{name}: identifiers in {row['with_identifiers']:,} examples, {what} ({kinds})")
    print_leakage(data.quality["leakage"])
    if found := data.quality.get("rebalanced"):
        rules = "; ".join(f"{rule} {sum(by_source.values()):,}" for rule, by_source in found["rules"].items())
        out.print(f"Rebalanced: {found['before']:,} to {found['after']:,} training examples ({rules})")
    remarks = data.quality.get("diversity", {}).get("remarks", [])
    for remark in remarks:
        out.print(f"Coverage: {escape(remark['said'])}")
    if remarks:
        out.print(f"What that means and what to do: meditune data diversity {folder.parent} --output DIR", markup=False)
    print_terms(data.quality.get("terms", {}))
    out.print(f"Data: {folder.resolve()}")


def print_terms(terms: Terms) -> None:
    """What the licences ask for together where there are several, and a warning where rows are restricted."""
    from meditune.data.read_sources import demands, warning

    if len(terms) > 1:
        for sentence in demands(terms):
            console().print(sentence, markup=False)
    if warning(terms):
        console().print(warning(terms), style="bold yellow", markup=False)


def print_synthetic(synthetic: bool) -> None:
    """A line that says so where the data are invented."""
    if synthetic:
        console().print("[bold yellow]SYNTHETIC sample: invented studies, figures say nothing about medicine.[/]")


AUDIT_DONE = {"drop": "left out", "merge": "merged", "mend": "mended", "flag": "flagged", "group": "kept in one split"}


def print_audit(quality: dict[str, Any], out: Console) -> None:
    """A line for each rule that found something, and what was left out and changed in all."""
    from rich.table import Table

    audit = quality["audit"]
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("Rule")
    table.add_column("Rows", justify="right")
    table.add_column("Share", justify="right")
    table.add_column("What was done")
    for name, row in audit["rules"].items():
        if row["rows"]:
            done = ", ".join(f"{count:,} {AUDIT_DONE[action]}" for action, count in row["done"].items())
            table.add_row(name, f"{row['rows']:,}", f"{row['share']:.1%}", done)
    if table.row_count:
        out.print(table)
    silent = [name for name, row in audit["rules"].items() if not row["rows"] and row["action"] != "off"]
    if silent:
        out.print(f"Nothing found by: {', '.join(silent)}", style="dim")
    touched = audit["dropped"] or audit["changed"]
    out.print(
        f"Quality control: {audit['rows']:,} rows, {audit['dropped']:,} left out, {audit['changed']:,} changed."
        + (" Each is in ledger.parquet; `meditune data restore DIR ID` gives it back." if touched else "")
    )
    if quality.get("not_split"):
        out.print(f"Not split: {quality['not_split']}", markup=False)
