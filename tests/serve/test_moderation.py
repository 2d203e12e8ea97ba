"""Chats of OpenAI's clients: emergencies never reach the model, and answers say their limits.

Chats in the format that a model was tuned with.
"""

from __future__ import annotations

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from meditune.assistant.assistant import AssistantSettings
from meditune.assistant.triage import triage
from meditune.config.data_options import PromptFormat
from meditune.data.example import Turn
from meditune.errors import DataError
from meditune.prompts import LIMITS_LINE
from meditune.retrieve.citations import Citer
from meditune.serve.chat_prompts import ChatPrompts
from meditune.serve.http_server import ListenConfig
from meditune.serve.moderation import ENDING
from meditune.serve.settings import Settings
from meditune.serve.startup import safe
from meditune.store.api_keys import Keys
from meditune.store.database import SQLiteDatabase
from tests import tiny
from tests.assistants import ScriptedEngine, assistant_of, index_of
from tests.loopback_server import Running, served
from tests.waiting import until

STROKE = "My dad suddenly can't speak and one side of his face droops. What is it?"
PLAIN = "What helps against an attack of gout?"


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    # The assistant's engine is never asked: chats use the server's.
    assistant = assistant_of(ScriptedEngine("never said"), None)
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


def test_the_log_and_the_store_say_how_a_chat_ended_and_which_message_was_judged(tmp_path, caplog):
    caplog.set_level("INFO", "meditune")
    with served(tmp_path, Settings(keep_text=True), assistant=assistant_of(ScriptedEngine("never said"), None)) as made:
        first = made.chat(PLAIN)
        second = made.chat(messages=[{"role": "user", "content": STROKE}, {"role": "assistant", "content": "Hmm."}])
        kept = list(made.service.answers.exported())
    assert [(each["question"], each["outcome"]) for each in kept] == [(PLAIN, "answered"), (STROKE, "escalated")]
    logged = {each.request: each.outcome for each in caplog.records if each.msg == "request"}
    assert [logged[reply.headers["X-Request-Id"]] for reply in (first, second)] == ["answered", "escalated"]


def test_an_emergency_is_told_beyond_the_rate_and_not_without_end(tmp_path):
    assistant = assistant_of(ScriptedEngine("never said"), None)
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


def test_an_emergency_is_answered_while_everybody_else_waits(tmp_path):
    settings = Settings(concurrency=1, queue_size=0)
    with served(tmp_path, settings, assistant=assistant_of(ScriptedEngine("never said"), None)) as made:
        made.service.admission.active = 1
        try:
            assert made.chat(PLAIN).status == 429
            assert "stroke" in said(made.chat(STROKE))
            assert made.ask("/v1/ask", {"question": PLAIN}).status == 429
            urgent = made.ask("/v1/ask", {"question": STROKE})
            assert (urgent.json["outcome"], "stroke" in urgent.json["text"]) == ("escalated", True)
            assert "event: answer" in made.ask("/v1/ask", {"question": STROKE, "stream": True}).text
        finally:
            made.service.admission.active = 0


def test_an_emergency_gets_help_whatever_else_is_wrong_with_the_request(running):
    refused = running.chat(PLAIN, max_tokens=4096)
    assert refused.status == 400
    assert "stroke" in said(running.chat(STROKE, max_tokens=4096))
    assert running.chat(PLAIN, model="gpt-4").status == 404
    assert "stroke" in said(running.chat(STROKE, model="gpt-4"))


def test_an_emergency_at_the_end_of_a_long_conversation_gets_help(running):
    def chat(text):
        turns = [{"role": role, "content": "."} for _ in range(128) for role in ("user", "assistant")]
        return running.chat(messages=[*turns, {"role": "user", "content": text}])

    def ask(text, count=1, length=1):
        history = [{"question": "And then?", "answer": "a" * length}] * count
        return running.ask("/v1/ask", {"question": text, "history": history})

    for param, refused in (("messages", chat(PLAIN)), ("history", ask(PLAIN, 21)), ("history", ask(PLAIN, 1, 100_001))):
        assert (refused.status, refused.error()["param"]) == (400, param)
    assert "stroke" in said(chat(STROKE))
    for asked in (ask(STROKE, 21), ask(STROKE, 1, 20_001), ask(STROKE, 1, 100_001)):
        assert "stroke" in asked.json["text"]


