"""Questions whose answers are known, asked of a real server on this machine."""

import json
from functools import partial

import pytest

from meditune.assistant.events import Answer, Decision
from meditune.errors import DataError
from meditune.http_client import Backoff
from meditune.operate.drift import canaries
from meditune.operate.drift.notifications import messages
from meditune.operate.drift.signals import BY_NAME, Request
from meditune.serve.metrics import facts_of
from tests.commands import jsonl, meditune
from tests.operate.drift.test_alerts import receiver


def answered(decision="yes", text="Call 911 now."):
    """An answer just as the server sends it."""
    sure = Decision(decision, {"yes": 0.8, "no": 0.1, "maybe": 0.1}, True)
    return Answer("Is it right?", text, "escalated", "", "plain", decision=sure, confidence=0.8).as_dict()


ANSWER = answered()


def canary_file(tmp_path, count=12):
    rows = [{"id": f"c{n}", "question": f"Is {n} right?", "decision": "yes"} for n in range(count)]
    rows.append({"id": "chest", "question": "My chest hurts", "contains": ["911"], "critical": True})
    path = tmp_path / "canaries.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def run(tmp_path, answer, monkeypatch):
    monkeypatch.setenv("MEDITUNE_KEY", "mt-key")
    with receiver(reply=json.dumps(answer).encode()) as (url, got):
        found = meditune("drift", "canary", canary_file(tmp_path), "-o", tmp_path / "runs.jsonl", "--url", url)
    assert got[0][0] == "/secret-path/v1/ask"
    assert got[0][1]["Authorization"] == "Bearer mt-key"
    return found


def test_a_run_that_got_worse_ends_with_code_6(tmp_path, monkeypatch):
    first = run(tmp_path, ANSWER, monkeypatch).ok()
    assert "13 of 13 right" in (first.out + first.err)
    run(tmp_path, ANSWER, monkeypatch).ok()
    worse = run(tmp_path, answered("no"), monkeypatch)
    assert worse.code == 6
    assert "12 worse, 0 better" in (worse.out + worse.err)
    assert len((tmp_path / "runs.jsonl").read_text().splitlines()) == 3


def test_a_critical_canary_counts_alone(tmp_path, monkeypatch):
    run(tmp_path, ANSWER, monkeypatch).ok()
    found = run(tmp_path, ANSWER | {"text": "Rest a while."}, monkeypatch)
    assert found.code == 6
    assert "critical canaries wrong: chest" in (found.out + found.err)


@pytest.mark.parametrize(
    ("facts", "decision"),
    [(facts_of(answered("no")), "no"), (facts_of(answered(None)), None), ({"decision": "maybe"}, "maybe"), ({}, None)],
)
def test_the_decision_is_watched_in_kept_facts_and_in_plain_rows(facts, decision):
    assert BY_NAME["decision"].read(Request("r", facts=facts), None) == (decision,)


def test_one_answer_that_changed_proves_nothing(tmp_path):
    first = {"time": "t", "right": {f"c{n}": True for n in range(20)}, "critical": []}
    canaries.append_run(first, tmp_path / "runs")
    canaries.append_run(first | {"right": first["right"] | {"c3": False}}, tmp_path / "runs")
    assert not canaries.verdict(tmp_path / "runs")["alert"]


GOOD = {f"c{n}": True for n in range(20)}


def kept(path, *runs):
    """The verdict on these runs, given as what was right, or that and the model that answered."""
    rows = []
    for number, (right, *model) in enumerate(runs):
        by = {"models": dict.fromkeys(right, model[0])} if model else {}
        rows.append({"time": f"t{number}", "right": right, "critical": []} | by)
    jsonl(path, rows[:-1])
    canaries.append_run(rows[-1], path)
    return canaries.verdict(path)


def wrong(*numbers):
    return GOOD | {f"c{n}": False for n in numbers}


def test_good_runs_for_a_year_leave_a_collapse_to_be_seen(tmp_path):
    found = kept(tmp_path / "runs", *[(GOOD,)] * 1_500, (wrong(*range(8)),))
    assert found["looks"] == 2
    assert found["alert"]


