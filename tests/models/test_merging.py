"""A merged model says what its adapter says beside the base, on every architecture."""

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

from meditune.config.training_options import LoraSpec, ModelSpec
from meditune.errors import ModelError
from meditune.models import merging
from meditune.models.adapters import make_trainable
from meditune.models.load import load
from meditune.models.merging import merge
from tests import tiny
from tests.models.test_adapters import moved

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
    made = merge(adapter)
    merging.write(made.model, made.tokenizer, made.dtype, tmp_path / "merged")
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
    made = merge(adapter)
    assert made.dtype == torch.bfloat16
    merged = made.model.model.layers[1].self_attn.q_proj.weight
    assert merged.dtype == torch.float32
    torch.testing.assert_close(merged.double(), exact, atol=1e-7, rtol=1e-6)
    merging.write(made.model, made.tokenizer, made.dtype, tmp_path / "merged")
    read = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert read.dtype == torch.bfloat16
    assert torch.equal(read.model.layers[1].self_attn.q_proj.weight, merged.to(torch.bfloat16))


@pytest.mark.parametrize("strategy", ["prefix", "prompt"])
def test_virtual_tokens_have_nothing_to_be_merged_into(strategy, tmp_path):
    with pytest.raises(ModelError, match="virtual tokens, which can't be merged"):
        merge(adapter_of(tmp_path, "llama", strategy))


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
        merge(tmp_path / "adapter")


def test_a_sum_that_is_no_number_is_refused(tmp_path):
    adapter = adapter_of(tmp_path, "llama", "lora")
    from safetensors.torch import load_file, save_file

    weights = load_file(adapter / "adapter_model.safetensors")
    weights[next(iter(weights))].fill_(float("nan"))
    save_file(weights, adapter / "adapter_model.safetensors")
    with pytest.raises(ModelError, match="can't merge"):
        merge(adapter)


def test_generation_ends_at_the_bases_ends_and_the_tokenizers(tmp_path):
    adapter = adapter_of(tmp_path, "gpt2", "lora")
    made = merge(adapter)
    assert made.model.generation_config.eos_token_id in (1, [1])
    assert made.model.generation_config.pad_token_id == 1
    model = tiny.model("llama")
    model.generation_config.eos_token_id = 7
    from meditune.models.merging import stop_at_end

    stop_at_end(model.generation_config, tiny.tokenizer())
    assert model.generation_config.eos_token_id == [7, 1]