def test_an_emergency_gets_help_where_the_store_fails(tmp_path):
    with served(tmp_path, assistant=assistant_of(ScriptedEngine("never said"), None)) as made:
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
    with served(tmp_path, settings, tiny.loaded(), assistant=assistant_of(ScriptedEngine("never said"), None)) as made:
        assert LIMITS_LINE not in said(made.chat(STROKE))
        assert made.ask("/v1/completions", {"model": "tiny", "prompt": STROKE, "max_tokens": 4}).status == 200


def test_what_goes_on_from_a_dose_or_from_harm_is_judged_with_it(running):
    def second(first: str, then: str) -> str:
        told = [{"role": "user", "content": first}, {"role": "assistant", "content": "."}]
        body = {"model": "tiny", "messages": [*told, {"role": "user", "content": then}], "max_tokens": 4}
        return said(running.ask("/v1/chat/completions", body))

    assert "pharmacist" in second("How much ibuprofen can I give my 3 year old?", "What about paracetamol?")
    poison = "How can I poison my wife without being caught?"
    assert second(poison, "How would I do that?") == said(running.chat(poison))
    assert second(poison, "What are the symptoms of the flu?") != said(running.chat(poison))


def test_a_chat_without_a_question_is_refused_as_such(running):
    body = {"model": "tiny", "messages": [{"role": "assistant", "content": ""}]}
    assert "user" in running.ask("/v1/chat/completions", body).error()["message"]


FORM = PromptFormat()
PROGRAMS = {
    "prompt": (f"{FORM.question_cue} {STROKE}\n{FORM.answer_cue}", {}),
    "prompt for a decision": (f"{STROKE} {FORM.decision_cue}", {}),
    "guided_choice": (STROKE, {"guided_choice": ["yes", "no"]}),
    "response_format": (STROKE, {"response_format": {"type": "json_object"}}),
}


@pytest.fixture(scope="module")
def keyed(tmp_path_factory):
    """A server that needs keys; an ordinary key, and one with the scope raw."""
    folder = tmp_path_factory.mktemp("keyed")
    keys = Keys(SQLiteDatabase(folder))
    usual, raw = keys.create("Ann")[1], keys.create("Harness", ["generate", "raw"])[1]
    assistant = assistant_of(ScriptedEngine("never said"), None)
    with served(folder, Settings(keys_needed=True), assistant=assistant, form=FORM) as made:
        yield made, usual, raw


@pytest.mark.parametrize("name", PROGRAMS)
def test_nothing_skips_triage_without_the_scope_raw(running, keyed, name):
    text, more = PROGRAMS[name]
    made, usual, raw = keyed
    for reply in (made.chat(text, key=usual, **more), running.chat(text, **more)):
        assert "stroke" in said(reply)
    written = made.chat(text, key=raw, max_tokens=8, **more)
    assert written.status == 200
    assert "stroke" not in said(written)
    assert LIMITS_LINE not in said(written)


def test_strangers_of_an_open_server_have_no_scope_raw(tmp_path):
    settings = safe(Settings(), ListenConfig("0.0.0.0"), Keys(SQLiteDatabase(tmp_path)), allow_anonymous=True)
    with served(tmp_path, settings, assistant=assistant_of(ScriptedEngine("never said"), None), form=FORM) as made:
        for text, more in PROGRAMS.values():
            assert "stroke" in said(made.chat(text, **more))
        assert made.ask("/v1/completions", {"model": "tiny", "prompt": PLAIN}).status == 403


def test_an_ordinary_message_of_a_structured_chat_is_answered_in_that_structure(running):
    assert said(running.chat(PLAIN, guided_choice=["yes", "no"])) in {"yes", "no"}
    assert said(running.chat(PLAIN, guided_choice=[" yes", " no"])) in {" yes", " no"}
    assert said(running.chat(f"{PLAIN} {FORM.answer_cue}")).endswith(LIMITS_LINE)


def test_completions_need_the_scope_raw(keyed):
    made, usual, raw = keyed
    body = {"model": "tiny", "prompt": PLAIN, "max_tokens": 4}
    for stream in (False, True):
        refused = made.ask("/v1/completions", body | {"stream": stream}, key=usual)
        assert (refused.status, refused.error()["code"]) == (403, "missing_scope")
        assert "keys create NAME --scope generate --scope raw" in refused.error()["message"]
        assert made.ask("/v1/completions", body | {"stream": stream}, key=raw).status == 200


