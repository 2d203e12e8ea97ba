"""Commands around models: merging, pruning, planning, listing. Heavy libraries are imported by what they call."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from meditune.commands.options import Overrides, RecipeName, resolve


def merge(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A run's folder, or a folder with a PEFT adapter.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the merged model.")],
    keep_zeros: Annotated[
        bool, typer.Option("--keep-zeros", help="Set weights that pruning made zero to zero again.")
    ] = False,
) -> None:
    """Merge an adapter into its base model, in full precision, as a folder that loads with plain transformers."""
    from meditune import merge as merging

    for sentence in merging.remarks(merging.merge(model, output, keep_zeros)):
        typer.echo(sentence)
    typer.echo(f"Model: {output.resolve()}")


def prune(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Catalogue name, hub id, or model folder.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the pruned model.")],
    method: Annotated[str | None, typer.Option(help="magnitude, wanda, or layers.")] = None,
    sparsity: Annotated[float | None, typer.Option(help="Share of weights that become zero.")] = None,
    pattern: Annotated[str | None, typer.Option(help="Which become zero: unstructured or 2-of-4.")] = None,
    layers: Annotated[int | None, typer.Option(help="So many whole layers are taken out.")] = None,
    recipe: Annotated[
        str | None, typer.Option(help="Calibrate and measure on this recipe's data instead of WikiText-2.")
    ] = None,
    overrides: Overrides = None,
) -> None:
    """Prune a model, and measure what that costs and gains."""
    from meditune import prune as pruning
    from meditune.terminal.models import print_pruning

    method = method or ("layers" if layers else None)
    given = {"method": method, "sparsity": sparsity, "pattern": pattern, "layers": layers}
    settings = [f"model.prune.{key}={value}" for key, value in given.items() if value is not None]
    resolved = resolve(recipe or "quickstart", [*settings, *(overrides or [])]).recipe
    if recipe:
        facts = pruning.prune_with_text_of(resolved, model, output)
    else:
        facts = pruning.prune(model, resolved, output, None)
    print_pruning(facts)
    typer.echo(f"Model: {output.resolve()}")


def plan(
    recipe: RecipeName,
    overrides: Overrides = None,
    gpu: Annotated[
        str | None, typer.Option(help="A well-known GPU (rtx4090, a100-80gb) in place of this machine.")
    ] = None,
    examples: Annotated[int, typer.Option(min=1, help="Training examples that the time is predicted for.")] = 1000,
) -> None:
    """Predict memory, speed and time of training for each strategy, and what fits; nothing is fetched or trained."""
    from meditune.planning import plan as planning
    from meditune.terminal.models import print_plan

    resolved = resolve(recipe, overrides).recipe
    print_plan(planning.plan(resolved, gpu), resolved, examples)


def models() -> None:
    """Base models: what is here, what can be fetched, size, licence."""
    from meditune.models import listing

    typer.echo(listing.table(listing.rows()))
