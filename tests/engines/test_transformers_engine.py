"""The plain engine: what is answered doesn't depend on what else runs, and everything a job asks for is done."""

import json
import queue
import threading
import time

import pytest
import torch

from meditune.engines.engine import EngineLoad, GenerationRequest
from meditune.engines.transformers_engine import TransformersEngine
from meditune.errors import ModelError
from meditune.models.generation import GreedyDecoder
from meditune.models.inference import inference
from tests import tiny
from tests.engines.test_engines import ask, collect, text, together, tokens
from tests.waiting import until

MORE = 24


@pytest.fixture
def opened(request):
    """An engine that is closed after the test; its architecture may be a parameter."""
    engine = TransformersEngine(tiny.sharpened(getattr(request, "param", "llama")), concurrency=4)
    yield engine
    engine.close()


def prompts() -> list[list[int]]:
    """Seven texts of 5 to 125 tokens; each second one begins like the one before."""
    torch.manual_seed(5)
    texts = [torch.randint(2, 500, (5 + 20 * number,)).tolist() for number in range(7)]
    return [texts[number - 1][:-1] + text[:9] if number % 2 else text for number, text in enumerate(texts)]


def bare(said: str) -> str:
    return said.replace("\ufffd", "")


def expected(loaded, texts: list[list[int]]) -> list[list[int]]:
    with inference(loaded.model):
        found = dict(GreedyDecoder(loaded.model, texts, MORE, [1], 1, 1).texts())
    return [found[number] for number in range(len(texts))]


@pytest.mark.parametrize("opened", tiny.ARCHITECTURES, indirect=True)
def test_answers_together_are_those_of_each_alone_and_again_from_what_was_read(opened):
    texts = prompts()
    right = expected(opened.loaded, texts)
    for _ in range(2):
        found = together(opened, [GenerationRequest(prompt, MORE) for prompt in texts])
        assert [tokens(pieces) for pieces in found] == right
        spoken = [opened.tokenizer.decode(ids, skip_special_tokens=True) for ids in right]
        # A tiny model writes half characters, some of which belong to the prompt's.
        assert [bare(text(pieces)) for pieces in found] == list(map(bare, spoken))
        assert {pieces[-1].finish for pieces in found} <= {"stop", "length"}


def test_a_beginning_that_was_read_is_not_read_again(opened):
    torch.manual_seed(1)
    shared = torch.randint(2, 500, (300,)).tolist()
    read = []
    embedding = opened.loaded.model.get_input_embeddings()
    hook = embedding.register_forward_pre_hook(lambda _, inputs: read.append(inputs[0].numel()))
    # The two that begin alike come at the same time.
    together(opened, [GenerationRequest([*shared, 7, 8], 1), GenerationRequest([*shared, 9], 1)])
    ask(opened, GenerationRequest([*shared, 10, 11, 12], 1))
    hook.remove()
    assert sum(read) < 330


def test_long_prompts_are_read_in_pieces_and_answered_the_same(opened):
    torch.manual_seed(2)
    loaded = tiny.sharpened()
    loaded.model.config.max_position_embeddings = 4096
    text_of = torch.randint(2, 500, (2500,)).tolist()
    engine = TransformersEngine(loaded)
    passes = []
    hook = loaded.model.get_input_embeddings().register_forward_pre_hook(lambda _, inputs: passes.append(inputs[0]))
    found = tokens(ask(engine, GenerationRequest(text_of, 5)))
    hook.remove()
    engine.close()
    assert max(ids.numel() for ids in passes) <= 1024
    with inference(loaded.model):
        logits = loaded.model(torch.tensor([text_of])).logits[0, -1]
    assert found[0] == int(logits.argmax())


