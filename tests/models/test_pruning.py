"""Taking whole layers out: which, and that the rest works as if the model had been built so.

Pruning single weights: how many, which, and that Wanda is what its paper says.
"""

import pytest
import torch
from transformers import AutoModelForCausalLM, Gemma3TextConfig

from meditune.config.training_options import ModelSpec, PruneSpec
from meditune.errors import ModelError
from meditune.models.hidden_state_cache import blocks_of
from meditune.models.load import load
from meditune.models.pruning import (
    block_influence,
    check_count,
    largest_mask,
    least,
    linears,
    magnitude,
    passages,
    remove_layers,
    sparsity,
    two_of_four,
    wanda,
)
from meditune.models.shared_prefix_batch import windows
from tests import tiny
from tests.models.test_adapters import batch_of

CONV = ("c_attn", "c_proj", "c_fc")


def rows_for(loaded):
    """Rows of several lengths, one of them with two tasks."""
    return [*batch_of(loaded), *windows("text", loaded.tokenizer(tiny.WORDS)["input_ids"], 40)]


def pruned(architecture, method, **options):
    loaded = tiny.loaded(architecture, attention="sdpa")
    spec = PruneSpec(method=method, **options)
    if method == "magnitude":
        magnitude(loaded.model, spec)
    else:
        wanda(loaded.model, spec, passages(loaded.model, rows_for(loaded), loaded.pad_id, 300))
    return loaded.model


def weights(model):
    """(outputs, inputs) of each pruned layer."""
    return {
        name: layer.weight.detach().T if name.rpartition(".")[2] in CONV else layer.weight.detach()
        for name, layer in linears(model).items()
    }


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_magnitude_prunes_exactly_the_smallest_of_each_layer(architecture):
    before, after = weights(tiny.model(architecture)), weights(pruned(architecture, "magnitude", sparsity=0.3))
    for name, weight in after.items():
        assert int((weight == 0).sum()) == round(0.3 * weight.numel()), name
        gone, stayed = before[name].abs()[weight == 0], before[name].abs()[weight != 0]
        assert gone.max() <= stayed.min()
        assert torch.equal(before[name][weight != 0], weight[weight != 0])


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_nothing_outside_the_blocks_linear_layers_changes(architecture):
    before, model = tiny.model(architecture), pruned(architecture, "magnitude")
    changed = {
        name
        for (name, old), new in zip(before.named_parameters(), model.parameters(), strict=True)
        if not torch.equal(old, new)
    }
    assert changed == {f"{name}.weight" for name in linears(before)}
    kinds = {"gpt2": 4, "gpt_neox": 4, "phi": 6}.get(architecture, 7)
    assert len(changed) == 2 * kinds


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
@pytest.mark.parametrize("method", ["magnitude", "wanda"])
def test_two_of_four_leaves_two_of_every_four_inputs(architecture, method):
    model = pruned(architecture, method, pattern="2-of-4")
    for weight in weights(model).values():
        assert ((weight == 0).view(weight.shape[0], -1, 4).sum(dim=2) == 2).all()
    assert sparsity(model) == 0.5


@pytest.mark.parametrize(
    ("architecture", "sparsity"), [*((name, 0.25) for name in tiny.ARCHITECTURES), ("llama", 0.6), ("gpt2", 0.6)]
)
def test_wanda_equals_a_plain_reference(architecture, sparsity):
    """|W| times the norm of its input over all tokens, lowest of each row first; no batches, no padding."""
    loaded = tiny.loaded(architecture, attention="sdpa")
    model = tiny.model(architecture)
    rows = rows_for(loaded)
    for block in blocks_of(model):
        for layer in block.modules():
            if type(layer).__name__ not in {"Linear", "Conv1D"}:
                continue
            seen = []
            hook = layer.register_forward_hook(lambda _, given, __, seen=seen: seen.append(given[0].flatten(0, -2)))
            with torch.no_grad():
                for row in rows:
                    run_alone(model, row)
            hook.remove()
            layer.wanted = torch.linalg.vector_norm(torch.cat(seen).double(), dim=0)
        for layer in block.modules():
            if hasattr(layer, "wanted"):
                transposed = type(layer).__name__ == "Conv1D"
                weight = layer.weight.data.T if transposed else layer.weight.data
                score = weight.double().abs() * layer.wanted
                for output in range(weight.shape[0]):
                    lowest = score[output].sort().indices[: round(sparsity * weight.shape[1])]
                    weight[output, lowest] = 0
    found = weights(pruned(architecture, "wanda", sparsity=sparsity))
    for name, expected in weights(model).items():
        assert torch.equal(found[name], expected), name
        assert ((found[name] == 0).sum(dim=1) == round(sparsity * expected.shape[1])).all()


