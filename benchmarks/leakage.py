"""Measure how many planted rewrites of test questions and abstracts the leakage check finds, and its false alarms.

    MEDITUNE_DATA=... python benchmarks/leakage.py

Each test question is rewritten in one way and put among the real training questions; a rewrite counts as found if it is
matched with its own original. Between the real training and test items of the publishers' splits, and of MedQuAD split
by group, the check should find nothing.
"""

from __future__ import annotations

import os
import random
import re
import time
from collections.abc import Callable
from pathlib import Path

from meditune.data.example import Example
from meditune.data.leakage import RUN, find
from meditune.data.near_duplicates import near_passages, near_questions, share_within
from meditune.data.readers import liveqa, medquad, pubmedqa
from meditune.data.readers.tables import Rejects
from meditune.data.splits import Splits, split

Rewrite = Callable[[str, random.Random, list[str]], str]


def slips(count: int) -> Rewrite:
    """Return a rewrite with `count` typing errors: a letter left out, inserted, replaced or swapped with the next."""

    def rewrite(text: str, chance: random.Random, _: list[str]) -> str:
        for _turn in range(count):
            at = chance.choice([place for place in range(1, len(text) - 1) if text[place].isalpha()])
            letter = chance.choice("abcdefghijklmnopqrstuvwxyz")
            kinds = (
                text[:at] + text[at + 1 :],
                text[:at] + letter + text[at:],
                text[:at] + text[at + 1] + text[at] + text[at + 2 :],
                text[:at] + letter + text[at + 1 :],
            )
            text = chance.choice(kinds)
        return text

    return rewrite


def shuffled(text: str, chance: random.Random, _: list[str]) -> str:
    """Return the words in random order."""
    words = text.split()
    return " ".join(chance.sample(words, len(words)))


def replaced(text: str, chance: random.Random, vocabulary: list[str]) -> str:
    """Return the text with one word of five letters or more replaced."""
    words = text.split()
    at = chance.choice([place for place, word in enumerate(words) if len(word) > 4] or [0])
    words[at] = chance.choice(vocabulary)
    return " ".join(words)


def left_out(text: str, chance: random.Random, _: list[str]) -> str:
    """Return the text without one word."""
    words = text.split()
    del words[chance.randrange(len(words))]
    return " ".join(words)


def added(text: str, chance: random.Random, vocabulary: list[str]) -> str:
    """Return the text with one word added."""
    words = text.split()
    words.insert(chance.randrange(len(words) + 1), chance.choice(vocabulary))
    return " ".join(words)


REWRITES: dict[str, Rewrite] = {
    "case and punctuation": lambda text, *_: re.sub(r"[^\w\s]", " ", text).upper(),
    "words in any order": shuffled,
    "one typing error": slips(1),
    "two typing errors": slips(2),
    "one word replaced": replaced,
    "one word left out": left_out,
    "one word added": added,
}


def thinned(share: float) -> Rewrite:
    """Return a rewrite that replaces this share of the words."""

    def rewrite(text: str, chance: random.Random, vocabulary: list[str]) -> str:
        return " ".join(chance.choice(vocabulary) if chance.random() < share else word for word in text.split())

    return rewrite


PASSAGES: dict[str, Rewrite] = {
    "one word in twenty replaced": thinned(0.05),
    "one word in ten replaced": thinned(0.1),
    "one word in seven replaced": thinned(1 / 7),
    "one word in four replaced": thinned(0.25),
    "sentences in any order": lambda text, chance, _: " ".join(chance.sample(text.split(". "), len(text.split(". ")))),
    "its first half": lambda text, *_: text[: len(text) // 2],
}


def recall(name: str, parts: Splits, text_of: Callable[[Example], str], rewrites: dict[str, Rewrite]) -> None:
    """Print the share of planted rewrites that are found, and the number of unrelated texts that match."""
    test = [text_of(example) for example in parts.test]
    train = [text_of(example) for example in (*parts.train, *parts.dev)]
    vocabulary = sorted({word for text in test for word in re.findall(r"[a-z]{5,}", text)})
    near = near_questions if rewrites is REWRITES else near_passages
    for kind, rewrite in rewrites.items():
        chance = random.Random(kind)
        planted = [rewrite(text, chance, vocabulary) for text in test]
        found = {(row, column) for row, column, _ in near(test, [*planted, *train])}
        right = sum((number, number) in found for number in range(len(test)))
        # The rewrite of another test item may match, too, if the data themselves hold similar items.
        wrong = sum(column >= len(test) for _, column in found)
        print(f"| {name} | {kind} | {right / len(test):.1%} | {wrong} |")


def main() -> None:
    """Print the tables of docs/experiments."""
    data = Path(os.environ["MEDITUNE_DATA"])
    readers = {"pubmedqa": pubmedqa.read, "liveqa": liveqa.read, "medquad": medquad.read}
    read = {name: list(reader(data / name, Rejects())) for name, reader in readers.items()}
    parts = {name: split({name: examples}, True, 0.2, 0.1, 17) for name, examples in read.items()}
    print("| split | train and dev x test | leaks | seconds |\n|---|---|---|---|")
    for name, each in [*parts.items(), ("all three", split(read, True, 0.2, 0.1, 17))]:
        started = time.monotonic()
        shown = [*each.train, *each.dev]
        leaks = find(shown, each.test)
        print(f"| {name} | {len(shown):,} x {len(each.test):,} | {len(leaks)} | {time.monotonic() - started:.1f} |")
    official = parts["pubmedqa"]
    texts = [[each.context_text for each in side] for side in (official.test, [*official.train, *official.dev])]
    highest = max(alike for _, _, alike in near_passages(*texts, min_similarity=0.01))
    print(f"\nPubMedQA: the highest similarity of two abstracts is {highest:.3f}.")
    shares = sorted(share_within(each.answer, f"{each.question}\n{each.context_text}", RUN) for each in official.test)
    print(f"Highest shares of an answer in its own prompt: {', '.join(f'{share:.2f}' for share in shares[-3:])}.")
    print("\n| questions of | rewrite | found | false matches |\n|---|---|---|---|")
    for name, each in parts.items():
        recall(name, each, lambda example: example.question, REWRITES)
    print("\n| contexts of | rewrite | found | false matches |\n|---|---|---|---|")
    recall("pubmedqa", parts["pubmedqa"], lambda example: example.context_text, PASSAGES)


if __name__ == "__main__":
    main()