def test_chance_is_the_seed_s_alone(opened):
    prompt = prompts()[3]
    job = GenerationRequest(prompt, MORE, temperature=1.0, top_p=0.9, seed=7)
    alone = tokens(ask(opened, job))
    assert tokens(together(opened, [GenerationRequest(prompts()[5], MORE), job])[1]) == alone
    assert tokens(ask(opened, GenerationRequest(prompt, MORE, temperature=1.0, seed=8))) != alone
    assert tokens(ask(opened, GenerationRequest(prompt, MORE, temperature=1.0, top_p=1e-6, seed=8))) == tokens(
        ask(opened, GenerationRequest(prompt, MORE))
    )


def test_an_answer_is_one_of_the_texts_it_may_be(opened):
    words = (" yes", " no", " not at all", " maybe")
    said = {text(ask(opened, GenerationRequest(prompt, 20, choices=words))) for prompt in prompts()}
    assert said <= set(words)
    pieces = ask(opened, GenerationRequest(prompts()[0], 20, temperature=1.0, choices=words))
    assert (text(pieces) in words, pieces[-1].finish) == (True, "stop")


def test_likelihoods_are_those_of_the_model(opened):
    prompt = prompts()[2]
    pieces = ask(opened, GenerationRequest(prompt, 4, logprobs=3))
    likely = [one for piece in pieces for one in piece.likely]
    assert [one.token for one in likely] == tokens(pieces)
    with torch.inference_mode():
        logprobs = opened.loaded.model(torch.tensor([prompt])).logits[0, -1].log_softmax(dim=-1)
    best, ids = logprobs.topk(3)
    assert likely[0].logprob == pytest.approx(float(best[0]), abs=1e-4)
    assert list(likely[0].others) == ids.tolist()

    scored = opened.score(prompt, [tokens(pieces), [], [9, 9]])
    assert [one.logprob for one in scored[0]] == pytest.approx([one.logprob for one in likely], abs=1e-4)
    assert (scored[1], [one.token for one in scored[2]]) == ([], [9, 9])
    assert scored[0][0].others.keys() >= likely[0].others.keys()


def test_texts_are_scored_while_answers_are_written(opened):
    pieces: queue.Queue = queue.Queue()
    opened.start(GenerationRequest(prompts()[6], 200), pieces.put)
    alone = opened.score(prompts()[1], [[5, 6, 7]])
    assert alone[0][0].logprob < 0
    collect(pieces)


def test_who_cancels_gets_a_last_piece_and_nobody_else_does(opened):
    pieces: queue.Queue = queue.Queue()
    others: queue.Queue = queue.Queue()
    waiting: queue.Queue = queue.Queue()
    # Otherwise a busy machine could finish the answers before they are cancelled.
    slowed = opened.loaded.model.get_input_embeddings().register_forward_pre_hook(lambda *_: time.sleep(0.02))
    running = opened.start(GenerationRequest(prompts()[0], 800), pieces.put)
    for prompt in prompts()[1:4]:
        opened.start(GenerationRequest(prompt, 800), others.put)
    queued = opened.start(GenerationRequest(prompts()[4], 800), waiting.put)
    until(lambda: opened.load() == EngineLoad(4, 1))
    queued.cancel()
    assert [piece.finish for piece in collect(waiting)] == ["cancelled"]
    running.cancel()
    assert collect(pieces)[-1].finish == "cancelled"
    running.cancel()
    slowed.remove()
    assert collect(others)[-1].finish in {"stop", "length"}


def test_a_stop_text_ends_the_answer(opened):
    prompt = prompts()[3]
    whole = text(ask(opened, GenerationRequest(prompt, MORE)))
    stop = whole[9:12]
    pieces = ask(opened, GenerationRequest(prompt, MORE, stop=(stop,)))
    assert (text(pieces), pieces[-1].finish) == (whole[: whole.index(stop)], "stop")


