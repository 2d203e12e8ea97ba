"""Exported models answer as before, and everything a job asks for is done or refused."""

import json
import math
import queue
import random
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch
from transformers import AutoTokenizer

from meditune.assistant.writers import ask_model
from meditune.engines import llamacpp_engine
from meditune.engines import open_engine as open_engine_module
from meditune.engines.engine import GenerationRequest
from meditune.engines.open_engine import choose_export, exported_at, measure_exports, open_engine
from meditune.engines.openvino_engine import Scorer
from meditune.engines.tokenizer import PlainTokenizer
from meditune.errors import EngineError, ModelError
from meditune.export import verify
from meditune.export.export import export
from meditune.export.gguf import file_name, write_gguf
from meditune.files import read_json, write_json
from meditune.hardware import used_gb
from meditune.serve.startup import version_of
from tests import tiny
from tests.commands import meditune
from tests.engines.test_engines import PATIENCE, ask, collect, text, together, tokens
from tests.waiting import output_of, until

MORE = 24


NO_TORCH = [("llama", "openvino"), ("llama", "gguf")]
# The ONNX engine chooses tokens with torch.
EACH_KIND = [*NO_TORCH, ("llama", "onnx")]
# pytest makes each export once only where those that fewer tests use come first.
KINDS = [*EACH_KIND, ("gemma3", "openvino"), ("qwen2", "openvino"), ("qwen2", "gguf"), ("gemma3", "onnx")]
PACKAGES = {"openvino": "openvino_genai", "gguf": "xllamacpp", "onnx": "onnx"}


@pytest.fixture(scope="module", params=KINDS, ids="-".join)
def folder(request, tmp_path_factory):
    """A model with its export; windows are shorter than some prompts."""
    architecture, kind = request.param
    place = tmp_path_factory.mktemp(f"{architecture}-{kind}")
    exported(place, architecture, kind)
    return place


def exported(place, architecture, *kinds):
    """Save a model whose likeliest tokens are no near ties, and export it."""
    for kind in kinds:
        pytest.importorskip(PACKAGES[kind])
    made, tokenizer = tiny.model(architecture), tiny.tokenizer(bos=architecture == "gemma3")
    torch.manual_seed(6)
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.ndim == 2:
                parameter += 0.3 * torch.randn_like(parameter)
        # Random weights would write halves of characters, which llama.cpp doesn't tell.
        for number in range(500):
            if not tokenizer.decode([number]).isascii():
                made.get_input_embeddings().weight[number] = 0
                made.get_output_embeddings().weight[number] = 0
    made.save_pretrained(place)
    tokenizer.save_pretrained(place)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(verify, "ANSWERS", 1)
        patch.setattr(verify, "COUNT", 10)
        # Rounding changes random weights more than those that learnt something.
        patch.setattr(verify, "MAX_PERPLEXITY_RISE", 1.0)
        patch.setattr(verify, "AGREEMENT", 0.7)
        patch.setattr(verify, "WRITTEN_ITEMS", 4)
        for kind in kinds:
            assert export(str(place), kind)["drift"]["items"] == 10


@pytest.fixture(scope="module")
def engine(folder):
    # An ONNX model is opened where it is named only.
    onnx = folder / "export" / "onnx"
    opened = open_engine(str(onnx if onnx.is_dir() else folder))
    yield opened
    opened.close()


def prompts() -> list[list[int]]:
    torch.manual_seed(5)
    return [torch.randint(2, 500, (5 + 40 * number,)).tolist() for number in range(5)]


def test_a_model_s_own_export_is_what_opens(engine):
    assert engine.name in {"openvino int8", "llamacpp Q8_0", "onnx int8"}
    assert engine.context_tokens == 1024


def test_an_export_can_be_asked_like_its_model(folder):
    (export_folder,) = [each for each in (folder / "export").iterdir() if each.name in PACKAGES]
    asked = meditune("ask", export_folder, "Does walking help?", "--max-new-tokens", 4, "--json").ok()
    answer, before = json.loads(asked.out), ask_model(str(folder), "Does walking help?", [], 4)
    assert answer["text"]
    assert answer["probabilities"] == pytest.approx(before.probabilities, abs=0.25)


