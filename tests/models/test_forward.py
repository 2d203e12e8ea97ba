"""The faster product gives what the plain one gives, and lets go of the model afterwards.

Virtual tokens: ours, with shared prompts, padding and a cache, equal peft's own on single rows.

Shared prompts must give what separate rows give, on every architecture.

Remembered lower layers must change nothing but the time.
"""

from dataclasses import replace

import pytest
import torch

from meditune.config.data_options import PromptFormat
from meditune.config.training_options import CPU_TOKENS, LoraSpec, TrainSpec
from meditune.data.example import Example, Passage
from meditune.evaluate.weights_backend import generate_answers
from meditune.models import inference
from meditune.models.adapters import add_lora
from meditune.models.forward import (
    ALIGNED,
    _predict,
    add_prefix,
    add_prompt,
    attention_masks,
    predict,
    skips_padding,
    takes_unpadded,
)
from meditune.models.hidden_state_cache import HiddenStateCache, blocks_of
from meditune.models.inference import BLOCK
from meditune.models.load import LoadedModel
from meditune.models.shared_prefix_batch import PROMPT, by_length, collate, join, rows_of, windows, with_prompt
from meditune.train.dataset import TokenWeights
from meditune.train.trainer import TrainingRows, train
from tests import tiny
from tests.models.simulated_gpu import simulate_gpu

NEEDS_ONEDNN = pytest.mark.skipif(not inference.mkl_is_slow(), reason="MKL is as fast as this processor")


@NEEDS_ONEDNN
def test_onednn_s_product_is_the_same_sum():
    torch.manual_seed(0)
    rows, weight, bias = torch.randn(70, 96), torch.randn(33, 96), torch.randn(33)
    with torch.inference_mode():
        torch.testing.assert_close(inference.matmul(rows, weight, bias), rows @ weight.T + bias)
        many, others = torch.randn(3, 40, 16), torch.randn(3, 50, 16)
        torch.testing.assert_close(inference.matmuls(many, others), many @ others.transpose(1, 2))


@pytest.mark.parametrize("architecture", [*tiny.ARCHITECTURES, *tiny.RECENT])
def test_what_is_read_equals_a_plain_forward_pass(architecture):
    loaded, plain = tiny.loaded(architecture), tiny.loaded(architecture, "sdpa")
    torch.manual_seed(0)
    tokens = torch.randint(0, 500, (2, 2 * BLOCK + 37))
    with torch.no_grad():
        expected = plain.model(tokens).logits
    before = {name: module.forward for name, module in loaded.model.named_modules()}
    with inference.inference(loaded.model):
        found = loaded.model(tokens).logits
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    assert {name: module.forward for name, module in loaded.model.named_modules()} == before


def test_gradients_pass_after_reading():
    loaded = tiny.loaded()
    tokens = torch.randint(0, 500, (1, BLOCK + 20))
    with inference.inference(loaded.model):
        loaded.model(tokens)
    loaded.model(tokens).logits.sum().backward()
    assert all(parameter.grad is not None for parameter in loaded.model.parameters())


def test_fp32_reads_half_as_much_at_once():
    model = tiny.model("llama")
    assert inference.tokens_per_pass(model, 1024) == 512
    assert inference.tokens_per_pass(model.to(torch.bfloat16), 1024) == 1024


def test_on_a_gpu_a_batch_follows_the_free_memory_within_limits(monkeypatch):
    vocabulary = 50_000
    model = tiny.model("llama", vocab_size=vocabulary)
    free = 1_200_000_000
    simulate_gpu(monkeypatch, free)
    logits = 3 * 4 * vocabulary  # of a token: themselves, their copy and the probabilities, in FP32
    assert 0.9 * free / 2 < inference.batch_limit(model) * logits <= free / 2
    assert inference.batch_limit(model, 100) == 100
    simulate_gpu(monkeypatch, 10**13)
    assert inference.batch_limit(model) == inference.GPU_WORK // model.config.hidden_size
    simulate_gpu(monkeypatch, 0)
    assert inference.batch_limit(model) == CPU_TOKENS // 4


@pytest.mark.parametrize("keys", [13, 16])
def test_a_gpu_s_masks_begin_their_rows_where_its_kernels_expect_it(monkeypatch, keys):
    model, sees = tiny.model("llama"), torch.ones(2, keys, keys, dtype=torch.bool).tril()
    places = torch.arange(keys).expand(2, -1)
    plain = attention_masks(model, sees, places, places)
    simulate_gpu(monkeypatch, 10**9)
    mask = attention_masks(model, sees, places, places)
    assert torch.equal(mask, plain)
    assert all(step % ALIGNED == 0 for step in mask.stride()[:-1])


