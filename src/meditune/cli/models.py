"""Commands that list, plan, merge, prune and export models, and `meditune api` for a hosted training job."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer
from rich.text import Text as StyledText
from typer import Argument, Option

from meditune.cli.options import (
    Group,
    Overrides,
    RecipeName,
    Run,
    Text,
    Texts,
    approval,
    documented,
    refuse_upload,
    resolve,
)
from meditune.cli.tables import console, print_lines, print_table
from meditune.progress import clock

if TYPE_CHECKING:
    from meditune.config.recipe import Recipe
    from meditune.models.catalogue import BaseModel
    from meditune.train.machine_speed import Target
    from meditune.train.resource_plan import Planned


@documented("merge runs/quickstart --output merged", "how-to/train-and-evaluate.md#merge-an-adapter")
def merge(
    model: Annotated[str, Argument(metavar="MODEL", help="Folder of a run or of a PEFT adapter.")],
    output: Annotated[Path, Option("--output", "-o", help="Folder of the merged model.")],
    keep_sparsity: Annotated[bool, Option("--keep-sparsity", help="Keep the zeros of a pruned base model.")] = False,
) -> None:
    """Merge an adapter into its base model. The merged model isn't quantized, and can be loaded without PEFT."""
    from meditune.export import merged

    print_lines(merged.remarks(merged.merge(model, output, keep_sparsity)))
    typer.echo(f"Model: {output.resolve()}")


@documented("prune smollm2-135m --method wanda --sparsity 0.3 --output pruned", "how-to/train-and-evaluate.md#pruning")
def prune(
    model: Annotated[str, Argument(metavar="MODEL", help="Catalogue name, Hugging Face id, or model folder.")],
    output: Annotated[Path, Option("--output", "-o", help="Folder of the pruned model.")],
    method: Annotated[Text, Option(help="Pruning method: magnitude, wanda or layers.")] = None,
    sparsity: Annotated[float | None, Option(help="Fraction of the weights to set to zero, for example 0.3.")] = None,
    pattern: Annotated[Text, Option(help="Pattern of the zeros: unstructured or 2-of-4.")] = None,
    layers: Annotated[int | None, Option(help="With --method layers: number of layers to remove.")] = None,
    recipe: Annotated[Text, Option(help="Calibrate and evaluate on this recipe's data instead of WikiText-2.")] = None,
    overrides: Overrides = None,
) -> None:
    """Prune a model, and measure its quality, size and speed."""
    from meditune.export import pruned

    method = method or ("layers" if layers else None)
    given = {"method": method, "sparsity": sparsity, "pattern": pattern, "layers": layers}
    settings = [f"model.prune.{key}={value}" for key, value in given.items() if value is not None]
    resolved = resolve(recipe or "quickstart", [*settings, *(overrides or [])]).recipe
    if recipe:
        _print_pruning(pruned.prune_with_text_of(resolved, model, output))
    else:
        _print_pruning(pruned.prune(model, resolved, output, None))
    typer.echo(f"Model: {output.resolve()}")


@documented("plan gpu-24gb --gpu rtx4090", "how-to/train-and-evaluate.md#will-it-fit")
def plan(
    recipe: RecipeName,
    overrides: Overrides = None,
    gpu: Annotated[Text, Option(help="Plan for this GPU (rtx4090, a100-80gb ...) instead of this machine.")] = None,
    examples: Annotated[
        int | None,
        Option(
            min=1,
            help="Number of training examples to predict the time for; by default, the rows of your own files are "
            "counted, and 1,000 are assumed for other sources.",
        ),
    ] = None,
) -> None:
    """Predict the memory, speed and time of training for each strategy. Nothing is downloaded or trained."""
    from meditune.train import resource_plan
    from meditune.train.init_recipe import own_rows

    resolved = resolve(recipe, overrides).recipe
    data = resolved.data
    counted_rows = own_rows(data) if examples is None else None
    if counted_rows:
        train, tests = counted_rows
    else:
        train = examples or ASSUMED_EXAMPLES
        tests = round(train * data.test_share / ((1 - data.test_share) * (1 - data.dev_share)))
    _print_plan(resource_plan.plan(resolved, gpu), resolved, train, tests)
    if counted_rows:
        typer.echo("The examples are the rows of your files; checks of the data can leave out some of them.")
    elif examples is None:
        typer.echo(
            f"{train:,} training examples are assumed, because the data weren't read. To change this: --examples NUMBER"
        )


