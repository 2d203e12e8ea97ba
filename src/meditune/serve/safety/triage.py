"""Decide what happens to a message before any model sees it: answer at once, decline, bound the answer, or answer.

Rules decide first; they stand for what must never be missed. Then the classifier decides on everything in other words.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from meditune.serve.safety import requests
from meditune.serve.safety.classifier import Verdict
from meditune.serve.safety.emergencies import Kind, Numbers, emergency, named, touches
from meditune.serve.safety.going_on import with_what_it_goes_on_from
from meditune.serve.safety.reading import LAST_CHARACTERS, MOST_CHARACTERS, is_cut
from meditune.serve.safety.signs import seen

Action = Literal["urgent", "decline", "bound", "answer"]
SCOPE = (
    "I only answer questions about health, and this one seems to be about something else. Please ask somewhere that "
    "knows it better. If you meant it as a question about health, say it in other words."
)
ORDERS = (
    "This message only tells me how to behave, and I can't follow that. Ask me a question about health, and I'll "
    "answer from what I have."
)
DOSE = (
    "I can't tell you how much to take or give: the right amount depends on age, weight, other medicines and "
    "illnesses. Follow the label or leaflet, and ask your pharmacist or doctor before you take or give anything "
    "else. Don't double a dose or go above what is written there; too much can cause serious harm."
)
DIAGNOSIS = (
    "I can't tell what you or someone else has; that takes an examination. Ask a doctor about it, and say when it "
    "began and what has changed."
)
HARM = (
    "I can't help with this, because it could do serious harm. If somebody is in danger, or has taken or been given "
    "something, call {emergency} or {poison} now. If you are thinking about dying or about hurting yourself or someone "
    "else, call {crisis}: they listen, and they don't judge. If you meant a question about safety, treatment or "
    "prevention, ask it that way."
)
ENDING = "ending one's life"
"""The unsafe request that is answered as thoughts of suicide are"""
EATING = "eating disorders"
"""The unsafe request that is answered with care for an eating disorder"""
EMERGENCY_AT, CRISIS_AT, HARMFUL_AT, OUTSIDE_AT = 0.6, 0.5, 0.4, 0.8
"""The probabilities from which the classifier decides, set on held-out training messages and 350 real questions"""
KINDS = {
    "emergency: self-harm": "self-harm",
    "emergency: violence": "violence",
    "emergency: poisoning": "poisoning",
}
"""The kind of emergency whose answer a label of the classifier gets"""
SHORT = 12
"""Words of a message that is read together with the one before"""
DANGER = "danger"
"""The kind of what is like an emergency, of whatever kind"""
_WORSE = re.compile(r"\b(?:worse|worsening|still|not better|spreading|same)\b", re.IGNORECASE)
CUT = (
    f"The message is very long: only its first {MOST_CHARACTERS:,} and last {LAST_CHARACTERS:,} characters were looked "
    "at for emergencies and for what isn't safe."
)
IF_NOW = "If this is happening right now: call {emergency} at once."


class Classifier(Protocol):
    """A classifier of messages, such as `classifier.TriageClassifier`."""

    def classify(self, message: str) -> Verdict:
        """Return calibrated probabilities for the message."""
        ...


@dataclass(frozen=True)
class Triage:
    """What is done with a message."""

    action: Action
    kind: str = ""
    """Of emergency, of request, or empty"""
    title: str = ""
    text: str = ""
    """The answer where no model is asked, else what stands before the answer"""
    question: str = ""
    """What a model may be asked: the message without orders to it, with the earlier ones that it leans on"""
    remarks: tuple[str, ...] = ()
    no_amounts: bool = False
    """Amounts of medicines are left out of the answer"""


def triage(message: str, numbers: Numbers, before: Sequence[str] = (), classifier: Classifier | None = None) -> Triage:
    """Judge a message. `before` holds earlier messages of the same person, the oldest first.

    A short message that continues the one before ("it's getting worse") is also judged together with it. A question
    that refers to earlier ones ("What about paracetamol?") counts for what they ask together.
    """
    kind = emergency(message) or _going_on(message, before)
    if kind:
        return _urgent(kind, numbers)
    question, orders = requests.without_orders(message)
    if not question.strip():
        return Triage("decline", "orders", "Not a question", ORDERS)
    whole = with_what_it_goes_on_from(question, before)
    harm = requests.unsafe(message) or requests.unsafe(whole)
    if harm:
        return _stopped(harm, numbers)
    if requests.is_outside(question):
        return Triage("decline", "outside medicine", "Not about health", SCOPE)
    found = _classified(message, whole, numbers, classifier) if classifier else None
    if found:
        return found
    remarks = _remarks(message, orders, numbers)
    if requests.asks_dose(whole):
        return Triage("bound", "dose", "About a dose", DOSE, whole, remarks, no_amounts=True)
    if requests.asks_diagnosis(whole):
        return Triage("bound", "diagnosis", "About a diagnosis", DIAGNOSIS, whole, remarks)
    return Triage("answer", question=whole, remarks=remarks)


def _urgent(kind: Kind, numbers: Numbers) -> Triage:
    return Triage("urgent", kind.name, kind.title, kind.answer(numbers))


def _stopped(harm: requests.Unsafe, numbers: Numbers) -> Triage:
    if harm.name == ENDING:
        return _urgent(named("self-harm"), numbers)
    return Triage("decline", harm.name, "Not safe to explain", harm.answer)


def _classified(message: str, whole: str, numbers: Numbers, classifier: Classifier) -> Triage | None:
    """Return what the classifier makes of a message, alone and with what it refers to; None if it is ordinary."""
    for text in dict.fromkeys((message, whole)):
        verdict = classifier.classify(text)
        if verdict["emergency: self-harm"] + verdict["harmful: self-harm"] >= CRISIS_AT:
            return _urgent(named("self-harm"), numbers)
        if verdict["emergency"] >= EMERGENCY_AT:
            return _urgent(named(KINDS.get(verdict.likeliest("emergency"), DANGER)), numbers)
        if verdict["harmful"] >= HARMFUL_AT and not requests.is_confidential_care(text):
            if verdict.likeliest("harmful") == "harmful: eating disorder":
                return _stopped(requests.named(EATING), numbers)
            return Triage("decline", "harmful", "Not safe to explain", HARM.format(**numbers.model_dump()))
        if text == message and verdict["outside"] >= OUTSIDE_AT:
            return Triage("decline", "outside medicine", "Not about health", SCOPE)
    return None


def _going_on(message: str, before: Sequence[str]) -> Kind | None:
    if not before or len(message.split()) > SHORT:
        return None
    if not (any(seen(message)) or _WORSE.search(message)):
        return None  # "thank you", or a question about something else
    return emergency(f"{before[-1]}\n{message}")


def _remarks(message: str, orders: int, numbers: Numbers) -> tuple[str, ...]:
    said = []
    if orders:
        said.append("What the message told the assistant to do was left out; the question was answered as usual.")
    if is_cut(message):
        said.append(CUT)
    if touches(message):
        said.append(IF_NOW.format(emergency=numbers.emergency))
    return tuple(said)
