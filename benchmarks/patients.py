"""Measure the reading grades of a run's written answers, and their numbers that neither question nor references hold.

    python benchmarks/patients.py runs/patient
    python benchmarks/patients.py runs/patient --against runs/both-measured
    python benchmarks/patients.py runs/patient --judge runs/evidence --answers 60

`--against` takes the tuned answers from another folder's predictions (`meditune evaluate`) for the same questions.
With `--judge`, a judge reads each sentence beside the reference answers to the same question: a sentence is refuted if
the judge gives refutation a probability of at least 0.5, and supported if it reaches the judge's threshold.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from meditune.data.example import Example
from meditune.data.prepare import stored_data
from meditune.engines.evidence_judge import load_support_model
from meditune.evaluate.faithfulness_and_similarity import REFUTED
from meditune.evidence.quantities import is_supported_number, numbers
from meditune.evidence.support_model import SupportQuestion
from meditune.files import read_jsonl
from meditune.progress import Progress
from meditune.readability import counted
from meditune.text import sentences

RESAMPLES = 10_000
SEED = 17


def main() -> int:
    """Print both models' metrics with a 95% interval of the difference."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument(
        "--against", type=Path, help="folder of `meditune evaluate` whose predictions replace the tuned model's"
    )
    parser.add_argument("--judge", help="run of an evidence judge, its export, or another judge by name")
    parser.add_argument("--answers", type=int, default=60, help="how many questions' answers the judge reads")
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
    if options.judge:
        chosen = random.Random(SEED).sample(ids, min(options.answers, len(ids)))
        print_judged(options.judge, [examples[each] for each in chosen], written)
    return 0


def print_judged(judge: str, examples: Sequence[Example], written: Mapping[str, Mapping[str, str]]) -> None:
    """Print what share of both models' sentences the reference answers refute and support, according to a judge."""
    model = load_support_model(judge)
    counts: dict[str, list[tuple[int, int, int]]] = {name: [] for name in written}
    with Progress("Judged", len(examples), "questions") as progress:
        for example in examples:
            for name, answers in written.items():
                texts = sentences(answers[example.id])
                asked = [SupportQuestion(tuple(example.references()), "", text, 0, len(text)) for text in texts]
                scores = list(model.score(asked))
                refuted = sum((each.refuted or 0.0) >= REFUTED for each in scores)
                counts[name].append((len(texts), refuted, sum(each.score >= model.threshold for each in scores)))
            progress.advance(1)
    print(f"{len(examples)} answers read by the judge, threshold {model.threshold:.3f}")
    both = {name: np.array(rows) for name, rows in counts.items()}
    draw = np.random.default_rng(0).integers(len(examples), size=(RESAMPLES, len(examples)))
    for title, column in (("sentences", 0), ("refuted sentences, %", 1), ("supported sentences, %", 2)):
        values, drawn = {}, {}
        for name, rows in both.items():
            total = 1 if column == 0 else max(1, rows[:, 0].sum()) / 100
            values[name] = rows[:, column].sum() / total
            sums = rows[draw].sum(axis=1)
            drawn[name] = sums[:, column] / (1 if column == 0 else np.maximum(1, sums[:, 0]) / 100)
        low, high = np.percentile(drawn["tuned"] - drawn["base"], [2.5, 97.5])
        print(f"{title}: {values['base']:.1f} -> {values['tuned']:.1f} ({low:+.1f} to {high:+.1f})")


def known(example: Example) -> str:
    """Return the question's text and its reference answers."""
    return " ".join([example.question, *example.references()])


def unsupported(answer: str, text: str) -> int:
    """Return how many of the answer's numbers the text doesn't support."""
    there = numbers(text)
    return sum(not is_supported_number(each, there) for each in numbers(answer))


if __name__ == "__main__":
    sys.exit(main())