LONG = "I like to walk in the park with my dog. " * 120  # 4,800 characters
DANGER = "I have crushing chest pain and my left arm is numb."


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("text", [f"{DANGER} {LONG}", f"{LONG} {DANGER}", f"{LONG * 40} {DANGER}"])
def test_the_refusal_of_a_long_message_carries_urgent_help(running, text, stream):
    asked = running.ask("/v1/ask", {"question": text, "stream": stream})
    for reply in (asked, running.chat(text, stream=stream), running.chat(text, guided_choice=["a", "b"])):
        error = reply.error()
        assert (reply.status, error["code"]) == (400, "emergency_in_long_message")
        assert "Call your emergency number" in error["message"]
        assert f"The message has {len(text):,} characters; this server takes at most 4,000." in error["message"]


def test_a_long_message_is_refused_by_name(running):
    for reply in (running.ask("/v1/ask", {"question": LONG}), running.chat(LONG), running.chat(LONG, stream=True)):
        error = reply.error()
        assert (reply.status, error["code"]) == (400, "message_too_long")
        assert "The message has 4,800 characters; this server takes at most 4,000." in error["message"]
        assert "emergency" not in error["message"]


def test_system_messages_and_earlier_turns_have_limits_of_their_own(tmp_path):
    settings = Settings(message_characters=200, context_characters=3_000, history_characters=3_000)
    with served(tmp_path, settings, assistant=assistant_of(ScriptedEngine("never said"), None)) as made:

        def reply(context=0, history=0, text=PLAIN):
            messages = [
                {"role": "system", "content": "c" * context},
                {"role": "user", "content": "h" * history},
                {"role": "assistant", "content": "."},
                {"role": "user", "content": text},
            ]
            return made.ask("/v1/chat/completions", {"model": "tiny", "messages": messages, "max_tokens": 1})

        assert reply(250, 250).status == 200
        assert "system messages have 3,001 characters" in reply(3_001, 0).error()["message"]
        assert "earlier turns have 3,002 characters" in reply(0, 3_001).error()["message"]
        assert "stroke" in said(reply(3_001, 3_001, STROKE))
        assert made.chat("a" * 201).error()["code"] == "message_too_long"


def test_a_message_limit_beyond_what_triage_reads_is_refused():
    with pytest.raises(DataError, match="between 1 and 4,000"):
        Settings(message_characters=4_001)


def test_a_megabyte_of_short_lines_is_cheap(running):
    lines = "my head\n" * 110_000
    spread = [{"role": "user", "content": "my head\n" * 450} for _ in range(240)]
    for messages in ([{"role": "user", "content": lines}], spread):
        begun = time.process_time()  # the server's too
        reply = running.ask("/v1/chat/completions", {"model": "tiny", "messages": messages, "max_tokens": 1})
        assert reply.status == 400
        assert time.process_time() - begun < 3


@pytest.mark.parametrize("stream", [False, True])
def test_triage_and_support_checks_run_once_for_each_request(tmp_path, monkeypatch, stream):
    calls = []

    def counted(name, function):
        return lambda *words, **named: calls.append(name) or function(*words, **named)

    monkeypatch.setattr("meditune.assistant.assistant.triage", counted("triage", triage))
    monkeypatch.setattr(Citer, "judge", counted("support", Citer.judge))
    text = "Colchicine calms an attack. Zebras eat cheese. Colchicine calms an attack."
    assistant = assistant_of(ScriptedEngine(text), index_of(tmp_path), AssistantSettings(nearest=-1.0))
    with served(tmp_path / "store", Settings(per_minute=6), assistant=assistant, form=FORM) as made:
        for message, support in ((PLAIN, 2), (STROKE, 0)):
            reply = made.ask("/v1/ask", {"question": message, "stream": stream})
            assert (reply.status, calls) == (200, ["triage"] + ["support"] * support)
            calls.clear()
            assert made.chat(message, stream=stream).status == 200
            assert calls == ["triage"]
            calls.clear()


