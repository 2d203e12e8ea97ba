"""How well passages are found by a consumer's own wording: the rankers side by side, and what each stage costs.

    MEDITUNE_DATA=... python benchmarks/retrieval.py [--cache FOLDER] [--passages]
    MEDITUNE_DATA=... python benchmarks/retrieval.py --fit    # first fit src/meditune/retrieve/rerank_weights.py anew

LiveQA-Medical's odd test questions (39 have a relevant answer among those judged) over MedQuAD's answered pairs and the
judged answers; then MedQuAD's own questions, rambling and misspelled, and PubMedQA's over all its abstracts among
MedQuAD's passages. Figures are means over questions with 95 % bootstrap intervals over questions. Vectors are made as
they are needed and kept in the cache folder: some five minutes of one core. With --passages, all passages' vectors are
searched, too: a quarter of an hour more.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import retrieval_fit as fitting
import retrieval_set as sets
from meditune.data.medquad import SOURCE
from meditune.models import embedding
from meditune.retrieve import pipeline, rerank_weights, thesaurus, titles
from meditune.retrieve.rerank import Reranker, headline
from meditune.retrieve.synonyms import Synonyms
from meditune.retrieve.title_vectors import TitleVectors
from retrieval_set import LETTERS, Task, Text

VectorsOf = Callable[[Sequence[Any]], Any]
DEPTH = 100
TOP = 5
HEAD = f"| ranker | {' | '.join(sets.FIGURES)} |\n|---|{'---|' * len(sets.FIGURES)}"
TIMED = 3
"""Rounds of which each stage's time is the median"""


class Memory:
    """BM25 (bm25s' default: Lucene's, k1 1.5, b 0.75; English stemmer and stop words) and vectors, all compared."""

    def __init__(self, passages: Sequence[Text], vectors: sets.Vectors, embed: Callable[[Sequence[str]], Any]) -> None:
        import bm25s

        self.passages = passages
        self.matrix = vectors
        self.embed = embed
        self.index = bm25s.BM25()
        self.index.index(self._tokens([passage.whole for passage in passages]), show_progress=False)

    @staticmethod
    def _tokens(texts: Sequence[str]) -> Any:
        import bm25s
        import Stemmer

        stemmer = Stemmer.Stemmer("english")
        return bm25s.tokenize(list(texts), stopwords="en", stemmer=stemmer, show_progress=False)

    def bm25(self, query: str, k: int) -> list[Text]:
        """By words."""
        found, scores = self.index.retrieve(self._tokens([query]), k=k, show_progress=False)
        return [self.passages[int(each)] for each, score in zip(found[0], scores[0], strict=True) if score > 0]

    def vectors(self, query: str, k: int) -> list[Text]:
        """By cosine."""
        return [self.passages[index] for index in sets.best(self.matrix @ self.embed([query])[0], k)]


class Memo:
    """The sentence model, each text once."""

    def __init__(self) -> None:
        self.known: dict[str, Any] = {}

    def __call__(self, texts: Sequence[str]) -> Any:
        """(n, 384)"""
        new = [text for text in dict.fromkeys(texts) if text not in self.known]
        if new:
            self.known.update(zip(new, embedding.embed(new), strict=True))
        return np.array([self.known[text] for text in texts])


def reranker(passages: Sequence[Text], cache: Path, embed: Callable[[Sequence[str]], Any], medquad: Path) -> Reranker:
    """As an index of these passages has it, with MedQuAD as its thesaurus."""
    once = list(dict.fromkeys(headline(passage) for passage in passages))
    groups = [titles.read(title).names for title in dict.fromkeys(each.title for each in passages) if title]
    names = Synonyms([*groups, *thesaurus.of_medquad(medquad)])
    return Reranker(names, TitleVectors(once, sets.Kept(once, cache, "Titles as vectors").all()), embed)


def row(name: str, task: Task, rankings: Sequence[Sequence[Text]]) -> str:
    """One line of a table: each figure with its interval."""
    number = {passage.id: index for index, passage in enumerate(task.passages)}
    figures = [
        sets.figures([number[passage.id] for passage in ranking], asked.relevant)
        for ranking, asked in zip(rankings, task.questions, strict=True)
    ]
    found = sets.intervals(np.array(figures))
    return f"| {name} | {' | '.join(f'{mean:.3f} ({low:.2f} to {high:.2f})' for mean, low, high in found)} |"


