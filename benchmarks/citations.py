"""How far citations can be trusted: where an answer is kept back, and what retrieval gives over answering from memory.

    python benchmarks/citations.py INDEX --thresholds        # the figures by which answering.py and citing.py decide
    python benchmarks/citations.py INDEX MODEL --questions 200

INDEX was built from MedQuAD or a part of it; MEDITUNE_DATA names the folder with the publisher's medquad. Questions are
those of the train split alone (a tenth of the topics is held out, seed 17).

--thresholds: the cosine of the nearest passage, for questions whose topic is in the index (their own document doesn't
count) and for those whose topic isn't. Then sentences of the index's answers, reworded, beside their whole answer, and
the same made false: how often it is cited for either, by the share of known words that is asked for.

Otherwise MODEL answers each question with the passages and without. "Unsupported" is the share of its sentences that no
passage found bears out, by the detector itself and not by people. Recall is the share of sentences with a citation;
precision the share of citations whose source is about the question's topic.
"""

from __future__ import annotations

import argparse
import os
import random
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

import faithfulness as planted
from meditune.answering import PASSAGES, Answerer, open_answerer
from meditune.data import medquad
from meditune.data.example import Example
from meditune.data.rejects import Rejects
from meditune.data.splits import by_group
from meditune.faithfulness import sources as words
from meditune.faithfulness.evidence import evidence
from meditune.retrieve.citing import SUPPORT, cite, support
from meditune.retrieve.index import Index
from meditune.text import sentences

SEED = 17
SAMPLE = 200
RESAMPLES = 2000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("index")
    parser.add_argument("model", nargs="?", default="smollm2-135m")
    parser.add_argument("--thresholds", action="store_true")
    parser.add_argument("--questions", type=int, default=200)
    parser.add_argument("--show", action="store_true", help="print every answer")
    arguments = parser.parse_args()
    folder = Path(os.environ["MEDITUNE_DATA"]).expanduser() / "medquad"
    train, _ = by_group(list(medquad.read(folder, Rejects())), 0.1, SEED)
    if arguments.thresholds:
        index = Index.open(arguments.index)
        inside, outside = parted(train, index)
        print("\n".join((*nearest(index, inside, outside), *shares(inside, train, folder))))
        return
    answerer = open_answerer(arguments.model, arguments.index)
    inside, _ = parted(train, answerer.index)
    print("\n".join(answered(answerer, inside[: arguments.questions], arguments.show)))


def parted(train: Sequence[Example], index: Index) -> tuple[list[Example], list[Example]]:
    """Questions whose own document is in the index, and those of whose topic it holds nothing; shuffled."""
    from meditune.retrieve import tables

    with tables.readable(index.place):
        table = tables.connect(index.place).open_table(index.manifest.table)
        rows = table.search().select(["document", "group"]).limit(index.manifest.passages).to_list()
    documents, groups = {row["document"] for row in rows}, {row["group"] for row in rows}
    inside = [each for each in train if each.id in documents]
    outside = [each for each in train if each.group not in groups]
    chance = random.Random(SEED)
    return chance.sample(inside, len(inside)), chance.sample(outside, min(SAMPLE, len(outside)))


def nearest(index: Index, inside: Sequence[Example], outside: Sequence[Example]) -> Iterator[str]:
    """Shares of questions that would be answered, by the cosine that is asked for."""
    found = []
    for questions in (inside[:SAMPLE], outside):
        best = []
        for each in questions:
            hits = index.search(each.question, PASSAGES + 1).hits
            best.append(max((h.meaning or -1.0 for h in hits if h.passage.document != each.id), default=-1.0))
        found.append(np.array(best))
    yield "| cosine at least | topic in the index: answered | topic not in it: answered |\n|---|---|---|"
    for least in (0.4, 0.45, 0.5, 0.55, 0.6, 0.65, 0.7):
        yield f"| {least} | {np.mean(found[0] >= least):.0%} | {np.mean(found[1] >= least):.0%} |"


