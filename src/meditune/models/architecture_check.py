"""Check that a base model's architecture gives the same results in Meditune's forward passes as in transformers.

Meditune lays several tasks out in one row (shared_prefix_batch.py), skips padding (forward.py), and stores keys and
values itself while it generates text (generation.py). That is exact if tokens exchange information only through
attention, and if attention depends only on masks and position ids. Other architectures would give wrong numbers without
an error: recurrent layers and convolutions carry one task's answer into the next, and ALiBi counts columns.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from meditune.errors import ModelError
from meditune.models.forward import label_logits, predict
from meditune.models.generation import Decoder, PrefixCache
from meditune.models.quantization import is_quantized
from meditune.models.quiet_libraries import quiet_transformers
from meditune.models.shared_prefix_batch import collate, join
from meditune.prompts import Encoded

TESTED = {"gemma3_text", "gpt2", "gpt_neox", "llama", "mistral", "phi", "phi3", "qwen2", "qwen3", "smollm3"}
"""Architectures that the project's tests compare with transformers; the others are checked when a model is loaded"""
LAYERS = {"full_attention", "sliding_attention", "global"}
"""Kinds of layers that Meditune's masks support, as named in the settings `layer_types` and `attention_layers`"""
ADVICE = (
    "Choose a base of another architecture, such as Llama, Qwen 3, Gemma 3 or SmolLM2 (list some: meditune models)."
)
ALIBI = {"bloom", "mpt"}
"""Architectures whose attention depends on the distance of columns; in others, the setting `alibi` says so"""
EXACT, ROUNDED = 1e-3, 0.25
"""Maximum relative difference of logits, for FP32 and for formats with fewer bits. In BF16, rounding alone gives up to
0.09 (SmolLM2 135M)."""
START, FIRST, SECOND, OTHER = 14, 20, 8, 9
"""Number of tokens of a prompt, of the two continuations that share it, and of another text"""


def refuse_layers(name: str, config: Any) -> None:
    """Raise ModelError if the config lists layers other than full or sliding-window attention, or if it uses ALiBi.

    Short texts don't show all differences: a layer with chunks of 8,192 tokens equals full attention below that length.
    """
    text = config.get_text_config()
    if text.model_type in ALIBI or getattr(text, "alibi", False):
        raise ModelError(
            f"{name}: Meditune can't train or run the {text.model_type} architecture, because it uses ALiBi. {ADVICE}"
        )
    kinds = {*(getattr(text, "layer_types", None) or ()), *(getattr(text, "attention_layers", None) or ())}
    if other := sorted(kinds - LAYERS):
        raise ModelError(
            f"{name}: Meditune can't train or run the {text.model_type} architecture, because its layers aren't all "
            f"full attention or attention with a sliding window ({', '.join(other)}). {ADVICE}"
        )


def supported_attention(config: Any, attention: str) -> str:
    """Return the `attn_implementation` to load a model with: `attention`, or "eager" if the architecture needs it.

    Older architectures have attention code of their own. Others compute more than the usual attention: GPT-OSS adds
    sinks, and Gemma 2 caps the scores; transformers marks them as unable to use SDPA.
    """
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        return attention
    architecture = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    return attention if architecture._supports_sdpa and architecture._can_set_attn_implementation() else "eager"


def check_architecture(name: str, model: Any) -> None:
    """Raise ModelError if the model's results in Meditune differ from those of transformers with eager attention.

    The check reads a few random tokens. Models of a tested architecture and models without weights aren't checked.
    """
    kind, weight = model.config.get_text_config().model_type, next(model.parameters())
    if kind in TESTED or weight.is_meta:
        return
    limit = EXACT if weight.dtype == torch.float32 and not is_quantized(model) else ROUNDED
    try:
        wrong = [what for what, difference in _differences(model) if not difference <= limit]
        reason = f"{wrong[0]} differ from those of transformers" if wrong else ""
    except torch.OutOfMemoryError:
        raise
    except (AssertionError, AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
        reason = f"a short test failed with {type(error).__name__}: {(str(error).strip() or '-').splitlines()[0]}"
    if reason:
        eager = "" if model.config._attn_implementation == "eager" else " Or try --set model.attention=eager."
        raise ModelError(
            f"{name}: Meditune can't train or run the {kind} architecture correctly ({reason}). {ADVICE}{eager}"
        )


@torch.no_grad()
def _differences(model: Any) -> Iterator[tuple[str, float]]:
    """Yield what was compared, and by how much its logits differ, as a fraction of transformers' logits."""
    generator = torch.Generator().manual_seed(0)
    size = model.get_input_embeddings().num_embeddings
    ids = torch.randint(size, (START + FIRST + SECOND + OTHER,), generator=generator).tolist()
    start, first, second = ids[:START], ids[START : START + FIRST], ids[START + FIRST : -OTHER]
    texts = [[*start, *first], [*start, *second], ids[-OTHER:]]
    with _eager(model):
        expected = [model(input_ids=_row(model, text), use_cache=False).logits[0] for text in texts]
    answers = [Encoded("shared", "answer", text[: START + 1], text[START + 1 :]) for text in texts[:2]]
    alone = Encoded("alone", "answer", texts[2][:1], texts[2][1:])
    hidden, logits = predict(model, collate([join(answers), join([alone])], 0))
    yield "predictions for a few labels", _difference(label_logits(model, hidden, ids), logits[:, ids])
    for item, wanted in zip([*answers, alone], expected, strict=True):
        found, logits = logits[: len(item.target)], logits[len(item.target) :]
        yield "predictions for tasks that share a prompt", _difference(found, wanted[len(item.prompt) - 1 : -1])
    decoder = Decoder(model, 0, 2, PrefixCache())
    read = [START + FIRST // 2, OTHER // 2]
    for step in range(2):
        if step:
            found = decoder.step([texts[0][read[0]], texts[2][read[1]]])
        else:
            found = decoder.read([texts[0][: read[0]], texts[2][: read[1]]])
        wanted = torch.stack([expected[0][read[0] - 1 + step], expected[2][read[1] - 1 + step]])
        yield "predictions while text is generated", _difference(found, wanted)
    yield "predictions after a cached prefix", _difference(decoder.read(texts[:1]), expected[0][-1:])


@contextmanager
def _eager(model: Any) -> Iterator[None]:
    """Inside the block, run the model with transformers' own plain attention."""
    before = model.config._attn_implementation
    if before == "eager":
        yield
        return
    with quiet_transformers():
        model.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.set_attn_implementation(before)


def _row(model: Any, tokens: Sequence[int]) -> torch.Tensor:
    return torch.tensor([tokens], device=next(model.parameters()).device)


def _difference(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """Return the mean over N positions of the relative difference of (N, vocabulary) logits."""
    found, wanted = (part.float() - part.float().mean(-1, keepdim=True) for part in (found, wanted))
    return float(((found - wanted).norm(dim=-1) / wanted.norm(dim=-1)).mean())
