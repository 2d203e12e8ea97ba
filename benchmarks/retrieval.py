"""Compare how well rankers find passages for consumers' own wording, and measure the cost of each search stage.

    MEDITUNE_DATA=... python benchmarks/retrieval.py --cache FOLDER
    MEDITUNE_DATA=... python benchmarks/retrieval.py --fit    # also write the fitted weights to reranker.py
    MEDITUNE_DATA=... python benchmarks/retrieval.py --summarizer RUN    # only compare searches with summaries
    MEDITUNE_DATA=... python benchmarks/retrieval.py --cross-encoder MODEL    # only compare with a cross-encoder

Everything except the baseline rankers uses `Index.search`, on an index that the product builds in the cache folder:
MedQuAD's answered pairs, judged answers that aren't among them, and PubMedQA's abstracts without titles and
conclusions. The questions are LiveQA-Medical's odd test questions (39 have a judged relevant answer), MedQuAD's own
questions, made rambling and misspelled, and PubMedQA's questions. Metrics are means over questions with 95% bootstrap
intervals over questions. Vectors of whole answers, which measure the sentence model alone, take as long to compute as
another index; they are cached, too.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np

import retrieval_fit as fitting
import retrieval_set as sets
from meditune.retrieve import hybrid_search, query_understanding
from meditune.retrieve import reranker as rerank
from meditune.retrieve.cross_encoder import CrossEncoder
from meditune.retrieve.hybrid_search import compare
from meditune.retrieve.index import Index
from meditune.retrieve.query_understanding import build_query
from meditune.retrieve.reranker import Reranker, TitleVectors
from retrieval_set import LETTERS, Task, Text

DEPTH = 100
TOP = 5
HEAD = f"| ranker | {' | '.join(sets.FIGURES)} |\n|---|{'---|' * len(sets.FIGURES)}"
OF_LIVEQA = ("medquad", "medquad-judged")
WITHOUT = {
    "candidates by words": "words",
    "candidates by passages' vectors": "meaning",
    "candidates by titles": "titles",
    "synonyms of topics": "expand",
    "corrected misspellings": "corrected",
    "the question's focus": "focus",
}
Ranker = Callable[[str], list[int]]
"""Returns the numbers of the passages for a question, best first"""


class Bm25s:
    """BM25 (bm25s' default: Lucene's, k1 1.5, b 0.75; English stemmer and stop words) over question and answer."""

    def __init__(self, passages: Sequence[Text]) -> None:
        import bm25s

        self.index = bm25s.BM25()
        self.index.index(self._tokens([passage.whole for passage in passages]), show_progress=False)

    @staticmethod
    def _tokens(texts: Sequence[str]) -> Any:
        import bm25s
        import Stemmer

        stemmer = Stemmer.Stemmer("english")
        return bm25s.tokenize(list(texts), stopwords="en", stemmer=stemmer, show_progress=False)

    def __call__(self, question: str) -> list[int]:
        """Return the best DEPTH passages."""
        found, scores = self.index.retrieve(self._tokens([question]), k=DEPTH, show_progress=False)
        return [int(each) for each, score in zip(found[0], scores[0], strict=True) if score > 0]


def searched(index: Index, task: Task, **options: Any) -> Ranker:
    """Return a ranker by `Index.search`; hits outside the task's passages count as wrong."""
    number = {sets.document(passage.id): place for place, passage in enumerate(task.passages)}

    def ranked(question: str) -> list[int]:
        hits = index.search(question, DEPTH, **options).hits
        return [number.get(hit.passage.document, -1) for hit in hits]

    return ranked


def nearest(vectors: Any, embed: Callable[[Sequence[str]], Any]) -> Ranker:
    """Return a ranker that compares all vectors by cosine."""
    return lambda question: sets.best(vectors @ embed([question])[0], DEPTH)


def both(one: Ranker, other: Ranker) -> Ranker:
    """Return a ranker that fuses two rankers by rank."""
    return lambda question: sets.fused([one(question), other(question)])[:DEPTH]


