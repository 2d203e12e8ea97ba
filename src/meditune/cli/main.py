"""The command line: thin commands, no logic. Heavy libraries are imported by what the commands call.

`meditune recipe`: what a recipe says, and whether it holds. Heavy libraries are imported by what they call.
"""

from __future__ import annotations

import errno
import shlex
import signal
import sys
from pathlib import Path
from typing import Annotated

import typer

from meditune import distributed
from meditune.cli import assistant, data, models, operate, releases, review, serve, status
from meditune.cli.options import Output, Overrides, RecipeName, Yes, resolve
from meditune.errors import MedituneError, Stopped

app = typer.Typer(help="Look at recipes and check them.", no_args_is_help=True, rich_markup_mode=None)


@app.command()
def show(recipe: RecipeName, overrides: Overrides = None) -> None:
    """Every resolved value, and where it comes from."""
    from meditune.config import load_recipe

    typer.echo(load_recipe.show(resolve(recipe, overrides)))


@app.command()
def check(recipe: RecipeName, overrides: Overrides = None) -> None:
    """Is the recipe valid? All errors are shown at once."""
    from meditune.data.read_sources import check_sources

    resolved = resolve(recipe, overrides)
    check_sources(resolved.recipe.data)
    typer.echo(f"{recipe} is valid. Whether {resolved.recipe.model.base} and the data can be had isn't checked here.")


cli_app = typer.Typer(
    help="Tune a small open language model for medical questions, and measure with statistics whether it got better.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
cli_app.add_typer(data.app, name="data")
cli_app.add_typer(models.app, name="api")
cli_app.add_typer(app, name="recipe")
cli_app.add_typer(review.app, name="review")
cli_app.add_typer(review.annotate_app, name="annotate")
cli_app.add_typer(assistant.app, name="index")
cli_app.add_typer(operate.app, name="drift")
cli_app.add_typer(operate.learn_app, name="learn")
cli_app.add_typer(releases.registry_app, name="registry")
cli_app.add_typer(serve.keys_app, name="keys")
cli_app.add_typer(serve.answers_app, name="answers")


@cli_app.command()
def run(recipe: RecipeName, output: Output, overrides: Overrides = None, yes: Yes = False) -> None:
    """The whole journey: data, base model measured, training, tuned model measured, report."""
    from meditune import pipeline
    from meditune.cli.data import print_leakage, print_synthetic
    from meditune.cli.metrics_tables import print_comparison, print_conditions, print_remarks, print_worse
    from meditune.cli.options import approval

    resolved = resolve(recipe, overrides)
    settings = [word for item in overrides or [] for word in ("--set", item)]
    command = shlex.join(["meditune", "run", recipe, "--output", str(output), *settings])
    report = pipeline.run(resolved.recipe, output, command, approval(yes))
    print_comparison(report)
    print_conditions(report)
    print_synthetic(report["data"]["synthetic"])
    print_remarks(report["remarks"])
    print_leakage(report["leakage"])
    typer.echo(f"Report: {(output / 'report.html').resolve()}")
    print_worse(report)


@cli_app.command()
def train(recipe: RecipeName, output: Output, overrides: Overrides = None, yes: Yes = False) -> None:
    """Prepare the data if need be and fine-tune, without measuring anything."""
    from meditune import pipeline
    from meditune.cli.options import approval

    resolved = resolve(recipe, overrides)
    pipeline.train(resolved.recipe, output, approval(yes))
    typer.echo(f"Model: {(output / 'model').resolve()}")


@cli_app.command()
def evaluate(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="Catalogue name, hub id, model folder, run folder, or api:NAME.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for predictions and figures.")],
    recipe: Annotated[str, typer.Option(help="Says which data, prompt and measures.")] = "quickstart",
    protocol: Annotated[
        str | None,
        typer.Option(
            metavar="meditune|lm-eval",
            help="Whose prompt and scoring: lm-eval measures decisions as lm-evaluation-harness does.",
        ),
    ] = None,
    overrides: Overrides = None,
    yes: Yes = False,
) -> None:
    """Measure one model on a recipe's test items."""
    from meditune import pipeline
    from meditune.cli.data import print_leakage
    from meditune.cli.metrics_tables import print_conditions, print_figures, print_remarks
    from meditune.cli.options import approval

    chosen = [f"evaluate.protocol={protocol}"] if protocol else []
    resolved = resolve(recipe, [*(overrides or []), *chosen])
    result = pipeline.evaluate(model, resolved.recipe, output, approval(yes))
    print_figures(result)
    print_conditions(result)
    print_remarks(result["remarks"])
    print_leakage(result["leakage"])
    typer.echo(f"Predictions: {(output / 'predictions').resolve()}")


@cli_app.command()
def compare(
    models: Annotated[
        list[str],
        typer.Argument(
            metavar="A B [C ...]",
            help="Folders of `meditune evaluate` or of runs, measured on the same items. Of a run the tuned model is "
            "taken; RUN:base is its base, RUN:tuned+retrieved the tuned model with retrieved passages.",
        ),
    ],
    gate: Annotated[
        Path | None, typer.Option(help="A policy in YAML: end with code 5 where a model doesn't meet it.")
    ] = None,
    changed: Annotated[int, typer.Option(min=0, help="Show so many items that changed, in either direction.")] = 3,
    changes_file: Annotated[
        Path | None, typer.Option("--changes", help="Write every item that changed to this file, as JSON Lines.")
    ] = None,
    resamples: Annotated[int, typer.Option(min=100, help="Bootstrap resamples.")] = 10_000,
    seed: Annotated[int, typer.Option(min=0)] = 17,
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write the comparison to this file.")] = None,
) -> None:
    """Are the others better than A? Paired statistics on stored predictions; no model is needed."""
    from meditune.cli.metrics_tables import print_side_by_side
    from meditune.evaluate import gate as comparing

    policy = comparing.policy(gate)
    result = comparing.compare(models, resamples, seed, policy)
    comparing.write(result, json_file, changes_file)
    print_side_by_side(result, changed)
    comparing.refuse_failed(result)


