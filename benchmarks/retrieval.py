"""How well passages are found by a consumer's own wording: the rankers side by side.

    MEDITUNE_DATA=... python benchmarks/retrieval.py [--cache FOLDER]

LiveQA-Medical's odd test questions (39 have a relevant answer among those judged) over MedQuAD's answered pairs and the
judged answers. Figures are means over questions with 95 % bootstrap intervals over questions. Vectors of passages take
some fifteen minutes of one core; they are kept in the cache folder.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import retrieval_set as sets
from retrieval_set import LETTERS, Task

Ranker = Callable[[Sequence[str]], list[list[int]]]
DEPTH = 100


def bm25(texts: Sequence[str]) -> Ranker:
    """BM25 (bm25s' default, Lucene's variant; k1 1.5, b 0.75) with an English stemmer and stop words."""
    import bm25s
    import Stemmer

    stemmer = Stemmer.Stemmer("english")

    def tokens(some: Sequence[str]) -> Any:
        return bm25s.tokenize(list(some), stopwords="en", stemmer=stemmer, show_progress=False)

    index = bm25s.BM25()
    index.index(tokens(texts), show_progress=False)

    def rank(questions: Sequence[str]) -> list[list[int]]:
        found, _ = index.retrieve(tokens(questions), k=DEPTH, show_progress=False)
        return [[int(each) for each in ranking] for ranking in found]

    return rank


def nearest(passages: sets.Vectors, cache: Path) -> Ranker:
    """By cosine, all passages compared."""

    def rank(questions: Sequence[str]) -> list[list[int]]:
        scores = sets.vectors(questions, cache, "Questions as vectors") @ passages.T
        return [sets.best(row, DEPTH) for row in scores]

    return rank


def row(name: str, task: Task, rankings: Sequence[Sequence[int]]) -> str:
    """One line of a table: each figure with its interval."""
    pairs = zip(rankings, task.questions, strict=True)
    found = sets.intervals(np.array([sets.figures(ranking, asked.relevant) for ranking, asked in pairs]))
    return f"| {name} | {' | '.join(f'{mean:.3f} ({low:.2f} to {high:.2f})' for mean, low, high in found)} |"


def baselines(task: Task, cache: Path) -> None:
    """Print what each ranker finds alone, and both fused, by the user's wording and by experts' summaries."""
    lexical = bm25([passage.whole for passage in task.passages])
    texts = [passage.whole[:LETTERS] for passage in task.passages]
    dense = nearest(sets.vectors(texts, cache, "Passages as vectors"), cache)
    print(f"{len(task.passages):,} passages, {len(task.questions)} questions\n")
    print(f"| ranker | {' | '.join(sets.FIGURES)} |\n|---|{'---|' * len(sets.FIGURES)}")
    for words in ("wording", "summary"):
        questions = [getattr(asked, words) for asked in task.questions]
        by_words, by_meaning = lexical(questions), dense(questions)
        both = [sets.fused(pair) for pair in zip(by_words, by_meaning, strict=True)]
        for name, rankings in (("BM25", by_words), ("MiniLM", by_meaning), ("rank fusion", both)):
            print(row(f"{name}, {words}", task, rankings), flush=True)


def main() -> None:
    """Print the tables of docs/experiments.md."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, default=Path.home() / ".cache" / "meditune" / "benchmarks")
    given = parser.parse_args()
    baselines(sets.liveqa_medquad(Path(os.environ["MEDITUNE_DATA"])), given.cache)


if __name__ == "__main__":
    main()
