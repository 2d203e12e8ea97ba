"""A store or a file held against a reference, from where the last check ended."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from meditune.errors import DataError, ModelError
from meditune.operate.drift.alerts import Policy
from meditune.operate.drift.monitor import Monitor
from meditune.operate.drift.reading import Source
from meditune.operate.drift.reference import Reference, fit
from meditune.operate.drift.request import Request
from meditune.operate.drift.tracks import RECENT
from meditune.retrieve.embedders import DEFAULT, INT8, Embedder, embedder

LAG = 200
"""Later requests for which an answer's ratings are waited"""
BATCH = 256
FEW = 30
LOCK_S = 20.0


@dataclass(frozen=True)
class Checked:
    """What a check found."""

    monitor: Monitor
    requests: list[Request]
    """Those that can still be shown: the new ones and some before, with their vectors where they are new"""
    new: int
    remarks: list[str]


def fitted(source: Source, last: int | None, embedding: str | None, seed: int) -> Reference:
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
    source: Source,
    reference: Reference,
    state: Path | None,
    policy: Policy,
    embedding: str | None = None,
    evidence: Callable[[Monitor, Sequence[Request]], None] = lambda _, __: None,
) -> Checked:
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
    source: Source,
    monitor: Monitor,
    model: Embedder | None,
    batch: int = BATCH,
    rest: Callable[[float], None] = lambda _: None,
) -> Checked:
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
    return Checked(monitor, shown, monitor.count - began, _remarks(monitor, monitor.count - began))


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