@documented("models", "reference/data-and-models.md")
def models() -> None:
    """List the base models; those that suit this machine come first. All estimates of memory and time are for LoRA."""
    from meditune.config.load_recipe import load_recipe
    from meditune.config.training_options import ModelSpec
    from meditune.train.init_recipe import machine_recipe
    from meditune.train.machine_speed import target_of

    target = target_of(ModelSpec(), None)
    cells = [(*row[:5], f"{row.fits}, {row.memory}" if row.memory else "", row.time) for row in rows(target)]
    headings = ("Name", "Model", "Size", "Licence", "Where", "Tuning here", "1,000 rows")
    print_table(headings, cells, left_aligned=headings[:-1])
    recipe = machine_recipe(target)
    typer.echo(
        f"\nThe estimates are for LoRA in all layers and rows of {ROW_TOKENS} tokens, on {target.name} with "
        f"{target.memory_gb:.1f} GB. For a better estimate: meditune plan {recipe} --set model.base=NAME\n"
        f"Recipe for this machine: {recipe}, with {load_recipe(recipe).recipe.model.base}. To adapt it to your data: "
        "meditune init FILE"
    )


@documented("init pairs.csv --output mine.yaml", "tutorials/your-own-data.md")
def init(
    data: Annotated[Path, Argument(metavar="FILE", help="Your data: a CSV, TSV, JSON, JSON Lines or Parquet file.")],
    output: Annotated[Path, Option("--output", "-o", help="Recipe file to write.")] = Path("recipe.yaml"),
    field: Annotated[
        Texts,
        Option(
            metavar="FIELD=COLUMN", help="Read this field from this column, for example question=Patient. Repeatable."
        ),
    ] = None,
    machine: Annotated[
        Text, Option(help="Write the recipe for another machine: laptop, gpu-8gb, gpu-24gb or gpu-80gb.")
    ] = None,
    force: Annotated[bool, Option("--force", help="Overwrite the file if it exists.")] = False,
) -> None:
    """Write a recipe for a data file and this machine.

    The command inspects the file (columns, number and length of rows) and the machine, and writes a recipe with
    comments that explain its values. Nothing is downloaded or trained.
    """
    from meditune.errors import RecipeError
    from meditune.train import init_recipe

    init_recipe.refuse_existing(output, force)
    pairs = [text.partition("=") for text in field or []]
    for name, equals, column in pairs:
        if not (name and equals and column):
            raise RecipeError("--field: write it as FIELD=COLUMN, for example --field question=Patient.")
    facts = init_recipe.inspect_data(data, {name: column for name, _, column in pairs})
    initial = init_recipe.choose(facts, machine)
    init_recipe.write(initial, output)
    print_lines([*init_recipe.summary(initial), f"Recipe: {output.resolve()}", "Next:"])
    print_lines(f"  {line}" for line in init_recipe.next_steps(initial, output))


@documented("export runs/quickstart --to gguf --quantization Q4_K_M", "how-to/export-and-engines.md")
def export(
    model: Annotated[
        str, Argument(metavar="MODEL", help="Run folder, model folder, catalogue name, or Hugging Face id.")
    ],
    to: Annotated[
        str,
        Option(
            "--to", metavar="FORMAT", help="merged, openvino, gguf, onnx, ollama or vllm; hub: upload the merged model."
        ),
    ],
    quantization: Annotated[
        Texts,
        Option(
            metavar="NAME",
            help="With --to gguf or ollama: Q8_0 (default), Q6_K, Q5_K_M or Q4_K_M; with --to openvino: int8 (default) "
            "or int4. Repeatable.",
        ),
    ] = None,
    output: Annotated[
        Path | None, Option("--output", "-o", help="Folder of the export; by default, a folder in MODEL/export.")
    ] = None,
    repository: Annotated[
        Text, Option("--repo", metavar="OWNER/NAME", help="With --to hub: the model's name on the Hugging Face hub.")
    ] = None,
    public: Annotated[
        bool, Option("--public", help="With --to hub: make the model public instead of private.")
    ] = False,
    yes: Annotated[bool, Option("--yes", help="With --to hub: upload without asking.")] = False,
) -> None:
    """Export a model for other programs, and verify the result.

    The command fails if the outputs of the exported model differ from those of the original model by more than a
    tolerance, or if the exported model tokenizes prompts differently from training.
    """
    from meditune.engines.exported_model import EXPORTS
    from meditune.errors import ModelError
    from meditune.export.export import export as make
    from meditune.export.export import export_folder, usage

    if to == "hub":
        from meditune.export import hub

        if quantization:
            raise ModelError("--to hub uploads the merged model, so --quantization has no effect. Leave it out.")
        if not repository:
            raise ModelError("--to hub needs the name of the model on the hub: --repo OWNER/NAME.")
        run = Path(model).expanduser()
        hub.refuse_without_data(run)
        make(model, "merged", output)
        upload = hub.plan_upload(run, output or run / EXPORTS / "merged", repository, private=not public)
        approval(yes, refuse_upload)(upload.text())
        typer.echo(f"Uploaded: {hub.push(upload)}")
        return
    if repository or public or yes:
        raise ModelError("--repo, --public and --yes need --to hub. Leave them out, or use --to hub.")
    if output and len(quantization or ()) > 1:
        raise ModelError("--output is the folder of a single export. Leave it out, or use --quantization only once.")
    for name in quantization or (None,):
        facts = make(model, to, output, name)
        folder = (output or export_folder(Path(model).expanduser(), to, facts["weights"])).resolve()
        size = sum(path.stat().st_size for path in folder.iterdir())
        typer.echo(f"{facts['weights']}, {size / 1e6:,.0f} MB. {facts['drift']['summary']}")
        if facts.get("checked_prompts"):
            typer.echo(f"The prompts of {facts['checked_prompts']} chats have the same tokens as in training.")
        typer.echo(f"Model: {folder}\nUse it: {usage(folder, facts)}")


