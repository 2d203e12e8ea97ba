"""Attention without a dense mask gives what a dense mask gives, on every architecture.

On a CPU, PyTorch's kernel for packed sequences is replaced by what its documentation says it computes, so that the
layout is tested; the kernel itself is tested on a GPU.
"""

from functools import partial

import pytest
import torch

from meditune.config.data_options import PromptFormat
from meditune.evaluate.weights_backend import generate_answers
from meditune.models import gpu_attention
from meditune.models.forward import predict
from meditune.models.shared_prefix_batch import collate, join, rows_of
from meditune.prompts import Encoded
from tests import tiny
from tests.models.test_forward import EXAMPLES

ON_GPU = pytest.mark.gpu
FORM = PromptFormat(max_tokens=256, answer_tokens=32)


def kernel(query, key, value, query_ends, key_ends, most_queries, most_keys, *, scale, window_size, enable_gqa):
    """What `torch.nn.attention.varlen.varlen_attn` is documented to compute, one sequence after the other."""
    assert query_ends.dtype == key_ends.dtype == torch.int32
    assert enable_gqa == (query.shape[1] != key.shape[1])
    found = []
    for number in range(len(query_ends) - 1):
        own, seen = (slice(*ends[number : number + 2].tolist()) for ends in (query_ends, key_ends))
        count, keys = own.stop - own.start, seen.stop - seen.start
        assert count <= most_queries
        assert keys <= most_keys
        at = torch.arange(count)[:, None] + keys - count
        sees = torch.arange(keys) <= at
        if window_size[0] >= 0:
            sees &= torch.arange(keys) >= at - window_size[0]
        wide = [
            part[seen].transpose(0, 1).repeat_interleave(query.shape[1] // key.shape[1], 0) for part in (key, value)
        ]
        mixed = torch.nn.functional.scaled_dot_product_attention(
            query[own].transpose(0, 1), *wide, attn_mask=sees, scale=scale
        )
        found.append(mixed.transpose(0, 1))
    return torch.cat(found)


@pytest.fixture
def packing(monkeypatch):
    """Let the models whose attention is the GPU's compute packed sequences on a CPU."""
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", kernel)
    monkeypatch.setattr(gpu_attention, "packs", lambda model: model.config._attn_implementation == gpu_attention.NAME)


def hidden_and_slopes(loaded, rows):
    batch = collate(rows, loaded.pad_id)
    hidden = predict(loaded.model, batch, logits=False).hidden
    torch.manual_seed(0)
    (hidden * torch.randn(hidden.shape)).sum().backward()
    slopes = {name: each.grad for name, each in loaded.model.named_parameters() if each.grad is not None}
    return hidden.detach(), slopes, gpu_attention.inputs_without_mask(loaded.model, batch)


@pytest.mark.parametrize("architecture", [*tiny.ARCHITECTURES, *tiny.RECENT])
@pytest.mark.parametrize("share", [False, True], ids=["one task", "shared prompts"])
def test_hidden_states_and_gradients_without_a_mask_are_those_with_one(architecture, share, packing):
    """Some rows are longer than the sliding windows of the tiny models, 64."""
    dense, masked = tiny.loaded(architecture), tiny.loaded(architecture, gpu_attention.register())
    encoder = dense.encoder(FORM)
    items = [encoder.supervised(example, task) for example in EXAMPLES for task in ("decision", "answer")]
    rows = rows_of(items) if share else [join([item]) for item in items]
    expected, slopes, inputs = hidden_and_slopes(dense, rows)
    assert not inputs
    found, others, inputs = hidden_and_slopes(masked, rows)
    assert inputs["attention_mask"].numel() == 0
    assert ("packed" in inputs) == (share or architecture in {"mistral", "gemma3", "gemma3_images"})
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    assert slopes.keys() == others.keys()
    for name, slope in slopes.items():
        torch.testing.assert_close(others[name], slope, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("architecture", ["llama", "gemma3"])
def test_answers_are_the_same_without_a_mask(architecture):
    answers = []
    for attention in ("grouped", gpu_attention.register()):
        loaded = tiny.loaded(architecture, attention)
        encoder = loaded.encoder(FORM)
        prompts = [encoder.prompt(example, "answer") for example in EXAMPLES]
        answers.append(generate_answers(loaded, prompts, 6, "Writing"))
    assert answers[0] == answers[1]


def test_rows_without_a_common_start_and_of_one_token_are_packed():
    alone = Encoded("a", "answer", [5], [6], answer_cut=False)
    rows = [
        join([Encoded("b", "decision", [1, 2], [3], False), Encoded("b", "answer", [4, 5], [6, 7], False)]),
        join([alone]),
    ]
    packed = gpu_attention.pack(collate(rows, 0).branch)
    assert packed.queries.tolist() == [0, 1, 2, 3, 4, 5]
    assert packed.keys.tolist() == [0, 1, 2, 3, 4, 5]
    assert packed.query_ends.tolist() == packed.key_ends.tolist() == [0, 2, 5, 6]


@pytest.mark.parametrize("heads", [1, 3])
def test_a_kernel_is_used_only_if_it_gives_what_dense_attention_gives(monkeypatch, capsys, heads):
    shape = (torch.float32, heads, 8, torch.device("cpu"))
    for window, is_right in ((-1, True), (3, False)):
        varlen = partial(wrong_kernel, window)
        monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", varlen)
        gpu_attention._packs.cache_clear()
        assert gpu_attention._packs(*shape) is is_right
    gpu_attention._packs.cache_clear()
    assert capsys.readouterr().err.count("its results differ from those of dense attention") == 1


def wrong_kernel(window, *inputs, **options):
    """A kernel that always has this sliding window."""
    return kernel(*inputs, **options | {"window_size": (window, 0)})


@ON_GPU
@pytest.mark.parametrize("architecture", [*tiny.ARCHITECTURES, *tiny.RECENT])
def test_the_gpu_s_kernels_agree_with_a_dense_mask(architecture):
    """In BF16, with grouped heads of a size that flash kernels support."""
    found = []
    for attention in ("sdpa", gpu_attention.register()):
        loaded = tiny.loaded(architecture, attention)
        loaded.model.to("cuda", torch.bfloat16)
        encoder = loaded.encoder(FORM)
        items = [encoder.supervised(example, task) for example in EXAMPLES for task in ("decision", "answer")]
        layouts = (rows_of(items), [join([item]) for item in items])
        hidden = [predict(loaded.model, collate(rows, 0), False).hidden for rows in layouts]
        found.append(torch.cat([part.float() for part in hidden]))
    assert gpu_attention.packs(loaded.model)
    torch.testing.assert_close(found[1], found[0], atol=0.06, rtol=0.06)
