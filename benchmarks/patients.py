"""Measure the reading grades of a run's written answers, and their numbers that neither question nor references hold.

    python benchmarks/patients.py runs/patient
    python benchmarks/patients.py runs/patient --against runs/both-measured

`--against` takes the tuned answers from another folder's predictions (`meditune evaluate`) for the same questions.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np

from meditune.data.example import Example
from meditune.data.prepare import stored_data
from meditune.evidence.quantities import is_supported_number, numbers
from meditune.files import read_jsonl
from meditune.readability import counted

RESAMPLES = 10_000


def main() -> int:
    """Print both models' metrics with a 95% interval of the difference."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument(
        "--against", type=Path, help="folder of `meditune evaluate` whose predictions replace the tuned model's"
    )
    options = parser.parse_args()
    examples = {each.id: each for each in stored_data(options.run / "data").splits.test}
    paths = {"base": options.run / "predictions" / "base-answer.jsonl"}
    paths["tuned"] = options.run / "predictions" / "tuned-answer.jsonl"
    if options.against:
        paths["tuned"] = options.against / "predictions" / "model-answer.jsonl"
    written = {name: {row["id"]: row["prediction"] for row in read_jsonl(path)} for name, path in paths.items()}
    ids = sorted(written["base"].keys() & written["tuned"].keys())
    grades = {name: np.array([counted(texts[each]).grade for each in ids]) for name, texts in written.items()}
    invented = {
        name: np.array([unsupported(texts[each], known(examples[each])) for each in ids])
        for name, texts in written.items()
    }
    draw = np.random.default_rng(0).integers(len(ids), size=(RESAMPLES, len(ids)))
    figures = {
        "median reading grade": (grades, lambda values: np.median(values, axis=-1)),
        "unsupported numbers per answer": (invented, lambda values: values.mean(axis=-1)),
        "answers with an unsupported number, %": (invented, lambda values: 100 * (values > 0).mean(axis=-1)),
    }
    print(f"{len(ids)} answers")
    for title, (both, figure) in figures.items():
        low, high = np.percentile(figure(both["tuned"][draw]) - figure(both["base"][draw]), [2.5, 97.5])
        print(f"{title}: {figure(both['base']):.2f} -> {figure(both['tuned']):.2f} ({low:+.2f} to {high:+.2f})")
    return 0


def known(example: Example) -> str:
    """Return the question's text and its reference answers."""
    return " ".join([example.question, *example.references()])


def unsupported(answer: str, text: str) -> int:
    """Return how many of the answer's numbers the text doesn't support."""
    there = numbers(text)
    return sum(not is_supported_number(each, there) for each in numbers(answer))


if __name__ == "__main__":
    sys.exit(main())
