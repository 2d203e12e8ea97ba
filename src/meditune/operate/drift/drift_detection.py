"""A drift check: compares the requests in a store or a file with a reference, starting where the last check ended.

The check adds evidence to alerts: example requests and groups of new questions. All texts are masked.
"""

from __future__ import annotations

import hashlib
import json
import math
import operator
import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from meditune.errors import DataError, ModelError
from meditune.files import exclusive_lock
from meditune.models.sentence_encoder import DEFAULT, INT8, SentenceEncoder, load_encoder
from meditune.operate.drift.e_detectors import RECENT
from meditune.operate.drift.monitor import Alert, Monitor, Policy
from meditune.operate.drift.reference import Reference, fit
from meditune.operate.drift.signals import BY_NAME, MEANING, Request, from_file, topic_names
from meditune.phi.detector import mask
from meditune.store import StoreLocation, exists, folder_of, is_url, open_store
from meditune.store.answers import Answers
from meditune.store.database import FILE
from meditune.store.overview import forget_deleted


class RequestSource:
    """A source of requests: a store or a JSON Lines file."""

    def __init__(self, location: StoreLocation) -> None:
        self._answers = None
        if not is_url(location) and Path(location).is_file() and Path(location).name != FILE:
            self.named = str(Path(location).resolve())
            return
        if not exists(location):
            raise DataError(
                f"{location}: neither a store (a folder with {FILE}, a postgresql:// URL) nor a file of requests. Use "
                "the --store of `meditune serve`, or a JSON Lines file with a question on each line."
            )
        base = open_store(location)
        self._answers = Answers(base)
        self.named = base.place if is_url(location) else str(folder_of(location).resolve())

    @property
    def is_store(self) -> bool:
        """True if the source is a store."""
        return self._answers is not None

    def requests(self, after: int = 0) -> Iterator[Request]:
        """Yield the requests after position `after`. Raises DataError if the source cannot be read."""
        if self._answers is None:
            yield from from_file(Path(self.named), after)
            return
        for place, each, ratings in self._answers.in_order(after):
            yield Request(each.id, each.question, each.answer, None, each.outcome, each.facts, ratings, place)

    def has(self, id: str) -> bool:
        """Return whether a request still exists; requests in a file are assumed to exist."""
        return self._answers is None or self._answers.get(id) is not None

    def first_rows(self) -> list[str]:
        """Return the hashes of a file's first requests, at most FIRST_ROWS; empty for a store."""
        if self._answers is not None:
            return []
        rows = ([each.id, each.question, each.outcome, each.facts] for each in islice(self.requests(), FIRST_ROWS))
        return [hashlib.sha256(json.dumps(row, sort_keys=True).encode()).hexdigest()[:16] for row in rows]

    def first(self) -> float:
        """Return the position of the first request; infinity if there is none."""
        return next((each.sequence for each in self.requests()), math.inf)

    def last(self) -> int:
        """Return the position of the last request; 0 if there is none."""
        return self._answers.last_place() if self._answers else sum(1 for _ in from_file(Path(self.named)))


FIRST_ROWS = 10
"""The number of requests at the beginning of a file by which it is recognized"""
LAG = 200
"""Number of later requests after which an answer's ratings are read"""
BATCH = 256
FEW = 30
LOCK_S = 20.0


@dataclass(frozen=True)
class CheckResult:
    """The result of a check."""

    monitor: Monitor
    requests: list[Request]
    """The requests that were read: new requests, with vectors, and some earlier requests"""
    new: int
    remarks: list[str]


def fit_reference(source: RequestSource, max_requests: int | None, embedding: str | None, seed: int) -> Reference:
    """Fit a reference to a source's last `max_requests` requests (None: all). Raises DataError, ModelError."""
    requests = list(source.requests())
    # Ratings of the latest answers don't count, because more may follow.
    recent = {each.id for each in requests[-LAG:]} if source.is_store else set()
    requests = [replace(each, ratings=None) if each.id in recent else each for each in requests]
    chosen = requests[-max_requests:] if max_requests else requests
    if not any(each.question for each in chosen):
        return fit(chosen, None, source.named, seed)
    model = load_encoder(embedding or DEFAULT)
    return fit(list(with_vectors(chosen, model)), asdict(model.identity), source.named, seed)


