"""A LoRA layer as one operation says what peft's own forward says, and stands aside where it can't.

Each strategy trains what it says, on every architecture; what is saved or merged says the same when loaded again.
"""

from dataclasses import replace

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, OPTConfig, OPTForCausalLM

from meditune.config.data_options import PromptFormat
from meditune.config.recipe import Recipe
from meditune.config.training_options import LoraSpec, ModelSpec, TrainSpec
from meditune.errors import ModelError
from meditune.export.merged import merge_adapter, write_model
from meditune.models.adapters import add_lora, fuse_lora, make_trainable, merged, parameter_counts
from meditune.models.forward import label_logits
from meditune.models.load import LoadedModel, load
from meditune.models.shared_prefix_batch import rows_of
from meditune.train.dataset import TokenWeights
from meditune.train.finetune import save_model
from meditune.train.losses import fused_loss, is_plain_head, plain_loss
from meditune.train.trainer import TrainingRows, train
from tests import tiny
from tests.models.test_forward import EXAMPLES

STRATEGIES = ("lora", "dora", "rslora", "ia3", "prefix", "prompt", "full")
IN_LAYERS = ("lora", "dora", "rslora", "ia3", "full")
FORM = PromptFormat(max_tokens=256, answer_tokens=32)


def trainable(architecture, **options):
    """A tiny model, and the same with what the strategy trains."""
    loaded = tiny.loaded(architecture)
    spec = ModelSpec(**{"base": architecture, "lora": LoraSpec(r=4), "virtual_tokens": 5} | options)
    return loaded, make_trainable(loaded.model, spec, seed=1)


def batch_of(loaded):
    encoder = loaded.encoder(FORM)
    return rows_of([encoder.supervised(example, task) for example in EXAMPLES for task in ("decision", "answer")])


def loss_of(loaded, model):
    batch, predicted = loaded.frozen.predict(model, batch_of(loaded), loaded.pad_id)
    return plain_loss(predicted, batch.targets, torch.ones(len(batch.targets)))


def moved(model):
    """The model with its trainable weights shaken, so that an adapter that is left out shows."""
    torch.manual_seed(5)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                much = any(part in name for part in ("ia3", "prompt", "magnitude"))
                parameter += (0.5 if much else 0.05) * torch.randn_like(parameter)
    return model.eval()


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_gradients_reach_the_lowest_layer_and_only_what_is_trained(strategy, architecture):
    loaded, model = trainable(architecture, strategy=strategy)
    loss_of(loaded, moved(model)).backward()
    slopes = {name: parameter.grad for name, parameter in model.named_parameters()}
    for name, parameter in model.named_parameters():
        assert (slopes[name] is not None and bool(slopes[name].any())) == parameter.requires_grad, name
    trained = [name for name, slope in slopes.items() if slope is not None]
    if strategy == "full":
        assert len(trained) == len(slopes)
    elif strategy in IN_LAYERS:
        assert any(".0." in name for name in trained)
        assert any(".1." in name for name in trained)
    else:
        assert trained == ["prompt_encoder.default.embedding.weight"]


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
@pytest.mark.parametrize("strategy", IN_LAYERS)
def test_with_top_layers_nothing_below_them_is_trained(strategy, architecture):
    _, model = trainable(architecture, strategy=strategy, top_layers=1)
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    outside = [name for name in trained if ".1." not in name]
    norms = {"gpt2": "transformer.ln_f", "phi": "model.final_layernorm", "gpt_neox": "gpt_neox.final_layer_norm"}
    name = norms.get(architecture, "model.norm")
    last_norm = [f"{name}.weight"] + [f"{name}.bias"] * (architecture in norms)
    assert outside == (last_norm if strategy == "full" else [])
    assert len(trained) > len(outside)
    _, other = trainable(architecture, strategy=strategy, top_layers=99)
    assert any(".0." in name for name, parameter in other.named_parameters() if parameter.requires_grad)


