"""Retries: how often and after which pauses, what a server asks for, and network errors as sentences."""

import itertools
import time
from concurrent.futures import ThreadPoolExecutor

import httpx2
import pytest

from meditune.errors import DataError, ModelError
from meditune.http_client import (
    Backoff,
    HttpClient,
    TransientError,
    network_errors,
    refuse_transient,
    retry,
    retry_after,
)

BACKOFF = Backoff(attempts=4, first_wait=1.0, max_wait_s=3.0, longest_requested=60.0)


def failing(*failures):
    """A function that raises these errors one after another, and then returns the number of calls."""
    calls = itertools.count(1)

    def send():
        number = next(calls)
        if number <= len(failures):
            raise failures[number - 1]
        return number

    return send


def test_pauses_double_up_to_the_longest_and_a_server_can_only_lengthen_them():
    pauses = []
    failures = [TransientError("answers 429", wait=0.0), TransientError("answers 429", wait=7), TransientError("cut")]
    assert retry(failing(*failures), BACKOFF, "The server", pause=pauses.append) == 4
    assert 0.75 <= pauses[0] <= 1.0
    assert pauses[1] == 7
    assert 2.25 <= pauses[2] <= 3.0


def test_the_last_failure_is_a_sentence():
    failures = [TransientError("can't be reached")] * 4
    with pytest.raises(ModelError, match=r"^The server can't be reached; gave up after 4 attempts\. Run it again\.$"):
        retry(failing(*failures), BACKOFF, "The server", ModelError, pause=lambda _: None, advice="Run it again.")
    with pytest.raises(DataError, match="The server answers 429 and asks for a pause of 61 seconds"):
        retry(failing(TransientError("answers 429", wait=61)), BACKOFF, "The server", pause=lambda _: None)
    looked: list[None] = []
    with pytest.raises(DataError, match=r"gave up after 1 attempt\. Try again later\.$"):
        retry(failing(*failures), BACKOFF, "The server", pause=lambda _: True, find=lambda: looked.append(None))
    assert not looked, "the client is being closed"


@pytest.mark.parametrize(("maybe_processed", "result"), [(True, "found"), (False, 2)])
def test_what_was_perhaps_processed_is_looked_for_before_it_is_sent_again(maybe_processed, result):
    failure = TransientError("answers 502", maybe_processed=maybe_processed)
    assert retry(failing(failure), BACKOFF, "The server", pause=lambda _: None, find=lambda: "found") == result


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (httpx2.ConnectError("no"), "can't be reached"),
        (httpx2.ReadTimeout("slow"), "didn't answer in time"),
        (httpx2.ReadError("cut"), "closed the connection (ReadError)"),
    ],
)
def test_network_errors_are_sentences(error, reason):
    with pytest.raises(TransientError) as raised, network_errors():
        raise error
    assert str(raised.value) == reason
    assert raised.value.maybe_processed == (reason != "can't be reached")


def test_requests_of_several_threads_keep_their_interval(monkeypatch):
    client, sent = HttpClient(BACKOFF, interval=0.05), []
    monkeypatch.setattr(client._http, "request", lambda *_: sent.append(time.monotonic()))
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: client.request("GET", "https://example.org"), range(4)))
    client.close()
    assert min(later - earlier for earlier, later in itertools.pairwise(sorted(sent))) > 0.04


@pytest.mark.parametrize("url", ["ftp://example.org", "example.org"])
def test_an_invalid_url_is_not_retried(url):
    client = HttpClient(BACKOFF)
    with pytest.raises(DataError, match="Not a valid URL"):
        client.retry(lambda: client.request("GET", url), url)
    client.close()


@pytest.mark.parametrize(
    ("status", "is_transient"), [(200, False), (404, False), (501, False), (429, True), (503, True)]
)
def test_which_statuses_are_retried(status, is_transient):
    response = httpx2.Response(status, headers={"Retry-After": "7"})
    if not is_transient:
        refuse_transient(response)
        return
    with pytest.raises(TransientError, match=f"answers {status}") as raised:
        refuse_transient(response)
    assert (raised.value.wait, raised.value.maybe_processed) == (7.0, status != 429)


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
    assert retry_after(headers) == seconds
