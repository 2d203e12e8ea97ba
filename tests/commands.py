"""The command line as a user meets it, on tiny models and data."""

from __future__ import annotations

import contextlib
import functools
import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import typer.main
from markupsafe import Markup, escape

from meditune.cli import main
from meditune.errors import Stopped
from meditune.evaluate.report import plots
from meditune.train import finetune
from tests import layouts, tiny
from tests.layouts import jsonl as jsonl

SMALL = {
    "data.split": "group",
    "data.sources.0.limit": "40",
    "train.epochs": "2",
    "train.learning_rate": "1e-2",
    "evaluate.max_new_tokens": "16",
    "evaluate.choices": "8",
    "evaluate.resamples": "200",
}
"""What makes a run take seconds."""


@dataclass(frozen=True)
class Result:
    """What a command did."""

    code: int
    out: str
    err: str

    @property
    def last(self) -> str:
        """The last line on stdout."""
        return self.out.strip().splitlines()[-1]

    def ok(self) -> Result:
        """Assert that it ended well, and return it."""
        assert self.code == 0, self
        return self

    def refused(self, code: int, *texts: str) -> None:
        """Assert a clear error: this exit code, these texts on stderr, no traceback, nothing on stdout."""
        assert self.code == code, self
        assert "Error: " in self.err
        assert "Traceback" not in self.err
        assert self.out == ""
        for text in texts:
            assert text in self.err, f"{text!r} isn't in: {self.err}"


@dataclass(frozen=True)
class Bench:
    """A user's machine: base model, data, environment, a place for runs."""

    base: Path
    folder: Path
    environment: dict[str, str]

    def settings(self, **changes: Any) -> list[str]:
        """`--set` options of a small run; a keyword's "__" stands for a dot, None removes an option."""
        values = {"model.base": self.base} | SMALL
        values |= {key.replace("__", "."): value for key, value in changes.items()}
        return [word for key, value in values.items() if value is not None for word in ("--set", f"{key}={value}")]

    def own(self, path: Path, **changes: Any) -> list[str]:
        """`settings` for a file of the user's own."""
        sources = f"[{{name: own, path: '{path}'}}]"
        return self.settings(data__sources=sources, data__sources__0__limit=None, **changes)

    def run(self, name: str, *words: Any, **changes: Any) -> Result:
        """`meditune run quickstart` into the folder of that name."""
        settings = words or self.settings(**changes)
        return meditune("run", "quickstart", "--output", self.folder / name, *settings)

    @contextlib.contextmanager
    def started(self, *words: Any) -> Iterator[subprocess.Popen[str]]:
        """A command in a process of its own; killed at the end of the block if it still runs."""
        process = subprocess.Popen(
            [sys.executable, "-m", "meditune.cli.main", *map(str, words)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | self.environment,
        )
        try:
            yield process
        finally:
            process.kill()
            process.communicate()

    def report(self, name: str) -> dict[str, Any]:
        """report.json of a run."""
        value: dict[str, Any] = json.loads((self.folder / name / "report.json").read_text(encoding="utf-8"))
        return value

    def adapter(self, name: str) -> bytes:
        """The weights that a run left."""
        return (self.folder / name / "model" / "adapter_model.safetensors").read_bytes()


@contextlib.contextmanager
def bench(folder: Path, architecture: str = "llama") -> Iterator[Bench]:
    """A bench under `folder`, with the environment set to it; PubMedQA has its 1,000 items."""
    items = {str(20_000_000 + number): layouts.pubmedqa_item(number) for number in range(1000)}
    layouts.pubmedqa(folder / "data" / "pubmedqa", items)
    environment = {
        "MEDITUNE_DATA": str(folder / "data"),
        "MEDITUNE_CACHE": str(folder / "cache"),
        "MEDITUNE_OFFLINE": "1",
    }
    made = Bench(tiny.save(folder / "base", architecture), folder / "runs", environment)
    made.folder.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        yield made


_built = functools.cache(typer.main.get_command)  # which takes longer than many a command
_draw, _drawn = plots._svg, set()


def described(_: Any, name: str, text: str, legend: bool = False) -> Markup:
    """A plot without its drawing, which takes a quarter of a tiny model's run."""
    return Markup(f'<svg class="plot" role="img" id="{name}"><title>{escape(text)}</title></svg>')


def _drawn_once(figure: Any, name: str, text: str, legend: bool = False) -> Markup:
    draw = described if name in _drawn else _draw
    _drawn.add(name)
    return draw(figure, name, text, legend)


def meditune(*words: Any) -> Result:
    """A command in this process, through the function that the installed script calls."""
    out, err = io.StringIO(), io.StringIO()
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    code: Any = 0
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        patch.setattr(sys, "argv", ["meditune", *map(str, words)])
        patch.setattr(typer.main, "get_command", _built)
        patch.setattr(plots, "_svg", _drawn_once)
        try:
            main.main()
        except SystemExit as ended:
            code = ended.code or 0
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
    return Result(int(code), out.getvalue(), err.getvalue())


@contextlib.contextmanager
def stopped_after(step: int) -> Iterator[None]:
    """Inside the block the user stops every training after this optimizer step."""
    real = finetune.train

    def stopping(*given: Any, **named: Any) -> Iterator[Any]:
        for done in real(*given, **named):
            yield done
            if done.step == step:
                raise Stopped

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(finetune, "train", stopping)
        yield


def rows(count: int, **changes: Any) -> list[dict[str, Any]]:
    """Question-answer rows of a user's own; a change that can be called is called with the row's number."""
    return [
        {
            "id": number,
            "question": f"Does own treatment {number} help?",
            "context": f"We gave own treatment {number} to 120 adults. Pain fell by {number} percent.",
            "answer": f"Own treatment {number} helps with pain in adults.",
            "decision": layouts.DECISIONS[number % 3],
        }
        | {key: value(number) if callable(value) else value for key, value in changes.items()}
        for number in range(count)
    ]


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSON Lines file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