def test_with_top_layers_the_last_norm_is_trained_wherever_the_model_defines_it():
    """OPT defines it before its layers."""
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "ffn_dim": 64}
    model = OPTForCausalLM(OPTConfig(vocab_size=100, word_embed_proj_dim=32, **shape))
    make_trainable(model, ModelSpec(strategy="full", top_layers=1), seed=1)
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    last_norm = [f"model.decoder.final_layer_norm.{part}" for part in ("weight", "bias")]
    assert [name for name in trained if ".layers.1." not in name] == last_norm


@pytest.mark.parametrize(
    ("strategy", "count"),
    [
        ("lora", 2 * 4 * (4 * 32 + (32 + 32 + 16 + 16) + 3 * (32 + 64))),
        ("ia3", 2 * (16 + 16 + 64)),
        ("prefix", 5 * 2 * 2 * 16),
        ("prompt", 5 * 32),
    ],
)
def test_trained_parameters_are_counted(strategy, count):
    _, model = trainable("llama", strategy=strategy)
    base = sum(parameter.numel() for parameter in tiny.model("llama").parameters())
    assert parameter_counts(model) == (count, base + count)


def test_dora_and_rslora_scale_as_their_papers_say():
    _, lora = trainable("llama", strategy="lora")
    _, rslora = trainable("llama", strategy="rslora")
    _, dora = trainable("llama", strategy="dora")
    layers = [model.base_model.model.model.layers[0].self_attn.q_proj for model in (lora, rslora, dora)]
    assert [layer.scaling["default"] for layer in layers] == pytest.approx([32 / 4, 32 / 2, 32 / 4])
    magnitude = layers[2].lora_magnitude_vector["default"].weight
    torch.testing.assert_close(magnitude, layers[2].base_layer.weight.norm(dim=1))


# How an adapter is stored depends on the layers that it is in; its size, scaling and virtual words don't.
SAVED = [
    (strategy, architecture)
    for strategy in STRATEGIES
    for architecture in tiny.ARCHITECTURES
    if architecture in ("llama", "gpt2") or strategy in ("lora", "ia3", "prefix", "full")
]


@pytest.mark.parametrize(("strategy", "architecture"), SAVED)
def test_a_saved_model_loads_and_says_the_same(strategy, architecture, tmp_path):
    base = tiny.save(tmp_path / "base", architecture)
    recipe = Recipe(
        name="r",
        prompt=FORM,
        model=ModelSpec(
            base=str(base), dtype="float32", strategy=strategy, lora=LoraSpec(r=4), virtual_tokens=5, attention="sdpa"
        ),
    )
    loaded = load(str(base), recipe.model)
    before = loss_of(loaded, loaded.model).item()
    model = moved(make_trainable(loaded.model, recipe.model, seed=1))
    during = loss_of(loaded, model).item()
    facts = {"rows": 1, "epochs": 1.0, "steps": 1, "supervised_tokens": 1, "trainable_parameters": 1, "parameters": 1}
    after = save_model(model, loaded, recipe, facts, tmp_path / "model")
    again = load(str(tmp_path / "model"), recipe.model)
    assert abs(during / before - 1) > 3e-5
    assert loss_of(loaded, after).item() == pytest.approx(during, rel=1e-5)
    assert loss_of(again, again.model).item() == pytest.approx(during, rel=1e-5)
    assert again.form == FORM


@pytest.mark.parametrize("architecture", tiny.RECENT)
def test_newer_architectures_learn_in_their_text_layers_and_load_again(architecture, tmp_path):
    loaded, model = trainable(architecture, strategy="lora")
    loss_of(loaded, moved(model)).backward()
    trained = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert all(slope is not None and slope.any() for slope in trained.values())
    assert {name.split(".layers.")[1][0] for name in trained} == {"0", "1"}
    test_a_saved_model_loads_and_says_the_same("lora", architecture, tmp_path)