def row(name: str, task: Task, ranker: Ranker, words: str = "wording") -> str:
    """Return one line of a table: each metric with its interval."""
    figures = [sets.figures(ranker(getattr(asked, words)), asked.relevant) for asked in task.questions]
    found = sets.intervals(np.array(figures))
    return f"| {name} | {' | '.join(f'{mean:.3f} ({low:.2f} to {high:.2f})' for mean, low, high in found)} |"


def side_by_side(task: Task, rankers: dict[str, Ranker]) -> None:
    """Print the metrics of each ranker for the user's wording and for the summary."""
    print(f"\n{len(task.passages):,} passages, {len(task.questions)} questions\n")
    print(HEAD)
    for words in ("wording", "summary"):
        for name, ranker in rankers.items():
            print(row(f"{name}, {words}", task, ranker, words), flush=True)


def abstracts(task: Task, index: Index, trained: set[str]) -> None:
    """Print how often a question's own abstract is among the first TOP of the whole index."""
    print(f"\n| mode | own abstract in the first {TOP}, publisher's training half | test half |")
    print("|---|---|---|")
    for mode in ("bm25", "vectors", "fused", "hybrid"):
        ranker = searched(index, task, mode=mode)
        hits = [bool(asked.relevant & set(ranker(asked.wording)[:TOP])) for asked in task.questions]
        parts = [
            np.mean([hit for hit, asked in zip(hits, task.questions, strict=True) if (asked.id in trained) == half])
            for half in (True, False)
        ]
        print(f"| {mode} | {parts[0]:.1%} | {parts[1]:.1%} |", flush=True)


def ablations(task: Task, some: Sequence[fitting.Group], index: Index, weights: dict[str, float]) -> Iterator[str]:
    """Yield the metrics without each part of the search, without each feature, and with each feature alone."""
    reranker = index.opened.reranker
    before = reranker.weights, reranker.siblings
    ranker = searched(index, task, sources=OF_LIVEQA)

    def line(name: str, weights: dict[str, float], siblings: float = before[1]) -> str:
        reranker.weights, reranker.siblings = weights, siblings
        return row(name, task, ranker)

    yield line("all", weights)
    for name, without in WITHOUT.items():
        with left_out(reranker, without):
            yield line(f"without {name}", weights)
    yield line("without the topic's other passages", weights, 0.0)
    for name in fitting.FEATURES:
        yield line(f"without {name}", fitting.fit(some, [name]) | rerank.CHOSEN)
    for name in rerank.CHOSEN:
        yield line(f"without {name}", weights | {name: 0.0})
    for name in weights:
        yield line(f"{name} alone", {each: float(each == name) for each in weights}, 0.0)
    reranker.weights, reranker.siblings = before


def left_out(reranker: Reranker, part: str) -> AbstractContextManager[Any]:
    """Return a context manager in which a part of the search has no effect."""
    if part in ("words", "meaning"):
        return patch.object(hybrid_search.Rows, f"by_{part}", lambda *_: {})
    if part == "titles":
        return patch.object(TitleVectors, "nearest", lambda _, vectors, __: [[] for _ in vectors])
    if part in ("expand", "corrected"):
        return patch.object(reranker.synonyms, part, lambda text: text)
    whole = partial(query_understanding.QueryFocus, kinds=("information",))
    return patch.object(rerank, "query_focus", lambda text, _: whole(" ".join(text.split())))


