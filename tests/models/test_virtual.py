"""Virtual tokens: ours, with shared prompts, padding and a cache, equal peft's own on single rows."""

import pytest
import torch

from meditune.config.data_options import PromptFormat
from meditune.evaluate.evaluator import generate
from meditune.models.forward import add_prefix, add_prompt, predict
from meditune.models.hidden_state_cache import FrozenLayers
from meditune.models.load import LoadedModel
from meditune.models.shared_prefix_batch import collate, rows_of
from tests import tiny
from tests.models.test_rows import EXAMPLES

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
    return LoadedModel(architecture, model.eval(), loaded.tokenizer, None, FrozenLayers(model, 0))


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
    together = generate(loaded, prompts, 8, "Writing")
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
    loaded = LoadedModel("gemma3", model, tiny.tokenizer(bos=True), None, FrozenLayers(model, 0))
    items = encoded(loaded)[:1]
    with torch.no_grad():
        ours = predict(model, collate(rows_of(items), loaded.pad_id)).logits
        plain = plainly(model, items[0].prompt + items[0].target[:-1], "prefix")[len(items[0].prompt) - 1 :]
    torch.testing.assert_close(ours, plain, atol=1e-4, rtol=1e-4)
