"""Delivery of alerts to a webhook, a Slack-compatible webhook, or e-mail. Each message is sent once per channel.

URLs and secrets are read only from the environment:

MEDITUNE_ALERT_WEBHOOK          URL that receives the alert as JSON
MEDITUNE_ALERT_WEBHOOK_SECRET   key that signs the body; the header X-Meditune-Signature is sha256=HMAC (hexadecimal)
MEDITUNE_ALERT_SLACK            URL of a Slack-compatible incoming webhook
MEDITUNE_ALERT_EMAIL            recipients' addresses, separated by commas
MEDITUNE_ALERT_FROM             the sender's address
MEDITUNE_SMTP_URL               smtp://USER:PASSWORD@HOST:PORT, smtps:// for TLS from the start; ?starttls=0 for no TLS
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import smtplib
import ssl
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from email.message import EmailMessage
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from filelock import FileLock

from meditune.errors import DataError, MedituneError
from meditune.files import read_json, write_json
from meditune.http_client import Backoff, TransientError, network_errors, refuse_transient, retry
from meditune.model_registry import utc_now
from meditune.operate.drift.monitor import Alert

TIMEOUT_S = 10.0


@dataclass(frozen=True)
class Message:
    """A message about an alert. Messages with the same key report the same event."""

    key: str
    title: str
    text: str
    link: str
    facts: Mapping[str, Any]
    """Facts for programs, without the text of any question"""

    def webhook_body(self) -> dict[str, Any]:
        """Return the JSON body for a webhook."""
        return {**self.facts, "key": self.key, "title": self.title, "text": self.text, "link": self.link}


class SendError(MedituneError):
    """Raised if a delivery failed and isn't retried now. The message contains neither the address nor a secret."""


@dataclass(frozen=True)
class Channel:
    """A delivery channel."""

    name: str
    send: Callable[[Message], None]
    """Raises SendError, or TransientError if a retry may succeed."""


def from_environment(environment: Mapping[str, str] = os.environ) -> list[Channel]:
    """Return the channels set in the environment. Raises DataError if none is set or a channel is incomplete."""
    found = []
    if url := environment.get("MEDITUNE_ALERT_WEBHOOK"):
        secret = environment.get("MEDITUNE_ALERT_WEBHOOK_SECRET", "")
        found.append(Channel("webhook", lambda message: _post(url, message.webhook_body(), secret)))
    if slack := environment.get("MEDITUNE_ALERT_SLACK"):
        found.append(Channel("slack", lambda message: _post(slack, _slack(message))))
    if addresses := environment.get("MEDITUNE_ALERT_EMAIL"):
        missing = [name for name in ("MEDITUNE_SMTP_URL", "MEDITUNE_ALERT_FROM") if not environment.get(name)]
        if missing:
            raise DataError(f"MEDITUNE_ALERT_EMAIL also needs {' and '.join(missing)}.")
        server, sender = environment["MEDITUNE_SMTP_URL"], environment["MEDITUNE_ALERT_FROM"]
        to = [each.strip() for each in addresses.split(",") if each.strip()]
        found.append(Channel("email", lambda message: _mail(server, sender, to, message)))
    if not found:
        raise DataError(
            "No channel for alerts is set. Set MEDITUNE_ALERT_WEBHOOK, MEDITUNE_ALERT_SLACK or MEDITUNE_ALERT_EMAIL "
            "(see docs/how-to/detect-drift.md)."
        )
    return found


def _slack(message: Message) -> dict[str, Any]:
    """Return the body described in https://docs.slack.dev/messaging/sending-messages-using-incoming-webhooks."""
    escaped = message.text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    link = message.link
    if link:
        escaped += f"\n<{link}|Evidence>" if link.startswith(("http://", "https://")) else f"\nEvidence: `{link}`"
    blocks = [
        {"type": "header", "text": {"type": "plain_text", "text": message.title[:150]}},
        {"type": "section", "text": {"type": "mrkdwn", "text": escaped[:2900]}},
    ]
    return {"text": f"{message.title}: {message.text}", "blocks": blocks}


def _post(url: str, body: dict[str, Any], secret: str = "") -> None:
    import httpx2

    data = json.dumps(body, ensure_ascii=False).encode()
    headers = {"Content-Type": "application/json"}
    if secret:
        headers["X-Meditune-Signature"] = f"sha256={hmac.new(secret.encode(), data, hashlib.sha256).hexdigest()}"
    try:
        with network_errors():
            response = httpx2.post(url, content=data, headers=headers, timeout=TIMEOUT_S)
    except (DataError, ValueError):
        raise SendError("the address is not a valid URL") from None
    refuse_transient(response)
    if not response.is_success:
        raise SendError(f"answers {response.status_code}")