def summarized(task: Task, run: str, index: Index) -> None:
    """Print the metrics of searches with a run's summaries of the messages, and with the experts' summaries if any."""
    messages = [asked.wording for asked in task.questions]
    started = time.perf_counter()
    summaries = dict(zip(messages, written(run, messages), strict=True))
    seconds = time.perf_counter() - started
    experts = {asked.wording: asked.summary for asked in task.questions if asked.summary}
    ranker = searched(index, task, sources=OF_LIVEQA)
    forms: dict[str, Callable[[str, str], str]] = {
        "the summary alone": lambda _, summary: summary,
        "the summary, then the message": lambda message, summary: f"{summary}\n{message}",
        "the message, then the summary": lambda message, summary: f"{message}\n{summary}",
    }
    print(f"\n{len(messages)} messages, {seconds / len(messages):.2f} s per summary, in one batch\n")
    print(f"{HEAD}\n{row('the message', task, ranker)}")
    for author, by in (("the run", summaries), ("experts", experts)):
        if len(by) < len(messages):
            continue
        for name, form in forms.items():
            queries = {message: form(message, summary) for message, summary in by.items()}
            print(row(f"{name}, by {author}", task, partial(_reworded, ranker, queries)))
        for weight in (1, 2, 3):
            print(row(f"ranks fused, message {weight} : 1, by {author}", task, partial(_fused, ranker, by, weight)))
    for message, summary in summaries.items():
        print(f"\n{message}\n    run: {summary}\n    expert: {experts.get(message, '')}")


def of_training(data: Path, task: Task, reranker: Reranker) -> Task:
    """Return LiveQA's training questions that aren't in MeQSum, with the passages that `retrieval_fit` relies on."""
    with (data / "meqsum" / "meqsum.jsonl").open(encoding="utf-8") as stream:
        known = [_bare(json.loads(line)["CHQ"]) for line in stream]
    questions = []
    for message, (exact, alike) in fitting.questions(data, task.passages, reranker).items():
        text = _bare(message)
        if not any(text[:80] in each or each[-80:] in text for each in known):
            questions.append(sets.Asked(f"training:{len(questions)}", message, "", frozenset(exact | alike)))
    return Task(task.passages, questions)


def _bare(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.lower()))


def _fused(ranker: Ranker, summaries: dict[str, str], weight: int, message: str) -> list[int]:
    return sets.fused([*[ranker(message)] * weight, ranker(summaries[message])])[:DEPTH]


def _reworded(ranker: Ranker, queries: dict[str, str], message: str) -> list[int]:
    return ranker(queries[message])


def written(run: str, messages: Sequence[str]) -> list[str]:
    """Return a run's answers to messages."""
    from meditune.data.example import Example
    from meditune.evaluate.weights_backend import generate_answers
    from meditune.models.load import load
    from meditune.prompts import Encoder

    loaded = load(run)
    if loaded.form is None:
        raise SystemExit(f"{run} has no prompt format. Give the folder of a run.")
    encoder = Encoder(loaded.tokenizer, loaded.form)
    examples = [
        Example(id=name, source="liveqa", question=text, group=name)
        for name, text in zip(map(str, range(len(messages))), messages, strict=True)
    ]
    prompts = [encoder.prompt(example, "answer") for example in examples]
    answers = generate_answers(loaded, prompts, loaded.form.answer_tokens, "Summarizing", no_repeat=4)
    return [answers[example.id] for example in examples]


