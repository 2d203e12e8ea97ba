"""A store or a file held against a reference, from where the last check ended.

Requests out of a server's store or a JSON Lines file, in the order in which they came.

Which requests bear out an alert, and which groups of new questions there are. All texts masked.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout

from meditune.errors import DataError, ModelError
from meditune.operate.drift.alerts import Alert, Policy
from meditune.operate.drift.monitor import Monitor
from meditune.operate.drift.reference import Reference, fit
from meditune.operate.drift.signal_tracks import RECENT
from meditune.operate.drift.signals import BY_NAME, MEANING, Request, from_file, topic_names
from meditune.phi.detector import mask
from meditune.retrieve.vector_search import DEFAULT, INT8, Embedder, embedder
from meditune.store.answers import SHADOW, Answers
from meditune.store.database import FILE
from meditune.store.open_store import Place, exists, folder_of, is_url, open_store


class RequestSource:
    """A store or a file of requests."""

    def __init__(self, place: Place) -> None:
        """Raises DataError where there is neither."""
        self._answers = None
        if not is_url(place) and Path(place).is_file() and Path(place).name != FILE:
            self.named = str(Path(place).resolve())
            return
        if not exists(place):
            raise DataError(
                f"{place}: neither a store (a folder with {FILE}, a postgresql:// URL) nor a file of requests. Give "
                "the --store of `meditune serve`, or a JSON Lines file with a question on each line."
            )
        base = open_store(place)
        self._answers = Answers(base)
        self.named = base.place if is_url(place) else str(folder_of(place).resolve())

    @property
    def is_store(self) -> bool:
        """Whether it is a store."""
        return self._answers is not None

    def requests(self, after: int = 0) -> Iterator[Request]:
        """Those at a later place than `after`. Raises DataError where the source can't be read."""
        if self._answers is None:
            yield from from_file(Path(self.named), after)
            return
        for place, answer, ratings in self._answers.in_order(after):
            if answer.route == SHADOW:
                continue
            yield Request(
                answer.id,
                answer.question,
                answer.answer,
                outcome=answer.outcome,
                facts=answer.facts,
                ratings=ratings,
                sequence=place,
            )

    def has(self, id: str) -> bool:
        """Whether a request is still there; what a file held once is taken to be."""
        return self._answers is None or self._answers.get(id) is not None

    def last(self) -> int:
        """The last place."""
        if self._answers is not None:
            return self._answers.last_place()
        return sum(1 for _ in from_file(Path(self.named)))


LAG = 200
"""Later requests for which an answer's ratings are waited"""
BATCH = 256
FEW = 30
LOCK_S = 20.0


@dataclass(frozen=True)
class CheckResult:
    """What a check found."""

    monitor: Monitor
    requests: list[Request]
    """Those that can still be shown: the new ones and some before, with their vectors where they are new"""
    new: int
    remarks: list[str]


def fit_reference(source: RequestSource, last: int | None, embedding: str | None, seed: int) -> Reference:
    """A reference of a source's requests, or of so many of its last ones.

    Raises DataError where there are too few, ModelError where the embedding model can't be had.
    """
    requests = list(source.requests())
    # It is too early to tell whether these will be rated.
    recent = {each.id for each in requests[-LAG:]} if source.is_store else set()
    requests = [replace(each, ratings=None) if each.id in recent else each for each in requests]
    chosen = requests[-last:] if last else requests
    if not any(each.question for each in chosen):
        return fit(chosen, None, source.named, seed)
    model = embedder(embedding or DEFAULT)
    return fit(list(with_vectors(chosen, model)), model.identity.as_dict(), source.named, seed)


def model_for(reference: Reference, name: str | None) -> Embedder | None:
    """The model whose vectors can be held against a reference's; None where that has none.

    Raises ModelError where another one is named, or the one of that name isn't the same any more.
    """
    wanted = reference.embedding
    if wanted is None:
        return None
    try:
        model = embedder(name or wanted["name"])
    except ModuleNotFoundError as error:
        raise ModelError(
            f"The reference's embedding model {wanted['name']} needs the package {error.name}. Install it, or fit a "
            f"reference for servers without it: meditune drift fit STORE -o REFERENCE --embedding {INT8}"
        ) from error
    if model.identity.space != wanted["space"]:
        raise ModelError(
            f"The reference was made with the embedding model {wanted['name']} ({wanted['space'][:12]}), and "
            f"{model.identity.name} ({model.identity.space[:12]}) gives other vectors: they can't be compared. Name "
            f"the first with --embedding, or fit a new reference: meditune drift fit STORE -o REFERENCE --embedding "
            f"{model.identity.name}"
        )
    return model


