"""Which requests bear out an alert, and which groups of new questions there are. All texts masked."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from meditune.operate.drift.alerts import Alert
from meditune.operate.drift.monitor import Monitor
from meditune.operate.drift.reference import Reference
from meditune.operate.drift.request import Request
from meditune.operate.drift.shape import named
from meditune.operate.drift.signals import BY_NAME, MEANING
from meditune.phi.masking import mask

SHOWN = 5
CHARACTERS = 240
GROUPS = 4
LEAST = 8
"""New questions that make groups"""
FAR = 0.95
"""A question is new where it is farther from the known ones than this share of the reference"""
_PARTS = ("topics", "novelty", "directions", MEANING, "unknown_words", "length", "language")


def gather(monitor: Monitor, requests: Sequence[Request]) -> None:
    """Give each open alert its evidence: `examples` (id, question, value) and for questions' meaning `groups`."""
    open_alerts = monitor.alerts()
    if not open_alerts:
        return
    since = min(alert.since for alert in open_alerts)
    numbered = [(number, each) for each in requests if (number := monitor.number_of(each.id)) and number >= since]
    groups = new_groups(monitor.reference, [each for _, each in numbered])
    for alert in open_alerts:
        own = [each for number, each in numbered if number >= alert.since]
        # An earlier check's examples stay where this one can't see those requests any more.
        if examples := _examples(alert, own, monitor.reference):
            alert.evidence["examples"] = examples
        if groups and alert.signal in _PARTS:
            alert.evidence["groups"] = groups


def forget(monitor: Monitor, is_there: Callable[[str], bool]) -> bool:
    """Take out of all alerts' evidence the questions whose answers were deleted; whether there were any."""
    found = False
    for alert in monitor.all_alerts:
        for part in (alert.evidence, *alert.evidence.get("groups", ())):
            examples = part.get("examples", [])
            left = [each for each in examples if is_there(each["id"])]
            if len(left) < len(examples):
                part["examples"], found = left, True
    return found


def new_groups(reference: Reference, requests: Sequence[Request]) -> list[dict[str, Any]]:
    """Questions unlike all known ones, in groups by meaning: `name`, `questions`, `share`, `distance`, `examples`."""
    limit = _far(reference)
    known = [each for each in requests if each.vector is not None and each.question]
    if limit is None or not known:
        return []
    distances = np.array([reference.shape.distance(each.vector) for each in known if each.vector is not None])
    new = np.flatnonzero(distances > limit)
    if len(new) < LEAST:
        return []
    from sklearn.cluster import KMeans

    vectors = np.stack([known[place].vector for place in new])  # type: ignore[misc]
    count = min(GROUPS, len(new) // (LEAST // 2))
    fitted = KMeans(count, n_init=3, random_state=17).fit(vectors)
    texts = [mask(re.sub(r"[^\w\s]", " ", known[place].question or "")) for place in new]
    names = named(texts, fitted.labels_, count)
    found = []
    for group, name in enumerate(names):
        members = new[fitted.labels_ == group]
        middle = fitted.transform(vectors)[fitted.labels_ == group, group]
        nearest = members[np.argsort(middle)][:SHOWN]
        found.append(
            {
                "name": name or "no common words",
                "questions": len(members),
                "share": len(members) / len(known),
                "distance": float(distances[members].mean()),
                "examples": [shown(known[place]) for place in nearest],
            }
        )
    return sorted(found, key=lambda each: -each["questions"])


def _far(reference: Reference) -> float | None:
    values = reference.numbers.get("novelty")
    return None if values is None else float(np.quantile(values[:, 0], FAR))


def _examples(alert: Alert, requests: Sequence[Request], reference: Reference) -> list[dict[str, Any]]:
    """Those that are farthest the way the signal went; of a category that grew, its latest."""
    signal = BY_NAME.get(alert.signal) or BY_NAME["novelty"]
    told = [(each, signal.read(each, reference.shape)) for each in requests]
    known = [(each, values[alert.column if len(values) > 1 else 0]) for each, values in told if None not in values]
    if signal.kind == "category":
        seen = reference.shares[signal.name]
        own = [pair for pair in known if pair[1] == alert.what or (str(pair[1]) not in seen and not alert.what)]
        fresh = [pair for pair in known if str(pair[1]) not in seen] if alert.what == "something new" else own
        chosen = list(reversed(fresh))[:SHOWN]
    else:
        way = -1 if alert.after < alert.before else 1
        chosen = sorted(known, key=lambda pair: -way * float(pair[1] or 0))[:SHOWN]
    return [shown(each) | {"value": value} for each, value in chosen]


def shown(request: Request) -> dict[str, Any]:
    """A request as it may be shown: id, and the question masked and cut."""
    text = None if request.question is None else mask(" ".join(request.question.split()))
    if text and len(text) > CHARACTERS:
        text = text[: CHARACTERS - 1].rstrip() + "…"
    return {"id": request.id, "question": text}
