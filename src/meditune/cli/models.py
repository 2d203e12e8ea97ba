"""Commands that list, plan, merge, prune and export models, and `meditune api` for a hosted training job."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from meditune.cli.options import Overrides, RecipeName, Run, resolve
from meditune.cli.tables import console, print_table
from meditune.hardware import gpu, memory_gb
from meditune.progress import clock

if TYPE_CHECKING:
    from meditune.config.recipe import Recipe
    from meditune.models.catalogue import BaseModel
    from meditune.train.resource_plan import Planned


def merge(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Folder of a run, or of a PEFT adapter.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the merged model.")],
    keep_sparsity: Annotated[
        bool, typer.Option("--keep-sparsity", help="Set weights to zero again that pruning had set to zero.")
    ] = False,
) -> None:
    """Merge an adapter into its base model, for plain transformers.

    The merged model has full precision.

    Example: `meditune merge runs/quickstart --output merged`.

    Guide: docs/how-to/train-and-evaluate.md#merge-an-adapter.
    """
    from meditune.export import merged

    for sentence in merged.remarks(merged.merge(model, output, keep_sparsity)):
        typer.echo(sentence)
    typer.echo(f"Model: {output.resolve()}")


def prune(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Catalogue name, hub id, or model folder.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the pruned model.")],
    method: Annotated[str | None, typer.Option(help="Method: magnitude, wanda, or layers.")] = None,
    sparsity: Annotated[float | None, typer.Option(help="Share of weights to set to zero.")] = None,
    pattern: Annotated[str | None, typer.Option(help="Pattern of the zeros: unstructured or 2-of-4.")] = None,
    layers: Annotated[int | None, typer.Option(help="Number of whole layers to remove.")] = None,
    recipe: Annotated[
        str | None, typer.Option(help="Calibrate and evaluate on this recipe's data instead of WikiText-2.")
    ] = None,
    overrides: Overrides = None,
) -> None:
    """Prune a model, and measure quality, size and speed.

    Example: `meditune prune smollm2-135m --method wanda --sparsity 0.3 --output pruned`.

    Guide: docs/how-to/train-and-evaluate.md#pruning.
    """
    from meditune.export import pruned

    method = method or ("layers" if layers else None)
    given = {"method": method, "sparsity": sparsity, "pattern": pattern, "layers": layers}
    settings = [f"model.prune.{key}={value}" for key, value in given.items() if value is not None]
    resolved = resolve(recipe or "quickstart", [*settings, *(overrides or [])]).recipe
    if recipe:
        facts = pruned.prune_with_text_of(resolved, model, output)
    else:
        facts = pruned.prune(model, resolved, output, None)
    print_pruning(facts)
    typer.echo(f"Model: {output.resolve()}")


def plan(
    recipe: RecipeName,
    overrides: Overrides = None,
    gpu: Annotated[
        str | None, typer.Option(help="Plan for this GPU (rtx4090, a100-80gb ...) instead of this machine.")
    ] = None,
    examples: Annotated[int, typer.Option(min=1, help="Number of training examples to predict the time for.")] = 1000,
) -> None:
    """Predict memory, speed and time of training for each strategy.

    The command downloads and trains nothing.

    Example: `meditune plan mistral-7b --gpu rtx4090`.

    Guide: docs/how-to/train-and-evaluate.md#will-it-fit.
    """
    from meditune.train import resource_plan

    resolved = resolve(recipe, overrides).recipe
    print_plan(resource_plan.plan(resolved, gpu), resolved, examples)


def models() -> None:
    """List the base models with size, licence and availability.

    Example: `meditune models`.

    Reference: docs/reference/data-and-models.md.
    """
    print_table(HEADINGS, rows(), left_aligned=HEADINGS)


def export(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Run folder, model folder, catalogue name, or hub id.")],
    to: Annotated[
        str, typer.Option("--to", metavar="FORMAT", help="merged, openvino, gguf, onnx, ollama, or hub to upload it.")
    ],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Folder of the export; MODEL/export/FORMAT by default."),
    ] = None,
    repository: Annotated[
        str | None, typer.Option("--repo", metavar="OWNER/NAME", help="With --to hub: name of the model on the hub.")
    ] = None,
    public: Annotated[
        bool, typer.Option("--public", help="With --to hub: make the model public; it is private by default.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="With --to hub: upload without asking.")] = False,
) -> None:
    """Export a model for other programs, and verify the result.

    The export fails if its outputs differ from the original model's by more than the tolerance.

    Example: `meditune export runs/quickstart --to gguf`.

    Guide: docs/how-to/export-and-engines.md.
    """
    if to == "hub":
        _to_hub(model, output, repository, public, yes)
        return
    from meditune.engines.exported_model import EXPORTS
    from meditune.export.export import export as make

    facts = make(model, to, output)
    typer.echo(facts["drift"]["said"])
    typer.echo(f"Model: {(output or Path(model).expanduser() / EXPORTS / to).resolve()}")


def _to_hub(model: str, output: Path | None, repository: str | None, public: bool, yes: bool) -> None:
    from meditune.cli.options import approval, refuse_upload
    from meditune.engines.exported_model import EXPORTS
    from meditune.errors import ModelError
    from meditune.export import hub
    from meditune.export.export import export as make

    run = Path(model).expanduser()
    if not repository:
        raise ModelError("--to hub needs the name of the model on the hub: --repo OWNER/NAME.")
    hub.refuse_without_data(run)
    make(model, "merged", output)
    upload = hub.plan_upload(run, output or run / EXPORTS / "merged", repository, private=not public)
    approval(yes, refuse_upload)(upload.text())
    typer.echo(f"Uploaded: {hub.push(upload)}")


app = typer.Typer(
    help="Show or cancel a run's training job at an API.\n\n"
    "Guide: docs/how-to/train-and-evaluate.md#gpt-35-and-other-api-models.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


@app.command()
def status(folder: Run) -> None:
    """Print the state of a run's training job at the API.

    Example: `meditune api status runs/gpt`.

    Guide: docs/how-to/train-and-evaluate.md#gpt-35-and-other-api-models.
    """
    from meditune import hosted_pipeline

    typer.echo(hosted_pipeline.status(folder))


@app.command()
def cancel(folder: Run) -> None:
    """Cancel a run's training job at the API.

    Example: `meditune api cancel runs/gpt`.

    Guide: docs/how-to/train-and-evaluate.md#gpt-35-and-other-api-models.
    """
    from meditune import hosted_pipeline

    typer.echo(hosted_pipeline.cancel(folder))


def print_pruning(facts: dict[str, Any]) -> None:
    """Print how pruning changed quality, size and speed."""
    rows = [
        (f"perplexity, {name}", value, facts["perplexity"]["after"][name], ".2f")
        for name, value in facts["perplexity"]["before"].items()
    ]
    for title, key, form in (
        ("layers", "layers", ",d"),
        ("parameters", "parameters", ",d"),
        ("bytes", "bytes", ",d"),
        ("nonzero weights", "nonzero_share", ".1%"),
        ("zeros in the linear layers", "zeros_in_layers", ".1%"),
        ("tokens/s, forward", "tokens_per_s", ",.0f"),
    ):
        rows.append((title, facts[key]["before"], facts[key]["after"], form))
    cells = [
        (
            title,
            format(before, form),
            format(after, form),
            f"{after / before - 1:+.1%}" if before and form != ".1%" else "",
        )
        for title, before, after, form in rows
    ]
    print_table(("", "before", "after", "change"), cells)
    out = console()
    if "removed_layers" in facts:
        removed = ", ".join(f"{number} ({facts['block_influence'][number]:.3f})" for number in facts["removed_layers"])
        out.print(f"Removed layers, counted from 0, with their influence: {removed}.")
    for remark in facts["remarks"]:
        out.print(remark)


def print_plan(planned: Planned, recipe: Recipe, examples: int) -> None:
    """Print the cost of each strategy, the recipe's own first, and changes that make the recipe fit."""
    from meditune.train.hardware_target import UTILIZATION

    out, target = console(), planned.target
    tokens = round(examples * recipe.train.epochs * planned.example_tokens)
    out.print(
        f"{recipe.model.base} on {target.name}: {target.memory_gb:.1f} GB, {target.flops / 1e12:,.2f} TFLOP/s "
        f"({target.source}), of which training is assumed to reach {UTILIZATION[target.device]:.0%}."
    )
    rows = []
    colours = {"fits": "green", "tight": "yellow", "no": "red"}
    for each in [planned.own, *planned.others]:
        memory = each.memory
        parts = (f"{part / 1e9:,.2f}" for part in (memory.weights, memory.training, memory.piece))
        most = "" if each.quantize == "none" else "<= "
        least = "" if each.quantize == "none" else ">= "
        rows.append(
            (
                each.strategy + (" *" if each is planned.own else ""),
                {"none": str(target.dtype).removeprefix("torch.")}.get(each.quantize, each.quantize),
                *(f"{each.trained:,}", *parts, f"{memory.total / 1e9:,.2f}"),
                f"[{colours[each.verdict]}]{each.verdict}[/]",
                f"{most}{each.tokens_per_s:,.0f}",
                f"{least}{clock(each.seconds(tokens))}",
            )
        )
    titles = ("strategy", "base", "trained", "weights", "training", "piece", "peak GB", "", "tokens/s", "time")
    print_table(titles, rows, left_aligned=["base", ""])
    out.print(
        f"* the recipe's own settings. Time: {recipe.train.epochs:g} epochs of {examples:,} examples with "
        f"{planned.example_tokens} tokens each, the maximum that prompt.max_tokens allows. "
        "Time and memory are for training only; the evaluations before and after take time and may need more memory."
    )
    for line in planned.advice:
        out.print(f"The recipe would fit with {line}", markup=False)
    if planned.own.verdict != "fits" and not planned.advice:
        out.print("No known change makes the recipe fit. Use a smaller model.base.")


