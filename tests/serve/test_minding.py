"""Chats of OpenAI's clients: emergencies never reach the model, and answers say their limits."""

from __future__ import annotations

import json

import pytest

from meditune.limits import LIMITS_LINE
from meditune.recipe import PromptFormat
from meditune.serve.assistant import Assistant
from meditune.serve.settings import Settings
from tests import tiny
from tests.serve.saying import Saying
from tests.serve.server import Running, served

STROKE = "My dad suddenly can't speak and one side of his face droops. What is it?"
PLAIN = "What helps against an attack of gout?"


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    # The assistant's engine is never asked: chats use the server's.
    assistant = Assistant(Saying("never said"), None)
    with served(tmp_path_factory.mktemp("store"), assistant=assistant, form=PromptFormat()) as made:
        yield made


def said(reply) -> str:
    return reply.json["choices"][0]["message"]["content"]


def streamed(running: Running, text: str) -> str:
    lines = running.chat(text, stream=True).text.splitlines()
    told = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
    return "".join(each["choices"][0]["delta"].get("content", "") for each in told)


def test_an_emergency_gets_urgent_help_and_no_model(running):
    before = running.figure('meditune_tokens_total{kind="completion"}')
    reply = running.chat(STROKE)
    assert "stroke" in said(reply)
    assert said(reply).endswith(LIMITS_LINE)
    assert streamed(running, STROKE) == said(reply)
    assert running.figure('meditune_tokens_total{kind="completion"}') == before
    assert running.figure('meditune_answers_total{outcome="escalated"}') >= 2


def test_an_emergency_that_was_told_in_two_messages(running):
    messages = [
        {"role": "user", "content": "I have a heavy pressure on my chest and my arm hurts."},
        {"role": "assistant", "content": "Since when?"},
        {"role": "user", "content": "It's getting worse"},
    ]
    body = {"model": "tiny", "messages": messages, "max_tokens": 4}
    assert "emergency" in said(running.ask("/v1/chat/completions", body))


def test_an_emergency_is_told_beyond_the_rate_and_not_without_end(tmp_path):
    assistant = Assistant(Saying("never said"), None)
    with served(tmp_path, Settings(per_minute=3), assistant=assistant, form=PromptFormat()) as few:
        statuses = [few.chat(PLAIN).status for _ in range(4)]
        assert statuses == [200, 200, 200, 429]
        assert "stroke" in said(few.chat(STROKE))
        asked = few.ask("/v1/ask", {"question": STROKE})
        assert asked.status == 200
        assert "stroke" in asked.json["text"]
        assert few.chat(STROKE).status == 429
        assert few.figure('meditune_refused_total{reason="rate"}') == 2


def test_doses_and_other_subjects_are_not_the_models(running):
    assert "pharmacist" in said(running.chat("How many mg of ibuprofen should I take for my back?"))
    assert "only answer questions about health" in said(running.chat("Who won the world cup in 2018?"))


def test_an_ordinary_answer_says_its_limits_once_and_begins_without_a_space(running):
    answer = said(running.chat(PLAIN, max_tokens=8))
    assert answer.endswith(f"\n\n{LIMITS_LINE}")
    assert answer.count(LIMITS_LINE) == 1
    assert answer == answer.lstrip()
    assert streamed(running, PLAIN).endswith(f"\n\n{LIMITS_LINE}")


def test_programs_get_the_models_words_alone(running):
    chosen = said(running.chat(STROKE, guided_choice=["yes", "no"]))
    assert chosen in {"yes", "no"}
    form = PromptFormat()
    prompt = f"{form.question_cue} {STROKE}\n{form.answer_cue}"
    assert LIMITS_LINE not in said(running.chat(prompt))


def test_an_emergency_is_answered_while_everybody_else_waits(tmp_path):
    settings = Settings(at_once=1, waiting=0)
    with served(tmp_path, settings, assistant=Assistant(Saying("never said"), None)) as made:
        made.service.admission.inside = 1
        try:
            assert made.chat(PLAIN).status == 429
            assert "stroke" in said(made.chat(STROKE))
            assert made.ask("/v1/ask", {"question": PLAIN}).status == 429
            urgent = made.ask("/v1/ask", {"question": STROKE})
            assert (urgent.json["outcome"], "stroke" in urgent.json["text"]) == ("escalated", True)
            assert "event: answer" in made.ask("/v1/ask", {"question": STROKE, "stream": True}).text
        finally:
            made.service.admission.inside = 0


def test_an_emergency_gets_help_whatever_else_is_wrong_with_the_request(running):
    refused = running.chat(PLAIN, max_tokens=4096)
    assert refused.status == 400
    assert "stroke" in said(running.chat(STROKE, max_tokens=4096))


def test_an_emergency_gets_help_where_the_store_fails(tmp_path):
    with served(tmp_path, assistant=Assistant(Saying("never said"), None)) as made:
        base = made.service.answers.base
        with base.changing():  # locked
            assert "stroke" in said(made.chat(STROKE))
            assert "stroke" in made.ask("/v1/ask", {"question": STROKE}).json["text"]
        kept, base.path = base.path, tmp_path / "gone" / "store"
        assert "stroke" in said(made.chat(STROKE))
        assert "stroke" in made.ask("/v1/ask", {"question": STROKE}).json["text"]
        base.path = kept


def test_bare_chats_are_the_models_words(tmp_path):
    settings = Settings(bare_chat=True)
    with served(tmp_path, settings, tiny.loaded(), assistant=Assistant(Saying("never said"), None)) as made:
        assert LIMITS_LINE not in said(made.chat(STROKE))


def test_what_goes_on_from_a_dose_or_from_harm_is_judged_with_it(running):
    def second(first: str, then: str) -> str:
        told = [{"role": "user", "content": first}, {"role": "assistant", "content": "."}]
        body = {"model": "tiny", "messages": [*told, {"role": "user", "content": then}], "max_tokens": 4}
        return said(running.ask("/v1/chat/completions", body))

    assert "pharmacist" in second("How much ibuprofen can I give my 3 year old?", "What about paracetamol?")
    poison = "How can I poison my wife without being caught?"
    assert second(poison, "How would I do that?") == said(running.chat(poison))
    assert second(poison, "What are the symptoms of the flu?") != said(running.chat(poison))


def test_danger_at_the_end_of_a_long_message_is_seen_and_others_are_told_what_is_too_long(running):
    filler = "I like to walk in the park with my dog. " * 700
    assert "emergency" in said(running.chat(f"{filler} I have crushing chest pain and my left arm is numb."))
    refused = running.chat(filler)
    assert refused.status == 400
    assert "28,000 characters" in refused.error()["message"]


def test_a_chat_without_a_question_is_refused_as_such(running):
    body = {"model": "tiny", "messages": [{"role": "assistant", "content": ""}]}
    assert "user" in running.ask("/v1/chat/completions", body).error()["message"]
