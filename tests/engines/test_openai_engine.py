"""Jobs passed on to a real server with OpenAI's API: llama.cpp's own.

What comes of streams that break off, and of jobs that nobody waits for any more: a server that we end at will.
"""

import json
import queue
import threading
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch

from meditune.config.training_options import ModelSpec
from meditune.engines.engine import GenerationRequest
from meditune.engines.llamacpp_engine import server
from meditune.engines.open_engine import open_engine
from meditune.engines.openai_engine import OpenAIEngine
from meditune.errors import EngineError, ModelError
from meditune.export.gguf import DEFAULT, file_name, write_gguf
from meditune.models.load import load
from tests import tiny
from tests.commands import bench, meditune, read_rows
from tests.engines.test_engines import ask, collect, text, tokens
from tests.http_servers import Answering, listening

llama = pytest.importorskip("xllamacpp")
PROMPT = [20, 30, 40, 50, 60, 70]


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """A folder, and the address and the key of a server that serves its model."""
    folder = tmp_path_factory.mktemp("served")
    made, tokenizer = tiny.model("llama"), tiny.tokenizer()
    with torch.no_grad():
        for number in range(500):
            if not tokenizer.decode([number]).isascii():
                made.get_output_embeddings().weight[number] = 0
    made.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    write_gguf(folder, folder)
    started = server(folder / file_name(DEFAULT), 1024, 2, "the key")
    yield folder, f"{started.listening_address}/v1"
    del started


@pytest.fixture
def engine(served):
    folder, url = served
    opened = open_engine(str(folder), "vllm", url=url, key="the key")
    yield opened
    opened.close()


def test_answers_are_passed_on_piece_by_piece(engine):
    pieces = ask(engine, GenerationRequest(PROMPT, 12))
    assert pieces[-1].finish in {"length", "stop"}
    assert len(pieces) > 3
    assert engine.tokenizer.decode(tokens(pieces), skip_special_tokens=True) == text(pieces)
    assert text(ask(engine, GenerationRequest(PROMPT, 12))) == text(pieces)


def test_a_constraint_that_the_server_ignores_is_said(engine):
    error = ask(engine, GenerationRequest(PROMPT, 8, choices=(" yes", " no")))[-1].error
    assert isinstance(error, ModelError)
    assert "doesn't restrict answers" in str(error)


def test_likelihoods_that_the_server_does_not_tell_are_said(engine):
    with pytest.raises(ModelError, match="doesn't return the log-probabilities"):
        engine.score(PROMPT, [[5, 6]])


def test_who_cancels_gets_a_last_piece(engine):
    pieces: queue.Queue = queue.Queue()
    running = engine.start(GenerationRequest(PROMPT, 900), pieces.put)
    pieces.get(timeout=60)
    running.cancel()
    while (piece := pieces.get(timeout=60)).finish is None:
        assert piece.error is None
    assert piece.finish in {"cancelled", "stop", "length"}


def test_a_wrong_key_and_a_wrong_address_are_said(served):
    folder, url = served
    with pytest.raises(ModelError, match="address"):
        open_engine(str(folder), "vllm")
    with pytest.raises(ModelError, match="No server answers"):
        open_engine(str(folder), "vllm", url="http://127.0.0.1:9/v1")
    with pytest.raises(ModelError, match="Check the key"):
        open_engine(str(folder), "vllm", url=url, key="another")


STREAMED_PROMPT = [20, 30, 40]


@contextmanager
def serving(lines, hold=None, models=({"id": "m", "max_model_len": 512},), served_as=None, refusal=""):
    """An engine on a server that streams these lines, waits for `hold`, and ends; and the jobs that reached it.

    With `refusal`, the server answers every job with this text and status 400.
    """
    got: queue.Queue = queue.Queue()

    class Handler(Answering):
        def do_GET(self):
            self.answer(json.dumps({"data": models}))

        def do_POST(self):
            got.put(json.loads(self.body()))
            self.answer(refusal or "".join(f"data: {line}\n\n" for line in lines), 400 if refusal else 200)
            if hold:
                hold.wait(60)

    with listening(Handler) as url:
        engine = None
        try:
            engine = OpenAIEngine(f"{url}/v1", tiny.tokenizer(), concurrency=1, served_as=served_as)
            yield engine, got
        finally:
            if hold:
                hold.set()
            if engine:
                engine.close()


def said(words, reason=None):
    return json.dumps({"choices": [{"text": words, "finish_reason": reason}]})


@pytest.mark.parametrize(
    ("lines", "finish"),
    [
        ([said("yes"), said("", "stop"), "[DONE]"], "stop"),
        ([said("yes", "length"), "[DONE]"], "length"),
        ([said("yes"), "[DONE]"], "stop"),
        ([said("yes", "stop")], "stop"),
    ],
)
def test_an_end_that_is_told_is_an_end(lines, finish):
    with serving(lines) as (engine, _):
        pieces = ask(engine, GenerationRequest(STREAMED_PROMPT, 8))
    assert (text(pieces), pieces[-1].finish) == ("yes", finish)


