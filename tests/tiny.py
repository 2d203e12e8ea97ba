"""Tiny models of the true architectures with a tokenizer of their own, built in the test process."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    BertConfig,
    BertModel,
    BertTokenizer,
    Gemma3Config,
    Gemma3ForCausalLM,
    Gemma3ForConditionalGeneration,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    PhiConfig,
    PhiForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    SmolLM3Config,
    SmolLM3ForCausalLM,
)

from meditune.models.hidden_state_cache import HiddenStateCache
from meditune.models.load import LoadedModel

WORDS = (
    "Background: patients were given a drug or a placebo. Methods: we asked 120 adults. Results: pain fell by 30 "
    "percent in the group with the drug (p = 0.01). Question: Does the drug help? Conclusion: The drug helps with pain "
    "in adults. Answer (yes, no or maybe): yes no maybe no yes. Exercise, sleep and diet were not measured in this "
    "study of hearts. "
)


def tokenizer(bos: bool = False) -> PreTrainedTokenizerFast:
    """A byte-level BPE with a pad token that is its end token, as many real ones have."""
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=500, special_tokens=["<s>", "</s>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    raw.train_from_iterator([WORDS] * 4, trainer)
    if bos:
        from tokenizers.processors import TemplateProcessing

        raw.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(tokenizer_object=raw, bos_token="<s>", eos_token="</s>", pad_token="</s>")


CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""A chat template of the kind that Qwen and SmolLM2 have"""


def chat_tokenizer(
    template: str = CHATML, special: tuple[str, ...] = ("<|im_start|>", "<|im_end|>"), bos: bool = False
) -> PreTrainedTokenizerFast:
    """The same with a chat template and its special tokens; the end token stays </s>."""
    made = tokenizer(bos)
    made.add_special_tokens({"additional_special_tokens": list(special)})
    made.chat_template = template
    return made


ARCHITECTURES = ("llama", "gpt2", "mistral", "gemma3", "qwen2", "phi", "gpt_neox")
RECENT = ("qwen3", "smollm3", "phi3", "gemma3_images")
"""Further architectures of the catalogue; gemma3_images also reads images, as Gemma 3 4B does"""


def model(architecture: str, seed: int = 0, **changes: int) -> PreTrainedModel:
    """Two layers, hidden size 32, grouped heads where the architecture has them; FP32.

    `changes` are other values of the configuration, which GPT-2 names in a way of its own.
    """
    torch.manual_seed(seed)
    shared = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1, "vocab_size": changes.pop("vocab_size", 500)}
    wide = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 1024,
        **({"head_dim": 8} if architecture.startswith(("gemma3", "qwen3")) else {}),
    }
    wide |= changes
    if architecture in {"qwen2", "phi", "gpt_neox"}:
        wide["initializer_range"] = 0.1  # or virtual tokens hardly change what a layer norm lets through
    if architecture == "gpt2":
        made: PreTrainedModel = GPT2LMHeadModel(
            GPT2Config(
                n_embd=32,
                n_layer=2,
                n_head=4,
                n_positions=1024,
                resid_pdrop=0.0,
                embd_pdrop=0.0,
                attn_pdrop=0.0,
                **shared,
            )
        )
    elif architecture == "llama":
        made = LlamaForCausalLM(LlamaConfig(**wide, **shared))
    elif architecture == "mistral":
        made = MistralForCausalLM(MistralConfig(**wide, **shared, sliding_window=64))
    elif architecture == "qwen2":
        made = Qwen2ForCausalLM(Qwen2Config(**wide, **shared, tie_word_embeddings=True))
    elif architecture == "qwen3":
        made = Qwen3ForCausalLM(Qwen3Config(**wide, **shared, tie_word_embeddings=True))
    elif architecture == "smollm3":
        made = SmolLM3ForCausalLM(SmolLM3Config(**wide, **shared, tie_word_embeddings=True, no_rope_layers=[1, 0]))
    elif architecture == "phi3":
        made = Phi3ForCausalLM(Phi3Config(**wide, **shared, tie_word_embeddings=True, sliding_window=262_144))
    elif architecture == "phi":
        made = PhiForCausalLM(PhiConfig(**wide, **shared))
    elif architecture == "gpt_neox":
        del wide["num_key_value_heads"]  # which this architecture doesn't know
        made = GPTNeoXForCausalLM(GPTNeoXConfig(**wide, **shared))
    else:
        layers = ["sliding_attention", "full_attention"]
        text = Gemma3TextConfig(**wide, **shared, sliding_window=64, layer_types=layers, tie_word_embeddings=True)
        if architecture == "gemma3":
            made = Gemma3ForCausalLM(text)
        else:
            small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4}
            images = {**small, "image_size": 28, "patch_size": 14, "vision_use_head": False}
            config = Gemma3Config(text_config=text, vision_config=images, mm_tokens_per_image=4)
            made = Gemma3ForConditionalGeneration(config)
    if architecture in {"qwen2", "phi", "gpt_neox"}:
        # transformers begins biases at zero, which would hide one that is left out.
        for name, parameter in made.named_parameters():
            if name.endswith("bias"):
                torch.nn.init.normal_(parameter, std=0.02)
    return made.eval()


