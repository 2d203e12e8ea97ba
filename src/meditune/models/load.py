"""Load a base or tuned model by catalogue name, hub id or folder, and choose its device and number format."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError

from meditune.chat_template import template_of
from meditune.config.data_options import PromptFormat
from meditune.config.recipe import SUITE_TOKENS, Recipe
from meditune.config.training_options import VIRTUAL, ModelSpec
from meditune.data.example import Example
from meditune.errors import ModelError, RecipeError
from meditune.files import read_json
from meditune.hardware import limit_onednn_cache
from meditune.http_client import switched_on
from meditune.models import gpu_attention, inference, package_download, quantization
from meditune.models.adapters import merged
from meditune.models.api_client import PREFIX
from meditune.models.architecture_check import check_architecture, refuse_layers, supported_attention
from meditune.models.catalogue import (
    ADAPTER_FILE,
    CATALOGUE,
    PRUNED,
    START,
    is_hub_id,
    refuse_missing_folder,
    split_revision,
)
from meditune.models.forward import virtual_tokens
from meditune.models.hidden_state_cache import HiddenStateCache, frozen_count
from meditune.models.quiet_libraries import no_telemetry, quiet_transformers
from meditune.prompts import Encoder, end_tokens, load_format


@dataclass
class LoadedModel:
    """A causal language model that is ready to score and generate text."""

    name: str
    model: Any
    tokenizer: Any
    form: PromptFormat | None
    """The prompt format saved with the model, if any"""
    frozen: HiddenStateCache
    commit: str | None = None
    """The commit of the base model's weights in its hub repository; None for a folder"""

    @property
    def pad_id(self) -> int:
        """The token id for padding. The id may also occur in texts, because masks distinguish padding from text.

        A pad token that was added to the tokenizer but has no embedding isn't used.
        """
        known = (self.tokenizer.pad_token_id, self.tokenizer.eos_token_id)
        size = self.model.get_input_embeddings().num_embeddings
        return next((int(token) for token in known if token is not None and token < size), 0)

    def end_ids(self) -> list[int]:
        """Return the tokens that end an answer. Raises ModelError if there are none."""
        configured = getattr(self.model.generation_config, "eos_token_id", None)
        return end_tokens(self.tokenizer.eos_token_id, configured, self.name)

    def start_ids(self) -> list[int]:
        """Return the special tokens that begin every text of this model (BOS); many models have none."""
        end = self.tokenizer.eos_token_id
        return [token for token in self.tokenizer("")["input_ids"] if token != end]

    def encoder(self, form: PromptFormat) -> Encoder:
        """Return an encoder that converts examples to this model's tokens.

        In the chat format, this changes the tokenizer: the template's end-of-turn token becomes its end token, and it
        gets a template without thinking unless `form.thinking` is true. Other programs then use a saved model in the
        same way.
        """
        encoder = Encoder(self.tokenizer, form)
        if encoder.template:
            if encoder.template.end_id != self.tokenizer.eos_token_id:
                self.tokenizer.eos_token = self.tokenizer.convert_ids_to_tokens(encoder.template.end_id)
            self.tokenizer.chat_template = encoder.template.text
        return encoder