def test_closing_cancels_what_runs_and_what_waits():
    before = set(threading.enumerate())
    engine = TransformersEngine(tiny.sharpened(), concurrency=1)
    running, waiting = queue.Queue(), queue.Queue()
    engine.start(GenerationRequest(prompts()[0], 900), running.put)
    engine.start(GenerationRequest(prompts()[1], 900), waiting.put)
    running.get(timeout=60)
    engine.close()
    assert collect(running)[-1].finish == collect(waiting)[-1].finish == "cancelled"
    with pytest.raises(ModelError, match="closed"):
        engine.start(GenerationRequest(prompts()[0], 1), running.put)
    assert "meditune-engine" not in {thread.name for thread in set(threading.enumerate()) - before}


def test_a_model_that_breaks_off_is_said_and_the_engine_goes_on():
    loaded = tiny.sharpened()
    with torch.no_grad():
        loaded.model.get_input_embeddings().weight[7] = float("nan")
    engine = TransformersEngine(loaded)
    broken, sound = together(engine, [GenerationRequest([7, 5, 6], 3), GenerationRequest([5, 6], 3)])
    engine.close()
    assert isinstance(broken[-1].error, ModelError)
    assert len(tokens(sound)) == 3


def test_a_prompt_without_finite_logits_spoils_no_later_answer():
    loaded = tiny.sharpened()
    with torch.no_grad():
        loaded.model.get_input_embeddings().weight[7] = float("nan")
    engine, running = TransformersEngine(loaded), queue.Queue()
    engine.start(GenerationRequest(prompts()[0], 900, temperature=1.5, seed=3), running.put)
    running.get(timeout=60)
    assert isinstance(ask(engine, GenerationRequest([7] * 60, 5))[-1].error, ModelError)
    assert len(tokens(ask(engine, GenerationRequest([20, 30, 40], 6)))) == 6
    until(lambda: engine.load() == EngineLoad(1, 0))
    assert engine.prefixes.longest([7] * 61) == (0, [])
    engine.close()


def test_a_prompt_that_cant_be_read_ends_its_own_answer_alone(opened, monkeypatch):
    def fails(_):
        raise RuntimeError("no memory")

    running: queue.Queue = queue.Queue()
    opened.start(GenerationRequest(prompts()[0], 200, temperature=1.5, seed=3), running.put)
    running.get(timeout=60)
    with monkeypatch.context() as patch:
        patch.setattr(opened.decoder, "read", fails)
        assert "no memory" in str(ask(opened, GenerationRequest(prompts()[1], 5))[-1].error)
    assert ask(opened, GenerationRequest(prompts()[1], 5))[-1].error is None
    assert collect(running)[-1].error is None


def test_an_answer_is_json_of_its_schema_whatever_runs_beside_it(opened):
    schema = {
        "type": "object",
        "properties": {"a": {"enum": [1, 2]}, "b": {"type": "array", "items": {"type": "boolean"}, "maxItems": 2}},
        "required": ["a", "b"],
        "additionalProperties": False,
    }
    held = [
        GenerationRequest(prompt, 60, json_schema=schema, temperature=1.5 * (number % 2), seed=4)
        for number, prompt in enumerate(prompts())
    ]
    free = GenerationRequest(prompts()[5], MORE)
    found = together(opened, [*held, free])
    for pieces in found[:-1]:
        said = json.loads(text(pieces))
        assert pieces[-1].finish == "stop"
        assert said["a"] in (1, 2)
        assert len(said["b"]) <= 2
        assert text(pieces) == json.dumps(said)
    assert tokens(found[-1]) == tokens(ask(opened, free))


RECURSIVE = {"$defs": {"a": {"type": "array", "items": {"$ref": "#/$defs/a"}, "minItems": 1}}, "$ref": "#/$defs/a"}
MEMBERS = [{"type": "object", "properties": {f"p{number}": {"type": "integer"}}} for number in range(300)]
UNION = {"type": "object", "properties": {"a": {"anyOf": MEMBERS}}, "required": ["a"], "additionalProperties": False}