def blocks_drop_out(model: PreTrainedModel, share: float) -> None:
    """Give a tiny GPT-2 the dropout that a real one has."""
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = share


def loaded(architecture: str = "llama", attention: str = "grouped", frozen: int = 0) -> LoadedModel:
    """A tiny model as `meditune.models.load.load` would give it."""
    from meditune.models import inference

    made = model(architecture)
    made.set_attn_implementation(inference.register() if attention == "grouped" else attention)
    return LoadedModel(
        architecture, made, tokenizer(bos=architecture == "gemma3"), None, HiddenStateCache(made, frozen)
    )


def sharpened(architecture: str = "llama") -> LoadedModel:
    """A tiny model whose likeliest tokens are no near ties."""
    found = loaded(architecture)
    torch.manual_seed(6)
    with torch.no_grad():
        for parameter in found.model.parameters():
            if parameter.ndim == 2:
                parameter += 0.3 * torch.randn_like(parameter)
    return found


def with_model(found: LoadedModel, made: Any, frozen: int = 0) -> LoadedModel:
    """The same with another model, such as one with an adapter, whose first `frozen` layers are cached."""
    return replace(found, model=made, frozen=HiddenStateCache(made, frozen))


def save(folder: Path, architecture: str = "llama") -> Path:
    """A plain transformers folder."""
    model(architecture).save_pretrained(folder)
    tokenizer(bos=architecture == "gemma3").save_pretrained(folder)
    return folder


def reciting(folder: Path, text: str) -> Path:
    """A transformers folder with a model that answers every prompt with this text, which repeats no token."""
    made, spelled = model("llama", hidden_size=512), tokenizer()
    tokens = [*spelled(text)["input_ids"], spelled.eos_token_id]
    assert len(set(tokens)) == len(tokens), "what follows a token depends on this token alone"
    following = dict(pairwise(tokens))
    with torch.no_grad():
        for layer in made.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        made.model.embed_tokens.weight.copy_(torch.eye(500, 512))
        made.lm_head.weight.zero_()
        for token in range(500):
            made.lm_head.weight[following.get(token, tokens[0]), token] = 1
    made.save_pretrained(folder)
    spelled.save_pretrained(folder)
    return folder


def sentence_model(folder: Path) -> Path:
    """A folder with a BERT of random weights, as sentence models are, and a tokenizer that knows every letter."""
    torch.manual_seed(0)
    letters = "abcdefghijklmnopqrstuvwxyz0123456789.,?!()=:-"
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{letter}" for letter in letters)]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join([*vocabulary, "drug", "pain", "helps"]), encoding="utf-8")
    made = BertTokenizer(str(folder / "vocab.txt"))
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    BertModel(BertConfig(vocab_size=len(made), max_position_embeddings=512, **shape)).eval().save_pretrained(folder)
    made.save_pretrained(folder)
    return folder


def classifier(
    folder: Path, labels: Sequence[str], texts: Sequence[str], kind: str = "Sequence", places: int = 64
) -> Any:
    """Save a BERT classifier of texts or tokens with random weights and the texts' vocabulary, and return the model."""
    words = sorted({word.strip(".?").lower() for word in " ".join(texts).split()})
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", *words]
    folder.mkdir(parents=True)
    (folder / "vocab.txt").write_text("\n".join(vocabulary), encoding="utf-8")
    BertTokenizer(str(folder / "vocab.txt"), model_max_length=places).save_pretrained(folder)
    config = BertConfig(
        vocab_size=len(vocabulary), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        max_position_embeddings=places, id2label=dict(enumerate(labels)),
        label2id={each: number for number, each in enumerate(labels)},
    )  # fmt: skip
    torch.manual_seed(0)
    maker = AutoModelForTokenClassification if kind == "Token" else AutoModelForSequenceClassification
    made = maker.from_config(config)
    made.save_pretrained(folder)
    return made


def sure(folder: Path, model: Any, logits: Sequence[float]) -> None:
    """Save a classifier so that it gives these logits whatever it reads."""
    with torch.no_grad():
        model.classifier.weight.zero_()
        model.classifier.bias.copy_(torch.tensor(logits))
    model.save_pretrained(folder)