def load(name: str, spec: ModelSpec | None = None, on: str | None = None) -> LoadedModel:
    """Load a model for evaluation or training, with the number format and attention that `spec` selects.

    `name` may be a catalogue name, a hub id, or the folder of a model, an adapter or a finished run. Without `spec`, a
    tuned model's base is quantized as in training. The model is moved to the device `on`, by default `device()`. If
    `on` is "meta", weights are read only if the model is an adapter or is stored quantized. Raises ModelError if the
    model's architecture isn't supported, or, with advice on getting a model, if the model isn't available.
    """
    no_telemetry()
    limit_onednn_cache()
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    place = locate(name)
    folder = Path(place) if Path(place).is_dir() else None
    spec = spec or ModelSpec(base=name, quantize=quantization.trained_on(folder) if folder else "none")
    adapter = folder if folder and (folder / ADAPTER_FILE).is_file() else None
    if folder and not has_tokenizer(folder):
        raise ModelError(
            f"{folder} has no tokenizer (tokenizer.json, tokenizer.model or vocab.json). Copy the tokenizer files of "
            "its base model into this folder."
        )
    if adapter:
        adapter_weights(adapter)  # raises an error if there are none that can be read
    weights = locate(base_of(adapter)) if adapter else place
    options: dict[str, Any] = {"dtype": number_format(spec.dtype)}
    with loading(name, place):
        config = AutoConfig.from_pretrained(**source(weights))
        refuse_layers(name, config)
        options["attn_implementation"] = supported_attention(config, _attention(spec.attention))
        if spec.dtype == "auto":
            options["dtype"] = in_range(options["dtype"], config)
        computed = number_format("auto")
        # FP16 needs a model that is in range, and whose loss is scaled.
        computed = options["dtype"] if computed == torch.float16 else computed
        options |= quantization.loading_options(spec.quantize, computed)
        tokenizer = AutoTokenizer.from_pretrained(**source(place))
        # Weights that are stored quantized need special layers, which `from_config` doesn't create.
        if on == "meta" and not adapter and not getattr(config, "quantization_config", None):
            with torch.device("meta"):
                model = AutoModelForCausalLM.from_config(config, **options)
        else:
            model = with_weights(weights, **options)
        quantization.keep_trainable(model)
        if adapter:
            model = with_adapter(model, adapter)
            quantization.keep_number_format(model)
            model = merged(model)
    model.to(on or device()).eval()
    check_architecture(name, model.get_base_model() if virtual_tokens(model) else model)
    model.generation_config.pad_token_id = model.generation_config.pad_token_id or tokenizer.eos_token_id
    unset_ignored(model.generation_config)
    form = load_format(folder) if folder else None
    # Nothing is cached with virtual tokens, because rows are then longer than their cached states.
    count = 0 if virtual_tokens(model) else frozen_count(model, spec.top_layers)
    return LoadedModel(name, model, tokenizer, form, HiddenStateCache(model, count), _commit(weights))


def with_weights(location: str, **options: Any) -> Any:
    """Return the model at `location`, a folder or hub id. Raises ModelError unless its files have all its weights."""
    from transformers import AutoModelForCausalLM

    model, found = AutoModelForCausalLM.from_pretrained(
        **source(location), use_safetensors=True, ignore_mismatched_sizes=True, output_loading_info=True, **options
    )
    if mismatched := sorted(found["mismatched_keys"]):
        name, stored, expected = mismatched[0]
        raise ModelError(
            f"{location}: {name} has the shape {tuple(stored)}, but config.json needs {tuple(expected)}. Copy "
            "config.json and the weights from the same model."
        )
    if missing := sorted(found["missing_keys"]):
        raise ModelError(
            f"{location} lacks {len(missing)} of the model's weights, such as {missing[0]}. Copy config.json and all "
            "*.safetensors files from the same model."
        )
    return model


def with_adapter(model: Any, adapter: Path) -> Any:
    """Return the model with the adapter in a folder. Raises ModelError if the adapter's weights are for another model.

    The weights keep their number format from training; otherwise, merging would round differently.
    """
    from peft import PeftModel

    adapted = PeftModel.from_pretrained(model, str(adapter), autocast_adapter_dtype=False)
    # Only `load_adapter` returns which weights don't match, so they are loaded again.
    found = adapted.load_adapter(str(adapter), adapted.active_adapter, autocast_adapter_dtype=False)
    wrong = [
        key
        for key in (*found.unexpected_keys, *found.missing_keys)
        if key != "prompt_embeddings" and "vblora_vector_bank" not in key  # which peft loads without reporting it
    ]
    if wrong:
        raise ModelError(
            f"{adapter}: {len(wrong)} weights of the adapter and the model don't match ({wrong[0]}). Correct "
            f"base_model_name_or_path in {ADAPTER_FILE}, or copy the adapter again."
        )
    return adapted