def run_alone(model, row):
    """A row's tokens with the mask that its branches need, by transformers alone."""
    branch = torch.tensor(row.branch)
    length = len(row)
    sees = torch.ones(length, length).tril().bool() & ((branch[None] == 0) | (branch[None] == branch[:, None]))
    near = sees & (torch.tensor(row.positions)[:, None] - torch.tensor(row.positions)[None] < 64)
    full, slid = (torch.where(each, 0.0, torch.finfo(torch.float32).min)[None, None] for each in (sees, near))
    kind = type(model).__name__
    mask = (
        {"full_attention": full, "sliding_attention": slid} if "Gemma" in kind else slid if "Mistral" in kind else full
    )
    ids, positions = torch.tensor([row.tokens]), torch.tensor([row.positions])
    model(input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=False)


def test_wanda_looks_at_inputs_and_magnitude_does_not():
    """An input that is always large keeps its small weights with Wanda, and loses them by magnitude."""
    kept = {}
    for method in ("magnitude", "wanda"):
        loaded = tiny.loaded("llama", attention="sdpa")
        with torch.no_grad():
            norm = loaded.model.model.layers[0].input_layernorm.weight
            norm[3] = 1000.0
            query = loaded.model.model.layers[0].self_attn.q_proj.weight
            query[:, 3] = query.abs().mean() / 100
        spec = PruneSpec(method=method)
        if method == "magnitude":
            magnitude(loaded.model, spec)
        else:
            wanda(loaded.model, spec, passages(loaded.model, rows_for(loaded), loaded.pad_id, 300))
        kept[method] = float((query[:, 3] != 0).float().mean())
    assert kept == {"magnitude": 0.0, "wanda": 1.0}


def test_equal_scores_are_dropped_to_the_exact_number():
    assert largest_mask(torch.zeros(2, 10), 0.3).sum(dim=1).tolist() == [7, 7]
    assert two_of_four(torch.tensor([[1.0, 3, 2, 4, 5, 5, 5, 5]])).tolist() == [
        [False, True, False, True, False, False, True, True]
    ]


def test_two_of_four_needs_inputs_in_fours():
    with pytest.raises(ModelError, match="divisible by 4, but one layer has 6"):
        two_of_four(torch.zeros(2, 6))


def test_a_quantized_model_is_refused(tmp_path):
    pytest.importorskip("bitsandbytes")
    base = tiny.save(tmp_path / "base")
    with pytest.raises(ModelError, match="unquantized linear layers"):
        magnitude(load(str(base), ModelSpec(quantize="nf4")).model, PruneSpec(method="magnitude"))


IDS = torch.randint(2, 480, (1, 90), generator=torch.Generator().manual_seed(2))
"""Longer than the tiny models' sliding window."""


def deep(architecture, count=5):
    """A tiny model of more layers, each of which does something else."""
    config = tiny.model(architecture).config
    if architecture == "qwen2":
        config.layer_types = ["full_attention"] * count
    text = config.get_text_config()
    if isinstance(text, Gemma3TextConfig):
        text.layer_types = [("full" if number % 2 else "sliding") + "_attention" for number in range(count)]
    text.num_hidden_layers = count
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


@pytest.mark.parametrize(
    ("architecture", "removed"),
    [*((name, [1, 4]) for name in tiny.ARCHITECTURES), *((name, [0]) for name in ("llama", "gemma3"))],
)
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


def test_layers_that_read_images_are_never_taken_for_those_of_text():
    """Gemma 3 4B has 34 layers for text and 27 for images: with 7 removed, both are equally many."""
    model = deep("gemma3_images")
    layers = list(model.get_decoder().layers)
    remove_layers(model, [1, 3])
    assert len(model.model.vision_tower.encoder.layers) == 3
    assert [id(block) for block in blocks_of(model)] == [id(layers[number]) for number in (0, 2, 4)]


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
