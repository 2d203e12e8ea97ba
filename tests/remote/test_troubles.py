"""An API that is slow, busy, broken or strict: what passes is waited for, the rest is said in a sentence."""

import json

import pytest

from meditune.models.api_client import echoless, wait_asked_for
from tests.commands import meditune
from tests.remote.server import KEY

SOON = {"Retry-After": "0.02"}
EVERY = [
    *("POST /files", "POST /fine_tuning/jobs", "GET /fine_tuning/jobs/ftjob-1", "GET /fine_tuning/jobs/ftjob-1/events"),
]


def test_troubles_that_pass_are_waited_for(place):
    for match in EVERY:
        place.api.trouble(match, status=429, headers=SOON, error={"code": "rate_limit_exceeded"})
        place.api.trouble(match, status=503, headers=SOON)
    place.api.trouble("POST /chat/completions", times=9, status=429, headers=SOON)
    place.api.trouble("POST /chat/completions", times=3, status=500, headers=SOON)
    result = place.call("run")
    assert result.code == 0, result
    assert (len(place.api.files), len(place.api.jobs)) == (1, 1)
    assert place.asked_twice() == []


@pytest.mark.parametrize(
    "trouble",
    [{"heard": True}, {"heard": False}, {"partial": True}, {"heard": True, "status": 500, "headers": SOON}],
    ids=["dropped after", "dropped before", "dropped in the middle", "error after"],
)
@pytest.mark.parametrize("match", ["POST /files", "POST /fine_tuning/jobs"])
def test_what_was_made_before_the_connection_broke_is_found(place, match, trouble):
    place.api.trouble(match, **trouble)
    result = place.call("train")
    assert result.code == 0, result
    assert (len(place.api.files), len(place.api.jobs)) == (1, 1)


def test_a_slow_answer_is_asked_for_again(place):
    place.api.trouble("POST /chat/completions", delay=1.0, heard=True)
    result = place.evaluate(model__api__timeout_seconds=0.3)
    assert result.code == 0, result
    assert len(place.asked_twice()) == 2


def test_an_outage_ends_with_the_way_to_go_on(place):
    place.api.trouble("GET /fine_tuning/jobs/ftjob-1", times=99, status=502, headers=SOON)
    place.call("train").refused(4, "127.0.0.1 answers 502; 8 attempts", "The job ftjob-1 goes on at", "later to go on")
    place.api.troubles = []
    assert place.call("train").code == 0
    assert len(place.api.jobs) == 1


def test_a_long_pause_is_left_to_the_user(place):
    place.api.trouble("POST /files", status=429, headers={"Retry-After": "3600"})
    place.call("train").refused(4, "come back in 3600 seconds")


def test_no_credit_is_no_rate_limit(place):
    error = {"type": "insufficient_quota", "code": "insufficient_quota", "message": "You exceeded your quota."}
    place.api.trouble("POST /fine_tuning/jobs", times=9, status=429, error=error)
    place.call("train").refused(4, "refused POST /fine_tuning/jobs", "You exceeded your quota", "credit")
    assert place.api.count("POST", "/fine_tuning/jobs") == 1


@pytest.mark.parametrize(
    ("status", "texts"),
    [
        (400, ["(400: The server had a trouble)"]),
        (401, ["(401: The server had a trouble)", "Check the key in OPENAI_API_KEY"]),
        (403, ["(403: The server had a trouble)", "may use"]),
        (404, ["(404: The server had a trouble)", "Check the model's name"]),
    ],
)
def test_a_refusal_is_one_sentence_and_no_second_request(place, status, texts):
    place.api.trouble("POST /chat/completions", times=99, status=status)
    result = place.evaluate(model__api__concurrency=1)
    result.refused(4, "own:", "127.0.0.1 refused POST /chat/completions", *texts)
    assert place.api.count("POST", "/chat/completions") == 1
    assert not (place.run / "predictions").exists()


def test_neither_key_nor_rows_are_in_an_error(place):
    wrong = KEY.replace("0", "9")
    place.api.key = wrong
    result = place.evaluate()
    result.refused(4, "401: Incorrect API key provided: Bearer …")
    assert KEY not in result.err
    place.api.key = KEY
    said = "Bad row: We gave own treatment 3 to 120 adults. Pain fell by 3 percent. Bad row."
    place.api.trouble("POST /chat/completions", times=99, status=400, error={"message": said})
    result = place.evaluate()
    result.refused(4, "400: Bad row: ")
    assert "120 adults" not in result.err
    place.api.troubles = []
    place.api.trouble("POST /files", times=99, status=400, error={"message": said})
    result = meditune("train", "quickstart", "-o", place.folder / "other", *place.settings(), "--yes")
    result.refused(4, "POST /files (400: Bad row: ")
    assert "120 adults" not in result.err