ONLY_SAMPLING = ("temperature", "top_k", "top_p", "min_p", "top_h", "typical_p", "epsilon_cutoff", "eta_cutoff")
ONLY_BEAMS = ("early_stopping", "length_penalty")


def unset_ignored(generation: Any) -> None:
    """Unset the values of a generation config that its mode ignores.

    Many published models set a temperature without `do_sample`. transformers loads such a config and generates without
    sampling, but refuses to save the config once any of its values has changed.
    """
    ignored = (
        *(() if generation.do_sample else ONLY_SAMPLING),
        *(() if (generation.num_beams or 1) > 1 else ONLY_BEAMS),
    )
    for name in ignored:
        if getattr(generation, name, None) is not None:
            setattr(generation, name, None)


LOADING_ERRORS = (
    AttributeError,
    ImportError,
    KeyError,
    OSError,
    RuntimeError,
    StrictDataclassError,
    TypeError,
    ValueError,
)
"""Errors of transformers and peft if files are damaged, don't match each other, or need another library"""


@contextmanager
def loading(name: str, location: str, advice: str = "") -> Iterator[None]:
    """Raise ModelError, with advice on getting a model, if the block can't load the model `name` from `location`."""
    from safetensors import SafetensorError

    try:
        with quiet_transformers():
            yield
    except SafetensorError as error:
        raise ModelError(f"{location}: a .safetensors file is damaged or cut off ({error}). Copy it again.") from error
    except torch.OutOfMemoryError:
        raise
    except LOADING_ERRORS as error:
        if "allocate memory" in str(error):
            raise ModelError(f"{name} could not be loaded: this machine has too little free memory.") from error
        hint = "" if isinstance(error, ImportError) else f"\n{advice or download_advice(name)}"
        raise ModelError(f"{name} could not be loaded: {_reason(error)}{hint}") from error


def _reason(error: Exception) -> str:
    """Return a line that says what happened, from an error of a library."""
    if isinstance(error, KeyError):
        return f"missing or unknown key {error}"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    # The first line of some errors only introduces the others.
    heading = next((number for number, line in enumerate(lines) if not line.endswith(":")), 0)
    return " ".join(lines[: heading + 1]) or type(error).__name__


def locate(name: str) -> str:
    """Return the folder or hub id of a model; a model in a Python package is downloaded if it isn't cached.

    A hub id keeps its revision (`owner/name@commit`). Raises ModelError if the name is unknown, or if it has a revision
    but the model isn't on the hub.
    """
    given, (name, revision) = name, split_revision(name)
    place = _located(name)
    if not revision:
        return place
    if Path(place).is_dir():
        raise ModelError(
            f"{given}: only a model on the hub can have a revision, but {name} is "
            f"{'in a Python package, whose hash is checked' if name in CATALOGUE else 'a folder'}. Remove the revision."
        )
    return f"{place}@{revision}"


def source(location: str) -> dict[str, Any]:
    """Return arguments for `from_pretrained`; `location` is a folder, or a hub id that may have a revision."""
    name, revision = split_revision(location)
    return {
        "pretrained_model_name_or_path": name,
        "revision": revision or "main",
        "local_files_only": offline_reason() is not None,
    }


def _commit(location: str) -> str | None:
    from huggingface_hub import try_to_load_from_cache

    name, revision = split_revision(location)
    if Path(name).is_dir():
        return None
    found = try_to_load_from_cache(name, "config.json", revision=revision)
    return Path(found).parent.name if isinstance(found, str) else None


