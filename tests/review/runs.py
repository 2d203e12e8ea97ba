"""A finished run's folder with invented answers, and the review server in a process of its own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from meditune.files import write_json, write_jsonl

ANSWERS = {
    "base": "Treatment {n} was given to patients.",
    "tuned": "Treatment {n} may help most patients.",
    "reference": "Treatment {n} helps some patients.",
}


def finished(folder: Path, questions: int = 4, **changed: dict[int, str]) -> Path:
    """A run whose models answered as in ANSWERS; `base`, `tuned`, `reference` change answers by their number."""

    def said(origin: str, n: int) -> str:
        return changed.get(origin, {}).get(n, ANSWERS[origin].format(n=n))

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "recipe.yaml").write_text("name: quickstart\n", encoding="utf-8")
    write_json(folder / "model" / "training.json", {})
    write_jsonl(
        folder / "data" / "test.jsonl",
        (
            {
                "id": f"pubmedqa:{n}",
                "source": "pubmedqa",
                "question": f"Does treatment {n} help?",
                "context": [{"text": f"We gave treatment {n} to 20 adults.", "label": "METHODS"}],
                "answer": said("reference", n),
                "group": f"g{n}",
            }
            for n in range(questions)
        ),
    )
    for model in ("base", "tuned"):
        rows = [
            {"id": f"pubmedqa:{n}", "reference": said("reference", n), "prediction": said(model, n)}
            for n in range(questions)
        ]
        write_jsonl(folder / "predictions" / f"{model}-answer.jsonl", rows)
    return folder


@contextmanager
def served(folder: Path, *words: Any, command: str = "review") -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The server's process and the address it printed; killed at the end of the block."""
    begin = [sys.executable, "-m", "meditune.cli.main", command, "serve", str(folder), "--port", "0"]
    process = subprocess.Popen(
        [*begin, *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        found = re.search(r"http://\S+", line)
        assert found, line + (process.stderr.read() if process.stderr else "")
        yield process, found[0]
    finally:
        process.kill()
        process.communicate()