def test_unicode_s_line_separators_are_a_part_of_the_answer():
    words = "dose\u2028limits\u2029and\u0085so on"
    line = json.dumps({"choices": [{"text": words, "finish_reason": None}]}, ensure_ascii=False)
    with serving([f"{line}\r", said("", "stop")]) as (engine, _):
        pieces = ask(engine, GenerationRequest(STREAMED_PROMPT, 8))
    assert (text(pieces), pieces[-1].finish) == (words, "stop")


@pytest.mark.parametrize("together", [True, False], ids=["one chunk", "a chunk of its own"])
def test_the_token_that_ends_an_answer_is_no_part_of_it(together):
    """vLLM lists the end token among the tokens with log-probabilities, with or without text before it."""
    tokenizer = tiny.tokenizer()
    numbers = tokenizer("yes", add_special_tokens=False)["input_ids"]

    def chunk(words, ids, reason=None):
        names = [f"token_id:{number}" for number in ids]
        logprobs = {"tokens": names, "token_logprobs": [-0.5] * len(ids), "top_logprobs": [{}] * len(ids)}
        return json.dumps({"choices": [{"text": words, "finish_reason": reason, "logprobs": logprobs}]})

    end = tokenizer.eos_token_id
    lines = [chunk("yes", [*numbers, end], "stop")] if together else [chunk("yes", numbers), chunk("", [end], "stop")]
    with serving([*lines, "[DONE]"]) as (engine, _):
        pieces = ask(engine, GenerationRequest(STREAMED_PROMPT, 8, logprobs=1))
    assert [token for piece in pieces for token in piece.tokens] == numbers
    assert len([each for piece in pieces for each in piece.likely]) == len(numbers)
    assert pieces[-1].finish == "stop"


@pytest.mark.parametrize(
    ("body", "reason"),
    [({"error": {"message": "uniqueItems is unknown", "code": 400}}, "uniqueItems is unknown"), ({}, "refuses it")],
    ids=["with a reason", "without a reason"],
)
def test_a_schema_that_the_server_refuses_is_the_request_s_fault(body, reason):
    request = GenerationRequest(STREAMED_PROMPT, 8)
    with serving([], refusal=json.dumps(body)) as (engine, _):
        last = ask(engine, replace(request, json_schema={"type": "array", "uniqueItems": True}))[-1]
        other = ask(engine, request)[-1]
    assert not isinstance(last.error, EngineError)
    assert "JSON schema can't be enforced: " in str(last.error)
    assert reason in str(last.error)
    assert isinstance(other.error, EngineError)


def test_an_answer_that_breaks_off_is_no_answer():
    with serving([said("Take no"), said(" more than")]) as (engine, _):
        last = ask(engine, GenerationRequest(STREAMED_PROMPT, 8))[-1]
    assert last.finish is None
    assert isinstance(last.error, ModelError)
    assert "ended an answer without a finish reason" in str(last.error)


def test_an_answer_that_the_server_aborts_is_no_answer():
    with serving([said("Take two tablets of"), said("", "abort"), "[DONE]"]) as (engine, _):
        last = ask(engine, GenerationRequest(STREAMED_PROMPT, 8))[-1]
    assert last.finish is None
    assert "finish reason abort" in str(last.error)


def test_a_choice_that_the_length_cuts_is_the_beginning_of_one():
    request = GenerationRequest(STREAMED_PROMPT, 1, choices=(" not at all", " yes"))
    with serving([said(" not", "length")]) as (engine, _):
        pieces = ask(engine, request)
    assert (text(pieces), pieces[-1].finish) == (" not", "length")
    with serving([said(" ", "stop")]) as (engine, _):
        assert text(ask(engine, replace(request, stop=("not",)))) == " "
    with serving([said(" never", "length")]) as (engine, _):
        assert "doesn't restrict answers" in str(ask(engine, request)[-1].error)


def test_a_job_that_is_cancelled_stops_at_the_server_or_never_gets_there():
    hold = threading.Event()
    with serving([said("yes")], hold) as (engine, got):
        first, second = queue.Queue(), queue.Queue()
        running, waiting = (
            engine.start(GenerationRequest(STREAMED_PROMPT, 8), first.put),
            engine.start(GenerationRequest(STREAMED_PROMPT, 8), second.put),
        )
        assert first.get(timeout=60).text == "yes"
        waiting.cancel()
        running.cancel()
        assert first.get(timeout=10).finish == "cancelled"
        assert [piece.finish for piece in collect(second)] == ["cancelled"]
        assert got.qsize() == 1


@pytest.mark.parametrize("listed", ['{"status": "loading"}', "[]", '{"data": [{"name": "m"}]}', "<html>"])
def test_a_server_that_lists_no_models_is_said_at_once(listed):
    class Handler(Answering):
        def do_GET(self):
            self.answer(listed)

    with listening(Handler) as url, pytest.raises(ModelError, match="doesn't list its models"):
        OpenAIEngine(f"{url}/v1", tiny.tokenizer())