def shares(inside: Sequence[Example], train: Sequence[Example], folder: Path) -> Iterator[str]:
    """How often true and false sentences would be cited, by the share of known words that is asked for."""
    topics = planted.half(planted.named(train, folder), 0)
    items = truths(inside)
    answers = [*items, *planted.corrupted(items, topics)]
    rows: dict[str, list[tuple[float, float, bool]]] = {}
    for each in answers:
        passage = words.Sources([each.item.answer], each.item.question)
        for number, text in enumerate(sentences(each.text)):
            if each.kind == "true" or number in each.wrong:
                seen = evidence(words.Sentence(text), passage)
                score, _ = support(words.Sentence(text), passage)
                rows.setdefault(each.kind, []).append((score, seen.features["known"], bool(seen.spans)))
    kinds = list(rows)
    yield f"\n| | {' | '.join(f'{kind} ({len(rows[kind])})' for kind in kinds)} |\n|---|{'---|' * len(kinds)}"
    yield _row("detector alone", [[score >= SUPPORT for score, _, _ in rows[kind]] for kind in kinds])
    for least in (0.0, 0.5, 0.6, 0.7, 0.8, 0.9):
        kept = [[s >= SUPPORT and known >= least and not spans for s, known, spans in rows[kind]] for kind in kinds]
        yield _row(f"no mismatch, known words {least}", kept)


def _row(name: str, kept: Sequence[Sequence[bool]]) -> str:
    return f"| {name} | {' | '.join(f'{np.mean(each):.0%}' for each in kept)} |"


def truths(inside: Sequence[Example]) -> list[planted.Answer]:
    """Two reworded sentences of each answer."""
    found = []
    for each in inside[:SAMPLE]:
        chance = random.Random(f"{SEED}/{each.id}")
        text = planted.reworded(planted.extract([each.answer], chance), chance)
        found += [planted.Answer("medquad", "true", text, each)] if text else []
    return found


def answered(answerer: Answerer, questions: Sequence[Example], show: bool) -> Iterator[str]:
    """The figures of a model's answers with passages and without, judged by the same passages."""
    with_passages, without, refused, recall, about = [], [], 0, [], []
    from_passages = answerer.answers([each.question for each in questions])
    from_memory = answerer.writer.write_all([(each.question, ()) for each in questions])
    for each, found, said in zip(questions, from_passages, from_memory, strict=True):
        if not found.sentences:
            refused += bool(found.refusal)
            continue
        closed = cite(said, found.packed)
        if show:
            print(f"\n## {each.question}\n{found}\n-- closed book: {[one.text for one in closed.sentences]}")
        refused += bool(found.refusal)
        if not closed.sentences:
            continue
        with_passages.append(len(found.unsupported) / len(found.sentences))
        without.append(np.mean([not one.supported for one in closed.sentences]))
        recall += [one.supported for one in found.sentences]
        if not found.refusal:
            cited = {source.number: source.passage.hit.passage.group == each.group for source in found.sources}
            about += [cited[number] for one in found.sentences for number in one.citations]
    gaps = np.array(with_passages) - np.array(without)
    draws = np.random.default_rng(SEED).integers(0, len(gaps), (RESAMPLES, len(gaps)))
    low, high = np.quantile(gaps[draws].mean(axis=1), (0.025, 0.975))
    yield f"{len(questions)} questions, {refused} answers kept back, {len(gaps)} compared"
    yield f"unsupported with passages {np.mean(with_passages):.1%}, from memory {np.mean(without):.1%}"
    yield f"difference {gaps.mean():+.1%} (95 % interval {low:+.1%} to {high:+.1%})"
    yield f"citation recall {np.mean(recall):.1%} of {len(recall)} sentences"
    yield f"citation precision (same topic) {np.mean(about):.1%} of {len(about)} citations"


if __name__ == "__main__":
    main()