def test_texts_are_as_likely_as_before(engine, folder):
    original = open_engine(str(folder), "transformers")
    texts = [[5, 6, 7, 8], [9], [], [10, 11]]
    for prompt in prompts():
        before, after = original.score(prompt, texts), engine.score(prompt, texts)
        for one, other in zip(before, after, strict=True):
            assert [x.token for x in one] == [x.token for x in other]
            assert [x.logprob for x in other] == pytest.approx([x.logprob for x in one], abs=1.5)
            assert not one or abs(sum(x.logprob - y.logprob for x, y in zip(one, other, strict=True))) < 0.5 * len(one)
    original.close()


def test_answers_alone_and_together_are_what_the_original_would_write(engine, folder):
    alone = [ask(engine, GenerationRequest(prompt, MORE)) for prompt in prompts()]
    same = together(engine, [GenerationRequest(prompt, MORE) for prompt in prompts()])
    check_likely(folder, [*prompts(), *prompts()], [*alone, *same])


def test_follow_ups_that_arrive_together_get_the_answers_of_the_original(engine, folder):
    for first in prompts():
        conversation = [*first, *tokens(ask(engine, GenerationRequest(first, 6)))]
        follow_ups = [[*conversation, *more] for more in ([20, 21, 22, 23], [30, 31], [40, 41, 42, 43, 44, 45])]
        answers = together(engine, [GenerationRequest(prompt, MORE) for prompt in follow_ups])
        check_likely(folder, follow_ups, answers)


def test_follow_ups_that_fill_their_cache_blocks_exactly_get_the_answers_of_the_original(engine, folder):
    torch.manual_seed(6)
    for _ in range(3):
        first = torch.randint(2, 500, (52,)).tolist()
        conversation = [*first, *tokens(ask(engine, GenerationRequest(first, 6)))]
        follow_ups = [[*conversation, *torch.randint(2, 500, (64 - len(conversation),)).tolist()] for _ in range(3)]
        check_likely(folder, follow_ups, together(engine, [GenerationRequest(prompt, MORE) for prompt in follow_ups]))


def test_prompts_that_share_tokens_with_a_running_answer_get_the_answers_of_the_original(engine, folder):
    torch.manual_seed(9)
    for length in (52, 64):
        first = torch.randint(2, 500, (length,)).tolist()
        running: queue.Queue = queue.Queue()
        engine.start(GenerationRequest(first, 200), running.put)
        written: list[int] = []
        ended = False
        while len(written) < 8 and not ended:
            piece = running.get(timeout=PATIENCE)
            written += piece.tokens
            ended = piece.finish is not None
        others = torch.randint(2, 500, (9,)).tolist()
        asked = [first, first[:-5], [*first, *written[:5]], [*first, *written, *others], [*first[:-7], *others]]
        check_likely(folder, asked, together(engine, [GenerationRequest(prompt, MORE) for prompt in asked]))
        if not ended:
            check_likely(folder, [[*first, *written]], [collect(running)])


def check_likely(folder, asked, answers):
    """Each token is nearly as likely as the likeliest; with a wrong window or cache they are off by units."""
    original = open_engine(str(folder), "transformers")
    for prompt, pieces in zip(asked, answers, strict=True):
        likely = original.score(prompt, [tokens(pieces)])[0]
        short = [max(one.others.values()) - one.logprob for one in likely]
        assert not short or sum(short) / len(short) < 0.5
    original.close()


def test_an_open_engine_answers_although_its_folder_was_moved(engine, folder, tmp_path):
    (export_folder,) = [each for each in (folder / "export").iterdir() if each.name in PACKAGES]
    place = tmp_path / export_folder.name
    shutil.copytree(export_folder, place)
    opened = open_engine(str(place))
    place.rename(tmp_path / "moved")
    request = GenerationRequest(prompts()[1], MORE)
    # A cached prefix may change later near ties.
    written = [tokens(ask(each, request))[:8] for each in (opened, opened, engine)]
    assert written[0] == written[1] == written[2]
    opened.close()


