"""Taking whole layers out: which, and that the rest works as if the model had been built so."""

import pytest
import torch
from transformers import AutoModelForCausalLM, Gemma3TextConfig

from meditune.errors import ModelError
from meditune.models.hidden_state_cache import blocks_of
from meditune.models.pruning import block_influence, check_count, least, passages, remove_layers
from tests import tiny
from tests.models.test_zeros import rows_for

IDS = torch.randint(2, 480, (1, 90), generator=torch.Generator().manual_seed(2))
"""Longer than the tiny models' sliding window."""


def deep(architecture, count=5):
    """A tiny model of more layers, each of which does something else."""
    config = tiny.model(architecture).config
    if architecture == "qwen2":
        config.layer_types = ["full_attention"] * count
    if isinstance(config, Gemma3TextConfig):
        config.layer_types = [("full" if number % 2 else "sliding") + "_attention" for number in range(count)]
    config.num_hidden_layers = count
    torch.manual_seed(3)
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    return model


def by_hand(architecture, model, kept):
    """A model of so many layers, built anew, with the weights of these layers."""
    made = deep(architecture, len(kept))
    if architecture == "gemma3":
        made.config.layer_types = [model.config.layer_types[number] for number in kept]
        made = type(made)(made.config).eval()
    prefix = {"gpt2": "transformer.h.", "gpt_neox": "gpt_neox.layers."}.get(architecture, "model.layers.")
    state = {}
    for name, weight in model.state_dict().items():
        if name.startswith(prefix):
            number, _, rest = name.removeprefix(prefix).partition(".")
            if int(number) in kept:
                state[f"{prefix}{kept.index(int(number))}.{rest}"] = weight.clone()
        else:
            state[name] = weight.clone()
    made.load_state_dict(state)
    return made


def logits(model):
    with torch.no_grad():
        return model(IDS).logits


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
@pytest.mark.parametrize("removed", [[0], [1, 2], [1, 4]])
def test_it_equals_a_model_built_without_these_layers(architecture, removed, tmp_path):
    model = deep(architecture)
    whole = logits(model)
    kept = [number for number in range(5) if number not in removed]
    expected = by_hand(architecture, model, kept)
    remove_layers(model, removed)
    torch.testing.assert_close(logits(model), logits(expected))
    assert (logits(model) - whole).abs().max() > 1e-3
    assert model.config.num_hidden_layers == len(kept)
    model.save_pretrained(tmp_path)
    read = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert len(blocks_of(read)) == len(kept)
    torch.testing.assert_close(logits(read), logits(expected))

    options = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": None}
    cached, plain, again = (
        each.generate(IDS, use_cache=use_cache, **options)
        for each, use_cache in ((model, True), (model, False), (read, True))
    )
    assert torch.equal(cached, plain)
    assert torch.equal(cached, again)


def test_gemmas_kinds_of_layers_go_with_their_layers():
    model = deep("gemma3")
    remove_layers(model, [0, 2])
    assert model.config.layer_types == ["full_attention", "full_attention", "sliding_attention"]
    assert [layer.self_attn.layer_idx for layer in model.model.layers] == [0, 1, 2]


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_block_influence_is_one_minus_the_mean_cosine(architecture):
    loaded = tiny.loaded(architecture, attention="sdpa")
    rows = [row for row in rows_for(loaded) if len(row.encoded) == 1]
    found = block_influence(loaded.model, passages(loaded.model, rows, loaded.pad_id, 200))
    cosines = [[], []]
    stack = blocks_of(loaded.model)
    for row in rows:
        states = []
        hooks = [
            layer.register_forward_hook(lambda _, given, out, states=states: states.append((given[0], out)))
            for layer in stack
        ]
        with torch.no_grad():
            loaded.model(torch.tensor([row.tokens]))
        for hook in hooks:
            hook.remove()
        for number, (before, after) in enumerate(states):
            after = after[0] if isinstance(after, tuple) else after
            cosines[number] += torch.cosine_similarity(before[0].double(), after[0].double(), dim=-1).tolist()
    expected = [1 - sum(each) / len(each) for each in cosines]
    assert found == pytest.approx(expected, abs=1e-5)
    assert all(value > 1e-4 for value in found)


def test_a_layer_that_does_nothing_goes_first():
    loaded = tiny.loaded("llama")
    with torch.no_grad():
        layer = loaded.model.model.layers[1]
        layer.self_attn.o_proj.weight.zero_()
        layer.mlp.down_proj.weight.zero_()
    influence = block_influence(loaded.model, passages(loaded.model, rows_for(loaded), loaded.pad_id, 300))
    assert influence[1] == pytest.approx(0, abs=1e-6)
    assert least(influence, 1) == [1]


def test_the_layers_of_least_influence_go():
    assert least([0.5, 0.1, 0.3, 0.2], 2) == [1, 3]


def test_one_layer_must_stay():
    model = tiny.loaded("llama").model
    layers = model.config.num_hidden_layers
    check_count(model, layers - 1)
    with pytest.raises(ModelError, match=f"at most {layers - 1}"):
        check_count(model, layers)