def test_a_model_that_is_a_quantized_copy_or_has_other_layers_is_refused():
    loaded = tiny.loaded("llama")
    loaded.model.quantization_method = "bitsandbytes"
    with pytest.raises(ModelError, match="weights, but this model's weights are quantized"):
        make_trainable(loaded.model, ModelSpec(strategy="full"), seed=1)
    loaded = tiny.loaded("gpt2")
    loaded.model.config.model_type = "unheard-of"
    with pytest.raises(ModelError, match=r"no layer named k_proj, v_proj, down_proj.*c_attn, c_fc, c_proj"):
        make_trainable(loaded.model, ModelSpec(strategy="ia3"), seed=1)


@pytest.mark.parametrize("target", ["mlp", "norm", "self_attn", "layers", "embed_tokens"])
def test_lora_takes_only_linear_layers(target):
    with pytest.raises(ModelError, match=f"has no linear layer named {target}. Choose .* down_proj"):
        add_lora(tiny.loaded("llama").model, LoraSpec(targets=["q_proj", target]), seed=1)


def test_lora_on_a_head_that_shares_the_embeddings_weights_is_refused():
    with pytest.raises(ModelError, match="lm_head shares its weights with the input embeddings"):
        add_lora(tiny.loaded("qwen2").model, LoraSpec(targets=["q_proj", "lm_head"]), seed=1)


def test_claims_are_learnt_by_an_adapter_on_the_head():
    model = moved(add_lora(tiny.loaded("llama").model, LoraSpec(targets=["lm_head"]), seed=1))
    hidden, head = torch.randn(2, 32, generator=torch.Generator().manual_seed(0)), model.get_output_embeddings()
    logits = label_logits(model, hidden, [40, 41])
    torch.testing.assert_close(logits, head(hidden)[:, [40, 41]])
    logits.sum().backward()
    assert all(each.grad is not None for each in model.parameters() if each.requires_grad)


@pytest.mark.parametrize(
    ("strategy", "architecture"), [("full", "gemma3"), ("dora", "gpt2"), ("ia3", "llama"), ("prompt", "mistral")]
)
def test_gradient_checkpointing_changes_no_loss(strategy, architecture):
    losses = []
    for checkpointing in (False, True):
        loaded, model = trainable(architecture, strategy=strategy)
        rows = batch_of(loaded)
        rate = 1e-3 if strategy == "full" else 1e-2
        spec = TrainSpec(
            batch_size=2, accumulation=1, epochs=3, learning_rate=rate, gradient_checkpointing=checkpointing
        )
        data = TrainingRows(rows, TokenWeights(EXAMPLES, rows, spec))
        before = loss_of(loaded, model).item()
        losses.append([step.loss for step in train(replace(loaded, model=model), data, spec, 1)])
        assert loss_of(loaded, model).item() < before
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)


def test_the_head_is_computed_in_pieces_only_while_it_is_frozen():
    assert is_plain_head(trainable("llama", strategy="full", top_layers=1)[1])
    assert is_plain_head(trainable("gemma3", strategy="full", top_layers=1)[1])
    assert not is_plain_head(trainable("llama", strategy="full")[1])
    assert not is_plain_head(trainable("gemma3", strategy="full")[1])


@pytest.mark.parametrize("strategy", ["prefix", "prompt"])
def test_the_head_in_pieces_gives_virtual_tokens_the_same_gradient(strategy):
    slopes = []
    for fused in (False, True):
        loaded, model = trainable("llama", strategy=strategy)
        batch, predicted = loaded.frozen.predict(model, batch_of(loaded), loaded.pad_id, logits=not fused)
        weights = torch.ones(len(batch.targets))
        head = model.get_output_embeddings()
        loss = fused_loss(head, predicted.hidden, batch.targets, weights) if fused else None
        (plain_loss(predicted, batch.targets, weights) if loss is None else loss).backward()
        slopes.append(model.prompt_encoder["default"].embedding.weight.grad)
    torch.testing.assert_close(slopes[0], slopes[1], rtol=1e-4, atol=1e-6)


def test_adapters_are_merged_and_virtual_tokens_are_not():
    for strategy in STRATEGIES:
        made = merged(trainable("llama", strategy=strategy)[1])
        assert hasattr(made, "active_peft_config") == (strategy in {"prefix", "prompt"})
        assert not made.training


