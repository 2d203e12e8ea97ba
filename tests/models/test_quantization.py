"""A quantized base: gradients survive an evaluation, adapters train on it, and nothing is merged into it."""

import sys
from contextlib import nullcontext

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from meditune.config.data_options import PromptFormat
from meditune.config.training_options import LoraSpec, ModelSpec
from meditune.errors import ModelError
from meditune.evaluate.likelihood import score
from meditune.evaluate.weights_backend import generate_answers
from meditune.models import quantization
from meditune.models.adapters import fuse_lora, make_trainable, merged, parameter_counts
from meditune.models.load import load
from meditune.train.losses import plain_loss
from tests import tiny
from tests.commands import bench
from tests.models.test_adapters import batch_of, moved
from tests.models.test_forward import EXAMPLES

pytest.importorskip("bitsandbytes")
FORM = PromptFormat(max_tokens=256, answer_tokens=32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model whose layers are as wide as bitsandbytes needs them to repack them for inference."""
    made = tmp_path_factory.mktemp("wide")
    torch.manual_seed(0)
    shape = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = LlamaConfig(vocab_size=500, num_hidden_layers=3, bos_token_id=0, eos_token_id=1, **shape)
    LlamaForCausalLM(config).save_pretrained(made)
    tiny.tokenizer().save_pretrained(made)
    return made


def spec_of(quantize, strategy="lora", dtype="float32"):
    return ModelSpec(strategy=strategy, quantize=quantize, dtype=dtype, lora=LoraSpec(r=4), virtual_tokens=5)


def evaluated(loaded):
    """The model after its likelihoods and answers have been measured, as a run does before it trains."""
    encoder = loaded.encoder(FORM)
    score(loaded, batch_of(loaded), 512, "Scoring", encoder.label_ids())
    generate_answers(loaded, [encoder.prompt(example, "answer") for example in EXAMPLES], 3, "Writing")
    return loaded


def backward(loaded, model):
    """Compute the gradients of the adapters, and return the last hidden states."""
    batch, predicted = loaded.frozen.predict(model, batch_of(loaded), loaded.pad_id)
    device = predicted.logits.device
    plain_loss(predicted, batch.targets.to(device), torch.ones(len(batch.targets), device=device)).backward()
    return predicted.hidden.detach()


def gradients(loaded, spec):
    """Of every adapter weight at the second pass, with adapters that already say something."""
    model = make_trainable(loaded.model, spec, seed=1)
    torch.manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.05 * torch.randn_like(parameter)
    model.train()
    for _ in range(2):
        model.zero_grad()
        backward(loaded, model)
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.requires_grad}


@pytest.mark.parametrize(
    ("strategy", "dtype"),
    [("lora", "float32"), ("dora", "bfloat16"), ("ia3", "bfloat16"), ("prefix", "bfloat16"), ("prompt", "float32")],
)
@pytest.mark.parametrize("quantize", ["nf4", "int8"])
def test_an_evaluation_before_training_costs_no_gradient(folder, quantize, strategy, dtype):
    spec = spec_of(quantize, strategy, dtype)
    fresh = gradients(load(str(folder), spec), spec)
    after = gradients(evaluated(load(str(folder), spec)), spec)
    assert fresh.keys() == after.keys()
    for name, slope in fresh.items():
        assert slope.any(), name
        assert torch.equal(slope, after[name]), name


@pytest.mark.parametrize("quantize", ["nf4", "int8"])
def test_gradients_are_those_of_the_same_weights_in_full_precision(folder, quantize):
    spec = spec_of(quantize)
    found = gradients(evaluated(load(str(folder), spec)), spec)
    plain = load(str(folder), spec)
    plain.model = plain.model.dequantize()
    if quantize == "nf4":
        plain.model.to(torch.float32)
    expected = gradients(plain, spec)
    for name, slope in expected.items():
        likeness = torch.nn.functional.cosine_similarity(slope.flatten().float(), found[name].flatten().float(), dim=0)
        assert likeness > 0.98, name


def largest_difference(folder, quantize, dtype, dropout):
    """Between one operation and peft, in hidden states and in gradients of the adapters, relative to peft."""
    found = []
    for is_fused in (False, True):
        spec = spec_of(quantize, dtype=dtype).model_copy(update={"lora": LoraSpec(r=4, dropout=dropout)})
        loaded = load(str(folder), spec)
        for layer in loaded.model.modules():
            if hasattr(layer, "compute_dtype"):
                layer.compute_dtype = getattr(torch, dtype)
        model = moved(make_trainable(loaded.model, spec, seed=1)).train()
        adapters = [each for each in model.parameters() if each.requires_grad]
        assert {each.dtype for each in adapters} == {getattr(torch, dtype)}
        with fuse_lora(model) if is_fused else nullcontext(0) as count:
            assert count == (len(adapters) / 2 if is_fused else 0)
            torch.manual_seed(3)
            hidden = backward(loaded, model)
        found.append([hidden.float(), *(each.grad.float() for each in adapters)])
    pairs = zip(*found, strict=True)
    return torch.stack([torch.linalg.norm(one - other) / torch.linalg.norm(one) for one, other in pairs]).max()


@pytest.mark.parametrize(("dtype", "dropout", "within"), [("float32", 0.2, 1e-5), ("bfloat16", 0.0, 0.08)])
@pytest.mark.parametrize("quantize", ["nf4", "int8"])
def test_one_operation_on_a_quantized_base_gives_what_peft_gives(folder, quantize, dtype, dropout, within):
    assert largest_difference(folder, quantize, dtype, dropout) <= within


@pytest.mark.gpu
@pytest.mark.parametrize("quantize", ["nf4", "int8"])
def test_one_operation_on_a_quantized_base_gives_what_peft_gives_on_a_gpu(folder, quantize):
    """There, peft's int8 layers also round their inputs to 8 bits."""
    assert largest_difference(folder, quantize, "bfloat16", 0.0) <= 0.1


def test_a_repacked_base_is_refused(folder, monkeypatch):
    from bitsandbytes.functional import has_avx512bf16

    if not has_avx512bf16():
        pytest.skip("bitsandbytes repacks weights on CPUs with AVX-512 BF16 only")
    monkeypatch.setattr(quantization, "keep_trainable", lambda _: None)
    spec = spec_of("nf4")
    with pytest.raises(ModelError, match="repacked"):
        gradients(evaluated(load(str(folder), spec)), spec)


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
@pytest.mark.parametrize("quantize", ["nf4", "int8"])
def test_only_the_layers_are_quantized_and_parameters_are_counted_whole(tmp_path, architecture, quantize):
    place = str(tiny.save(tmp_path / "base", architecture))
    plain, small = load(place, spec_of("none")), load(place, spec_of(quantize))
    assert parameter_counts(small.model)[1] == parameter_counts(plain.model)[1]
    kinds = {type(module).__name__ for module in small.model.modules()}
    assert ("Linear4bit" in kinds, "Linear8bitLt" in kinds) == (quantize == "nf4", quantize == "int8")
    assert type(small.model.get_output_embeddings()) is torch.nn.Linear
    row = batch_of(plain)
    with torch.no_grad():
        exact, rounded = (
            loaded.frozen.predict(loaded.model, row, loaded.pad_id)[1].hidden for loaded in (plain, small)
        )
    assert not torch.equal(exact, rounded)
    assert torch.nn.functional.cosine_similarity(exact, rounded, dim=1).mean() > (0.8 if quantize == "nf4" else 0.999)


def test_an_adapter_is_never_merged_into_a_quantized_base(folder, tmp_path):
    spec = spec_of("nf4")
    loaded = load(str(folder), spec)
    model = make_trainable(loaded.model, spec, seed=1)
    model.save_pretrained(tmp_path)
    loaded.tokenizer.save_pretrained(tmp_path)
    for made in (merged(model), load(str(tmp_path), spec).model):
        assert any("lora_A" in name for name, _ in made.named_parameters())
    whole = load(str(tmp_path), spec_of("none")).model
    assert not any("lora" in name for name, _ in whole.named_parameters())
    assert {parameter.dtype for parameter in whole.parameters()} == {torch.float32}


def test_without_bitsandbytes_the_command_to_get_it_is_told_before_anything_is_written(tmp_path, monkeypatch):
    with bench(tmp_path) as place:
        monkeypatch.setitem(sys.modules, "bitsandbytes", None)
        place.run("small", model__quantize="nf4").refused(4, "bitsandbytes", "[quantized]'")
        assert not (place.folder / "small").exists()