SEVERAL = [{"id": "base", "max_model_len": 512}, {"id": "tuned", "parent": "base"}]


def test_of_several_models_the_one_that_is_named_is_asked():
    with serving([said("yes", "stop")], models=SEVERAL, served_as="tuned") as (engine, got):
        assert (engine.name, engine.context_tokens) == ("server tuned", 512)
        ask(engine, GenerationRequest(STREAMED_PROMPT, 8))
        request = got.get(timeout=10)
    assert request["model"] == "tuned"
    assert (request["top_k"], request["min_p"], request["repetition_penalty"]) == (-1, 0, 1)


@pytest.mark.parametrize("named", [None, "another"])
def test_of_several_models_none_is_guessed(named):
    with pytest.raises(ModelError, match="base, tuned") as refused, serving([], models=SEVERAL, served_as=named):
        pass
    assert "MEDITUNE_ENGINE_MODEL" in str(refused.value)


@contextmanager
def as_vllm(loaded):
    """The address of a server that runs this model, and answers what Meditune asks in the form of vLLM's responses."""
    model, tokenizer = loaded.model, loaded.tokenizer
    computing = threading.Lock()

    def likely(ids, places):
        with computing, torch.no_grad():
            rows = torch.log_softmax(model(torch.tensor([ids])).logits[0].float(), dim=-1)
        return [None if place == 0 else float(rows[place - 1, ids[place]]) for place in places]

    def named(ids, likelihoods):
        return {"tokens": [f"token_id:{id}" for id in ids], "token_logprobs": likelihoods, "top_logprobs": None}

    class Handler(Answering):
        def do_GET(self):
            self.answer(json.dumps({"data": [{"id": "m", "max_model_len": 2048}]}))

        def do_POST(self):
            body = json.loads(self.body())
            ids = list(body["prompt"])
            if body.get("echo"):
                known = named([*ids, 0], [*likely(ids, range(len(ids))), -1.0])
                self.answer(json.dumps({"choices": [{"text": "", "finish_reason": "length", "logprobs": known}]}))
                return
            with computing, torch.no_grad():
                tokens = model.generate(torch.tensor([ids]), max_new_tokens=body["max_tokens"], do_sample=False)[0]
            written = tokens[len(ids) :].tolist()
            reason = "stop" if written[-1] == tokenizer.eos_token_id else "length"
            text = tokenizer.decode(written, skip_special_tokens=True)
            self.answer("".join(f"data: {line}\n\n" for line in (said(text, reason), "[DONE]")))

    with listening(Handler) as url:
        yield f"{url}/v1"


def test_a_model_on_a_server_is_measured_like_one_in_this_process(tmp_path):
    fewer = {"evaluate__answers": "4", "evaluate__general_tokens": "0", "model__dtype": "float32"}
    with bench(tmp_path) as place:
        place.run("run", **fewer).ok()
        run, words = place.folder / "run", ["--recipe", "quickstart", *place.settings(**fewer)]
        with as_vllm(load(str(run), ModelSpec(base=str(place.base), dtype="float32"))) as url:
            meditune("evaluate", run, "--url", url, "-o", tmp_path / "there", *words).ok()
            meditune("evaluate", run, "--url", url, "-o", tmp_path / "there", *words).ok()
        meditune("evaluate", run, "-o", tmp_path / "here", *words).ok()
        refused = meditune("evaluate", run, "-o", tmp_path / "there", *words)
        refused.refused(1, "on the server at http://127.0.0.1", "not in Meditune's own process")
    kinds = ("decision", "likelihood", "answer")
    here, there = (
        {kind: read_rows(tmp_path / side / "predictions" / f"model-{kind}.jsonl") for kind in kinds}
        for side in ("here", "there")
    )
    assert there["answer"] == here["answer"]
    for ours, theirs in zip(here["likelihood"], there["likelihood"], strict=True):
        assert theirs == ours | {"nll": pytest.approx(ours["nll"], abs=1e-3)}
    for ours, theirs in zip(here["decision"], there["decision"], strict=True):
        assert theirs["prediction"] == ours["prediction"]
        # A server returns log-probabilities, which differ from logits by a constant.
        ours, theirs = (row["logits"] for row in (ours, theirs))
        assert theirs["yes"] - theirs["no"] == pytest.approx(ours["yes"] - ours["no"], abs=1e-3)
    assert json.loads((tmp_path / "there" / "evaluation.json").read_text(encoding="utf-8"))["url"] == url


def test_a_server_that_is_away_is_said(tmp_path):
    with bench(tmp_path) as place:
        words = ["--url", "http://127.0.0.1:9/v1", "-o", tmp_path / "no", *place.settings()]
        meditune("evaluate", place.base, *words).refused(4, "No server answers at http://127.0.0.1:9/v1")
        meditune("evaluate", "api:other", *words).refused(4, "api:other must be a run or a model on this machine")
