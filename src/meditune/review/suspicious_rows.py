"""Suspicion scores of rows, computed without human input and used only to order them for checking.

Each signal looks at all rows and returns those that stand out. Findings of other checks can be added as another signal
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
"""Number of median absolute deviations from the source's usual length that counts as suspicious"""
SPREAD = 0.3
ON_TOPIC = 0.35
"""Minimum weighted share of the question's words in an answer that counts as on topic"""


@dataclass(frozen=True)
class SuspicionSignal:
    """The score of a signal for a row."""

    score: float
    """0 to 1"""
    why: str


Signal = Callable[[Sequence[Example]], Mapping[str, SuspicionSignal]]
"""Maps all rows to findings for some of them, by id"""


@dataclass(frozen=True)
class Suspicion:
    """The suspicion score of one row."""

    score: float = 0.0
    """0 to 1: the signals' scores combined like independent probabilities of an error"""
    reasons: Mapping[str, str] = field(default_factory=dict)


def suspicion(examples: Sequence[Example], signals: Mapping[str, Signal]) -> dict[str, Suspicion]:
    """Return the suspicion score of each row by id."""
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
    """Return answers far shorter or longer than usual for their source, on a logarithmic scale."""
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
    """Return answers that, together with their passages, share few of the question's important words."""
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
    """Return the stems of the words in these texts."""
    return {token.stem for text in texts for token in tokens(text)}


def unsupported(examples: Sequence[Example]) -> dict[str, SuspicionSignal]:
    """Return answers that their own passages don't support, according to the faithfulness detector."""
    found = {}
    for each in track(
        [row for row in examples if row.context and row.answer], "Comparing answers with passages", unit="rows"
    ):
        judged = detect(each.answer, Sources([passage.text for passage in each.context], each.question))
        if judged.score is not None and (judged.spans or not judged.faithful):
            why = judged.spans[0].why if judged.spans else "no passage supports it"
            found[each.id] = SuspicionSignal(0.8 * (1 - judged.score), why)
    return found


def contradicted(examples: Sequence[Example]) -> dict[str, SuspicionSignal]:
    """Return rows whose question occurs again with the same passages but another answer."""
    asked: dict[tuple[str, str], list[Example]] = defaultdict(list)
    for each in examples:
        asked[question_key(each.question), question_key(each.context_text)].append(each)
    found = {}
    for rows in asked.values():
        decisions = {each.decision for each in rows if each.decision}
        answers = {question_key(each.answer) for each in rows if each.answer}
        for each in rows:
            if len(decisions) > 1:
                found[each.id] = SuspicionSignal(0.8, "the same question has a different decision elsewhere")
            elif len(answers) > 1:
                found[each.id] = SuspicionSignal(0.3, "the same question has a different answer elsewhere")
    return found


def repeated(examples: Sequence[Example]) -> dict[str, SuspicionSignal]:
    """Return answers that also occur with other questions."""
    asked_by_answer: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for each in examples:
        if each.answer:
            asked_by_answer[question_key(each.answer)][question_key(each.question)].append(each.id)
    found = {}
    for questions in asked_by_answer.values():
        others = len(questions) - 1
        where = "another question" if others == 1 else f"{others} other questions"
        for id in (id for ids in questions.values() for id in ids if others):
            found[id] = SuspicionSignal(0.4, f"the same answer occurs with {where}")
    return found


def flagged(records: Iterable[Mapping[str, Any]]) -> Signal:
    """Return a signal from notes of data checks on rows they kept: records with `id`, `rule`, `action` (flag),
    `detail`.
    """
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