@pytest.mark.parametrize("key", ["sk-two words", "sk-ümlaut"])
def test_a_key_that_is_none_is_not_shown(place, monkeypatch, key):
    monkeypatch.setenv("OPENAI_API_KEY", key)
    result = place.evaluate()
    result.refused(4, "What OPENAI_API_KEY holds is no key")
    assert key not in result.err


def test_an_address_without_an_api(place):
    place.evaluate(model__api__url=place.api.url + "/v1").refused(4, "404", "model.api.url")


def test_an_api_that_needs_no_key(place, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY")
    place.api.key = None
    result = place.evaluate(model__api__key_variable="null")
    assert result.code == 0, result


# What a chat may lack.


def test_decisions_by_word_where_no_likelihoods_are_told(place):
    place.api.likelihoods = False
    place.api.answer = lambda prompt, _: "**No**, it doesn't." if "treatment 4 " in prompt else "Hard to say."
    result = place.evaluate()
    assert result.code == 0, result
    assert "9 of 9 decisions of model rest on the word" in result.err
    decided = place.predictions("model-decision")
    assert {row["by"] for row in decided} == {"word"}
    assert {row["prediction"] for row in decided} <= {"no", None}
    assert "are none of yes, no and maybe: wrong" in result.err
    figures = json.loads((place.run / "evaluation.json").read_text(encoding="utf-8"))["figures"]
    assert "ece" not in figures
    right = sum(row["prediction"] == row["reference"] for row in decided)
    assert figures["accuracy"] == pytest.approx(100 * right / 9)


def test_unclear_decisions_make_the_journey(place):
    place.api.likelihoods = False
    place.api.answer = lambda prompt, tuned: "Yes." if tuned and "treatment 3 " in prompt else "I can't tell."
    result = place.call("run")
    assert result.code == 0, result
    report = json.loads((place.run / "report.json").read_text(encoding="utf-8"))
    assert [sum(row) for row in report["decision"]["base"]["confusion"]] == [3, 3, 3]
    assert [row[3] for row in report["decision"]["base"]["confusion"]] == [3, 3, 3]
    assert report["base"]["accuracy"] == report["base"]["macro_f1"] == 0
    assert report["baselines"][0]["accuracy"] == pytest.approx(100 / 3)
    assert "none of them" in (place.run / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("option", ["logprobs", "max_tokens"])
def test_options_that_a_model_does_not_take_are_left_out(place, option):
    place.api.refused = (option,)
    result = place.evaluate(model__api__concurrency=1)
    assert result.code == 0, result
    answered = [chat for chat in place.api.chats if option not in chat]
    assert len(answered) == 18
    assert len(place.api.chats) == 19
    if option == "max_tokens":
        assert {chat["max_completion_tokens"] for chat in answered} == {8, 96}


def test_an_empty_answer_is_an_answer(place):
    place.api.answer = lambda *_: ""
    assert place.evaluate().code == 0
    assert {row["prediction"] for row in place.predictions("model-answer")} == {""}


def test_no_more_requests_at_once_than_allowed(place):
    place.api.trouble("POST /chat/completions", times=99, heard=True, delay=0.05)
    assert place.evaluate(model__api__concurrency=3).code == 0
    assert 1 < place.api.most_at_once <= 3


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after": "2.5"}, 2.5),
        ({"retry-after-ms": "40", "retry-after": "9"}, 0.04),
        ({"retry-after": "Thu, 01 Jan 1970 00:00:00 GMT"}, 0.0),
        ({"retry-after": "-3"}, 0.0),
        ({"retry-after": "inf"}, None),
        ({"retry-after": "soon"}, None),
        ({}, None),
    ],
)
def test_retry_after_in_every_form(headers, seconds):
    assert wait_asked_for(headers) == seconds


def test_an_echo_is_masked_and_nothing_else():
    secret = "The patient is a 61 year-old man with cough."
    assert echoless(f"Line 3 is bad: {secret} Mend it", [secret]) == "Line 3 is bad: … Mend it"
    assert echoless("Key sk-1 is wrong", ["sk-1"]) == "Key … is wrong"
    assert echoless("Nothing to hide", [secret, ""]) == "Nothing to hide"