def check(
    source: RequestSource,
    reference: Reference,
    state: Path | None,
    policy: Policy,
    embedding: str | None = None,
    evidence: Callable[[Monitor, Sequence[Request]], None] = lambda _, __: None,
) -> CheckResult:
    """Go on from `state`, where there is one, and leave it there with the `evidence` of alerts.

    Raises DataError, ModelError.
    """
    model = model_for(reference, embedding)
    if state is None:
        found = advance(source, Monitor(reference, policy), model)
        evidence(found.monitor, found.requests)
        return found
    lock = FileLock(state.with_name(f".{state.name}.lock"))
    state.parent.mkdir(parents=True, exist_ok=True)
    try:
        with lock.acquire(timeout=LOCK_S):
            monitor = Monitor.load(state, reference) if state.exists() else Monitor(reference, policy)
            found = advance(source, monitor, model)
            evidence(found.monitor, found.requests)
            found.monitor.save(state)
            return found
    except Timeout as error:
        raise DataError(f"Another check holds {state}. Wait until it has ended.") from error


def advance(
    source: RequestSource,
    monitor: Monitor,
    model: Embedder | None,
    batch: int = BATCH,
    rest: Callable[[float], None] = lambda _: None,
) -> CheckResult:
    """Give a monitor what came since; `rest` is told after each batch how many seconds it took.

    Raises DataError where a file was cut off since.
    """
    reference, began = monitor.reference, monitor.count
    same = reference.about["of"] == source.named
    start = monitor.last if began or same else 0
    last = source.last()
    if last < start and not source.is_store:
        raise DataError(
            f"{source.named} has {last:,} requests, but {start:,} were checked before. It was cut off or replaced: "
            "remove the state file to check it from its beginning."
        )
    # Some are read again: their ratings may have come, and places in a store are given anew after deletions.
    first = int(reference.about["last"]) if same else 0
    after = max(first, min(start, last) - RECENT) if began else start
    shown: list[Request] = []
    for request in _numbered(source.requests(after), monitor, model, batch, rest):
        if monitor.number_of(request.id) is None:
            monitor.add(replace(request, ratings=None))
        shown.append(request)
        _add_outcomes(shown, monitor)
    return CheckResult(monitor, shown, monitor.count - began, _remarks(monitor, monitor.count - began))


def _numbered(
    requests: Iterable[Request], monitor: Monitor, model: Embedder | None, size: int, rest: Callable[[float], None]
) -> Iterator[Request]:
    """The requests, the new ones with vectors."""
    coming = iter(requests)
    begun = time.monotonic()
    while batch := list(islice(coming, size)):
        new = [each for each in batch if monitor.number_of(each.id) is None]
        made = {each.id: each for each in (with_vectors(new, model) if model else new)}
        yield from (made.get(each.id, each) for each in batch)
        if new:
            rest(time.monotonic() - begun)
        begun = time.monotonic()


def _add_outcomes(shown: Sequence[Request], monitor: Monitor) -> None:
    """Give the monitor the ratings of the request LAG before the last, unless it has had them."""
    if len(shown) > LAG:
        monitor.add_outcome(shown[-LAG - 1])


def with_vectors(requests: Sequence[Request], model: Embedder) -> Iterator[Request]:
    """The requests with the vectors of those that have a question."""
    embed: Callable[[Sequence[str]], Any] = model.embed
    for start in range(0, len(requests), BATCH):
        batch = requests[start : start + BATCH]
        asked = [each for each in batch if each.question and each.vector is None]
        vectors = dict(zip((each.id for each in asked), embed([each.question or "" for each in asked]), strict=True))
        yield from (replace(each, vector=vectors[each.id]) if each.id in vectors else each for each in batch)


def _remarks(monitor: Monitor, new: int) -> list[str]:
    found = list(monitor.reference.about["remarks"])
    if not monitor.count:
        found.append("No request came since the reference: there is nothing to check yet.")
    elif monitor.count < FEW:
        found.append(f"Only {monitor.count} requests so far: too few to see any but the crudest change.")
    elif not new:
        found.append("No new request since the last check.")
    for name, count in monitor.missing.items():
        if monitor.count and count == monitor.count:
            found.append(f"{name}: none of the requests has what it needs, so it isn't watched. {_NEEDS.get(name, '')}")
    return found


_NEEDS = dict.fromkeys(
    ("length", "language", "unknown_words", "topics", "novelty", "directions", "meaning"),
    "Questions are kept with `meditune serve --keep-text`.",
)


SHOWN = 5
CHARACTERS = 240
GROUPS = 4
LEAST = 8
"""New questions that make groups"""
FAR = 0.95
"""A question is new where it is farther from the known ones than this share of the reference"""
_PARTS = ("topics", "novelty", "directions", MEANING, "unknown_words", "length", "language")


def gather_evidence(monitor: Monitor, requests: Sequence[Request]) -> None:
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


def forget_evidence(monitor: Monitor, is_there: Callable[[str], bool]) -> bool:
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
    names = topic_names(texts, fitted.labels_, count)
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
