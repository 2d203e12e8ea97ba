"""`meditune recipe`: what a recipe says, and whether it holds. Heavy libraries are imported by what they call."""

from __future__ import annotations

import typer

from meditune.commands.options import Overrides, RecipeName, resolve

app = typer.Typer(help="Look at recipes and check them.", no_args_is_help=True, rich_markup_mode=None)


@app.command()
def show(recipe: RecipeName, overrides: Overrides = None) -> None:
    """Every resolved value, and where it comes from."""
    from meditune.recipes import writing

    typer.echo(writing.show(resolve(recipe, overrides)))


@app.command()
def check(recipe: RecipeName, overrides: Overrides = None) -> None:
    """Is the recipe valid? All errors are shown at once."""
    from meditune.data.reading import check_sources

    resolved = resolve(recipe, overrides)
    check_sources(resolved.recipe.data)
    typer.echo(f"{recipe} is valid. Whether {resolved.recipe.model.base} and the data can be had isn't checked here.")