def model_for(reference: Reference, name: str | None) -> SentenceEncoder | None:
    """Return the embedding model of a reference, or None if the reference has none.

    Raises ModelError if `name` is another model, or if a package for the model is missing.
    """
    expected = reference.about["embedding"]
    if expected is None:
        return None
    try:
        model = load_encoder(name or expected["name"])
    except ModuleNotFoundError as error:
        raise ModelError(
            f"The reference's embedding model {expected['name']} needs the package {error.name}. Install it, or fit a "
            f"reference that doesn't need it: meditune drift fit STORE -o REFERENCE --embedding {INT8}"
        ) from error
    if model.identity.space != expected["space"]:
        raise ModelError(
            f"The reference was made with the embedding model {expected['name']} ({expected['space'][:12]}). The "
            f"vectors of {model.identity.name} ({model.identity.space[:12]}) cannot be compared with the reference's. "
            "Choose the reference's model with --embedding, or fit a new reference: meditune drift fit STORE -o "
            f"REFERENCE --embedding {model.identity.name}"
        )
    return model


def check(
    source: RequestSource, reference: Reference, state: Path | None, policy: Policy, embedding: str | None = None
) -> CheckResult:
    """Resume from the file `state`, add the new requests, and save the state with evidence for alerts.

    Questions that were deleted since the last check are removed from the evidence. If `state` is None, start from the
    reference, and save nothing. Raises DataError, ModelError.
    """
    model = model_for(reference, embedding)
    if state is None:
        return advance(source, Monitor(reference, policy), model)
    state.parent.mkdir(parents=True, exist_ok=True)
    busy = DataError(f"Another check, or a server with --drift, is using {state}. Wait until it finishes.")
    with exclusive_lock(state.with_name(f".{state.name}.lock"), busy, LOCK_S):
        monitor = Monitor.load(state, reference) if state.exists() else Monitor(reference, policy)
        refuse_other_source(source, monitor)
        forget_evidence(monitor, source.has)
        found = advance(source, monitor, model)
        monitor.save(state)
    if policy not in (Policy(), monitor.policy):
        found.remarks.append(
            f"--false-alarms {monitor.policy.false_alarms:g} and --min-severity {monitor.policy.min_severity}, with "
            "which the state file was created, stay in effect. To use others, use another state file (--state)."
        )
    return found


def advance(
    source: RequestSource,
    monitor: Monitor,
    model: SentenceEncoder | None,
    batch: int = BATCH,
    rest: Callable[[float], None] = lambda _: None,
) -> CheckResult:
    """Add the new requests to the monitor, and gather evidence for alerts.

    After each batch of new requests, `rest` is called with the number of seconds that the batch took.
    """
    reference, began = monitor.reference, monitor.count
    remarks = refuse_other_source(source, monitor)
    monitor.source, monitor.first_rows = source.named, source.first_rows()
    same = reference.about["of"] == source.named
    start = monitor.last if began or same else 0
    last = source.last()
    if last < start and not source.is_store:
        raise DataError(
            f"{source.named} has {last:,} requests, but {start:,} were checked before. The file was truncated or "
            "replaced. Delete the state file to check all requests again."
        )
    # Some requests are read again, because they may have been rated since. Deletions can lower a store's last position.
    first = int(reference.about["last"]) if same else 0
    after = max(first, min(start, last) - RECENT) if began else start
    if last < start:
        # If an older copy of the store was restored, its new requests follow the last request that was checked before.
        known = (each.sequence for each in source.requests(after) if monitor.number_of(each.id))
        start = monitor.last = max(known, default=last)
    requests: list[Request] = []
    for request in _encoded(source.requests(after), start, model, batch, rest):
        if request.sequence > start:
            monitor.add(replace(request, ratings=None))
        requests.append(request)
        if len(requests) > LAG:
            monitor.add_outcome(requests[-LAG - 1])
    gather_evidence(monitor, requests)
    new = monitor.count - began
    return CheckResult(monitor, requests, new, remarks + _remarks(monitor, new))


