"""How suspicious a row is, from what can be seen without anybody reading it; only for the order of checking.

A signal looks at all rows and names those that stand out. What other checks have found can be given as one more signal
(`flagged`).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import log, prod
from statistics import median
from typing import Any

from meditune.data.example import Example
from meditune.data.splits import question_key
from meditune.evidence.detector import Sentence, Sources, detect
from meditune.evidence.words import tokens
from meditune.progress import track

FAR = 3.0
"""So many median absolute deviations from the source's usual length are suspicious"""
SPREAD = 0.3
"""Lengths of a source that are more alike than this, in logarithms, are taken to be so apart"""
ON_TOPIC = 0.35
"""An answer with this share of the question's words, weighted, is taken to be about it"""


@dataclass(frozen=True)
class SuspicionSignal:
    """What a signal sees in a row."""

    score: float
    """0 to 1"""
    why: str


Signal = Callable[[Sequence[Example]], Mapping[str, SuspicionSignal]]
"""From all rows to what is noticed in some of them, by id"""


@dataclass(frozen=True)
class Suspicion:
    """Of one row."""

    score: float = 0.0
    """0 to 1: the signals' scores as if each were an independent chance that something is wrong"""
    reasons: Mapping[str, str] = field(default_factory=dict)
    """Signal -> what it saw"""


def suspicion(examples: Sequence[Example], signals: Mapping[str, Signal]) -> dict[str, Suspicion]:
    """By id, how suspicious each row is."""
    noticed: dict[str, dict[str, SuspicionSignal]] = defaultdict(dict)
    for name, signal in signals.items():
        for id, found in signal(examples).items():
            noticed[id][name] = found
    return {
        each.id: Suspicion(
            1 - prod(1 - found.score for found in noticed[each.id].values()),
            {name: found.why for name, found in noticed[each.id].items()},
        )
        for each in examples
    }


def unusual_length(examples: Sequence[Example]) -> dict[str, SuspicionSignal]:
    """Answers far shorter or longer than their source's, on a logarithmic scale."""
    lengths: dict[str, dict[str, float]] = defaultdict(dict)
    for each in examples:
        if each.answer:
            lengths[each.source][each.id] = log(len(each.answer.split()))
    found = {}
    for of_source in lengths.values():
        usual = median(of_source.values())
        spread = max(SPREAD, median(abs(value - usual) for value in of_source.values()))
        for id, value in of_source.items():
            away = abs(value - usual) / spread
            if away > FAR:
                side = "short" if value < usual else "long"
                found[id] = SuspicionSignal(min(0.6, (away - FAR) / 10), f"{side} for its source")
    return found


def off_topic(examples: Sequence[Example]) -> dict[str, SuspicionSignal]:
    """Answers, and passages with them, that share few of the question's telling words."""
    found = {}
    for each in track(examples, "Comparing answers with questions", unit="rows"):
        asked = Sentence(each.question)
        if not each.answer or not asked.total:
            continue
        share = asked.share_in(stems(each.answer, *(passage.text for passage in each.context)))
        if share < ON_TOPIC:
            found[each.id] = SuspicionSignal(0.7 * (1 - share / ON_TOPIC), "shares few words with the question")
    return found


def stems(*texts: str) -> set[str]:
    """Of the words in these texts."""
    return {token.stem for text in texts for token in tokens(text)}


def unsupported(examples: Sequence[Example]) -> dict[str, SuspicionSignal]:
    """Answers that their own passages don't bear out, as the faithfulness detector sees it."""
    found = {}
    for each in track(
        [row for row in examples if row.context and row.answer], "Comparing answers with passages", unit="rows"
    ):
        judged = detect(each.answer, Sources([passage.text for passage in each.context], each.question))
        if judged.score is not None and (judged.spans or not judged.faithful):
            why = judged.spans[0].why if judged.spans else "no passage bears it out"
            found[each.id] = SuspicionSignal(0.8 * (1 - judged.score), why)
    return found


def contradicted(examples: Sequence[Example]) -> dict[str, SuspicionSignal]:
    """Rows whose question is asked again with the same passages and answered otherwise."""
    asked: dict[tuple[str, str], list[Example]] = defaultdict(list)
    for each in examples:
        asked[question_key(each.question), question_key(" ".join(p.text for p in each.context))].append(each)
    found = {}
    for rows in asked.values():
        decisions = {each.decision for each in rows if each.decision}
        answers = {question_key(each.answer) for each in rows if each.answer}
        for each in rows:
            if len(decisions) > 1:
                found[each.id] = SuspicionSignal(0.8, "the same question has another decision elsewhere")
            elif len(answers) > 1:
                found[each.id] = SuspicionSignal(0.3, "the same question has another answer elsewhere")
    return found


def repeated(examples: Sequence[Example]) -> dict[str, SuspicionSignal]:
    """Answers that stand under other questions, too."""
    said: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for each in examples:
        if each.answer:
            said[question_key(each.answer)][question_key(each.question)].append(each.id)
    found = {}
    for questions in said.values():
        others = len(questions) - 1
        where = "another question" if others == 1 else f"{others} other questions"
        for id in (id for ids in questions.values() for id in ids if others):
            found[id] = SuspicionSignal(0.4, f"the same answer stands under {where}")
    return found


def flagged(records: Iterable[Mapping[str, Any]]) -> Signal:
    """What checks of the data noted about rows that they kept: records with `id`, `rule`, `action` (flag), `detail`."""
    by_id: dict[str, list[str]] = defaultdict(list)
    for record in records:
        if record["action"] == "flag":
            by_id[str(record["id"])].append(str(record["detail"] or record["rule"]))
    return lambda examples: {
        each.id: SuspicionSignal(0.7, "; ".join(by_id[each.id])) for each in examples if each.id in by_id
    }


SIGNALS: dict[str, Signal] = {
    "length": unusual_length,
    "off_topic": off_topic,
    "unsupported": unsupported,
    "contradicted": contradicted,
    "repeated": repeated,
}