def test_an_answer_is_one_of_the_texts_it_may_be(engine):
    words = (" yes", " no", " not at all", " maybe")
    for prompt in prompts():
        pieces = ask(engine, GenerationRequest(prompt, 20, choices=words))
        assert (text(pieces) in words, pieces[-1].finish) == (True, "stop")


def test_a_text_that_is_longer_than_the_answer_may_be_is_cut_and_ends_once(engine):
    pieces: queue.Queue = queue.Queue()
    engine.start(GenerationRequest(prompts()[1], 1, choices=(" not at all", " not ever so")), pieces.put)
    collected = collect(pieces)
    ask(engine, GenerationRequest(prompts()[1], 2))
    assert (len(tokens(collected)), collected[-1].finish) == (1, "length")
    assert pieces.empty()


def test_an_answer_is_json_of_its_schema(engine):
    schema = {"type": "object", "properties": {"a": {"enum": [1, 2]}}, "required": ["a"], "additionalProperties": False}
    for prompt in prompts()[1:4]:
        pieces = ask(engine, GenerationRequest(prompt, 60, json_schema=schema))
        if pieces[-1].finish == "stop":
            assert json.loads(text(pieces))["a"] in (1, 2)
        else:
            # White space may stand between any two tokens of JSON, and a model of random weights may go on with it.
            assert text(pieces).strip().startswith("{")
            assert set(text(pieces)) <= set('{} \t\n\r"a:12')


def test_chance_by_a_seed_comes_again(engine):
    job = GenerationRequest(prompts()[2], MORE, temperature=1.0, seed=5)
    # llama.cpp rounds differently if more or less of the prompt is in its cache, and a draw may then fall on the other
    # side of a boundary between two tokens. Without the seed, no two of these long answers would be equal.
    answers = {tuple(tokens(ask(engine, job))) for _ in range(4)}
    assert len(answers) < 4
    assert tuple(tokens(ask(engine, GenerationRequest(prompts()[2], MORE, temperature=1.0, seed=6)))) not in answers


def test_a_stop_text_ends_the_answer_and_cancelling_ends_it_too(engine):
    whole = text(ask(engine, GenerationRequest(prompts()[3], MORE)))
    pieces = ask(engine, GenerationRequest(prompts()[3], MORE, stop=(whole[9:12],)))
    assert (text(pieces), pieces[-1].finish) == (whole[: whole.index(whole[9:12])], "stop")
    waiting: queue.Queue = queue.Queue()
    running = engine.start(GenerationRequest([*prompts()[0], 7], 900), waiting.put)
    waiting.get(timeout=60)
    running.cancel()
    assert collect(waiting)[-1].finish in {"cancelled", "stop"}
    assert engine.load().running == 0


def test_likelihoods_of_what_is_written_are_told_or_refused(engine):
    if engine.name.startswith("openvino"):
        with pytest.raises(ModelError, match="--engine transformers"):
            engine.start(GenerationRequest([5], 5, logprobs=5), print)
    else:
        assert len(ask(engine, GenerationRequest(prompts()[1], 3, logprobs=5))[0].likely[0].others) == 5
    one = ask(engine, GenerationRequest(prompts()[1], 3, logprobs=1))[0].likely[0]
    assert one.logprob == pytest.approx(engine.score(prompts()[1], [[one.token]])[0][0].logprob, abs=0.1)