app = Group(
    "api",
    "Show or cancel a run's training job on a hosted API.",
    "how-to/train-and-evaluate.md#gpt-35-and-other-api-models",
)


@app.command(example="runs/gpt")
def status(folder: Run) -> None:
    """Print the state of a run's training job on the API."""
    from meditune import hosted_pipeline

    typer.echo(hosted_pipeline.status(folder))


@app.command(example="runs/gpt")
def cancel(folder: Run) -> None:
    """Cancel a run's training job on the API."""
    from meditune import hosted_pipeline

    typer.echo(hosted_pipeline.cancel(folder))


def _print_pruning(facts: dict[str, Any]) -> None:
    measured = [
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
        measured.append((title, facts[key]["before"], facts[key]["after"], form))
    cells = []
    for title, before, after, form in measured:
        change = f"{after / before - 1:+.1%}" if before and form != ".1%" else ""
        cells.append((title, format(before, form), format(after, form), change))
    print_table(("", "before", "after", "change"), cells)
    out = console()
    if "removed_layers" in facts:
        removed = ", ".join(f"{number} ({facts['block_influence'][number]:.3f})" for number in facts["removed_layers"])
        out.print(f"Removed layers (0-based), each with its influence: {removed}.")
    for remark in facts["remarks"]:
        out.print(remark)


def _print_plan(planned: Planned, recipe: Recipe, examples: int, items: int) -> None:
    """Print the cost of each strategy, beginning with the recipe's own, and changes that would make the recipe fit."""
    from meditune.train.machine_speed import UTILIZATION

    out, target = console(), planned.target
    tokens = round(examples * recipe.train.epochs * recipe.prompt.max_tokens)
    measured, reach = " in training", ""
    if target.device != "cpu":
        measured, reach = "", f", of which training is assumed to reach {UTILIZATION[target.device]:.0%}"
    out.print(
        f"{recipe.model.base} on {target.name}: {target.memory_gb:.1f} GB, {target.flops / 1e12:,.2f} "
        f"TFLOP/s{measured} ({target.source}){reach}."
    )
    rows: list[tuple[str | StyledText, ...]] = []
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
                StyledText(each.verdict, colours[each.verdict]),
                f"{most}{each.tokens_per_s:,.0f}",
                f"{least}{clock(each.seconds(tokens))}",
            )
        )
    titles = ("strategy", "base", "trained", "weights", "training", "batch", "peak GB", "", "tokens/s", "time")
    print_table(titles, rows, left_aligned=["base", ""])
    out.print(
        f"* marks the recipe's own settings. Time: {recipe.train.epochs:g} epochs of {examples:,} examples with "
        f"{recipe.prompt.max_tokens} tokens each, the maximum that prompt.max_tokens allows. "
        "Time and memory are for training only; the evaluations may need more memory."
    )
    answers = min(recipe.evaluate.answers or items, items)
    measuring = planned.own.measuring(recipe, items, recipe.prompt.max_tokens, answers)
    folds = recipe.evaluate.calibration_folds
    training = planned.own.seconds(tokens) * (1 + folds)
    further = f" (with {folds} further models for evaluate.calibration_folds)" if folds else ""
    out.print(
        f"Time of `meditune run`, assuming {items:,} test items, {answers:,} of them answered in writing: "
        f"{clock(training + 2 * measuring.total)}, of which training: {clock(training)}{further}, evaluating the base "
        f"model: {clock(measuring.total)} ({clock(measuring.writing)} of it for writing answers), and the tuned model: "
        "the same again. To write fewer or shorter answers, lower evaluate.answers or evaluate.max_new_tokens. "
        f"{target.rough}"
    )
    if suites := recipe.evaluate.suites:
        out.print(
            f"This time doesn't include the medical suites ({', '.join(suite.name for suite in suites)}), because "
            "their items weren't read. To measure fewer items of a suite, set its limit."
        )
    out.print(
        f"Batches contain up to {planned.own.batch_tokens:,} tokens (train.micro_batch_tokens); activations are "
        f"{'recomputed' if planned.own.checkpointing else 'kept'} (train.gradient_checkpointing)."
    )
    for line in planned.advice:
        out.print(f"The recipe would fit with {line}")
    if planned.own.verdict != "fits" and not planned.advice:
        out.print("No known change makes the recipe fit. Use a smaller model.base.")