def _mail(server: str, sender: str, to: list[str], message: Message) -> None:
    mail = EmailMessage()
    mail["Subject"], mail["From"], mail["To"] = message.title, sender, ", ".join(to)
    # The ID depends only on the key, so that mail clients show a message only once even if it was sent twice.
    digest = hashlib.sha256(message.key.encode()).hexdigest()[:32]
    mail["Message-ID"] = f"<{digest}@meditune.invalid>"
    mail.set_content(f"{message.text}\n\nEvidence: {message.link}\n" if message.link else f"{message.text}\n")
    try:
        place = urlsplit(server)
        host, port = place.hostname or "", place.port
    except ValueError:
        # The error quotes a part of a password that isn't encoded.
        raise SendError(
            "MEDITUNE_SMTP_URL is invalid: write the characters / # ? of the password as %2F %23 %3F"
        ) from None
    try:
        smtp: smtplib.SMTP
        if place.scheme == "smtps":
            smtp = smtplib.SMTP_SSL(host, port or 465, timeout=TIMEOUT_S, context=ssl.create_default_context())
        else:
            smtp = smtplib.SMTP(host, port or 587, timeout=TIMEOUT_S)
        with smtp:
            if place.scheme != "smtps" and parse_qs(place.query).get("starttls") != ["0"]:
                smtp.starttls(context=ssl.create_default_context())
            if place.username:
                smtp.login(unquote(place.username), unquote(place.password or ""))
            smtp.send_message(mail)
    except smtplib.SMTPAuthenticationError:
        raise SendError("the mail server refused the user name or password") from None
    except smtplib.SMTPResponseException as error:
        if 400 <= error.smtp_code < 500:
            raise TransientError(f"SMTP {error.smtp_code}") from None
        raise SendError(f"SMTP {error.smtp_code}") from None
    except smtplib.SMTPRecipientsRefused:
        raise SendError("the mail server refused the recipients") from None
    except (OSError, smtplib.SMTPException) as error:
        raise TransientError(f"cannot reach the mail server ({type(error).__name__})") from None


ATTEMPTS = 3
FIRST_WAIT_S = 1.0
MAX_WAIT_S = 10.0
"""If a channel asks for a longer pause (in seconds), the message is sent in the next call."""
MAX_ENTRIES = 1000


def messages(alerts: Sequence[Alert], canary: Mapping[str, Any] | None, link: str) -> list[Message]:
    """Return a message for each alert that opened, grew more severe or closed, and for canaries that got worse."""
    found = []
    for alert in alerts:
        facts = {name: value for name, value in alert.as_dict().items() if name != "evidence"}
        if alert.is_open:
            title = f"Drift: {alert.signal} ({alert.severity})"
            text = f"{alert.message} The change began at request {alert.since:,} and was detected at {alert.opened:,}."
            found.append(Message(f"{alert.id}/{alert.severity}", title, text, link, facts))
        else:
            text = f"{alert.title}: back to normal at request {alert.closed:,}; the change began at {alert.since:,}."
            found.append(Message(f"{alert.id}/closed", f"Over: {alert.signal}", text, link, facts))
    if canary and canary["alert"]:
        # The key stays the same until other canaries fail, or until one of these was right in between.
        key = f"canaries/{canary['since']}/{','.join(sorted([*canary['worse'], *canary['critical']]))}"
        found.append(Message(key, "Drift: canaries", str(canary["message"]), link, {"canary": dict(canary)}))
    return found


class Outbox:
    """The file that records the delivery of each message."""

    def __init__(self, path: Path, first_wait_s: float = FIRST_WAIT_S) -> None:
        self.path, self._first_wait = path, first_wait_s

    def send(self, news: Sequence[Message], channels: Sequence[Channel]) -> list[str]:
        """Send the messages that weren't delivered yet; return a sentence for each message that couldn't be sent."""
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
                    # Each further message is tried only once, not three times, while a channel is down.
                    up = self._try(channel, message, entry, ATTEMPTS if up else 1)
                    write_json(self.path, dict(list(entries.items())[-MAX_ENTRIES:]))
                    if entry["state"] != "sent":
                        why = f"not sent by {channel.name} ({entry['error']}); it will be retried later."
                        problems.append(f"{message.title}: {why}")
        return problems

    def lines(self) -> Iterator[str]:
        """Yield the delivery records as terminal lines."""
        entries = self._read()
        if not entries:
            yield f"No alert has been sent yet ({self.path})."
        for key, entry in entries.items():
            error = f", {entry['error']}" if entry.get("error") and entry["state"] != "sent" else ""
            yield f"{entry['state']:<8} {key} ({entry['tries']} tries, {entry.get('time', '')}{error})"

    def _try(self, channel: Channel, message: Message, entry: dict[str, Any], attempts: int) -> bool:

        def send() -> None:
            entry["tries"] += 1
            entry["time"] = utc_now()
            channel.send(message)

        try:
            retry(send, Backoff(attempts, self._first_wait, longest_requested=MAX_WAIT_S), channel.name, SendError)
        except SendError as error:
            entry |= {"state": "failed", "error": str(error.__cause__ or error)}
            return False
        entry |= {"state": "sent", "error": ""}
        return True

    @staticmethod
    def _is_stale_end(message: Message, channel: str, entries: Mapping[str, Any]) -> bool:
        """Return whether a message reports the end of an alert that the channel never received."""
        name, _, what = message.key.rpartition("/")
        received = (key for key, entry in entries.items() if entry["state"] == "sent")
        return what == "closed" and not any(key.startswith(f"{channel} {name}/") for key in received)

    def _read(self) -> dict[str, dict[str, Any]]:
        return dict(read_json(self.path)) if self.path.exists() else {}