def test_where_some_change_in_every_run_a_collapse_is_seen_and_a_few_more_are_not(tmp_path):
    restless = [(wrong(n % 2),) for n in range(200)]
    assert not kept(tmp_path / "few", (GOOD,), *restless, (wrong(0, 1, 2, 3, 4, 5),))["alert"]
    assert kept(tmp_path / "many", (GOOD,), *restless, (wrong(*range(14)),))["alert"]


def test_another_model_is_looked_at_anew(tmp_path):
    before = [(wrong(n % 3), "v1-ab") for n in range(10)]
    found = kept(tmp_path / "runs", (GOOD, "v1-ab"), *before, (wrong(*range(6)), "v2-cd"))
    assert (found["looks"], found["alert"]) == (1, True)


def test_a_failure_that_came_back_is_sent_again(tmp_path):
    often = wrong(*range(8))
    keys = []
    for number, right in enumerate((GOOD, often, often, GOOD, often)):
        canaries.append_run({"time": f"t{number}", "right": right, "critical": []}, tmp_path / "runs")
        keys += [message.key for message in messages([], canaries.verdict(tmp_path / "runs"), "")]
    assert [key.split("/")[1] for key in keys] == ["t1", "t1", "t4"]


def test_a_run_says_which_model_answered_each_canary(tmp_path, monkeypatch):
    run(tmp_path, ANSWER | {"versions": {"model": "v0002-0123", "index": ""}}, monkeypatch)
    kept = json.loads((tmp_path / "runs.jsonl").read_text())
    assert kept["models"] == dict.fromkeys(kept["right"], "v0002-0123")
    assert canaries.verdict(tmp_path / "runs.jsonl", "v0002")["of"] == 13
    assert canaries.verdict(tmp_path / "runs.jsonl", "v0001")["of"] == 0


@pytest.mark.parametrize(
    ("status", "headers", "requests"), [(429, {}, 14), (503, {"Retry-After": "0"}, 14), (503, {}, 1), (500, {}, 1)]
)
def test_a_question_is_repeated_only_if_the_server_rejected_it(tmp_path, monkeypatch, status, headers, requests):
    monkeypatch.setattr(canaries, "Backoff", partial(Backoff, first_wait=0.01))
    with receiver([status], json.dumps(ANSWER).encode(), headers) as (url, got):
        try:
            canaries.ask(canaries.read(canary_file(tmp_path)), url)
        except DataError as error:
            assert f"answered canary c0 with HTTP {status}. Check that server." in str(error)  # noqa: PT017
    assert len(got) == requests


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"decision": "yess"}, r'line 2: decision is "yess"\. Write one of: yes, no, maybe\.'),
        ({"decision": True}, "line 2: decision is true"),
        ({"outcome": "answerd"}, r'line 2: outcome is "answerd"\. Write one of: answered, abstained'),
        ({"decision": "yes", "critical": "false"}, 'line 2: critical is "false". Write true or false'),
        ({"contains": [""]}, "line 2: a word in contains is empty"),
    ],
)
def test_an_expectation_that_no_answer_or_every_answer_meets_is_refused(tmp_path, fields, problem):
    path = tmp_path / "canaries.jsonl"
    jsonl(path, [{"question": "a", "decision": " Yes", "outcome": "Answered"}, {"question": "b"} | fields])
    with pytest.raises(DataError, match=problem):
        canaries.read(path)
    jsonl(path, [{"question": "a", "decision": " Yes", "outcome": "Answered", "critical": True}])
    (canary,) = canaries.read(path)
    assert (canary.decision, canary.outcome, canary.critical) == ("yes", "answered", True)


def test_a_server_that_is_not_there_and_canaries_without_answers_are_named(tmp_path, monkeypatch):
    monkeypatch.setattr(canaries, "Backoff", partial(Backoff, first_wait=0.01))
    with pytest.raises(DataError, match=r"Canary c0: .* can't be reached; gave up after 3 attempts\. Try again"):
        canaries.ask(canaries.read(canary_file(tmp_path)), "http://127.0.0.1:9")
    (tmp_path / "bad").write_text('{"question": "a"}\n')
    with pytest.raises(DataError, match="line 1: no expected answer"):
        canaries.read(tmp_path / "bad")