YES, IN_4_BITS, SLOW, NO = "yes", "in 4 bits", "slow", "no"
SLOW_SECONDS = 2 * 3600  # Tuning counts as slow if a thousand rows take longer than this
ROW_TOKENS = 512
ASSUMED_EXAMPLES = 1000  # Number of training examples if no files of rows are counted
HERE = "here"


class Row(NamedTuple):
    """A base model in the table of `meditune models`."""

    name: str
    title: str
    parameters: str
    licence: str
    availability: str
    fits: str  # YES, IN_4_BITS, SLOW or NO; empty for a model behind an API
    memory: str  # Estimated memory for tuning with LoRA
    time: str  # Estimated time for one epoch of 1,000 rows of ROW_TOKENS tokens


def rows(target: Target) -> list[Row]:
    """Return every base model that a recipe can name, those that suit the machine first.

    Among the models that suit it, current models come before older models, and larger before smaller.
    """
    from meditune.models.catalogue import CATALOGUE

    def rank(pair: tuple[BaseModel, Row]) -> tuple[int, bool, float]:
        model, row = pair
        order = {YES: 0, IN_4_BITS: 0, SLOW: 1, NO: 2, "": 3}[row.fits]
        return order, model.older, -model.billions if order == 0 else model.billions

    return [row for _, row in sorted(((model, _row(model, target)) for model in CATALOGUE.values()), key=rank)]


def _row(model: BaseModel, target: Target) -> Row:
    from meditune.train.machine_speed import UTILIZATION

    known = (model.name, model.title, model.parameters, model.licence, availability(model))
    if model.api or not model.billions:
        return Row(*known, "", "", "")
    # `rest` approximates the memory that `meditune plan` predicts in addition to the weights: for rows of 1,024 tokens
    # on a CPU, and of 2,048 tokens with recomputed activations on a GPU. In 4 bits, embeddings and head keep 16 bits.
    rest = 2.0 + 2.3 * model.billions if target.device == "cpu" else 1.0 + 0.25 * model.billions
    needed = {YES: model.billions * target.dtype.itemsize + rest}
    if target.device == "cuda":
        needed[IN_4_BITS] = model.billions * 0.75 + rest
    fits = next((way for way, gigabytes in needed.items() if gigabytes <= target.memory_gb), NO)
    memory = f"{needed.get(fits, min(needed.values())):.0f} GB"
    if fits == NO:
        return Row(*known, NO, memory, "")
    # Training with adapters takes about four floating-point operations for each weight and token.
    seconds = 4e9 * model.billions * 1000 * ROW_TOKENS / (target.flops * UTILIZATION[target.device])
    return Row(*known, SLOW if seconds > SLOW_SECONDS else fits, memory, clock(seconds))


def availability(model: BaseModel) -> str:
    """Return where the model would come from if it were loaded now."""
    if model.api:
        return "API only"
    if model.is_downloaded:
        return HERE
    if model.package:
        return f"from a Python package ({model.package.megabytes} MB)"
    return "from the hub, after you accept its licence there" if model.gated else "from the hub"