def _located(name: str) -> str:
    path = Path(name).expanduser()
    if (path / "model").is_dir() and (path / "recipe.yaml").is_file():
        return str(path / "model")
    if path.is_dir():
        if not any((path / file).is_file() for file in ("config.json", ADAPTER_FILE)):
            unfinished = " It is a run whose training hasn't finished." if (path / "recipe.yaml").is_file() else ""
            raise ModelError(f"{path} contains no model: it has neither config.json nor {ADAPTER_FILE}.{unfinished}")
        return str(path)
    entry = CATALOGUE.get(name)
    if name.startswith(PREFIX) or (entry and entry.api):
        raise ModelError(f"{name} is reached through an API and has no weights to load or tune here.")
    if entry is None:
        if is_hub_id(name):
            return name
        refuse_missing_folder(name)
        near = difflib.get_close_matches(name, CATALOGUE, n=1)
        hint = f" Did you mean {near[0]}?" if near else ""
        raise ModelError(
            f"There is no model {name!r}: this is neither a folder nor a hub id (owner/name).{hint} "
            f"{download_advice(name)}"
        )
    if entry.package:
        try:
            return str(package_download.fetch(entry))
        except ModelError as error:
            raise ModelError(f"{error}\n{download_advice(name)}") from error
    assert entry.hub_id is not None
    return entry.hub_id


def prompt_for(form: PromptFormat, name: str, examples: Iterable[Example]) -> PromptFormat:
    """Return the prompt format for tuning or evaluating the base model `name` on these examples.

    If `prompt.format` isn't set, a tuned model keeps its format. Any other model gets the format chat if it has a chat
    template and an example is a conversation, else plain. Raises ModelError if `prompt.format` is chat but the model
    has no chat template.
    """
    place = locate(name)
    folder = Path(place) if Path(place).is_dir() else None
    if form.format is None:
        known = load_format(folder) if folder else None
        if known:
            return form.model_copy(update={"format": known.format})
        if not any(example.turns is not None for example in examples):
            return form
        return form.model_copy(update={"format": "chat" if _chat_template(place) else "plain"})
    if form.is_chat and not _chat_template(place):
        raise ModelError(
            f"prompt.format is chat, but {name} has no chat template. Set prompt.format to plain, choose an instruct "
            "model as model.base, or copy a chat_template.jinja into the model's folder."
        )
    return form


def _chat_template(place: str) -> str | None:
    from transformers import AutoTokenizer

    with loading(place, place):
        return template_of(AutoTokenizer.from_pretrained(**source(place)))


def download_advice(name: str) -> str:
    """Return advice on getting a model, for an error message."""
    entry = CATALOGUE.get(name)
    hub_id = (entry.hub_id if entry else None) or (name if is_hub_id(name) else "OWNER/NAME")
    forbidden = offline_reason()
    packaged = ", ".join(key for key, value in CATALOGUE.items() if value.package)
    return (
        "There are three ways to get a model (set it in a recipe, or with --set model.base=NAME):\n"
        f"  1. online{f' (unset {forbidden})' if forbidden else ''}: specify the hub id: {hub_id}\n"
        f"  2. offline: copy the model's folder (config.json, *.safetensors, tokenizer) to this machine, and specify "
        "that folder\n"
        f"  3. without a hub: specify a model that a Python package contains: {packaged}"
    )