@cli_app.command()
def seeds(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN RUN [...]", help="Finished runs of one recipe.")],
    resamples: Annotated[int, typer.Option(min=100, help="Bootstrap resamples.")] = 10_000,
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write the figures to this file.")] = None,
) -> None:
    """Does tuning help whatever the seed? Base against tuned over runs that differ in their seeds only."""
    from meditune.cli.metrics_tables import print_seeds
    from meditune.evaluate.seeds import over_seeds
    from meditune.files import write_json

    result = over_seeds(runs, resamples)
    if json_file:
        write_json(json_file, result)
    print_seeds(result)


@cli_app.command()
def crossval(
    recipe: RecipeName,
    output: Output,
    folds: Annotated[
        list[int] | None, typer.Option("--fold", min=0, max=9, help="Only this fold, 0 to 9. Repeatable.")
    ] = None,
    overrides: Overrides = None,
    yes: Yes = False,
) -> None:
    """Cross-validate on PubMedQA's training items: a run for each of the publisher's ten folds, then all together."""
    from meditune import cross_validation
    from meditune.cli.metrics_tables import print_crossval, print_crossval_worse
    from meditune.cli.options import approval

    recipes, commands = {}, {}
    for fold in sorted(set(folds or range(10))):
        given = [*(overrides or []), *cross_validation.settings(fold)]
        recipes[fold] = resolve(recipe, given).recipe
        words = [word for item in given for word in ("--set", item)]
        commands[fold] = shlex.join(["meditune", "run", recipe, "--output", str(output / f"fold-{fold}"), *words])
    result = cross_validation.crossval(recipes, output, commands, approval(yes))
    print_crossval(result)
    typer.echo(f"Figures: {(output / cross_validation.RESULT).resolve()}")
    print_crossval_worse(result)


@cli_app.command()
def report(folder: Annotated[Path, typer.Argument(metavar="DIR", help="A finished run.")]) -> None:
    """Compute a run's report again from its stored predictions."""
    from meditune import pipeline
    from meditune.cli.data import print_leakage, print_synthetic
    from meditune.cli.metrics_tables import print_comparison, print_conditions, print_remarks, print_worse

    result = pipeline.report(folder)
    print_comparison(result)
    print_conditions(result)
    print_synthetic(result["data"]["synthetic"])
    print_remarks(result["remarks"])
    print_leakage(result["leakage"])
    typer.echo(f"Report: {(folder / 'report.html').resolve()}")
    print_worse(result)


@cli_app.command()
def ratings(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="CSV, JSON Lines ...: columns id, score (1 to 4), and maybe model.")
    ],
    folder: Annotated[
        Path | None, typer.Option("--run", help="Keep them with this run's (or evaluation's) answers.")
    ] = None,
    best: Annotated[
        bool, typer.Option("--best", help="Of several scores of a question the highest counts, not their mean.")
    ] = False,
) -> None:
    """Raters' scores as LiveQA's figures: average score, succ@i+, prec@i+."""
    from meditune.cli.metrics_tables import print_ratings
    from meditune.evaluate import expert_ratings

    found = expert_ratings.read_ratings(file, best)
    print_ratings(found)
    if folder:
        stored = expert_ratings.store(found, folder / "predictions")
        typer.echo(f"Kept for {' and '.join(stored)}. Into the report: meditune report {folder}")


for command in (
    models.plan,
    assistant.ask,
    models.merge,
    models.prune,
    models.export,
    serve.serve,
    operate.update,
    status.status,
    releases.retrain,
    releases.loop,
    models.models,
):
    cli_app.command()(command)


@cli_app.command()
def doctor() -> None:
    """What this machine can do, and what is missing."""
    from meditune.cli import doctor as checks

    findings = checks.examine()
    typer.echo(checks.render(findings))
    if any(finding.verdict == "bad" for finding in findings):
        raise typer.Exit(1)


@cli_app.callback(invoke_without_command=True)
def _version(
    context: typer.Context, version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False
) -> None:
    if version:
        from meditune import __version__

        typer.echo(__version__)
        raise typer.Exit
    if distributed.world() > 1 and context.invoked_subcommand != "train":
        raise MedituneError(
            f"{distributed.world()} processes were started, but only `meditune train` shares its work among several. "
            "Train so; then `meditune run` without torchrun, on the same recipe and --output, measures the model."
        )


def main() -> None:
    """Run the command line; errors become one sentence on stderr and an exit code (see errors.py)."""
    from meditune.models.quiet_libraries import no_telemetry

    no_telemetry()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _stop)
    try:
        with distributed.process_group():
            cli_app(prog_name="meditune")
    except MedituneError as error:
        typer.secho(f"Error: {error}", fg="red", err=True)
        sys.exit(error.exit_code)
    except Stopped as stopped:
        typer.secho("\nStopped. What is finished is kept; run the same command again to go on.", fg="yellow", err=True)
        sys.exit(stopped.exit_code)
    except OSError as error:
        if error.errno != errno.ENOSPC and error.filename is None:
            raise
        what = "the disk is full. Make room and run the same command again"
        if error.errno != errno.ENOSPC:
            what = f"{error.filename}: {error.strerror}. Choose another place, or put this right"
        typer.secho(f"Error: {what}.", fg="red", err=True)
        sys.exit(1)


def _stop(*_: object) -> None:
    raise Stopped


if __name__ == "__main__":
    main()