def test_nothing_is_remembered_of_rows_with_virtual_tokens(tmp_path):
    base = tiny.save(tmp_path / "base")
    for strategy, count in (("prompt", 0), ("prefix", 0), ("ia3", 1)):
        spec = ModelSpec(base=str(base), dtype="float32", strategy=strategy)
        loaded = load(str(base), spec)
        model = make_trainable(loaded.model, spec, seed=1)
        model.save_pretrained(tmp_path / strategy)
        loaded.tokenizer.save_pretrained(tmp_path / strategy)
        again: LoadedModel = load(str(tmp_path / strategy), ModelSpec(base=str(base), top_layers=1))
        assert len(again.frozen.blocks) == count


def test_a_row_among_others_is_read_as_it_is_alone():
    for strategy in ("prefix", "prompt"):
        loaded, model = trainable("llama", strategy=strategy)
        rows = batch_of(loaded)
        together = loaded.frozen.predict(model, rows, loaded.pad_id)[1].logits
        alone = [loaded.frozen.predict(model, [row], loaded.pad_id)[1].logits for row in rows]
        torch.testing.assert_close(torch.cat(alone), together, atol=1e-5, rtol=1e-4)


def gradients(model):
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}
    model.zero_grad()
    return found


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
@pytest.mark.parametrize(
    "changes",
    [{"strategy": "lora"}, {"strategy": "rslora"}, {"strategy": "lora", "lora": LoraSpec(r=4, dropout=0.3)}],
    ids=["lora", "rslora", "dropout"],
)
def test_loss_and_gradients_are_those_of_peft(architecture, changes):
    loaded, model = trainable(architecture, **changes)
    moved(model).train()
    torch.manual_seed(0)
    loss = loss_of(loaded, model)
    loss.backward()
    plain = gradients(model)
    torch.manual_seed(0)
    with fuse_lora(model) as count:
        assert count == len(plain) / 2
        other = loss_of(loaded, model)
        other.backward()
    assert other.item() == pytest.approx(loss.item(), rel=1e-6)
    for name, slope in gradients(model).items():
        assert torch.linalg.norm(slope - plain[name]) <= 1e-5 * torch.linalg.norm(plain[name]), name


def test_afterwards_the_layers_are_as_they_were():
    loaded, model = trainable("llama", strategy="lora")
    moved(model)
    before = loss_of(loaded, model)
    with fuse_lora(model):
        pass
    assert not any("forward" in module.__dict__ for module in model.modules())
    assert torch.equal(loss_of(loaded, model), before)


@pytest.mark.parametrize(
    ("strategy", "dtype"), [("dora", None), ("lora", torch.float64)], ids=["dora", "adapters in another number format"]
)
def test_layers_that_do_more_keep_their_own_forward(strategy, dtype):
    loaded = tiny.loaded()
    model = add_lora(loaded.model, LoraSpec(r=4), seed=1, variant=strategy)
    if dtype:
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.data = parameter.data.to(dtype)
    with fuse_lora(model) as count:
        assert count == 0


def test_the_frozen_weight_gets_no_gradient_and_keeps_none_from_passing():
    loaded, model = trainable("llama", strategy="lora", top_layers=1)
    moved(model).train()
    with fuse_lora(model):
        loss_of(loaded, model).backward()
    assert all((p.grad is None) != p.requires_grad for p in model.parameters())


IDS = torch.randint(2, 480, (2, 12), generator=torch.Generator().manual_seed(1))


def adapter_of(folder, architecture, strategy, dtype="float32"):
    """An adapter that changes what its base says, in a folder without a tokenizer."""
    base = tiny.save(folder / "base", architecture)
    loaded = load(str(base), ModelSpec(base=str(base), dtype=dtype))
    model = make_trainable(loaded.model, ModelSpec(strategy=strategy, lora=LoraSpec(r=4), virtual_tokens=3), 1)
    moved(model).save_pretrained(folder / "adapter")
    return folder / "adapter"