def offline_reason() -> str | None:
    """Return the name of the environment variable that forbids network use; None if no variable does."""
    return switched_on("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "MEDITUNE_OFFLINE") or None


def device() -> str:
    """Return the device on which models run: this process's GPU if there is one, else the CPU."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def bf16_is_fast() -> bool:
    """Return whether this machine multiplies BF16 matrices in hardware."""
    if torch.cuda.is_available():
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def number_format(name: str) -> Any:
    """Return the torch dtype that a value of `model.dtype` means on this machine."""
    if name in {"float32", "bfloat16"}:
        return getattr(torch, name)
    if name == "float16" and torch.cuda.is_available():
        return torch.float16
    if bf16_is_fast():
        return torch.bfloat16
    return torch.float16 if torch.cuda.is_available() else torch.float32


def in_range(dtype: Any, config: Any) -> Any:
    """Return the dtype, or FP32 instead of FP16 for models whose hidden states are too large for FP16 (Gemma 3)."""
    too_large = str(config.get_text_config().model_type).startswith("gemma")
    return torch.float32 if dtype == torch.float16 and too_large else dtype


def _attention(name: str) -> str:
    if name == "auto":
        return gpu_attention.register() if device() == "cuda" else inference.register()
    return inference.register() if name == "grouped" else name


def has_tokenizer(folder: Path) -> bool:
    """Return whether the folder contains a tokenizer."""
    return any((folder / file).is_file() for file in ("tokenizer.json", "tokenizer.model", "vocab.json"))


def adapter_weights(adapter: Path) -> Path:
    """Return the file with an adapter's weights. Raises ModelError if they aren't stored as safetensors."""
    path = adapter / "adapter_model.safetensors"
    if not path.is_file():
        raise ModelError(
            f"{adapter} has no adapter_model.safetensors. Meditune doesn't read adapter_model.bin, because such files "
            "can run code. If you trust the file, load the adapter with peft and save it with save_pretrained."
        )
    return path


def base_of(adapter: Path) -> str:
    """Return the name or folder of an adapter's base model. Raises ModelError if the adapter's config names no base.

    A pruned base, or a model that the run created to start from, is found in the run's folder, even if that folder was
    moved.
    """
    config = read_json(adapter / ADAPTER_FILE)
    if not isinstance(config, dict):
        raise ModelError(f"{adapter / ADAPTER_FILE} doesn't contain a JSON object. Copy the adapter again.")
    base, revision = config.get("base_model_name_or_path"), config.get("revision")
    if not base:
        raise ModelError(f"{adapter / ADAPTER_FILE} doesn't name its base model (base_model_name_or_path).")
    for own in (PRUNED, START):
        beside = adapter.resolve().parent / own
        if Path(base).name == own and beside.is_dir():
            return str(beside)
    return f"{base}@{revision}" if revision and is_hub_id(str(base)) else str(base)


def is_virtual(adapter: Path) -> bool:
    """Return whether an adapter consists of virtual tokens. Raises ModelError if peft can't read it."""
    from peft import PeftConfig

    with loading(str(adapter), str(adapter)):
        return bool(PeftConfig.from_pretrained(str(adapter)).is_prompt_learning)


def positions(config: Any) -> int | None:
    """Return the maximum number of tokens that a model with this config can read; None if it states no limit."""
    text = config.get_text_config()
    limits = (getattr(text, name, None) for name in ("n_positions", "max_position_embeddings", "n_ctx"))
    most = next((most for most in limits if isinstance(most, int)), None)
    rope = getattr(text, "rope_parameters", None) or {}
    if most and rope.get("rope_type") == "longrope":
        # One longer text would change the rotary factors of all texts in its batch.
        most = min(most, rope.get("original_max_position_embeddings", most))
    return most


def refuse_unreadable(name: str, config: Any, form: PromptFormat, recipe: Recipe, virtual: int | None = None) -> None:
    """Raise RecipeError, with the key to lower, if a prompt with its answer may be too long for the model `name`.

    `virtual` is the number of virtual tokens before each row; by default, the number that the recipe trains.
    """
    most = positions(config)
    if most is None:
        return
    if virtual is None:
        virtual = recipe.model.virtual_tokens if recipe.model.strategy in VIRTUAL else 0
    room = most - virtual
    reads = f"{name} reads at most {most:,} tokens" + (f", of which {virtual} are virtual" if virtual else "")
    if form.max_tokens > room:
        raise RecipeError(
            f"{reads}, but prompt.max_tokens is {form.max_tokens:,}. Lower prompt.max_tokens to at most {room}."
        )
    prompt = form.max_tokens - form.answer_room
    more, written = recipe.evaluate.longest_answer, ""
    if recipe.evaluate.open_suites:
        written = f" (in {', '.join(recipe.evaluate.open_suites)}: {SUITE_TOKENS})"
    if recipe.evaluate.protocol == "meditune" and prompt + more > room:
        raise RecipeError(
            f"{reads}, but a prompt may have {prompt:,}, and an answer {more:,}{written}. Lower "
            f"evaluate.max_new_tokens to at most {room - prompt}, or lower prompt.max_tokens."
        )
