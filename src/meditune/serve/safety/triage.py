"""What is done with a message before any model sees it: answered at once, declined, or answered within limits."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from meditune.serve.safety import requests
from meditune.serve.safety.emergencies import Kind, Numbers, emergency, kinds, touches
from meditune.serve.safety.going_on import with_what_it_goes_on_from
from meditune.serve.safety.likeness import Look
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
ENDING = "ending one's life"
"""The unsafe request that is answered as thoughts of suicide are"""
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


def triage(message: str, numbers: Numbers, before: Sequence[str] = (), look: Look | None = None) -> Triage:
    """Judge a message; `before` are earlier ones of the same person, the oldest first, `look` a second look.

    A short message goes on with the one before ("it's getting worse"), so the two are judged together, too;
    what a question leans on ("What about paracetamol?") counts for what it asks.
    """
    kind = emergency(message) or _going_on(message, before)
    if kind:
        return Triage("urgent", kind.name, kind.title, kind.answer(numbers))
    question, orders = requests.without_orders(message)
    if not question.strip():
        return Triage("decline", "orders", "Not a question", ORDERS)
    whole = with_what_it_goes_on_from(question, before)
    harm = requests.unsafe(message) or requests.unsafe(whole)
    if harm and harm.name == ENDING:
        kind = next(each for each in kinds() if each.name == "self-harm")
        return Triage("urgent", kind.name, kind.title, kind.answer(numbers))
    if harm:
        return Triage("decline", harm.name, "Not safe to explain", harm.answer)
    if requests.is_outside(question):
        return Triage("decline", "outside medicine", "Not about health", SCOPE)
    if look and look(message):
        danger = next(each for each in kinds() if each.name == DANGER)
        return Triage("urgent", danger.name, danger.title, danger.answer(numbers))
    remarks = _remarks(message, orders, numbers)
    if requests.asks_dose(whole):
        return Triage("bound", "dose", "About a dose", DOSE, whole, remarks, no_amounts=True)
    if requests.asks_diagnosis(whole):
        return Triage("bound", "diagnosis", "About a diagnosis", DIAGNOSIS, whole, remarks)
    return Triage("answer", question=whole, remarks=remarks)


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
