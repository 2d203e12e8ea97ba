"""Alerts on their way, against real servers on this machine."""

import hashlib
import hmac
import json
from contextlib import contextmanager

import pytest
from aiosmtpd.controller import Controller
from aiosmtpd.smtp import AuthResult

from meditune.errors import DataError
from meditune.operate.drift.notifications import Message, Outbox, from_environment
from tests.http_servers import Answering, free_port, listening

NEWS = Message(
    "abc/large", "Drift: length (large)", "Longer <questions> & more.", "https://example.org/e", {"effect": 0.5}
)


@contextmanager
def receiver(answers=(), reply=b"{}", headers=None):
    """A web server that keeps what it gets and answers with these codes, then with 200."""
    got, codes = [], list(answers)

    class Handler(Answering):
        def do_POST(self):
            got.append((self.path, dict(self.headers), self.body()))
            self.answer(reply, codes.pop(0) if codes else 200, headers)

    with listening(Handler) as url:
        yield f"{url}/secret-path", got


def outbox(tmp_path):
    return Outbox(tmp_path / "alerts.json", first_wait_s=0.01)


def test_a_webhook_gets_signed_figures_once(tmp_path):
    with receiver() as (url, got):
        channels = from_environment({"MEDITUNE_ALERT_WEBHOOK": url, "MEDITUNE_ALERT_WEBHOOK_SECRET": "s3cret"})
        assert not outbox(tmp_path).send([NEWS], channels)
        assert not outbox(tmp_path).send([NEWS], channels)
    assert len(got) == 1
    _, headers, body = got[0]
    assert json.loads(body) == {
        "key": "abc/large",
        "title": NEWS.title,
        "text": NEWS.text,
        "link": NEWS.link,
        "effect": 0.5,
    }
    assert headers["X-Meditune-Signature"] == f"sha256={hmac.new(b's3cret', body, hashlib.sha256).hexdigest()}"


def test_slack_gets_its_blocks_with_escaped_text(tmp_path):
    with receiver(reply=b"ok") as (url, got):
        assert not outbox(tmp_path).send([NEWS], from_environment({"MEDITUNE_ALERT_SLACK": url}))
    said = json.loads(got[0][2])
    assert said["text"].startswith("Drift: length")
    assert said["blocks"][1]["text"]["text"] == (
        "Longer &lt;questions&gt; &amp; more.\n<https://example.org/e|Evidence>"
    )


def test_a_passing_failure_is_tried_again_and_a_lasting_one_shown_without_secrets(tmp_path):
    with receiver([503, 429]) as (url, got):
        assert not outbox(tmp_path).send([NEWS], from_environment({"MEDITUNE_ALERT_WEBHOOK": url}))
    assert len(got) == 3
    other = Message("def/large", "Drift: topics (large)", "New.", "", {})
    # Nobody listens there any more.
    (problem,) = outbox(tmp_path).send([NEWS, other], from_environment({"MEDITUNE_ALERT_WEBHOOK": url}))
    assert "topics" in problem
    assert "can't be reached" in problem
    shown = list(outbox(tmp_path).lines())
    assert any(line.startswith("failed") and "def/large" in line and "3 tries" in line for line in shown)
    assert "secret-path" not in problem + (tmp_path / "alerts.json").read_text()
    with receiver() as (again, got):
        assert not outbox(tmp_path).send([NEWS, other], from_environment({"MEDITUNE_ALERT_WEBHOOK": again}))
    assert [json.loads(body)["key"] for _, _, body in got] == ["def/large"]


def test_what_is_refused_for_good_is_not_repeated_at_once(tmp_path):
    with receiver([404]) as (url, got):
        (problem,) = outbox(tmp_path).send([NEWS], from_environment({"MEDITUNE_ALERT_WEBHOOK": url}))
    assert len(got) == 1
    assert "answers 404" in problem


class Mailbox:
    """What a mail server got; it is busy for the first so many mails."""

    def __init__(self, busy=0):
        self.mails, self.busy = [], busy

    async def handle_DATA(self, server, session, envelope):  # noqa: N802, ARG002
        if self.busy:
            self.busy -= 1
            return "451 try again later"
        self.mails.append(envelope)
        return "250 OK"


@contextmanager
def mail_server(mailbox, password):
    def known(server, session, envelope, mechanism, data):
        return AuthResult(success=data.password == password.encode(), handled=False)

    port = free_port()
    controller = Controller(mailbox, "127.0.0.1", port, authenticator=known, auth_require_tls=False, auth_required=True)
    controller.start()
    try:
        yield port
    finally:
        controller.stop()


def mail(port, password):
    return {
        "MEDITUNE_ALERT_EMAIL": "on-call@example.org, other@example.org",
        "MEDITUNE_ALERT_FROM": "meditune@example.org",
        "MEDITUNE_SMTP_URL": f"smtp://robot:{password}@127.0.0.1:{port}?starttls=0",
    }


def test_mail_reaches_everyone_after_the_server_was_busy(tmp_path):
    mailbox = Mailbox(busy=1)
    with mail_server(mailbox, "pa:ss") as port:
        assert not outbox(tmp_path).send([NEWS], from_environment(mail(port, "pa%3Ass")))
        (problem,) = outbox(tmp_path / "other").send([NEWS], from_environment(mail(port, "wr0ng-word")))
    assert mailbox.mails[0].rcpt_tos == ["on-call@example.org", "other@example.org"]
    content = mailbox.mails[0].content.decode()
    assert "Subject: Drift: length (large)" in content
    assert "Evidence: https://example.org/e" in content
    assert len(mailbox.mails) == 1
    assert "refused the user name or password" in problem
    assert "wr0ng" not in problem + (tmp_path / "other" / "alerts.json").read_text()


def test_a_password_that_isnt_encoded_stops_no_other_channel_and_is_not_shown(tmp_path):
    with receiver() as (url, got):
        channels = from_environment(mail(25, "s3cret/word") | {"MEDITUNE_ALERT_WEBHOOK": url})
        (problem,) = outbox(tmp_path).send([NEWS], channels[::-1])
    assert len(got) == 1
    assert "MEDITUNE_SMTP_URL is invalid" in problem
    assert "s3cret" not in problem + (tmp_path / "alerts.json").read_text()


def test_half_a_configuration_is_refused():
    with pytest.raises(DataError, match="No channel"):
        from_environment({})
    with pytest.raises(DataError, match="needs MEDITUNE_SMTP_URL and MEDITUNE_ALERT_FROM"):
        from_environment({"MEDITUNE_ALERT_EMAIL": "a@example.org"})
