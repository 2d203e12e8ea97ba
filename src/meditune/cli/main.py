"""The entry point of the command line `meditune`, the pipeline's commands, and `meditune recipe`.

Commands parse arguments, call the library and print. They import heavy libraries late, so that `--help` stays fast.
"""

from __future__ import annotations

import shlex
import signal
import sys
import threading
from pathlib import Path
from typing import Annotated, Any

import typer
from typer import Argument, Option
from typer.core import TyperGroup

from meditune import distributed
from meditune.cli import assistant, data, models, operate, releases, review, serve
from meditune.cli.options import (
    Group,
    JsonFile,
    Output,
    Overrides,
    RecipeName,
    Resamples,
    Text,
    Yes,
    approval,
    documented,
    resolve,
)
from meditune.errors import MedituneError, Stopped, os_error_sentence

REPEAT_SECONDS = 0.1

recipe_app = Group("recipe", "Show and check recipes.", "reference/recipes.md")


@recipe_app.command(example="quickstart --set train.epochs=1")
def show(recipe: RecipeName, overrides: Overrides = None) -> None:
    """Print every value of a recipe, and where each value comes from."""
    from meditune.config import load_recipe

    typer.echo(load_recipe.show(resolve(recipe, overrides)))


@recipe_app.command(example="my-recipe.yaml")
def check(recipe: RecipeName, overrides: Overrides = None) -> None:
    """Check a recipe and print all of its errors at once."""
    from meditune.data.read_sources import check_sources

    resolved = resolve(recipe, overrides)
    check_sources(resolved.recipe.data)
    typer.echo(f"{recipe} is valid. Not checked: whether {resolved.recipe.model.base} and the data are available.")


PANELS = {
    "Pipeline": ("init", "run", "train", "evaluate", "report", "compare", "seeds", "crossval", "recipe"),
    "Data": ("data", "index", "update"),
    "Models": ("models", "plan", "merge", "prune", "export", "api", "doctor"),
    "Assistant": ("ask", "serve", "mcp", "keys", "answers"),
    "Operate": ("status", "drift", "retrain", "registry", "loop"),
    "People": ("review", "ratings", "annotate", "learn"),
}  # The commands in the order of `meditune --help`, by heading


class _Panels(TyperGroup):
    """The group of all commands, listed by panel. Typer's own panels need rich markup, which would slow every start."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the arguments, in which folders replace ~."""
        return super().parse_args(ctx, [_with_home(argument) for argument in args])

    def format_commands(self, ctx: Any, formatter: Any) -> None:  # noqa: ARG002 (typer's signature)
        """Write a line for each command, under the heading of its panel."""
        width = max(map(len, self.commands))
        for panel, names in PANELS.items():
            rows = [(f"{name:<{width}}", self.commands[name].get_short_help_str(200)) for name in names]
            with formatter.section(panel):
                formatter.write_dl(rows)


def _with_home(argument: str) -> str:
    """Return `--option=~/path` with the user's home folder; shells expand only a ~ at the beginning of a word."""
    option, _, value = argument.partition("=")
    is_path = option.startswith("--") and value.startswith("~/")
    return f"{option}={Path(value).expanduser()}" if is_path else argument