@pytest.mark.parametrize("folder", NO_TORCH, ids="-".join, indirect=True)
def test_it_needs_no_torch(folder):
    program = (
        "import sys; from meditune.engines.open_engine import open_engine; "
        f"engine = open_engine({str(folder)!r}); engine.score([5, 6], [[7]]); engine.close(); "
        "sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    )
    output_of(sys.executable, "-c", program)


@pytest.mark.parametrize("folder", EACH_KIND, ids="-".join, indirect=True)
@pytest.mark.parametrize("closed", [True, False], ids=["closed", "open"])
def test_ctrl_c_is_heard_whatever_became_of_the_engine(folder, closed):
    program = (
        "import gc, os, signal; from meditune.engines.open_engine import open_engine\n"
        # What a shell started in the background ignores it.
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        f"engine = open_engine({str(folder)!r})\n"
        f"closed = {closed}\n"
        "if closed: engine.close(); del engine; gc.collect()\n"
        "else: engine.score([5, 6], [[7]])\n"
        "try: os.kill(os.getpid(), signal.SIGINT); signal.sigtimedwait([], 10)\n"
        "except KeyboardInterrupt: print('heard', flush=True)\n"
        "if not closed: engine.close()\n"
    )
    done = subprocess.run([sys.executable, "-c", program], check=False, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "heard\n"), done.stderr


def test_its_tokenizer_reads_as_transformers_does(folder):
    # Not the tokenizer that was saved: transformers adds a token for padding when it opens a Qwen2.
    ours, theirs = (make(folder / "export" / "merged") for make in (PlainTokenizer, AutoTokenizer.from_pretrained))
    for said in ("Does it help? β-Blocker 😀", "</s> is text", "<s>a"):
        for plain in (True, False):
            ids = theirs(said, split_special_tokens=plain)["input_ids"]
            assert ours(said, split_special_tokens=plain)["input_ids"] == ids
            assert ours.decode(ids, skip_special_tokens=True) == theirs.decode(ids, skip_special_tokens=True)
    assert (ours.eos_token_id, len(ours)) == (theirs.eos_token_id, len(theirs))
    assert sorted(ours.all_special_tokens) == sorted(theirs.all_special_tokens)


def test_auto_opens_the_export_that_a_server_has_measured_as_fastest(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("MEDITUNE_CACHE", str(tmp_path / "cache"))
    place = tmp_path / "run"
    exported(place, "llama", *(kind for _, kind in NO_TORCH))
    for kind in ("openvino", "gguf"):
        deviates(place / "export" / kind)
    caplog.set_level("INFO", "meditune")
    assert exported_at(place, "auto") == place / "export" / "openvino"
    measure_exports(place, 4)
    [file] = (tmp_path / "cache" / "engines").iterdir()
    record = read_json(file)
    assert set(record["tokens_per_s"]) == {"openvino", "gguf"}
    assert min(record["tokens_per_s"].values()) > 0
    assert str(file) in caplog.text

    for fastest in ("gguf", "openvino"):
        write_json(file, record | {"tokens_per_s": {"openvino": 5.0, "gguf": 5.0, fastest: 9.0}})
        measure_exports(place, 4)
        assert exported_at(place, "auto", concurrency=4) == place / "export" / fastest
        assert read_json(file)["tokens_per_s"][fastest] == 9.0, "stored speeds aren't measured again"
        assert exported_at(place, "llamacpp") == place / "export" / "gguf", "a named engine is opened in any case"

    versions = {version_of(place, engine, 4) for engine in ("auto", "openvino", "llamacpp", "transformers")}
    assert len(versions) == 3, "auto opens the OpenVINO export"

    coarse = place / "export" / "gguf-Q4_K_M"
    shutil.copytree(place / "export" / "gguf", coarse)
    for rise, same, candidates in (
        (1.5, 1.0, {"openvino", "gguf"}),
        (1.01, 0.94, {"openvino", "gguf"}),
        (1.01, 0.95, {"openvino", "gguf", "gguf-Q4_K_M"}),
    ):
        deviates(coarse, rise, same)
        shutil.rmtree(file.parent)
        measure_exports(place, 4)
        [again] = file.parent.iterdir()
        assert set(read_json(again)["tokens_per_s"]) == candidates


def deviates(folder, rise=1.0, same=1.0):
    """Note in an export's folder how much it deviates from the original."""
    found = read_json(folder / "export.json")
    drift = {**found["drift"], "perplexity": [4.0, 4.0 * rise], "agreement": same}
    write_json(folder / "export.json", {**found, "drift": drift})


def stand_in(place, name, engine, rise=1.0, same=1.0):
    """Make the folder of an export, without a model."""
    folder = place / "export" / name
    folder.mkdir(parents=True)
    facts = {"kind": name, "engine": engine, "weights": "int8", "stop_tokens": [1], "context_tokens": 9}
    write_json(folder / "export.json", facts | {"sha256": {}, "made_from": {"sha256": {}}, "drift": {"items": 1}})
    deviates(folder, rise, same)
    return folder


def test_speeds_are_measured_for_the_number_of_requests_that_a_server_answers_at_once(tmp_path, monkeypatch):
    monkeypatch.setenv("MEDITUNE_CACHE", str(tmp_path / "cache"))
    made = {name: stand_in(tmp_path, name, engine) for name, engine in (("openvino", "openvino"), ("gguf", "llamacpp"))}
    for name, folder in made.items():
        (folder / "config.json").write_text(name)
    measured = []

    def speed(folder, requests):
        measured.append((folder.name, requests))
        return float((folder.name, requests) in {("gguf", 1), ("openvino", 8)})

    monkeypatch.setattr(open_engine_module, "_tokens_per_s", speed)
    monkeypatch.setattr(open_engine_module, "_opened", lambda folder, *_: folder)
    for concurrency in (16, 1, 8, 1):
        measure_exports(tmp_path, concurrency)
    assert measured == [(name, requests) for requests in (8, 1) for name in made]
    for concurrency, fastest in ((1, "gguf"), (8, "openvino"), (16, "openvino")):
        assert open_engine(str(tmp_path), concurrency=concurrency) == made[fastest]
    versions = [version_of(tmp_path, *words) for words in (("auto", 1), ("llamacpp", 1), ("auto", 16))]
    assert versions[0] == versions[1] != versions[2]


def test_auto_says_in_every_case_which_engine_it_chooses_and_why(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("MEDITUNE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("meditune.engines.open_engine.is_installed", lambda name: name != "llamacpp")
    caplog.set_level("INFO", "meditune")
    place = tmp_path / "run"

    def said() -> str:
        caplog.clear()
        measure_exports(place, 4)
        return caplog.messages[-1]

    assert said() == "Engine: transformers, because there is no export."
    stand_in(place, "gguf", "llamacpp")
    without = said()
    assert without.startswith("Engine: transformers, because none of the exports can be used; gguf needs packages that")
    assert "[llamacpp]" in without
    stand_in(place, "onnx", "onnx")
    folder = stand_in(place, "openvino", "openvino")
    chosen = f"Engine: openvino opens {folder}, because "
    assert said().startswith(f"{chosen}it is the only suitable export; gguf needs packages")
    assert said().endswith("; onnx needs --engine onnx.")
    stand_in(place, "openvino-int4", "openvino", 1.04, 0.9)
    assert (
        "; openvino-int4 deviates more (perplexity rose by 4.0%, at most 1% is allowed; 90% of the decisions are the "
        "same, 95% are required)" in said()
    )
    deviates(folder, 1.015)
    assert said().startswith(
        f"{chosen}no export is close enough to the original model, and it is the closest one (perplexity rose by 1.5%"
    )
    checked = meditune("serve", place, "--check", "--store", tmp_path / "store")
    assert checked.out.splitlines()[-1] == said()
    deviates(folder)
    deviates(place / "export" / "openvino-int4", 1.0, 0.949)
    assert "; openvino-int4 deviates more (94.9% of the decisions are the same, 95% are required)" in said()
    deviates(place / "export" / "openvino-int4", math.nan)
    assert "; openvino-int4 deviates more (its perplexity isn't a number)" in said()
    monkeypatch.setattr("meditune.engines.open_engine.why_outdated", lambda *_: "")
    assert str(choose_export(place, "openvino")) == f"{chosen}--engine openvino was chosen."
    for other in ("gguf", "onnx", "openvino-int4"):
        shutil.rmtree(place / "export" / other)
    deviates(folder)
    assert said() == f"{chosen}it is the only export."
    place = folder
    assert said() == f"{chosen}this is an exported model."


@pytest.fixture
def llamacpp(tmp_path, monkeypatch):
    """A function that opens a tiny Llama with these changes in llama.cpp."""
    pytest.importorskip("xllamacpp")
    monkeypatch.setattr(llamacpp_engine, "CACHE_TOKENS", 1024)
    opened = []

    def opens(**changes):
        tiny.model("llama", **changes).save_pretrained(tmp_path)
        tiny.tokenizer().save_pretrained(tmp_path)
        write_gguf(tmp_path, tmp_path)
        context = changes.get("max_position_embeddings", 1024)
        facts = {"kind": "gguf", "engine": "llamacpp", "weights": "Q8_0", "stop_tokens": [1], "context_tokens": context}
        write_json(tmp_path / "export.json", facts | {"sha256": {file_name("Q8_0"): ""}, "made_from": {}})
        opened.append(llamacpp_engine.LlamacppEngine(tmp_path, concurrency=4))
        return opened[-1]

    yield opens
    for engine in opened:
        if not engine.failure():
            engine.close()


def test_a_llamacpp_server_doesnt_grow_with_each_new_prompt(llamacpp):
    engine = llamacpp(num_key_value_heads=4, head_dim=256)
    chance = random.Random(1)
    used = []
    for _ in range(24):
        ask(engine, GenerationRequest([chance.randrange(2, 490) for _ in range(400)], 2))
        used.append(used_gb())
    assert used[-1] - used[3] < 0.03, "the keys and values of 20 prompts take 0.07 GB"


@pytest.mark.parametrize("schema", [{"type": "odd"}, {"type": "array", "uniqueItems": True}], ids=["type", "unique"])
def test_llamacpp_refuses_a_schema_that_it_would_ignore(llamacpp, schema):
    engine = llamacpp()
    with pytest.raises(ModelError, match="JSON schema can't be enforced"):
        ask(engine, GenerationRequest([20, 30, 40], 5, json_schema=schema))


def test_a_request_that_is_cancelled_while_it_waits_for_memory_isnt_sent(llamacpp, monkeypatch):
    engine = llamacpp()
    sent, chunks = [], queue.Queue()
    monkeypatch.setattr(engine, "_send", lambda *request: sent.append(request))
    with engine._memory(1024):
        running = engine.start(GenerationRequest([5, 6], 8), chunks.put)
        until(lambda: engine._room._waiters)
        running.cancel()
    assert [chunk.finish for chunk in collect(chunks)] == ["cancelled"]
    assert not sent


def test_a_closed_engine_refuses_to_score(llamacpp):
    engine = llamacpp()
    engine.close()
    with pytest.raises(EngineError, match="closed"):
        engine.score([5, 6], [[7]])


@pytest.mark.parametrize("folder", [("gpt2", "openvino")], ids="-".join, indirect=True)
def test_gpt2_whose_configuration_has_names_of_its_own_is_exported_and_opened(engine):
    assert tokens(ask(engine, GenerationRequest(prompts()[1], 3)))


def test_texts_are_scored_without_ending_running_answers(llamacpp):
    engine = llamacpp()
    waiting: queue.Queue = queue.Queue()
    engine.start(GenerationRequest(list(range(20, 120)), 900, temperature=1.5, seed=8), waiting.put)
    waiting.get(timeout=60)
    prompts = [[30 + number * factor % 400 for number in range(600)] for factor in (3, 7)]
    with ThreadPoolExecutor() as threads:
        scored = list(threads.map(lambda prompt: engine.score(prompt, [[5, 6, 7]]), prompts))
    assert [[one.token for one in found[0]] for found in scored] == [[5, 6, 7]] * 2
    assert collect(waiting)[-1].error is None


def test_characters_of_several_tokens_can_be_chosen_and_have_log_probabilities(llamacpp, monkeypatch):
    engine = llamacpp()
    answer = ask(engine, GenerationRequest([20, 30, 40], 20, choices=(" möglich", " é½"), logprobs=1))
    assert text(answer) in (" möglich", " é½")
    # A high logit makes the model write é.
    letter, request = tiny.tokenizer()("é")["input_ids"], llamacpp_engine._request
    bias = {"logit_bias": [[token, 50] for token in letter]}
    monkeypatch.setattr(llamacpp_engine, "_request", lambda each: bias | request(each))
    answer = ask(engine, GenerationRequest([20, 30, 40], 30, temperature=1.0, seed=5, logprobs=2))
    assert "é" in text(answer)
    likely = [one for chunk in answer for one in chunk.likely]
    assert [one.token for one in likely] == tokens(answer)
    scored = engine.score([20, 30, 40], [tokens(answer)])[0]
    assert [one.logprob for one in likely] == pytest.approx([one.logprob for one in scored], abs=0.1)


def test_a_small_top_p_leaves_only_the_likeliest_text(engine):
    words = (" yes", " no", " maybe")
    request = GenerationRequest(prompts()[1], 20, choices=words, temperature=1.0, top_p=0.01)
    certain = text(ask(engine, replace(request, temperature=0.0)))
    # With top_p=1, some of the eight answers would differ.
    assert {text(ask(engine, replace(request, seed=seed))) for seed in range(8)} == {certain}


def test_an_answer_that_ends_at_its_maximum_length_tells_how_much_of_its_prompt_was_cached(llamacpp):
    engine = llamacpp()
    request = GenerationRequest(list(range(20, 200)), 2)
    first, again = ask(engine, request), ask(engine, request)
    assert again[-1].finish == "length"
    assert [sum(chunk.cached for chunk in chunks) for chunks in (first, again)] == [0, 179]


def test_a_context_too_long_for_the_memory_is_shortened(llamacpp, monkeypatch, caplog):
    # The keys and values of a token take 512 bytes.
    monkeypatch.setattr(llamacpp_engine, "memory_gb", lambda: (8.0, 0.01))
    engine = llamacpp(max_position_embeddings=131_072, head_dim=32)
    assert 8000 < engine.context_tokens < 10_000
    assert f"at most {engine.context_tokens:,} tokens together instead of 131,072" in caplog.text
    with pytest.raises(ModelError, match=f"than the {engine.context_tokens:,} that"):
        engine.start(GenerationRequest([5], 20_000), print)


@pytest.mark.parametrize("folder", [("llama", "onnx")], ids="-".join, indirect=True)
def test_only_the_requested_logits_of_a_long_prompt_are_kept(engine):
    prompt = [20 + place % 400 for place in range(300)]
    model = engine.model
    every, some, last = (model.read(prompt, model.nothing, rows)[0] for rows in (300, 150, 1))
    assert [len(each) for each in (every, some, last)] == [300, 150, 1]
    assert torch.allclose(some, every[-150:], atol=1e-4)
    assert torch.allclose(last, every[-1:], atol=1e-4)


@pytest.mark.parametrize("folder", [("llama", "openvino"), ("gemma3", "openvino")], ids="-".join, indirect=True)
def test_many_texts_after_a_long_prompt_are_scored_in_several_passes(folder, monkeypatch):
    scorer, sizes = Scorer(folder / "export" / "openvino"), []
    logits = Scorer._logits

    def counted(self, fed, start, last):
        sizes.append(fed.shape[0] * (start + fed.shape[1]))
        return logits(self, fed, start, last)

    monkeypatch.setattr(Scorer, "_logits", counted)
    prompt = [20 + place % 400 for place in range(900)]
    texts = [[5, 6 + number, 1] for number in range(10)]
    scored = scorer.score(prompt, texts)
    assert sum(sizes) > 9000
    assert max(sizes) <= 4096
    for each, found in zip(texts, scored, strict=True):
        alone = scorer.score(prompt, [each])[0]
        assert [one.logprob for one in found] == pytest.approx([one.logprob for one in alone], abs=0.1)