def side_by_side(task: Task, searches: dict[str, Memory], ranker: Reranker, own: VectorsOf | None) -> None:
    """Print what each ranker finds alone, fused and reranked, by the user's wording and by experts' summaries."""
    print(f"{len(task.passages):,} passages, {len(task.questions)} questions\n")
    print(HEAD)
    for words in ("wording", "summary"):
        questions = [getattr(asked, words) for asked in task.questions]
        first = next(iter(searches.values()))
        by_words = [first.bm25(question, DEPTH) for question in questions]
        print(row(f"BM25, {words}", task, by_words))
        for name, search in searches.items():
            near = [search.vectors(question, DEPTH) for question in questions]
            print(row(f"MiniLM on {name}, {words}", task, near))
            both = [fused(pair) for pair in zip(by_words, near, strict=True)]
            print(row(f"BM25 and MiniLM on {name}, fused, {words}", task, both))
            for vectors_of in (None, own) if own and words == "wording" else (None,):
                compared = "titles and passages" if vectors_of else "titles"
                found = [pipeline.rank(question, search, ranker, DEPTH, vectors_of) for question in questions]
                ranked = [[each.passage for each in ranking] for ranking in found]
                print(row(f"**pipeline**, {name} searched, {compared} compared, {words}", task, ranked), flush=True)


def ablations(
    task: Task, some: Sequence[fitting.Group], search: Memory, ranker: Reranker, own: VectorsOf
) -> Iterator[str]:
    """What each likeness is worth: weights fitted without it, and it alone; and how many candidates to compare."""
    ready = [ranker.asked(asked.wording) for asked in task.questions]
    found = [pipeline.candidates(asked, search) for asked in ready]

    def ranking(number: int, scores: Any, most: int) -> list[Any]:
        order = np.argsort(-scores, kind="stable")
        return [*(found[number][index] for index in order), *found[number][most:]][:DEPTH]

    def ranked(weights: dict[str, float], siblings: float, most: int = pipeline.RERANKED) -> list[list[Any]]:
        other = Reranker(ranker.synonyms, ranker.title_vectors, ranker.embed, weights, siblings)
        return [
            ranking(number, other.score(asked, found[number][:most], own(found[number][:most])), most)
            for number, asked in enumerate(ready)
        ]

    weights = fitting.fit(some) | rerank_weights.CHOSEN
    yield row("all", task, ranked(weights, ranker.siblings))
    yield row("all, without the topic's other passages", task, ranked(weights, 0.0))
    for name in fitting.FEATURES:
        fewer = fitting.fit(some, [name]) | rerank_weights.CHOSEN
        yield row(f"without {name}", task, ranked(fewer, ranker.siblings))
    for name in rerank_weights.CHOSEN:
        yield row(f"without {name}", task, ranked(weights | {name: 0.0}, ranker.siblings))
    for name in weights:
        yield row(f"{name} alone", task, ranked({each: float(each == name) for each in weights}, 0.0))
    for most in (20, 50, 200):
        yield row(f"all, {most} candidates compared", task, ranked(weights, ranker.siblings, most))


def fused(rankings: Sequence[Sequence[Text]]) -> list[Text]:
    """By reciprocal rank."""
    known = {passage.id: passage for ranking in rankings for passage in ranking}
    return [known[each] for each in sets.fused([[passage.id for passage in ranking] for ranking in rankings])]