EXAMPLES = [
    Example(
        id=f"e{index}",
        source="test",
        question="Does the drug help with pain" + " in adults" * index + "?",
        context=(
            Passage(text="Patients were given a drug or a placebo. " * (index + 1), label="METHODS"),
            Passage(text="Pain fell by 30 percent in the group with the drug.", label="RESULTS"),
        ),
        answer="The drug helps with pain" + " in adults" * (2 - index) + ".",
        decision="yes",
        group=f"e{index}",
    )
    for index in range(3)
]


def logits_by_task(loaded, share, mixed=True):
    encoder = loaded.encoder(PromptFormat(max_tokens=256, answer_tokens=32))
    encoded = [encoder.supervised(example, task) for example in EXAMPLES for task in ("decision", "answer")]
    rows = rows_of(encoded) if share else [join([item]) for item in encoded]
    found = {}
    with torch.no_grad():
        for indices in by_length(rows, 10_000 if mixed else 1):
            chosen = [rows[index] for index in indices]
            logits = predict(loaded.model, collate(chosen, loaded.pad_id)).logits
            start = 0
            for item in (item for row in chosen for item in row.encoded):
                found[item.id, item.task] = logits[start : start + len(item.target)]
                start += len(item.target)
    return found, rows


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_shared_prompts_and_padding_change_nothing(architecture):
    loaded = tiny.loaded(architecture)
    shared, joined = logits_by_task(loaded, share=True)
    alone, separate = logits_by_task(loaded, share=False, mixed=False)
    assert len(joined) == 3
    assert len(separate) == 6
    assert sum(map(len, joined)) < 0.7 * sum(map(len, separate))
    assert shared.keys() == alone.keys()
    for key, expected in alone.items():
        torch.testing.assert_close(shared[key], expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_selected_logits_equal_a_plain_forward_pass(architecture):
    loaded = tiny.loaded(architecture, attention="sdpa")
    found, rows = logits_by_task(loaded, share=False)
    for row in rows:
        item = row.encoded[0]
        whole = torch.tensor([item.prompt + item.target])
        with torch.no_grad():
            plain = loaded.model(input_ids=whole).logits[0]
        expected = plain[len(item.prompt) - 1 : len(item.prompt) + len(item.target) - 1]
        torch.testing.assert_close(found[item.id, item.task], expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_grouped_attention_equals_sdpa(architecture):
    grouped, _ = logits_by_task(tiny.loaded(architecture, "grouped"), share=True)
    plain, _ = logits_by_task(tiny.loaded(architecture, "sdpa"), share=True)
    for key, expected in plain.items():
        torch.testing.assert_close(grouped[key], expected, atol=1e-4, rtol=1e-4)


def test_batches_hold_every_row_once_within_their_size():
    encoder = tiny.loaded().encoder(PromptFormat(max_tokens=256, answer_tokens=32))
    rows = rows_of([encoder.supervised(example, "answer") for example in EXAMPLES])
    limit = 2 * max(map(len, rows))
    batches = by_length(rows, limit)
    assert sorted(index for batch in batches for index in batch) == [0, 1, 2]
    assert all(len(batch) * max(len(rows[index]) for index in batch) <= limit for batch in batches)


def test_a_prompt_is_learnt_as_running_text_is():
    loaded = tiny.loaded("llama", attention="sdpa")
    item = loaded.encoder(PromptFormat(max_tokens=256, answer_tokens=32)).supervised(EXAMPLES[0], "answer")
    row = with_prompt(join([item]))
    ids = torch.tensor([[*item.prompt, *item.target]])
    with torch.no_grad():
        found = predict(loaded.model, collate([row], loaded.pad_id)).logits
        plain = loaded.model(ids).logits[0]
    # The cue, which another task would have in another form, isn't learnt.
    learnt = [place for place in range(1, ids.shape[1]) if place != len(item.prompt) - 1]
    assert row.of.count(PROMPT) == len(item.prompt) - 2
    order = torch.tensor(row.predicted_by).argsort()
    assert torch.tensor(row.targets)[order].tolist() == ids[0, learnt].tolist()
    torch.testing.assert_close(found[order], plain[torch.tensor(learnt) - 1], atol=1e-4, rtol=1e-4)


COUNT = 7
ADD = {"prefix": add_prefix, "prompt": add_prompt}
# Some rows are longer than the sliding windows of the tiny models, 64.
FORM = PromptFormat(max_tokens=256, answer_tokens=32)


def tuned(architecture, kind):
    """A tiny model with virtual tokens that are no words."""
    loaded = tiny.loaded(architecture)
    model = ADD[kind](loaded.model, COUNT, seed=3)
    torch.manual_seed(4)
    with torch.no_grad():
        weight = model.prompt_encoder["default"].embedding.weight
        weight += 0.3 * torch.randn_like(weight)
    return LoadedModel(architecture, model.eval(), loaded.tokenizer, None, HiddenStateCache(model, 0))


def encoded(loaded):
    encoder = loaded.encoder(FORM)
    return [encoder.supervised(example, task) for example in EXAMPLES for task in ("decision", "answer")]


def plainly(model, ids, kind):
    """peft's own forward pass over one row without padding: the logits at the row's own tokens."""
    logits = model(input_ids=torch.tensor([ids])).logits[0]
    return logits[COUNT:] if kind == "prompt" else logits


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
@pytest.mark.parametrize("kind", ADD)
def test_logits_and_gradients_equal_a_plain_peft_call(architecture, kind):
    loaded = tuned(architecture, kind)
    weight = loaded.model.prompt_encoder["default"].embedding.weight
    items = encoded(loaded)
    assert max(len(item.prompt) for item in items) > 70
    batch = collate(rows_of(items), loaded.pad_id)
    ours = predict(loaded.model, batch).logits
    torch.nn.functional.cross_entropy(ours, batch.targets, reduction="sum").backward()
    slope, weight.grad = weight.grad, None
    parts = []
    for item in items:
        logits = plainly(loaded.model, item.prompt + item.target[:-1], kind)[len(item.prompt) - 1 :]
        torch.nn.functional.cross_entropy(logits, torch.tensor(item.target), reduction="sum").backward()
        parts.append(logits)
    torch.testing.assert_close(ours, torch.cat(parts), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(slope, weight.grad, atol=1e-4, rtol=1e-3)
    untuned = predict(tiny.loaded(architecture).model, batch).logits
    assert (ours - untuned).abs().max() > 1e-2


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
@pytest.mark.parametrize("kind", ADD)
def test_answers_written_in_a_batch_are_those_of_plain_peft_one_at_a_time(architecture, kind):
    loaded = tuned(architecture, kind)
    with torch.no_grad():
        loaded.model.get_output_embeddings().weight *= 3  # ties between random logits are the test's own noise
    encoder = loaded.encoder(FORM)
    prompts = [encoder.prompt(example, "answer") for example in EXAMPLES]
    assert len({len(prompt.prompt) for prompt in prompts}) == 3
    together = generate_answers(loaded, prompts, 8, "Writing")
    for prompt in prompts:
        ids = list(prompt.prompt)
        with torch.no_grad():
            for _ in range(8):
                token = int(plainly(loaded.model, ids, kind)[-1].argmax())
                if token == loaded.tokenizer.eos_token_id:
                    break
                ids.append(token)
        alone = loaded.tokenizer.decode(ids[len(prompt.prompt) :], skip_special_tokens=True).strip()
        assert together[prompt.id] == alone


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
@pytest.mark.parametrize("kind", ADD)
def test_untrained_virtual_tokens_say_what_their_words_say(architecture, kind):
    loaded = tiny.loaded(architecture)
    torch.manual_seed(3)
    ids = loaded.tokenizer(tiny.WORDS)["input_ids"][:90]
    with torch.no_grad():
        if kind == "prompt":
            model = add_prompt(loaded.model, COUNT, seed=3)
            words = loaded.model.get_input_embeddings().weight
            scale = getattr(loaded.model.get_input_embeddings(), "embed_scale", torch.tensor(1.0))
            start = model.prompt_encoder["default"].embedding.weight
            chosen = [int((words * scale - row).abs().sum(dim=1).argmin()) for row in start]
        else:
            chosen = torch.randint(0, 500, (COUNT,)).tolist()
            model = add_prefix(loaded.model, COUNT, seed=3)
        found = plainly(model, ids, kind)
        expected = tiny.loaded(architecture).model(input_ids=torch.tensor([chosen + ids])).logits[0, COUNT:]
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_heads_may_have_another_size_than_hidden_by_count():
    """As in the real Gemma 3 270M: 4 heads of 256 in 640."""
    base = tiny.model("gemma3", num_key_value_heads=1, head_dim=16)
    model = add_prefix(base, COUNT, seed=3)
    assert model.prompt_encoder["default"].embedding.weight.shape == (COUNT, 2 * 2 * 16)
    loaded = LoadedModel("gemma3", model, tiny.tokenizer(bos=True), None, HiddenStateCache(model, 0))
    items = encoded(loaded)[:1]
    with torch.no_grad():
        ours = predict(model, collate(rows_of(items), loaded.pad_id)).logits
        plain = plainly(model, items[0].prompt + items[0].target[:-1], "prefix")[len(items[0].prompt) - 1 :]
    torch.testing.assert_close(ours, plain, atol=1e-4, rtol=1e-4)


def rows(loaded):
    encoder = loaded.encoder(PromptFormat(max_tokens=256, answer_tokens=32))
    return rows_of([encoder.supervised(example, task) for example in EXAMPLES for task in ("decision", "answer")])


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
@torch.no_grad()
def test_a_second_visit_gives_the_same_in_another_batch(architecture):
    loaded = tiny.loaded(architecture, frozen=1)
    made = rows(loaded)
    first = loaded.frozen.predict(loaded.model, made, loaded.pad_id)[1].logits
    calls = []
    hook = blocks_of(loaded.model)[0].register_forward_hook(lambda *_: calls.append("lowest layer"))
    inner = next(module for name, module in blocks_of(loaded.model)[0].named_modules() if "mlp" in name)
    computed = inner.register_forward_hook(lambda *_: calls.append("computed"))
    again = [loaded.frozen.predict(loaded.model, [row], loaded.pad_id)[1].logits for row in made]
    hook.remove()
    computed.remove()
    assert "computed" not in calls
    torch.testing.assert_close(torch.cat(again), first, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_training_is_the_same_with_and_without_memory(architecture):
    losses = []
    for frozen in (0, 1):
        loaded = tiny.loaded(architecture)
        model = add_lora(loaded.model, LoraSpec(r=4), seed=1, top_layers=1)
        made = rows(loaded)
        spec = TrainSpec(batch_size=2, accumulation=1, epochs=3, learning_rate=1e-2)
        data = TrainingRows(made, TokenWeights(EXAMPLES, made, spec))
        steps = train(tiny.with_model(loaded, model, frozen), data, spec, 1)
        losses.append([step.loss for step in steps])
    assert losses[0][-1] < losses[0][0]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES + tiny.RECENT)
@pytest.mark.parametrize("frozen", [0, 1])
def test_logits_and_gradients_are_the_same_without_padding(architecture, frozen):
    loaded = tiny.loaded(architecture)
    model = add_lora(loaded.model, LoraSpec(r=4), seed=1, top_layers=2 - frozen)
    weights = [parameter for parameter in model.parameters() if parameter.requires_grad]
    with torch.no_grad():
        for weight in weights:
            weight += 0.1 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(5))
    long = EXAMPLES[0].model_copy(update={"id": "long", "question": "Does the drug help? " * 8})
    encoder = loaded.encoder(PromptFormat(max_tokens=256, answer_tokens=32))
    tasks = [(EXAMPLES[0], "answer"), (EXAMPLES[1], "decision"), (long, "decision"), (long, "answer")]
    made = rows_of([encoder.supervised(example, task) for example, task in tasks])
    batch = collate(made, loaded.pad_id)
    assert skips_padding(model, batch)
    found = []
    for skipped in (False, True):
        cache = HiddenStateCache(model, frozen)
        for _ in range(1 + frozen):  # the second time from the cache
            model.zero_grad()
            if skipped:
                logits = cache.predict(model, made, loaded.pad_id)[1].logits
            else:
                logits = _predict(model, batch, True, unpadded=False).logits
            torch.nn.functional.cross_entropy(logits, batch.targets, reduction="sum").backward()
        found.append([logits, *(weight.grad for weight in weights)])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-3)


def test_padding_is_computed_if_a_layer_needs_it(monkeypatch):
    """Such as a layer that doesn't tell its attention where the rows end."""
    loaded = tiny.loaded()
    attention = loaded.model.model.layers[1].self_attn
    plain = attention.forward

    def forgetful(*given, **named):
        named.pop("real_tokens", None)
        return plain(*given, **named)

    monkeypatch.setattr(attention, "forward", forgetful)
    batch = collate(windows("", range(40, 60), 20) + windows("", range(60, 65), 5), loaded.pad_id)
    assert not skips_padding(loaded.model, batch)
    unpatched = tiny.loaded().model
    assert skips_padding(unpatched, batch)
    with torch.no_grad():
        torch.testing.assert_close(predict(loaded.model, batch).logits, predict(unpatched, batch).logits)


def test_training_doesn_t_run_the_frozen_layers_again_after_they_were_computed():
    loaded = tiny.loaded()
    model = add_lora(loaded.model, LoraSpec(r=4), seed=1, top_layers=1)
    made = rows(loaded)
    frozen = HiddenStateCache(model, 1)
    frozen.group(made, 100)
    frozen.fill(model, loaded.pad_id)
    spec = TrainSpec(batch_size=2, accumulation=1, epochs=2)
    data = TrainingRows(made, TokenWeights(EXAMPLES, made, spec))
    assert takes_unpadded(model)  # which ran the model
    ran = []
    blocks_of(model)[0].self_attn.register_forward_hook(lambda *_: ran.append(1))
    assert len(list(train(replace(loaded, model=model, frozen=frozen), data, spec, 1))) > 1
    assert not ran


def test_batches_without_padding_hold_more_rows_but_not_more_attention():
    lengths = [500, 300, 250, 250, 100, 60, 60, 20]
    texts = [range(length) for length in lengths]
    padded = by_length(texts, 1000)
    unpadded = by_length(texts, 1000, longest=500)
    assert [[lengths[index] for index in batch] for batch in padded] == [[500, 300], [250, 250, 100, 60], [60, 20]]
    assert [[lengths[index] for index in batch] for batch in unpadded] == [[500, 300], [250, 250, 100, 60, 60, 20]]
    # With hardly any padding, padding is computed.
    assert by_length([range(350), range(340), range(334)], 1024, longest=511) == [[0, 1], [2]]


@pytest.mark.parametrize(
    ("dtype", "max_gb"), [(torch.float32, 2.0), (torch.float32, 1e-4), (torch.bfloat16, 2.0)], ids=str
)
def test_resumed_training_ends_with_the_same_bits(dtype, max_gb):
    """A matrix product rounds by its batch's shape, and after a stop other rows are visited together first."""
    many = [
        EXAMPLES[0].model_copy(update={"id": f"e{n}", "question": "Does it help? " * (1 + n % 9)}) for n in range(24)
    ]
    spec = TrainSpec(batch_size=4, accumulation=1, epochs=3, learning_rate=1e-2, checkpoint_steps=1)
    kept, runs = {}, []
    for done in (0, 3):
        loaded = tiny.loaded()
        model = add_lora(loaded.model.to(dtype), LoraSpec(r=4), seed=1, top_layers=1)
        encoder = loaded.encoder(PromptFormat(max_tokens=256, answer_tokens=32))
        made = rows_of([encoder.supervised(example, "answer") for example in many])
        frozen = HiddenStateCache(model, 1, max_gb)
        if not done:
            with torch.no_grad():
                frozen.predict(model, made[:9], loaded.pad_id)  # measured before the stop, so not again after it
        frozen.group(made, 700)

        def save(step, tensors, done=done):
            if not done:
                kept[step] = {key: value.clone() for key, value in tensors.items()}

        resume = (runs[0][:done], kept[done]) if done else None
        data = TrainingRows(made, TokenWeights(many, made, spec))
        in_training = replace(loaded, model=model, frozen=frozen)
        steps = train(in_training, data, spec, 1, resume=resume, checkpoint=save)
        runs.append([replace(step, seconds=0) for step in steps])
        assert 0 < frozen.bytes <= frozen.max_bytes
    assert runs[1] == runs[0][3:]


def test_memory_is_bounded():
    loaded = tiny.loaded(frozen=1)
    loaded.frozen.max_bytes = 0
    with torch.no_grad():
        loaded.frozen.predict(loaded.model, rows(loaded), loaded.pad_id)
    assert loaded.frozen.bytes == 0


@torch.no_grad()
def test_what_is_remembered_is_no_noise():
    """GPT-2's attention drops out by itself, beside its dropout layers."""
    loaded = tiny.loaded("gpt2", frozen=1)
    tiny.blocks_drop_out(loaded.model, 0.5)
    assert takes_unpadded(loaded.model)  # which ran the model
    seen = []
    hook = blocks_of(loaded.model)[0].register_forward_hook(lambda _, __, output: seen.append(output))
    loaded.model.train()
    loaded.frozen.without_dropout(loaded.model)
    for _ in range(2):
        HiddenStateCache(loaded.model, 1).predict(loaded.model, rows(loaded), loaded.pad_id)
    hook.remove()
    first, again = (output[0] if isinstance(output, tuple) else output for output in seen)
    assert torch.equal(first, again)
