"""A user with data, a key, and an API on loopback."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.commands import Bench, Result, jsonl, meditune, read_rows, rows
from tests.hosted.server import KEY, Api, serving

QUICK = {
    "model.base": "gpt-3.5-turbo",
    "data.split": "group",
    "evaluate.resamples": "100",
    "evaluate.general_tokens": "0",
}


@dataclass(frozen=True)
class Place:
    """Where a test works."""

    api: Api
    folder: Path
    data: Path

    def settings(self, **changes: Any) -> list[str]:
        """`--set` options; a keyword's "__" stands for a dot, None removes an option."""
        sources = f"[{{name: own, path: '{self.data}'}}]"
        values: dict[str, Any] = QUICK | {"model.api.url": self.api.url, "data.sources": sources}
        values |= {key.replace("__", "."): value for key, value in changes.items()}
        return [word for key, value in values.items() if value is not None for word in ("--set", f"{key}={value}")]

    def words(self, command: str, *more: str, **changes: Any) -> list[Any]:
        """A command with the quickstart's recipe into the run's folder."""
        return [command, "quickstart", "-o", self.run, *self.settings(**changes), *more]

    def call(self, command: str, *more: str, **changes: Any) -> Result:
        """The command, approved of beforehand."""
        return meditune(*self.words(command, "--yes", *more, **changes))

    def evaluate(self, model: str = "gpt-3.5-turbo", *more: str, **changes: Any) -> Result:
        """`meditune evaluate`, approved of beforehand."""
        return meditune("evaluate", model, "-o", self.run, *self.settings(**changes), "--yes", *more)

    @property
    def run(self) -> Path:
        """The run's folder."""
        return self.folder / "run"

    @property
    def bench(self) -> Bench:
        """To start commands in processes of their own."""
        return Bench(self.folder, self.folder, {"OPENAI_API_KEY": KEY})

    def predictions(self, name: str) -> list[dict[str, Any]]:
        """Stored predictions, such as of base-decision."""
        return read_rows(self.run / "predictions" / f"{name}.jsonl")

    def asked_twice(self) -> list[str]:
        """Prompts that one model was shown more than once; a request whose sender was killed midway has no content."""
        shown = [(chat["model"], chat["messages"][-1]["content"]) for chat in self.api.chats if chat]
        return [prompt for model, prompt in shown if shown.count((model, prompt)) > 1]


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("meditune.train.hosted_job.POLL_SECONDS", 0.01)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("MEDITUNE_OFFLINE", "1")
    monkeypatch.setenv("MEDITUNE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    with serving() as api:
        yield Place(api, tmp_path, jsonl(tmp_path / "own.jsonl", rows(40)))