def abstracts(task: Task, search: Memory, ranker: Reranker, trained: set[str]) -> None:
    """Print how often a question's own abstract is among the first TOP."""
    questions = [asked.wording for asked in task.questions]
    by_words = [search.bm25(question, DEPTH) for question in questions]
    rankings = {
        "BM25": by_words,
        "pipeline": [[each.passage for each in pipeline.rank(question, search, ranker)] for question in questions],
    }
    print(
        f"\n| ranker | own abstract in the first {TOP}, all | of the 500 that the publisher trains on |\n|---|---|---|"
    )
    for name, found in rankings.items():
        hits = [
            task.passages[next(iter(asked.relevant))] in ranking[:TOP]
            for asked, ranking in zip(task.questions, found, strict=True)
        ]
        some = [hit for hit, asked in zip(hits, task.questions, strict=True) if asked.id in trained]
        print(f"| {name} | {np.mean(hits):.1%} | {np.mean(some):.1%} |", flush=True)


def times(task: Task, search: Memory, ranker: Reranker) -> None:
    """Print what each stage takes of one question, in CPU time of one thread."""
    taken: dict[str, list[float]] = {"question made ready": [], "candidates": [], "reranking 100": [], "all": []}
    for _ in range(TIMED):
        for asked in task.questions:
            search.embed = Memo()  # each text of a question is embedded once, nothing is known of it before
            plain = Reranker(ranker.synonyms, ranker.title_vectors, search.embed, ranker.weights)
            marks = [time.thread_time()]
            ready = plain.asked(asked.wording)
            marks.append(time.thread_time())
            found = pipeline.candidates(ready, search)
            marks.append(time.thread_time())
            plain.score(ready, found[: pipeline.RERANKED])
            marks.append(time.thread_time())
            for name, spent in zip(taken, [*np.diff(marks), marks[-1] - marks[0]], strict=True):
                taken[name].append(1000 * float(spent))
    print("\n| stage | median, ms | 99th percentile, ms |\n|---|---|---|")
    for name, each in taken.items():
        print(f"| {name} | {np.median(each):.1f} | {np.quantile(each, 0.99):.1f} |")


def main() -> None:
    """Print the tables of docs/experiments.md."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, default=Path.home() / ".cache" / "meditune" / "benchmarks")
    parser.add_argument("--passages", action="store_true", help="search by vectors of whole passages, too")
    parser.add_argument("--fit", action="store_true", help="fit the weights anew")
    given = parser.parse_args()
    data = Path(os.environ["MEDITUNE_DATA"])
    task = sets.liveqa_medquad(data)
    embed = Memo()
    ranker = reranker(task.passages, given.cache, embed, data / "medquad")
    near = ranker.title_vectors.of([passage.title for passage in task.passages], embed)
    searches = {"titles": Memory(task.passages, near, embed)}
    number = {passage.id: index for index, passage in enumerate(task.passages)}
    whole = sets.Kept([each.whole[:LETTERS] for each in task.passages], given.cache, "Passages as vectors")

    def own(passages: Sequence[Any]) -> Any:
        return whole[[number[passage.id] for passage in passages]]

    def candidates(question: str) -> list[int]:
        found = pipeline.candidates(ranker.asked(question), searches["titles"])
        return [number[passage.id] for passage in found[: pipeline.RERANKED]]

    if given.fit:
        made = fitting.groups(fitting.questions(data, task.passages, ranker), task.passages, ranker, whole, candidates)
        fitted = fitting.fit(made)
        ranker.weights = fitted | rerank_weights.CHOSEN
        fitting.write(fitted, Path(rerank_weights.__file__))
        print(f"Fitted on {len(made)} of LiveQA's training questions: {fitted}\n")
        print(HEAD)
        for line in ablations(task, made, searches["titles"], ranker, own):
            print(line, flush=True)
        print()
    if given.passages:
        searches["passages"] = Memory(task.passages, whole.all(), embed)
    side_by_side(task, searches, ranker, own)
    pubmed = sets.pubmedqa_abstracts(data, [each for each in task.passages if each.id.startswith(SOURCE)])
    near = ranker.title_vectors.of([headline(passage) for passage in pubmed.passages], embed)
    abstracts(pubmed, Memory(pubmed.passages, near, embed), ranker, sets.trained(data))
    print("\nMedQuAD's questions, rambling and misspelled; `summary` is MedQuAD's own wording:\n")
    side_by_side(sets.rambling(task.passages), {"titles": searches["titles"]}, ranker, None)
    times(task, searches["titles"], ranker)


if __name__ == "__main__":
    main()
