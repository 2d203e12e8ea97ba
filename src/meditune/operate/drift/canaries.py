"""Canaries: questions with known answers that are asked repeatedly; each run is compared with the first.

Runs are compared by McNemar's exact test on the canaries whose result changed. Because a model is tested repeatedly,
its tests share the significance level: test k uses ALPHA / (k (k + 1)), which sums to ALPHA over all tests. From test
MAX_LOOKS on, the level no longer falls, so that a change in a model that has been served for long can still be
detected. A run doesn't count as a test if the same canaries are right as in the run before. A `critical` canary that
fails raises an alert at once.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from itertools import pairwise, takewhile
from pathlib import Path
from typing import Any

from meditune.errors import DataError
from meditune.files import numbered_jsonl, read_jsonl, write_jsonl
from meditune.http_client import Backoff, HttpClient, TransientError, refuse_transient
from meditune.model_registry import utc_now
from meditune.operate.drift.signals import decision_of
from meditune.statistics import mcnemar

ALPHA = 0.05
MAX_LOOKS = 20
"""Number of the test from which the level stays the same; fourteen newly wrong canaries then raise an alert."""
TIMEOUT_S = 180.0
ATTEMPTS = 3
_CHOICES = {"decision": ("yes", "no", "maybe"), "outcome": ("answered", "abstained", "escalated", "declined")}
_EXPECTATIONS = (
    "decision (yes, no or maybe), outcome (answered, abstained, escalated or declined) or contains (a list of words)"
)


@dataclass(frozen=True)
class Canary:
    """A question, and the expectations for its answer."""

    id: str
    question: str
    decision: str | None = None
    outcome: str | None = None
    contains: tuple[str, ...] = ()
    critical: bool = False

    def is_correct(self, answer: dict[str, Any]) -> bool:
        """Return whether an answer of `/v1/ask` meets all expectations."""
        text = str(answer.get("text", "")).casefold()
        return (
            self.decision in (None, decision_of(answer))
            and self.outcome in (None, answer.get("outcome"))
            and all(word.casefold() in text for word in self.contains)
        )


def read(path: Path) -> list[Canary]:
    """Return the canaries in a JSON Lines file. Raises DataError for an invalid line."""
    found: dict[str, Canary] = {}
    for line, row in numbered_jsonl(path):
        where = f"{path}, line {line}"
        question, contains = row.get("question"), row.get("contains", [])
        if not isinstance(question, str) or not question.strip():
            raise DataError(f"{where}: no question.")
        decision, outcome = (_expected(row, name, where) for name in _CHOICES)
        if not isinstance(contains, list) or not (decision or outcome or contains):
            raise DataError(f"{where}: no expected answer. Add {_EXPECTATIONS}.")
        words = tuple(str(word) for word in contains)
        if not all(word.strip() for word in words):
            raise DataError(f"{where}: a word in contains is empty, so every answer contains it. Write or remove it.")
        critical = row.get("critical", False)
        if not isinstance(critical, bool):
            raise DataError(f"{where}: critical is {json.dumps(critical)}. Write true or false, without quotes.")
        id = str(row.get("id") or line)
        if id in found:
            raise DataError(f"{where}: the id {id} occurs twice.")
        found[id] = Canary(id, question, decision, outcome, words, critical)
    if not found:
        raise DataError(f"{path}: contains no canaries. Each line needs a question and {_EXPECTATIONS}.")
    return list(found.values())


def _expected(row: Mapping[str, Any], name: str, where: str) -> str | None:
    """Return an expectation in lower case, or None if it is missing. Raises DataError if no answer can meet it."""
    value = row.get(name)
    if value is None or value == "":
        return None
    word = value.strip().lower() if isinstance(value, str) else ""
    if word not in _CHOICES[name]:
        raise DataError(f"{where}: {name} is {json.dumps(value)}. Write one of: {', '.join(_CHOICES[name])}.")
    return word


def ask(canaries: Sequence[Canary], url: str) -> dict[str, Any]:
    """Ask all canaries once, and return the run.

    A run has the keys `time`, `right` (id -> whether the answer was correct), `models` (id -> model that answered) and
    `critical` (ids of critical canaries). A question is repeated only if the server can't have processed it, so that no
    question is stored or counted twice. Raises DataError if the server can't be reached or refuses a request.
    """
    key = os.environ.get("MEDITUNE_KEY")
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    correct: dict[str, bool] = {}
    models: dict[str, str] = {}
    client = HttpClient(Backoff(ATTEMPTS), timeout=TIMEOUT_S, headers=headers)

    def post(canary: Canary) -> dict[str, Any]:
        try:
            response = client.request("POST", f"{url.rstrip('/')}/v1/ask", json={"question": canary.question})
        except TransientError as failure:
            if failure.maybe_processed:
                raise DataError(f"Canary {canary.id}: {url} {failure}. Check that server.") from failure
            raise
        status = response.status_code
        if status == 429 or (status == 503 and "retry-after" in response.headers):
            refuse_transient(response)
        if status != 200:
            advice = "Check MEDITUNE_KEY." if status < 500 else "Check that server."
            raise DataError(f"{url} answered canary {canary.id} with HTTP {status}. {advice}")
        try:
            answer: dict[str, Any] = response.json()
        except ValueError as error:
            raise DataError(f"{url} didn't answer canary {canary.id} with JSON. Check the address.") from error
        return answer

    with closing(client):
        for canary in canaries:
            answer = client.retry(partial(post, canary), f"Canary {canary.id}: {url}")
            correct[canary.id] = canary.is_correct(answer)
            models[canary.id] = str((answer.get("versions") or {}).get("model", ""))
    critical = [canary.id for canary in canaries if canary.critical]
    return {"time": utc_now(), "right": correct, "models": models, "critical": critical}


def append_run(run: dict[str, Any], path: Path) -> None:
    """Append a run to the file of canary runs."""
    write_jsonl(path, [*(read_jsonl(path) if path.exists() else []), run])


def verdict(path: Path, version: str | None = None) -> dict[str, Any]:
    """Return a comparison of the last run with the first; with `version`, only for canaries that this version answered.

    Raises DataError if there are no runs.
    """
    runs = read_jsonl(path)
    if not runs or not all(isinstance(run.get("right"), dict) for run in runs):
        raise DataError(f"{path}: contains no canary runs. Start a run: meditune drift canary CANARIES -o {path}")
    first, last = runs[0]["right"], runs[-1]["right"]
    by = runs[-1].get("models") or {}
    if version is not None:
        last = {id: right for id, right in last.items() if by.get(id, "").partition("-")[0] == version}
    both = [id for id in first if id in last]
    worse = [id for id in both if first[id] and not last[id]]
    better = [id for id in both if last[id] and not first[id]]
    # Count the tests since the newest model in the last run answered for the first time. A single run isn't a test.
    answered = [(run.get("models") or {}).values() for run in runs]
    newest = {by[id] for id in last if id in by}
    begun = max([1, *(next(n for n, names in enumerate(answered) if model in names) for model in newest)])
    changes = sum(now["right"] != before["right"] for before, now in pairwise(runs[begun:]))
    looks = 1 + changes if len(runs) > 1 else 0
    level = ALPHA / (min(looks, MAX_LOOKS) * (min(looks, MAX_LOOKS) + 1)) if looks else ALPHA
    p = mcnemar(len(better), len(worse), "less")
    failed = [id for id in runs[-1].get("critical", []) if id in last and not last[id]]
    wrong = {*worse, *failed}
    failing = list(takewhile(lambda run: not any(run["right"].get(id, True) for id in wrong), reversed(runs)))
    right = sum(last.values())
    summary = f"{right} of {len(last)} right"
    if looks:
        summary += f", {sum(first.values())} of {len(first)} in the first run; {len(worse)} worse, {len(better)} better"
        summary += f" (p {p:.2g}, alert below {level:.2g})"
    if failed:
        summary += f"; critical canaries wrong: {', '.join(failed)}"
    return {
        "alert": bool(failed) or p < level,
        "message": f"{summary}.",
        "right": right,
        "of": len(last),
        "worse": worse,
        "better": better,
        "critical": failed,
        "p": p,
        "level": level,
        "looks": looks,
        "time": runs[-1]["time"],
        "since": str(failing[-1]["time"]),
    }


def lines(verdict: dict[str, Any]) -> Iterator[str]:
    """Yield a verdict as terminal lines."""
    yield ""
    yield f"{'ALERT ' if verdict['alert'] else ''}canaries: {verdict['message']}"
    if verdict["worse"]:
        yield f"  worse than in the first run: {', '.join(verdict['worse'][:20])}"
