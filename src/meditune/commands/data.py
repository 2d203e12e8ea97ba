"""`meditune data`: the data stage on its own. Heavy libraries are imported by what the commands call."""

from __future__ import annotations

from enum import StrEnum
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
    from meditune.commands.diversity import said, survey

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
    from meditune.data import pushing
    from meditune.terminal.console import approval, refuse_upload

    upload = pushing.planned(folder, repository, private=not public)
    approval(yes, refuse_upload)(upload.text())
    typer.echo(f"Sent: {pushing.push(upload)}")


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
    from meditune import run as journey
    from meditune.recipes.loading import load_recipe
    from meditune.terminal.data import print_data

    resolved = load_recipe(recipe, overrides or [])
    print_data(journey.prepare_only(resolved.recipe, output), output / "data")


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
    from meditune.data.quality.folder import audit_folder, recipe_for
    from meditune.data.quality.table import print_audit
    from meditune.evaluate.report.quality import render_quality
    from meditune.terminal.console import console

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
    from meditune.data.scanning import said, scan

    result = scan(what, output, action, group, kinds or [], engine, show, overrides or [])
    for line in said(result):
        typer.echo(line)
    if output:
        typer.echo(f"Written: {output.resolve()}")