def refuse_other_source(source: RequestSource, monitor: Monitor) -> list[str]:
    """Raise DataError if the monitor's requests come from another source; otherwise return remarks.

    A file is the same source if it begins with the same requests, even if it was moved. A store that was moved is the
    same source if it contains recent requests, or nothing that was stored before them.
    """
    if not monitor.count or not monitor.source:
        return []
    if monitor.first_rows and not source.is_store:
        if all(map(operator.eq, source.first_rows(), monitor.first_rows)):
            return []
        if monitor.source == source.named:
            raise DataError(
                f"{source.named} begins with other requests than when it was checked before: the file was replaced. "
                "Use another state file for it (--state), or delete the state file to check all requests again."
            )
    elif monitor.source == source.named or any(map(source.has, monitor.recent_ids())):
        return []
    elif source.is_store and not monitor.first_rows and source.first() > monitor.last:
        return [
            f"{source.named} contains none of the requests that were checked in {monitor.source}. The check continues, "
            "because they may have been deleted. If it is another store, use another state file (--state)."
        ]
    raise DataError(
        f"The state file belongs to {monitor.source}, but the requests come from {source.named}. Use another state "
        "file for them (--state), or append them to the earlier source. To start again from the reference, delete "
        "the state file."
    )


def _encoded(
    requests: Iterable[Request], start: int, model: SentenceEncoder | None, size: int, rest: Callable[[float], None]
) -> Iterator[Request]:
    """Yield the requests, with vectors for those after the position `start`."""
    coming = iter(requests)
    begun = time.monotonic()
    while batch := list(islice(coming, size)):
        new = [each for each in batch if each.sequence > start]
        by_id = {each.id: each for each in (with_vectors(new, model) if model else new)}
        yield from (by_id.get(each.id, each) for each in batch)
        if new:
            rest(time.monotonic() - begun)
        begun = time.monotonic()


def with_vectors(requests: Sequence[Request], model: SentenceEncoder) -> Iterator[Request]:
    """Yield the requests, with vectors for those that have a question."""
    for start in range(0, len(requests), BATCH):
        batch = requests[start : start + BATCH]
        asked = [each for each in batch if each.question and each.vector is None]
        vectors = model.encode([each.question or "" for each in asked])
        by_id = dict(zip((each.id for each in asked), vectors, strict=True))
        yield from (replace(each, vector=by_id[each.id]) if each.id in by_id else each for each in batch)


def _remarks(monitor: Monitor, new: int) -> list[str]:
    found = list(monitor.reference.about["remarks"])
    if not monitor.count:
        found.append("No requests since the reference; there is nothing to check yet.")
    elif monitor.count < FEW:
        found.append(f"Only {monitor.count} requests so far; only very large changes can be detected.")
    elif not new:
        found.append("No new requests since the last check.")
    for name, count in monitor.missing.items():
        if monitor.count and count == monitor.count:
            advice = "Start the server with `meditune serve --keep-text` to store questions." if name in _PARTS else ""
            found.append(f"{name}: not monitored, because no request contains the required data. {advice}")
    return found


MAX_GROUP_EXAMPLES = 5
CHARACTERS = 240
GROUPS = 4
MIN_NEW_QUESTIONS = 8
NOVELTY_QUANTILE = 0.95
"""A question is new if its distance to known questions exceeds this quantile of the reference's distances."""
_PARTS = ("topics", "novelty", "directions", MEANING, "unknown_words", "length", "language")


