"""Shared parts of commands: groups, arguments, options, and the question before an upload."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Argument, Option, Typer

from meditune.errors import MedituneError

if TYPE_CHECKING:
    from meditune.config.load_recipe import Resolved
    from meditune.hosted_pipeline import Approve

Text = str | None
Texts = list[str] | None  # Values of a repeatable option
Paths = list[Path] | None
RecipeName = Annotated[str, Argument(metavar="RECIPE", help="Name of a shipped recipe, or a YAML file.")]
Output = Annotated[Path, Option("--output", "-o", help="Folder of the run. An unfinished run in it is resumed.")]
Overrides = Annotated[
    Texts, Option("--set", metavar="KEY=VALUE", help="Set a recipe key, for example train.epochs=1. Repeatable.")
]
Yes = Annotated[
    bool, Option("--yes", help="For a model behind an API: send data and spend money without asking first.")
]
Run = Annotated[Path, Argument(metavar="DIR", help="The run's folder.")]
Json = Annotated[bool, Option("--json", help="Print JSON instead of text.")]
Resamples = Annotated[int, Option(min=100, help="Number of bootstrap resamples.")]
JsonFile = Annotated[Path | None, Option(help="Also write the result to this JSON file.")]
Seed = Annotated[int, Option(min=0, help="Seed of the random choices.")]
Raters = Annotated[
    int | None, Option(min=1, help="Number of raters who share the items; by default, every rater rates all items.")
]
Overlap = Annotated[
    int | None,
    Option(
        min=1,
        help="With --raters: number of raters who rate each item; by default 2 (in `review create`, all raters).",
    ),
]
Store = Annotated[
    Text,
    Option(
        "--store",
        metavar="DIR|URL",
        envvar="MEDITUNE_STORE",
        help="A server's store of keys, answers and feedback: a folder or postgresql://HOST/DATABASE.",
    ),
]
Embedding = Annotated[
    Text,
    Option(
        metavar="MODEL",
        help="Embedding model: all-minilm-l6-v2, all-minilm-l6-v2-int8 (needs no torch), or a sentence-transformers "
        "model. By default, an existing index or reference keeps its model, and a new one gets all-minilm-l6-v2.",
    ),
]
JudgeRun = Annotated[
    Text,
    Option(
        metavar="RUN|MODEL",
        help="Model that checks each sentence of an answer: the run folder of an evidence judge, the folder or hub id "
        "of an NLI model, or minicheck:NAME, hhem:NAME or lettucedetect:NAME.",
    ),
]
JudgeThreshold = Annotated[
    float | None,
    Option(
        min=0,
        max=1,
        metavar="PROBABILITY",
        help="Show a sentence if the judge's probability of support is at least this. By default 0.85, or 0.5 for "
        "models that others trained. If it is higher, fewer answers and fewer unsupported sentences are shown.",
    ),
]
CrossEncoderName = Annotated[
    Text,
    Option(
        "--cross-encoder",
        metavar="MODEL",
        help="Folder or hub id of a cross-encoder, which scores the best passages of a search again.",
    ),
]
ExcludeRater = Annotated[Texts, Option(metavar="RATER", help="Exclude this rater, by name or code. Repeatable.")]


def documented(example: str, page: str) -> Callable[[Any], Any]:
    """Return a decorator that adds an example and a documentation page to a command's help."""

    def add(function: Any) -> Any:
        function.__doc__ = f"{inspect.getdoc(function)}\n\nExample: `meditune {example}`.\n\n{_reference(page)}"
        return function

    return add


def _reference(page: str) -> str:
    return f"{'Reference' if page.startswith('reference') else 'Guide'}: docs/{page}."


class Group(Typer):
    """A group of commands. Each command's help ends with an example and its page, by default the group's page."""

    def __init__(self, name: str, summary: str, page: str) -> None:
        self.page = page
        super().__init__(
            name=name, help=f"{summary}\n\n{_reference(page)}", no_args_is_help=True, rich_markup_mode=None
        )

    def command(self, *names: Any, example: str = "", page: str = "", **options: Any) -> Callable[[Any], Any]:
        """Register a command like Typer.command. `example` contains the arguments and options of the help's example."""

        def add(function: Any) -> Any:
            words = f"{self.info.name} {names[0] if names else function.__name__} {example}".strip()
            return super(Group, self).command(*names, **options)(documented(words, page or self.page)(function))

        return add


def resolve(name: str, overrides: list[str] | None) -> Resolved:
    """Return the recipe with the overrides applied. Raises RecipeError, which lists every problem, if it is invalid."""
    from meditune.config import load_recipe

    return load_recipe.load_recipe(name, overrides or [])


def refuse_upload(text: str) -> None:
    """Raise MedituneError, whose message shows `text` and asks for --yes."""
    raise MedituneError(f"Nothing was sent. This would leave the machine:\n{text}\nTo agree, add --yes.")


def approval(yes: bool, refusal: Approve | None = None) -> Approve:
    """Return a function that asks before an upload. With `yes`, it doesn't ask; otherwise, it needs a terminal."""
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