cli_app = typer.Typer(
    cls=_Panels,
    help="Tune a small language model for medical questions; evaluate and operate it.",
    no_args_is_help=True,
    add_completion=False,
    context_settings={"max_content_width": 100},
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
for group in (
    *(data.app, models.app, recipe_app, review.app, review.annotate_app, assistant.app),
    *(operate.app, operate.learn_app, releases.registry_app, serve.keys_app, serve.answers_app),
):
    cli_app.add_typer(group)


@cli_app.command()
@documented("run quickstart --output runs/quickstart", "how-to/train-and-evaluate.md")
def run(recipe: RecipeName, output: Output, overrides: Overrides = None, yes: Yes = False) -> None:
    """Run the whole pipeline: data, evaluation, tuning, report.

    The command prepares the data, evaluates the base model, tunes it, evaluates the tuned model on the same items and
    writes OUTPUT/report.html. Repeat an interrupted command to resume the run.
    """
    from meditune import pipeline
    from meditune.models.api_client import find_api_model

    resolved = resolve(recipe, overrides)
    stages = "Stages: prepare the data, measure the base model, train, measure the tuned model, compare and report."
    if not find_api_model(resolved.recipe.model.base, resolved.recipe.model.api):
        plan = shlex.join(["meditune", "plan", recipe, *_settings(overrides)])
        stages += f" To predict their times, run: {plan}"
    typer.echo(stages, err=True)
    report = pipeline.run(resolved.recipe, output, _run_command(recipe, output, overrides), approval(yes))
    _print_report(report, output)


def _run_command(recipe: str, output: Path, overrides: list[str] | None) -> str:
    return shlex.join(["meditune", "run", recipe, "--output", str(output), *_settings(overrides)])


def _settings(overrides: list[str] | None) -> list[str]:
    return [word for item in overrides or [] for word in ("--set", item)]


@cli_app.command()
@documented("train quickstart --output runs/quickstart", "how-to/train-and-evaluate.md")
def train(recipe: RecipeName, output: Output, overrides: Overrides = None, yes: Yes = False) -> None:
    """Prepare the data and tune the model, without any evaluation."""
    from meditune import pipeline

    resolved = resolve(recipe, overrides)
    pipeline.train(resolved.recipe, output, approval(yes))
    typer.echo(f"Model: {(output / 'model').resolve()}")


@cli_app.command()
@documented("evaluate smollm2-135m --recipe quickstart --output evaluations/smollm2", "how-to/train-and-evaluate.md")
def evaluate(
    model: Annotated[
        str,
        Argument(
            metavar="MODEL",
            help="Run or model folder, catalogue name, Hugging Face id, or api:NAME (a model behind an API).",
        ),
    ],
    output: Annotated[Path, Option("--output", "-o", help="Folder for the predictions and metrics.")],
    recipe: Annotated[str, Option(help="Recipe that defines the data, prompt and metrics.")] = "quickstart",
    protocol: Annotated[
        Text,
        Option(
            metavar="meditune|lm-eval",
            help="Prompts and scoring: meditune, or lm-eval for those of lm-evaluation-harness (decisions only).",
        ),
    ] = None,
    url: Annotated[
        Text, Option(help="Address of the vLLM server that serves MODEL, including /v1; MODEL is measured there.")
    ] = None,
    overrides: Overrides = None,
    yes: Yes = False,
) -> None:
    """Evaluate one model on a recipe's test items."""
    from meditune import pipeline
    from meditune.cli.data import print_leakage
    from meditune.cli.metrics_tables import print_conditions, print_figures
    from meditune.cli.tables import print_remarks

    chosen = [f"evaluate.protocol={protocol}"] if protocol else []
    resolved = resolve(recipe, [*(overrides or []), *chosen])
    result = pipeline.evaluate(model, resolved.recipe, output, approval(yes), url)
    print_figures(result | {"model": model})
    print_conditions(result)
    print_remarks(result["remarks"])
    print_leakage(result["leakage"])
    typer.echo(f"Predictions: {(output / 'predictions').resolve()}")


@cli_app.command()
@documented("compare runs/quickstart:base runs/quickstart runs/other", "how-to/train-and-evaluate.md")
def compare(
    models: Annotated[
        list[str],
        Argument(
            metavar="A B [C ...]",
            help="Output folders of `meditune evaluate` or `meditune run` with the same test items. RUN means the "
            "run's tuned model, RUN:base the base model, and RUN:tuned+retrieved the tuned model with retrieved "
            "passages.",
        ),
    ],
    gate: Annotated[
        Path | None, Option(help="YAML file with a gate policy; exit code 5 means that a model failed the gate.")
    ] = None,
    show_changes: Annotated[
        int, Option(min=0, help="Maximum number of improved items, and of worsened items, to show.")
    ] = 3,
    changes_file: Annotated[Path | None, Option(help="JSON Lines file for all items whose prediction changed.")] = None,
    resamples: Resamples = 10_000,
    seed: Annotated[int, Option(min=0, help="Seed of the bootstrap.")] = 17,
    json_file: JsonFile = None,
) -> None:
    """Compare each model with the first, using paired statistics. The command reads only stored predictions."""
    from meditune.cli.metrics_tables import print_side_by_side
    from meditune.evaluate import quality_gate as evaluation_gate

    policy = evaluation_gate.policy(gate)
    result = evaluation_gate.compare(models, resamples, seed, policy)
    print_side_by_side(result, show_changes)
    evaluation_gate.write(result, json_file, changes_file)
    evaluation_gate.refuse_failed(result)


@cli_app.command()
@documented("seeds runs/seed-1 runs/seed-2 runs/seed-3", "how-to/train-and-evaluate.md")
def seeds(
    runs: Annotated[list[Path], Argument(metavar="RUN RUN [...]", help="Finished runs that differ only in the seed.")],
    resamples: Resamples = 10_000,
    json_file: JsonFile = None,
) -> None:
    """Compare base and tuned models over runs with different seeds."""
    from meditune.cli.metrics_tables import print_seeds
    from meditune.evaluate.seeds import over_seeds
    from meditune.files import write_json

    result = over_seeds(runs, resamples)
    print_seeds(result)
    if json_file:
        write_json(json_file, result)


@cli_app.command()
@documented("crossval quickstart --output runs/crossval", "how-to/train-and-evaluate.md")
def crossval(
    recipe: RecipeName,
    output: Annotated[
        Path, Option("--output", "-o", help="Folder for the runs of the folds. Unfinished runs are resumed.")
    ],
    folds: Annotated[list[int] | None, Option("--fold", min=0, max=9, help="Run only this fold. Repeatable.")] = None,
    overrides: Overrides = None,
    yes: Yes = False,
) -> None:
    """Cross-validate a recipe on PubMedQA's ten published folds. Each fold is one run; the results are pooled."""
    from meditune import cross_validation
    from meditune.cli.metrics_tables import print_crossval

    recipes, commands = {}, {}
    for fold in sorted(set(folds or range(10))):
        given = [*(overrides or []), *cross_validation.settings(fold)]
        recipes[fold] = resolve(recipe, given).recipe
        commands[fold] = _run_command(recipe, output / f"fold-{fold}", given)
    result = cross_validation.crossval(recipes, output, commands, approval(yes))
    typer.echo(f"Results: {(output / cross_validation.RESULT).resolve()}")
    print_crossval(result)


@cli_app.command()
@documented("report runs/quickstart", "reference/report.md")
def report(folder: Annotated[Path, Argument(metavar="DIR", help="Folder of a finished run.")]) -> None:
    """Rebuild a run's report from its stored predictions."""
    from meditune import pipeline

    _print_report(pipeline.report(folder), folder)


def _print_report(report: dict[str, Any], folder: Path) -> None:
    from meditune.cli.data import print_leakage, print_synthetic
    from meditune.cli.metrics_tables import print_comparison, print_conditions, print_worse
    from meditune.cli.tables import print_remarks

    print_comparison(report)
    print_conditions(report)
    print_synthetic(report["data"]["synthetic"])
    print_remarks(report["remarks"])
    print_leakage(report["leakage"])
    typer.echo(f"Report: {(folder / 'report.html').resolve()}")
    print_worse(report)


@cli_app.command()
@documented("ratings scores.csv --run runs/quickstart", "how-to/train-and-evaluate.md#ratings")
def ratings(
    file: Annotated[
        Path, Argument(metavar="FILE", help="Table with the columns id, score (1 to 4) and, optionally, model.")
    ],
    folder: Annotated[
        Path | None, Option("--run", help="Run folder; the scores are stored with the run's answers.")
    ] = None,
    best: Annotated[
        bool, Option("--best", help="If a question has several scores, use the highest score instead of the mean.")
    ] = False,
) -> None:
    """Compute LiveQA's metrics from raters' scores.

    The metrics are the average score, and succ@i+ and prec@i+ for i from 2 to 4.
    """
    from meditune.cli.metrics_tables import print_ratings
    from meditune.evaluate import expert_ratings

    found = expert_ratings.read_ratings(file, best)
    print_ratings(found)
    if folder:
        stored, left_out = expert_ratings.store(found, folder / "predictions")
        if left_out:
            typer.echo(
                f"Rated questions that were left out, because the other model's answer has no rating: {left_out}. To "
                "include them, rate the other model's answers to these questions, too, and import these ratings."
            )
        typer.echo(
            f"Ratings stored for {' and '.join(stored)}. To add them to the report, run: "
            f"{shlex.join(['meditune', 'report', str(folder)])}"
        )


for command in (
    models.init,
    models.plan,
    assistant.ask,
    models.merge,
    models.prune,
    models.export,
    serve.serve,
    serve.mcp,
    operate.update,
    releases.retrain,
    releases.loop,
    models.models,
):
    cli_app.command()(command)
cli_app.command("status")(operate.service_status)


@cli_app.command()
@documented("doctor", "how-to/train-and-evaluate.md#offline")
def doctor(
    data: Annotated[bool, Option("--data", help="Also say how to get the data sets that aren't here.")] = False,
) -> None:
    """Check the machine, installation, network, data and models."""
    from meditune.cli.doctor import examine, render

    findings = examine()
    typer.echo(render(findings, data))
    if any(finding.verdict == "bad" for finding in findings):
        raise typer.Exit(1)


@cli_app.callback(invoke_without_command=True)
def _version(
    context: typer.Context, version: Annotated[bool, Option("--version", help="Print the version.")] = False
) -> None:
    if version:
        from meditune import __version__

        typer.echo(__version__)
        raise typer.Exit
    if distributed.world() > 1 and context.invoked_subcommand != "train":
        raise MedituneError(
            f"torchrun started {distributed.world()} processes, but only `meditune train` supports several. Use "
            "torchrun for training, then start `meditune run` without torchrun, with the same recipe and --output."
        )


def main() -> None:
    """Run the command line. Errors are printed to stderr and determine the exit code (see errors.py)."""
    from meditune.models.quiet_libraries import no_telemetry

    no_telemetry()
    stop_on_signals()
    try:
        with distributed.process_group():
            cli_app(prog_name="meditune")
    except MedituneError as error:
        typer.secho(f"Error: {error}", fg="red", err=True)
        sys.exit(error.exit_code)
    except Stopped as stopped:
        typer.secho("\nStopped. Finished work is saved; run the same command again to resume.", fg="yellow", err=True)
        sys.exit(stopped.exit_code)
    except OSError as error:
        sentence = os_error_sentence(error)
        if sentence is None:
            raise
        typer.secho(f"Error: {sentence}", fg="red", err=True)
        sys.exit(1)


def stop_on_signals() -> None:
    """Raise Stopped in the main thread at ctrl-C or the system's termination signal.

    Python ignores an exception that is raised while it destroys an object, so the signal is then repeated.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _stop)
    report = sys.unraisablehook

    def repeat(ignored: sys.UnraisableHookArgs) -> None:
        if isinstance(ignored.exc_value, Stopped):
            again = [threading.main_thread().ident, signal.SIGTERM]
            timer = threading.Timer(REPEAT_SECONDS, signal.pthread_kill, again)
            timer.daemon = True  # a program that has ended needs no signal
            timer.start()
        else:
            report(ignored)

    sys.unraisablehook = repeat


def _stop(*_: object) -> None:
    raise Stopped


if __name__ == "__main__":
    main()
