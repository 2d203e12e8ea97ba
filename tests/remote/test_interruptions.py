"""A run that is stopped or killed anywhere goes on, and pays for nothing twice."""

import os
import signal
import time

import pytest

from tests.commands import meditune

HEARD = ["POST /files", "POST /fine_tuning/jobs", "GET /fine_tuning/jobs/ftjob-1", "GET /.*/events"]


def made_once(place):
    """Assert that one file and one job were made, and nothing was asked twice."""
    assert (len(place.api.files), len(place.api.jobs)) == (1, 1)
    assert place.asked_twice() == []


def interrupt():
    os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize("heard", [True, False], ids=["heard", "unheard"])
@pytest.mark.parametrize("match", HEARD)
def test_stopped_at_any_request(place, match, heard):
    place.api.trouble(match, heard=heard, act=interrupt, delay=0.2)
    stopped = place.call("train")
    assert stopped.code == 130, stopped
    assert "run the same command again" in stopped.err
    begun = match.startswith("GET")
    assert ("The job ftjob-1 goes on at" in stopped.err) == begun
    assert (f"meditune api cancel {place.run}" in stopped.err) == begun
    again = meditune(*place.words("train"))
    assert again.code == 0, again
    made_once(place)
    assert again.last == f"Model: {place.run / 'model'}"


def test_stopped_while_measuring(place):
    """What was under way when the user stopped is kept too."""
    place.api.troubles = []
    for _ in range(3):
        place.api.trouble("POST /chat/completions", heard=True, status=None, delay=0.05)
    place.api.trouble("POST /chat/completions", heard=True, act=interrupt, delay=0.1)
    stopped = place.evaluate()
    assert stopped.code == 130, stopped
    assert (place.run / "predictions" / "model-decision.jsonl.begun").is_file()
    asked = len(place.api.chats)
    assert 4 <= asked < 18
    again = place.evaluate()
    assert again.code == 0, again
    assert len(place.api.chats) == 18
    made = {path.name for path in (place.run / "predictions").iterdir()}
    assert made >= {"model-answer.jsonl", "model-decision.jsonl"}
    assert not [name for name in made if name.endswith(".begun")]
    assert place.asked_twice() == []


def test_a_row_that_was_cut_off_is_asked_for_again(place):
    place.api.trouble("POST /chat/completions", heard=True, act=interrupt, delay=0.1)
    assert place.evaluate().code == 130
    begun = place.run / "predictions" / "model-decision.jsonl.begun"
    begun.write_text(begun.read_text(encoding="utf-8").rstrip()[:-20], encoding="utf-8")
    assert place.evaluate().code == 0
    assert len(place.predictions("model-decision")) == 9
    assert len(place.asked_twice()) == 2


@pytest.mark.parametrize("match", ["POST /files", "POST /fine_tuning/jobs", "POST /chat/completions"])
def test_killed(place, match):
    with place.bench.started(*place.words("run", "--yes")) as process:
        place.api.trouble(match, heard=True, act=process.kill, delay=0.1)
        process.wait(timeout=240)
        time.sleep(0.2)
    assert process.returncode == -signal.SIGKILL
    assert place.call("train" if "chat" not in match else "run").code == 0
    assert (len(place.api.files), len(place.api.jobs)) == (1, 1)
    assert len(place.asked_twice()) <= 2 * 4, "only what was under way is lost"


def test_an_api_without_lists_is_not_made_to_train_twice(place):
    place.api.lists = False
    place.api.trouble("POST /fine_tuning/jobs", heard=True, act=interrupt, delay=0.2)
    assert place.call("train").code == 130
    place.call("train").refused(4, "Whether a job was created", "file-1", str(place.run / "api" / "job.json"))
    assert len(place.api.jobs) == 1
