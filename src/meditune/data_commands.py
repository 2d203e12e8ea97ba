"""`meditune data`: commands about prepared data. Heavy libraries are imported by what they call."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help="The data stage on its own.", no_args_is_help=True, rich_markup_mode=None)


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