BESIDE_WEIGHTS_GB = 4.5
"""Memory that training small models took besides their weights, measured on a CPU with pieces of 2,048 tokens"""

HERE = "here"


HEADINGS = ("Name", "Model", "Size", "Licence", "Where", "Tuning fits in memory (estimate)")


class Row(NamedTuple):
    """One base model."""

    name: str
    title: str
    parameters: str
    licence: str
    availability: str
    """ "here", "from a Python package (93 MB)", "from the hub" or "API only"."""
    fits: str
    """Estimate whether tuning fits in this machine's memory; empty if the size is unknown"""


def rows() -> list[Row]:
    """Return every base model that a recipe can name, in the catalogue's order."""
    from meditune.models.catalogue import CATALOGUE
    from meditune.models.load import bf16_is_fast

    card = gpu()
    room = card[1] if card else memory_gb()[1]
    # Without BF16 on a GPU the weights are kept in FP16, on a CPU in FP32.
    bytes_each = 2 if card or bf16_is_fast() else 4
    return [
        Row(
            model.name,
            model.title,
            model.parameters,
            model.licence,
            availability(model),
            _fits(model, bytes_each, room),
        )
        for model in CATALOGUE.values()
    ]


def availability(model: BaseModel) -> str:
    """Return where the model would come from if it were loaded now."""
    if model.api:
        return "API only"
    if model.package:
        return HERE if model.folder_is_here else f"from a Python package ({model.package.megabytes} MB)"
    return HERE if model.hub_id and _in_hub_cache(model.hub_id) else "from the hub"


def training_gb(parameters: str, bytes_each: int = 2) -> float | None:
    """Return the estimated memory in GB for tuning a model of this size ("135 M"); None if that isn't a number."""
    match = re.fullmatch(r"([\d.]+) ([MB])", parameters)
    if match is None:
        return None
    billions = float(match[1]) * (1.0 if match[2] == "B" else 1e-3)
    return billions * bytes_each + BESIDE_WEIGHTS_GB


def _fits(model: BaseModel, bytes_each: int, room: float) -> str:
    needed = training_gb(model.parameters, bytes_each)
    if model.api or needed is None:
        return ""
    return (
        f"yes, about {needed:.0f} GB"
        if needed <= room
        else f"no, about {needed:.0f} GB; this machine has {room:.0f} GB"
    )


def _in_hub_cache(hub_id: str) -> bool:
    from huggingface_hub import try_to_load_from_cache

    weights = ("model.safetensors", "model.safetensors.index.json")
    return any(isinstance(try_to_load_from_cache(hub_id, file), str) for file in weights)