def times(task: Task, index: Index) -> None:
    """Print the wall-clock and CPU time of each stage for one question."""
    ranker = index.opened.reranker
    taken: dict[str, list[tuple[float, float]]] = {
        "query preparation": [],
        "candidates": [],
        "reranking": [],
        "Index.search": [],
    }

    def clocks() -> tuple[float, float]:
        return time.perf_counter(), time.process_time()

    for asked in task.questions:
        marks = [clocks()]
        ranker.prepare(build_query(asked.wording).message)
        marks.append(clocks())
        there = compare(index.opened, build_query(asked.wording))
        marks.append(clocks())
        ranker.score(there.message, there.passages, there.vectors)
        marks.append(clocks())
        index.search(asked.wording, 10)
        marks.append(clocks())
        spent = 1000 * np.diff(np.array(marks), axis=0)
        spent[1] -= spent[0]
        for name, each in zip(taken, spent.tolist(), strict=True):
            taken[name].append(tuple(each))
    print("\n| stage | median, ms | 99th percentile, ms | median of CPU time, ms |\n|---|---|---|---|")
    for name, each in taken.items():
        clock, cpu = np.array(each[len(each) // 10 :]).T
        print(f"| {name} | {np.median(clock):.1f} | {np.quantile(clock, 0.99):.1f} | {np.median(cpu):.1f} |")


def main() -> None:
    """Print the tables of docs/experiments."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cache = Path.home() / ".cache" / "meditune" / "benchmarks"
    parser.add_argument("--cache", type=Path, default=cache, help="folder for the index and vectors")
    parser.add_argument("--summarizer", help="a run that summarizes messages as one question")
    parser.add_argument("--cross-encoder", help="folder or hub id of a cross-encoder")
    parser.add_argument("--fit", action="store_true", help="write the fitted weights to the package")
    given = parser.parse_args()
    data = Path(os.environ["MEDITUNE_DATA"])
    task = sets.liveqa_medquad(data)
    index = sets.index(data, task, given.cache / "retrieval-index")
    if given.summarizer:
        for each in (of_training(data, task, index.opened.reranker), task):
            summarized(each, given.summarizer, index)
        return
    if given.cross_encoder:
        model = CrossEncoder(given.cross_encoder)
        again = Index(index.store, index.encoder, model)
        by = {"hybrid": index, model.name: again}
        side_by_side(task, {name: searched(each, task, sources=OF_LIVEQA) for name, each in by.items()})
        times(task, again)
        return
    reranker = index.opened.reranker
    embed = index.encoder.encode
    by_words = Bm25s(task.passages)
    by_title = nearest(reranker.title_vectors.vectors_of([passage.title for passage in task.passages], embed), embed)
    rankers: dict[str, Ranker] = {
        "BM25 (bm25s)": by_words,
        "MiniLM on titles": by_title,
        "BM25 and titles, fused": both(by_words, by_title),
    }
    live = rankers | {
        **{mode: searched(index, task, mode=mode, sources=OF_LIVEQA) for mode in ("vectors", "fused")},
        "**hybrid**": searched(index, task, sources=OF_LIVEQA),
        "**hybrid**, also over abstracts": searched(index, task),
    }
    side_by_side(task, live)
    print("\nMedQuAD's questions, made rambling and misspelled; `summary` is MedQuAD's own wording:")
    rambling = sets.rambling(task.passages)
    side_by_side(rambling, {"**hybrid**": searched(index, rambling)})
    abstracts(sets.pubmedqa_abstracts(data), index, sets.trained(data))
    times(task, index)
    print(f"\n{hybrid_search.RERANKED} candidates are reranked.")
    some = fitting.groups(fitting.questions(data, task.passages, reranker), task, index, OF_LIVEQA)
    fitted = fitting.fit(some)
    print(f"\nFitted on {len(some)} of LiveQA's training questions: {fitted}")
    if given.fit:
        fitting.write(fitted, Path(rerank.__file__))
    print("\nParts left out of hybrid, by the user's wording:\n")
    print(HEAD)
    for line in ablations(task, some, index, fitted | rerank.CHOSEN):
        print(line, flush=True)
    by_answer = nearest(whole_answers(task, embed, given.cache / "whole-answers.npz"), embed)
    side_by_side(
        task, {"MiniLM on whole answers": by_answer, "BM25 and whole answers, fused": both(by_words, by_answer)}
    )


def whole_answers(task: Task, embed: Callable[[Sequence[str]], Any], path: Path) -> Any:
    """Return vectors of the answers' first LETTERS characters, cached with a hash of the texts."""
    texts = [each.whole[:LETTERS] for each in task.passages]
    said = hashlib.sha256("\0".join(texts).encode()).hexdigest()
    if path.is_file() and (kept := np.load(path))["of"] == said:
        return kept["vectors"]
    vectors = embed(texts)
    np.savez(path, vectors=vectors, of=said)
    return vectors


if __name__ == "__main__":
    main()