@pytest.mark.parametrize("schema", [RECURSIVE, UNION], ids=["recursive", "union"])
def test_a_schema_that_turns_out_too_complex_ends_its_own_answer_alone(opened, schema):
    free = [GenerationRequest(prompt, 200) for prompt in prompts()[:2]]
    found = together(opened, [*free, GenerationRequest(prompts()[2], 60, json_schema=schema)])
    assert [pieces[-1].error for pieces in found[:-1]] == [None, None]
    assert [tokens(pieces) for pieces in found[:-1]] == [tokens(ask(opened, job)) for job in free]
    assert "JSON schema is too complex" in str(found[-1][-1].error)


def test_json_may_be_cut_by_the_length_that_was_asked_for(opened):
    schema = {"type": "array", "items": {"enum": [1]}, "minItems": 20}
    pieces = ask(opened, GenerationRequest(prompts()[2], 3, json_schema=schema))
    assert (len(tokens(pieces)), pieces[-1].finish) == (3, "length")
    assert text(pieces).startswith("[")


@pytest.mark.parametrize(
    ("job", "said"),
    [
        (GenerationRequest([], 5), "prompt is empty"),
        (GenerationRequest([5] * 1000, 40), "16 more than the 1,024"),
        (GenerationRequest([5, 500], 5), "token 500, but this model knows only the tokens below 500"),
        (GenerationRequest([5], 0), "at least 1 token"),
        (GenerationRequest([5], 5, json_schema={"type": "odd"}), "JSON schema can't be enforced"),
        (GenerationRequest([5], 5, json_schema={"type": "array", "uniqueItems": True}), "uniqueItems"),
        (GenerationRequest([5], 5, json_schema={"enum": ["é" * 65_536]}), "JSON schema has 65,550 characters"),
        (GenerationRequest([5], 5, choices=("",)), "empty"),
        (GenerationRequest([5], 5, top_p=0.0), "top_p"),
        (GenerationRequest([5], 5, temperature=-1), "temperature"),
    ],
)
def test_what_cannot_be_done_is_refused_at_once(opened, job, said):
    with pytest.raises(ModelError, match=said):
        opened.start(job, print)


def test_scoring_needs_a_prompt_and_room(opened):
    with pytest.raises(ModelError, match="at least one prompt token"):
        opened.score([], [[5]])
    with pytest.raises(ModelError, match="knows only the tokens below 500"):
        opened.score([5], [[6], [500]])
    with pytest.raises(ModelError, match="77 more"):
        opened.score([5] * 1001, [[5] * 100])


def test_an_engine_that_can_not_go_on_says_so_to_all_and_is_not_waited_for(opened, monkeypatch):
    going, stuck = threading.Event(), threading.Event()

    def fails(*_):
        stuck.set()
        going.wait(60)
        raise RuntimeError("no memory")

    monkeypatch.setattr(opened.decoder, "step", fails)
    monkeypatch.setattr(opened, "_decoder", fails)
    running = [queue.Queue() for _ in range(6)]
    for prompt, pieces in zip(prompts(), running, strict=False):
        opened.start(GenerationRequest(prompt, MORE), pieces.put)
    assert stuck.wait(60)
    scored: queue.Queue = queue.Queue()

    def score():
        try:
            opened.score([5, 6], [[7]])
        except ModelError as error:
            scored.put(error)

    threading.Thread(target=score, daemon=True).start()
    until(lambda: opened._calls)
    going.set()
    errors = [collect(pieces)[-1].error for pieces in running]
    assert "no memory" in str(errors[0])
    assert isinstance(errors[-1], ModelError)
    assert "engine failed" in str(errors[-1])
    assert "engine failed" in str(scored.get(timeout=60))
    assert opened.load() == EngineLoad(0, 0)
    with pytest.raises(ModelError, match="engine failed"):
        opened.start(GenerationRequest([5], 5), print)
    with pytest.raises(ModelError, match="engine failed"):
        opened.score([5], [[6]])