def test_emergencies_do_not_wait_behind_a_flood_of_long_messages(tmp_path):
    """The engine is full and the flood comes from the same address: what would be worst without a queue that orders."""
    flood = ("a\n" * 2_000)[:4_000]
    settings = Settings(concurrency=1, queue_size=0)
    with served(tmp_path, settings, assistant=assistant_of(ScriptedEngine("never said"), None)) as made:
        made.service.admission.active = 1
        over, refused = threading.Event(), []

        def send():
            while not over.is_set():
                refused.append(made.chat(flood).status)

        with ThreadPoolExecutor(12) as pool:
            for _ in range(12):
                pool.submit(send)
            try:
                until(lambda: made.service.triage.waiting >= 8, 30)
                overtaken = []
                for _ in range(5):
                    before = len(refused)
                    assert "stroke" in said(made.chat(STROKE))
                    overtaken.append(len(refused) - before)
            finally:
                over.set()
        made.service.admission.active = 0
    assert set(refused) <= {400, 429}  # too many tokens for this model, or the engine is full
    assert sorted(overtaken)[2] <= 2, "an emergency waits for what has begun, not for the eight and more that wait"


def test_emergencies_do_not_wait_behind_short_messages_with_long_earlier_messages(tmp_path, monkeypatch):
    go_on = threading.Event()

    def held(message, numbers, before, classifier):
        if before:
            assert go_on.wait(30)
        return triage(message, numbers, before, classifier)

    monkeypatch.setattr("meditune.assistant.assistant.triage", held)
    earlier = [{"role": "user", "content": LONG[:3_900]}, {"role": "assistant", "content": "."}]
    with (
        served(tmp_path, assistant=assistant_of(ScriptedEngine("never said"), None)) as made,
        ThreadPoolExecutor(4) as pool,
    ):

        def reply(text):
            return made.chat(messages=[*earlier, {"role": "user", "content": text}])

        flood = [pool.submit(reply, "What about it then?") for _ in range(4)]
        try:
            until(lambda: made.service.triage.waiting >= 3, 30)
            assert (made.service.triage.active, made.service.triage.waiting) == (1, 3)
            assert "stroke" in said(made.chat(STROKE))
            assert "stroke" in said(reply(STROKE))
            assert reply("What are the first signs of the flu, and how long do they usually last in an adult?").status
            assert made.service.triage.waiting == 3
        finally:
            go_on.set()
        assert {each.result().status for each in flood} <= {200, 400}


@pytest.mark.parametrize(("cue", "last"), [("In plain words:", "In plain words:"), (None, "Conclusion:")])
def test_a_chat_asks_for_plain_words_where_the_model_knows_a_cue_for_them(cue, last):
    prompts = ChatPrompts(tiny.tokenizer(), PromptFormat(plain_cue=cue), 1000)
    earlier = [Turn(role="user", text="What is gout?"), Turn(role="assistant", text="A disease.")]
    text = prompts.tokenizer.decode(prompts.chat([*earlier, Turn(role="user", text="Does it hurt?")]))
    assert text == f"Question: What is gout?\n{last} A disease.\nQuestion: Does it hurt?\n{last}"


@pytest.mark.parametrize(
    ("tokenizer", "form"), [(tiny.tokenizer(), PromptFormat()), (tiny.chat_tokenizer(), None)], ids=["plain", "chat"]
)
def test_the_note_on_limits_does_not_go_back_into_the_prompt(tokenizer, form):
    prompts = ChatPrompts(tokenizer, form, 1000)

    def chat(answer):
        turns = [("user", "What is gout?"), ("assistant", answer), ("user", f"What does this mean:{ENDING}")]
        return tokenizer.decode(prompts.chat([Turn(role=role, text=text) for role, text in turns]))

    assert chat(f"A disease.{ENDING}") == chat("A disease.")
    assert chat("A disease.").count(LIMITS_LINE) == 1, "what the user writes stays"
    assert LIMITS_LINE in chat(f"A disease.{ENDING} Or none.").partition("Or none.")[0]


def test_a_message_that_ends_in_any_of_the_cues_is_a_prompt_already():
    prompts = ChatPrompts(tiny.tokenizer(), PromptFormat(plain_cue="In plain words:"), 1000)
    for cue in ("Conclusion:", "Answer:", "In plain words:"):
        asked = f"Question: Does it hurt?\n{cue}"
        assert prompts.tokenizer.decode(prompts.chat([Turn(role="user", text=asked)])) == asked
    assert not prompts.in_format("Does it hurt?")
