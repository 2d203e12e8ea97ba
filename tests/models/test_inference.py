"""The faster product gives what the plain one gives, and lets go of the model afterwards."""

import pytest
import torch

from meditune.models import inference
from meditune.models.inference import BLOCK
from tests import tiny

NEEDS_ONEDNN = pytest.mark.skipif(not inference.mkl_is_slow(), reason="MKL is as fast as this processor")


@NEEDS_ONEDNN
def test_onednn_s_product_is_the_same_sum():
    torch.manual_seed(0)
    rows, weight, bias = torch.randn(70, 96), torch.randn(33, 96), torch.randn(33)
    with torch.inference_mode():
        torch.testing.assert_close(inference.product(rows, weight, bias), rows @ weight.T + bias)
        many, others = torch.randn(3, 40, 16), torch.randn(3, 50, 16)
        torch.testing.assert_close(inference.products(many, others), many @ others.transpose(1, 2))


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
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
    assert inference.tokens_at_once(model, 1024) == 512
    assert inference.tokens_at_once(model.to(torch.bfloat16), 1024) == 1024
