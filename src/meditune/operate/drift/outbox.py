"""What was sent, what couldn't be, and what is tried again: each piece of news once to each channel."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock

from meditune.files import read_json, write_json
from meditune.operate.drift.alerts import Alert
from meditune.operate.drift.channels import Channel, Message, SendError

ATTEMPTS = 3
FIRST_WAIT_S = 1.0
KEPT = 1000


def messages(alerts: Sequence[Alert], canary: Mapping[str, Any] | None, link: str) -> list[Message]:
    """The news: each alert that opened, each rise of its severity, each end; and canaries that got worse."""
    found = []
    for alert in alerts:
        facts = {name: value for name, value in alert.as_dict().items() if name != "evidence"}
        if alert.is_open:
            title = f"Drift: {alert.signal} ({alert.severity})"
            text = f"{alert.said} Since request {alert.since:,}, seen at {alert.opened:,}."
            found.append(Message(f"{alert.id}/{alert.severity}", title, text, link, facts))
        else:
            text = f"{alert.title}: as it was again at request {alert.closed:,}, after {alert.since:,}."
            found.append(Message(f"{alert.id}/closed", f"Over: {alert.signal}", text, link, facts))
    if canary and canary["alert"]:
        # Until the set of failures changes, or was right in between, it is the same news.
        key = f"canaries/{canary['since']}/{','.join(sorted([*canary['worse'], *canary['critical']]))}"
        found.append(Message(key, "Drift: canaries", str(canary["said"]), link, {"canary": dict(canary)}))
    return found


class Outbox:
    """The file of what became of each message."""

    def __init__(self, path: Path, first_wait_s: float = FIRST_WAIT_S) -> None:
        self.path, self._wait = path, first_wait_s

    def send(self, news: Sequence[Message], channels: Sequence[Channel]) -> list[str]:
        """Send what wasn't sent yet, trying again with longer waits; a sentence on each that still couldn't be.

        What fails is tried again by the next call, as long as it is news.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        problems = []
        with FileLock(self.path.with_name(f".{self.path.name}.lock")):
            entries = self._read()
            for channel in channels:
                up = True
                for message in news:
                    entry = entries.setdefault(f"{channel.name} {message.key}", {"state": "waiting", "tries": 0})
                    if entry["state"] == "sent" or self._is_stale_end(message, channel.name, entries):
                        continue
                    # A channel that is down is tried once more for each further message, not three times.
                    up = self._try(channel, message, entry, ATTEMPTS if up else 1)
                    write_json(self.path, dict(list(entries.items())[-KEPT:]))
                    if entry["state"] != "sent":
                        problems.append(
                            f"{message.title}: not sent by {channel.name} ({entry['error']}); tried again later."
                        )
        return problems

    def lines(self) -> Iterator[str]:
        """What became of each, in the terminal."""
        entries = self._read()
        if not entries:
            yield f"No alert was to be sent yet ({self.path})."
        for key, entry in entries.items():
            error = f", {entry['error']}" if entry.get("error") and entry["state"] != "sent" else ""
            yield f"{entry['state']:<8} {key} ({entry['tries']} tries, {entry.get('time', '')}{error})"

    def _try(self, channel: Channel, message: Message, entry: dict[str, Any], attempts: int) -> bool:
        """Whether it went out."""
        for attempt in range(attempts):
            if attempt:
                time.sleep(self._wait * 2 ** (attempt - 1))
            entry["tries"] += 1
            entry["time"] = datetime.now(UTC).isoformat(timespec="seconds")
            try:
                channel.send(message)
            except SendError as error:
                entry |= {"state": "failed", "error": str(error)}
                if not error.passing:
                    break
            else:
                entry |= {"state": "sent", "error": ""}
                return True
        return False

    @staticmethod
    def _is_stale_end(message: Message, channel: str, entries: Mapping[str, Any]) -> bool:
        """Whether it is the end of an alert of which the channel never heard."""
        name, _, what = message.key.rpartition("/")
        if what != "closed":
            return False
        told = any(key.startswith(f"{channel} {name}/") and each["state"] == "sent" for key, each in entries.items())
        return not told

    def _read(self) -> dict[str, dict[str, Any]]:
        found: dict[str, dict[str, Any]] = read_json(self.path) if self.path.exists() else {}
        return found
