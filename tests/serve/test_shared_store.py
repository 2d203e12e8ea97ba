"""Several servers with one PostgreSQL store."""

import json

import pytest

from meditune.serve.settings import Settings
from meditune.store.api_keys import Keys
from meditune.store.open_store import open_store
from tests.commands import meditune
from tests.serve.server import served

pytest.importorskip("psycopg")


def test_two_servers_share_keys_answers_feedback_and_quotas(postgres, tmp_path):
    url = postgres.new()
    made = meditune("keys", "create", "Ann", "--daily-tokens", "60", "--store", url)
    key = made.out.strip().splitlines()[-1]
    settings = Settings(keys_needed=True, keep_text=True)
    with served(url, settings) as first, served(url, settings) as second:
        id = first.chat("Call 555-867-5309: does it help?", key=key).json["id"]
        said = {"id": id, "rating": "down", "correction": "It doesn't."}
        assert second.ask("/v1/feedback", said, key=key).status == 200
        while (reply := first.chat(key=key)).status == 200:
            pass
        assert reply.error()["code"] == second.chat(key=key).error()["code"] == "insufficient_quota"
    exported = meditune("answers", "export", "-o", tmp_path / "answers.jsonl", "--store", url)
    assert exported.code == 0, exported.err
    rows = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
    (kept,) = [row for row in rows if row["id"] == id]
    assert (kept["model"], kept["feedback"][0]["correction"]) == ("tiny v1", "It doesn't.")
    assert "867-5309" not in str(rows)
    (owner,) = Keys(open_store(url)).all()
    gone = meditune("answers", "delete", "--key", owner.id, "--store", url)
    assert f"{len(rows)} answers" in gone.out
    assert "0 answers" in meditune("answers", "prune", "--days", "0", "--store", url).out


def test_a_drift_check_reads_a_database(postgres, tmp_path):
    from meditune.store.answers import Answer, Answers

    url = postgres.new()
    answers = Answers(open_store(url))
    for number in range(220):
        answers.keep(Answer(f"a{number}", "", "ask", "m", facts={"confidence": 0.5 + number % 7 / 20}))
    fitted = meditune("drift", "fit", url, "-o", tmp_path / "reference")
    assert fitted.code == 0, fitted.err
    found = meditune("drift", "check", url, "--reference", tmp_path / "reference")
    assert found.code == 0, found.err
    assert "nothing to check yet" in found.out + found.err
