"""Number formats on hardware that isn't here."""

import pytest
import torch

from meditune.models import load, quantized
from tests import tiny


@pytest.mark.parametrize("units", [False, True], ids=["t4", "a100"])
def test_bf16_that_cuda_emulates_is_not_fast(monkeypatch, units):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation or units)
    assert load.bf16_is_fast() == units
    assert load.number_format("auto") == (torch.bfloat16 if units else torch.float16)


def test_a_quantized_base_computes_in_the_format_that_weights_have_by_default(monkeypatch):
    pytest.importorskip("bitsandbytes")
    monkeypatch.setattr(load, "number_format", {"auto": torch.float16}.get)
    assert quantized.loading_options("nf4")["quantization_config"].bnb_4bit_compute_dtype == torch.float16


def test_gemma_whose_states_are_too_large_for_fp16_gets_fp32():
    gemma, llama = tiny.model("gemma3").config, tiny.model("llama").config
    assert load.in_range(torch.float16, gemma) == torch.float32
    assert load.in_range(torch.bfloat16, gemma) == torch.bfloat16
    assert load.in_range(torch.float16, llama) == torch.float16