def logits(model):
    with torch.no_grad():
        return model(input_ids=IDS).logits.float()


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
@pytest.mark.parametrize("strategy", ["lora", "dora", "rslora", "ia3"])
def test_a_merged_model_says_what_the_adapter_said(architecture, strategy, tmp_path):
    adapter = adapter_of(tmp_path, architecture, strategy)
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.float32)
    before = logits(base)
    beside = logits(PeftModel.from_pretrained(base, adapter).eval())
    made = merge_adapter(adapter)
    write_model(made.model, made.tokenizer, made.dtype, tmp_path / "merged")
    read = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert read.dtype == torch.float32
    torch.testing.assert_close(logits(read), beside, atol=1e-4, rtol=1e-4)
    assert (before - beside).abs().max() > 0.01


def test_the_sum_of_bf16_weights_is_computed_in_fp32(tmp_path):
    """And rounded once: each stored weight is the BF16 number next to the exact sum."""
    adapter = adapter_of(tmp_path, "llama", "lora", dtype="bfloat16")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.bfloat16)
    base.save_pretrained(tmp_path / "base")
    layer = PeftModel.from_pretrained(base, adapter, autocast_adapter_dtype=False).base_model.model.model.layers[1]
    query = layer.self_attn.q_proj
    up, down = (part["default"].weight.double() for part in (query.lora_B, query.lora_A))
    exact = query.base_layer.weight.double() + query.scaling["default"] * (up @ down)
    made = merge_adapter(adapter)
    assert made.dtype == torch.bfloat16
    merged = made.model.model.layers[1].self_attn.q_proj.weight
    assert merged.dtype == torch.float32
    torch.testing.assert_close(merged.double(), exact, atol=1e-7, rtol=1e-6)
    write_model(made.model, made.tokenizer, made.dtype, tmp_path / "merged")
    read = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert read.dtype == torch.bfloat16
    assert torch.equal(read.model.layers[1].self_attn.q_proj.weight, merged.to(torch.bfloat16))


@pytest.mark.parametrize("strategy", ["prefix", "prompt"])
def test_virtual_tokens_have_nothing_to_be_merged_into(strategy, tmp_path):
    with pytest.raises(ModelError, match="virtual tokens, which can't be merged"):
        merge_adapter(adapter_of(tmp_path, "llama", strategy))


def test_a_base_that_is_stored_quantized_is_refused(tmp_path):
    pytest.importorskip("bitsandbytes")
    base = load(str(tiny.save(tmp_path / "plain")), ModelSpec(quantize="nf4"))
    base.model.save_pretrained(tmp_path / "base")
    base.tokenizer.save_pretrained(tmp_path / "base")
    model = load(str(tmp_path / "plain")).model
    model.name_or_path = str(tmp_path / "base")
    config = LoraConfig(target_modules=["q_proj"], base_model_name_or_path=str(tmp_path / "base"))
    get_peft_model(model, config).save_pretrained(tmp_path / "adapter")
    with pytest.raises(ModelError, match="stored quantized"):
        merge_adapter(tmp_path / "adapter")


def test_a_sum_that_is_no_number_is_refused(tmp_path):
    adapter = adapter_of(tmp_path, "llama", "lora")
    from safetensors.torch import load_file, save_file

    weights = load_file(adapter / "adapter_model.safetensors")
    weights[next(iter(weights))].fill_(float("nan"))
    save_file(weights, adapter / "adapter_model.safetensors")
    with pytest.raises(ModelError, match="can't merge"):
        merge_adapter(adapter)


def test_generation_ends_at_the_bases_ends_and_the_tokenizers(tmp_path):
    adapter = adapter_of(tmp_path, "gpt2", "lora")
    made = merge_adapter(adapter)
    assert made.model.generation_config.eos_token_id in (1, [1])
    assert made.model.generation_config.pad_token_id == 1
    model = tiny.model("llama")
    model.generation_config.eos_token_id = 7
    from meditune.export.merged import stop_at_end

    stop_at_end(model.generation_config, tiny.tokenizer())
    assert model.generation_config.eos_token_id == [7, 1]
