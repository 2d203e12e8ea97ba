"""Arguments and options that several commands share, renamed options, and the question before an upload."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from meditune.errors import MedituneError

if TYPE_CHECKING:
    from meditune.config.load_recipe import Resolved
    from meditune.hosted_pipeline import Approve

RecipeName = Annotated[str, typer.Argument(metavar="RECIPE", help="Name of a shipped recipe, or a YAML file.")]
Output = Annotated[Path, typer.Option("--output", "-o", help="Folder of the run. An unfinished run in it is resumed.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change a recipe key, for example train.epochs=1. Repeatable."),
]
Yes = Annotated[
    bool, typer.Option("--yes", help="For a model behind an API: send data and spend money without asking.")
]
Run = Annotated[Path, typer.Argument(metavar="DIR", help="The run's folder.")]


def resolve(name: str, overrides: list[str] | None) -> Resolved:
    """Return the recipe with its overrides. Raises RecipeError, which lists every problem, if it is invalid."""
    from meditune.config import load_recipe

    return load_recipe.load_recipe(name, overrides or [])


def refuse_upload(text: str) -> None:
    """Raise MedituneError, which asks for --yes."""
    raise MedituneError(f"Nothing was sent. This would leave the machine:\n{text}\nTo agree, add --yes.")


def approval(yes: bool, refusal: Approve | None = None) -> Approve:
    """Return the function that gets the user's consent before an upload.

    With `yes` it agrees, in a terminal it asks, and elsewhere it calls `refusal`.
    """
    from meditune.hosted_pipeline import refuse

    def approve(text: str) -> None:
        if not yes and not sys.stdin.isatty():
            (refusal or refuse)(text)
        print(text, file=sys.stderr)
        if not yes:
            print("Send it? [y/N] ", end="", file=sys.stderr, flush=True)
            if sys.stdin.readline().strip().lower() not in {"y", "yes"}:
                raise MedituneError("Nothing was sent.")

    return approve


EXCLUDE = {"--without": "--exclude-rater", "--without-careless": "--exclude-careless"}
RENAMED: dict[str, dict[str, str]] = {
    "serve": {
        "--keys": "--require-key",
        "--open": "--allow-anonymous",
        "--at-once": "--concurrency",
        "--waiting": "--queue-size",
        "--message-characters": "--max-message-characters",
        "--context-characters": "--max-context-characters",
        "--history-characters": "--max-history-characters",
        "--answer-seconds": "--timeout",
        "--restarts": "--max-restarts",
        "--bare-chat": "--raw-chat",
        "--drift-every": "--drift-interval",
        "--hourly": "--hourly-cost",
    },
    "retrain": {
        "--least": "--min-rows",
        "--afresh": "--restart",
        "--afresh-if-changed": "--restart-if-changed",
        "--then": "--on-pass",
    },
    "drift check": {"--least": "--min-severity", "--alarms": "--false-alarms"},
    "update": {
        "--files": "--update-files",
        "--first": "--first-file",
        "--tests": "--test-items",
        "--eutils": "--eutils-url",
    },
    "learn queue": {
        "--known": "--training-data",
        "--done": "--earlier-queue",
        "--ask": "--model",
    },
    "learn rows": {"--without": "--exclude-rater"},
    "annotate create": {
        "--strata": "--stratify-by",
        "--shared": "--shared-rows",
        "--planted": "--synthetic-gold",
        "--test": "--include-test",
    },
    "annotate serve": EXCLUDE,
    "annotate results": EXCLUDE,
    "annotate import": EXCLUDE,
    "review create": {"--axes": "--form"},
    "data phi": {"--mask": "--output", "--group": "--patient-column"},
    "registry promote": {"--why": "--reason"},
    "registry canary": {"--why": "--reason"},
    "registry stop": {"--why": "--reason"},
    "registry rollback": {"--why": "--reason"},
    "merge": {"--keep-zeros": "--keep-sparsity"},
    "compare": {"--changed": "--show-changes", "--changes": "--changes-file", "--json": "--json-file"},
    "seeds": {"--json": "--json-file"},
}
"""By command: options of the last version with their new names. The next version refuses the old ones."""
RENAMED_COMMANDS = {"registry try": "registry canary"}
"""Commands of the last version with their new names. The next version refuses the old ones."""


def note_new_name(old: str, new: str) -> None:
    """Print on stderr that the option or command `old` was renamed to `new`."""
    print(f"Note: {old} is now {new}. The next version won't accept {old}.", file=sys.stderr)


def with_new_names(arguments: list[str]) -> list[str]:
    """Return a command line with the new names of renamed commands and options; note each old name on stderr."""
    if new := RENAMED_COMMANDS.get(old := " ".join(arguments[:2])):
        note_new_name(old, new)
        arguments = [*new.split(), *arguments[2:]]
    names = RENAMED.get(" ".join(arguments[:1])) or RENAMED.get(" ".join(arguments[:2]), {})
    changed = []
    for argument in arguments:
        name, equals, value = argument.partition("=")
        if name in names:
            note_new_name(name, names[name])
            argument = f"{names[name]}{equals}{value}"
        changed.append(argument)
    return changed