def gather_evidence(monitor: Monitor, requests: Sequence[Request]) -> None:
    """Add evidence to each open alert: `examples` (id, question, value), and `groups` for the meaning of questions."""
    open_alerts = monitor.alerts()
    if not open_alerts:
        return
    since = min(alert.since for alert in open_alerts)
    numbered = [(number, each) for each in requests if (number := monitor.number_of(each.id)) and number >= since]
    groups = new_groups(monitor.reference, [each for _, each in numbered])
    for alert in open_alerts:
        own = [each for number, each in numbered if number >= alert.since]
        # Keep the examples of an earlier check if those requests are no longer available.
        if examples := _examples(alert, own, monitor.reference):
            alert.evidence["examples"] = examples
        if groups and alert.signal in _PARTS:
            alert.evidence["groups"] = groups


def forget_evidence(monitor: Monitor, exists: Callable[[str], bool]) -> bool:
    """Remove deleted questions from the evidence of all alerts; return whether any was removed."""
    return sum(forget_deleted(alert.evidence, exists) for alert in monitor.all_alerts) > 0


def new_groups(reference: Reference, requests: Sequence[Request]) -> list[dict[str, Any]]:
    """Return groups of questions that differ from all known questions, largest group first.

    Each group is a dict with `name`, `questions` (their number), `share`, `distance` and `examples`.
    """
    ranked = reference.numbers.get("novelty")
    known = [each for each in requests if each.vector is not None and each.question]
    if ranked is None or not known:
        return []
    limit = float(np.quantile(ranked[:, 0], NOVELTY_QUANTILE))
    distances = np.array([reference.shape.distance(each.vector) for each in known if each.vector is not None])
    new = np.flatnonzero(distances > limit)
    if len(new) < MIN_NEW_QUESTIONS:
        return []
    from sklearn.cluster import KMeans

    vectors = np.stack([known[place].vector for place in new])  # type: ignore[misc]
    count = min(GROUPS, len(new) // (MIN_NEW_QUESTIONS // 2))
    fitted = KMeans(count, n_init=3, random_state=17).fit(vectors)
    texts = [mask(re.sub(r"[^\w\s]", " ", known[place].question or "")) for place in new]
    names = topic_names(texts, fitted.labels_, count)
    found = []
    for group, name in enumerate(names):
        members = new[fitted.labels_ == group]
        middle = fitted.transform(vectors)[fitted.labels_ == group, group]
        nearest = members[np.argsort(middle)][:MAX_GROUP_EXAMPLES]
        found.append(
            {
                "name": name or "no common words",
                "questions": len(members),
                "share": len(members) / len(known),
                "distance": float(distances[members].mean()),
                "examples": [evidence_row(known[place]) for place in nearest],
            }
        )
    return sorted(found, key=lambda each: -each["questions"])


def _examples(alert: Alert, requests: Sequence[Request], reference: Reference) -> list[dict[str, Any]]:
    """Return the requests with the most extreme values in the change's direction, or the latest of the category."""
    signal = BY_NAME.get(alert.signal) or BY_NAME["novelty"]
    values_read = [(each, signal.read(each, reference.shape)) for each in requests]
    known = [
        (each, values[alert.column if len(values) > 1 else 0]) for each, values in values_read if None not in values
    ]
    if signal.kind == "category":
        seen = reference.shares[signal.name]
        own = [pair for pair in known if pair[1] == alert.what or (str(pair[1]) not in seen and not alert.what)]
        fresh = [pair for pair in known if str(pair[1]) not in seen] if alert.what == "something new" else own
        chosen = list(reversed(fresh))[:MAX_GROUP_EXAMPLES]
    else:
        way = -1 if alert.after < alert.before else 1
        chosen = sorted(known, key=lambda pair: -way * float(pair[1] or 0))[:MAX_GROUP_EXAMPLES]
    return [evidence_row(each) | {"value": value} for each, value in chosen]


def evidence_row(request: Request) -> dict[str, Any]:
    """Return a request's id and its masked, shortened question."""
    text = None if request.question is None else mask(" ".join(request.question.split()))
    if text and len(text) > CHARACTERS:
        text = text[: CHARACTERS - 1].rstrip() + "…"
    return {"id": request.id, "question": text}
