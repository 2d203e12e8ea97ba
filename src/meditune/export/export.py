"""Export a model to a format. The export is written, opened with its engine and verified before it is put in place."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from meditune import __version__
from meditune.config.data_options import PromptFormat
from meditune.config.training_options import ApiSpec
from meditune.data.leakage import copy_record
from meditune.engines.exported_model import EXPORT, EXPORTS, stop_tokens, weights_digest
from meditune.engines.llamacpp_engine import LlamacppEngine
from meditune.engines.open_engine import open_engine
from meditune.engines.tokenizer import PlainTokenizer
from meditune.errors import ModelError
from meditune.evidence.support_model import CLAIMS, copy_correction
from meditune.export import gguf, openvino_onnx
from meditune.export import prompt_templates as templates
from meditune.export.merged import write_merged
from meditune.export.verify import (
    CALIBRATION_ROWS,
    SAMPLE,
    Check,
    ClaimCheck,
    ClaimDeviation,
    Deviation,
    calibration_rows,
    checks_of,
)
from meditune.files import read_json, refuse_content, replace_folder, sha256, write_json
from meditune.models.api_client import find_api_model
from meditune.models.catalogue import ADAPTER_FILE
from meditune.models.load import base_of, loading, locate
from meditune.models.load import source as model_source
from meditune.prompts import LIMITS, load_format, save_format

TEXTS = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja"),
    *("config.json", "generation_config.json"),
)
"""Files that accompany the weights in every format"""


@dataclass(frozen=True)
class ExportFormat:
    """An export format: its engine, its default number format, and the other number formats that users can choose."""

    engine: str
    weights: str
    """The default number format; empty if users choose one of `gguf.QUANTIZATIONS`"""
    others: tuple[str, ...] = ()


KINDS = {
    "merged": ExportFormat("transformers", "bfloat16"),
    "openvino": ExportFormat("openvino", "int8", ("int4",)),
    "gguf": ExportFormat("llamacpp", ""),
    "onnx": ExportFormat("onnx", "int8"),
    "ollama": ExportFormat("llamacpp", ""),
    "vllm": ExportFormat("transformers", "bfloat16"),
}
CALIBRATION = f"AWQ and scale estimation on {CALIBRATION_ROWS} texts"
"""How the scales of 4-bit weights for OpenVINO are chosen; exports that were made in another way are made again"""
PLAIN = "merged"
"""The format from which the other formats are made: a transformers folder in BF16, called a plain folder"""


def _convert(
    source: Path, folder: Path, to: str, quantization: str, form: PromptFormat | None, run: Path | None
) -> dict[str, str]:
    """Convert a plain folder; return package -> version for the packages used. `form` is None for untuned models."""
    for file in TEXTS:
        if (source / file).is_file():
            shutil.copyfile(source / file, folder / file)
    if to == "openvino":
        is_coarse = quantization != KINDS[to].weights
        rows = calibration_rows(run, form or PromptFormat(), PlainTokenizer(source)) if is_coarse else []
        return openvino_onnx.write_openvino(source, folder, quantization, rows)
    if to == "onnx":
        return openvino_onnx.write_onnx(source, folder)
    if to == "vllm":
        return _write_vllm(source, folder, form)
    tokenizer = PlainTokenizer(source)
    if form and not form.is_chat:
        (folder / templates.JINJA).write_text(templates.jinja_template(tokenizer, form), encoding="utf-8")
    if to == "ollama":
        stops = [tokenizer.convert_ids_to_tokens(token) for token in stop_tokens(source)]
        context = gguf.context_tokens(read_json(source / "config.json"))
        template = templates.ollama_template(tokenizer, form or PromptFormat())
        text = templates.modelfile(gguf.file_name(quantization), template, stops, context)
        (folder / templates.MODELFILE).write_text(text, encoding="utf-8")
    return gguf.write_gguf(source, folder, quantization)


SAMPLING = ("do_sample", "temperature", "top_k", "top_p", "min_p", "typical_p", "repetition_penalty", "max_new_tokens")
"""Settings in a base model's generation_config.json that vLLM would use instead of the evaluation's settings"""


def _write_vllm(source: Path, folder: Path, form: PromptFormat | None) -> dict[str, str]:
    """Write the model with a chat template for the prompts of training, and without sampling settings."""
    for path in source.glob("*.safetensors*"):
        shutil.copyfile(path, folder / path.name)
    settings = folder / "generation_config.json"
    write_json(settings, {key: value for key, value in read_json(settings).items() if key not in SAMPLING})
    if form and not form.is_chat:
        templates.write_chat_template(folder, form)
    return {}


def export(name: str, to: str, output: Path | None = None, quantization: str | None = None) -> dict[str, Any]:
    """Export the model of a run, a folder or the catalogue, and return the content of export.json.

    The export is written to `output`, by default to `export_folder(...)`, where it replaces an outdated export. An
    existing export of the same weights, prompt format and judge's correction is left unchanged, unless one of its files
    is missing or damaged. `quantization` is one of `gguf.QUANTIZATIONS`, or int8 or int4 for OpenVINO. Raises
    ModelError, and leaves nothing behind, if the model can't be exported, if the export's outputs deviate too much from
    the original's, or if its prompts have different tokens than in training.
    """
    kind = format_named(to)
    weights = (quantization or kind.weights).lower() if kind.weights else gguf.quantization_named(quantization)
    if kind.weights and weights not in (kind.weights, *kind.others):
        raise ModelError(
            f"--quantization {quantization}: exports to {to} have {' or '.join((kind.weights, *kind.others))} weights. "
            f"Exports to gguf and ollama have {', '.join(gguf.QUANTIZATIONS)} weights."
        )
    if find_api_model(name, ApiSpec()):
        raise ModelError(f"{name} is behind an API, so there are no weights here to export.")
    place = locate(name)
    home = Path(name).expanduser() if Path(name).expanduser().is_dir() else None
    if output is None and home is None:
        raise ModelError(f"{name} has no folder of its own. Choose a folder for the export: --output DIR")
    if not kind.weights:
        gguf.check_architecture(_model_type(place))
    folder = output or export_folder(home or Path(), to, weights)
    tuned = load_format(Path(place)) if Path(place).is_dir() else None
    form = tuned or PromptFormat()
    made_from = {
        "model": str(Path(place).resolve()) if home else name,
        "sha256": weights_digest(Path(place)),
        "prompt": form.model_dump(mode="json"),
        "to": to,
    }
    made_from |= {} if weights == kind.weights else {"quantization": weights}
    made_from |= {"calibration": CALIBRATION} if to == "openvino" and weights != kind.weights else {}
    made_from |= {"correction": sha256(Path(place) / CLAIMS)} if (Path(place) / CLAIMS).is_file() else {}
    facts: dict[str, Any] = read_json(folder / EXPORT) if (folder / EXPORT).is_file() else {}
    if facts and _is_same(facts["made_from"], made_from) and _is_intact(folder, facts["sha256"]):
        return facts
    if output or not facts:
        refuse_content(folder)
    with _plain(name, place, home, to) as source, replace_folder(folder) as partial:
        tools = {"meditune": __version__}
        if to == PLAIN:
            write_merged(place, partial)
        else:
            tools |= _convert(source, partial, to, weights, tuned, home)
        save_format(form, partial)
        if Path(place).is_dir():
            copy_record(Path(place), partial)
            copy_correction(Path(place), partial)
        facts = _facts(partial, ExportFormat(kind.engine, weights), made_from, to, tools)
        write_json(partial / EXPORT, facts)
        facts |= _checked(name, partial, home, form, to, tuned is not None)
        write_json(partial / EXPORT, facts)
        (partial / "README.md").write_text(_readme(facts, name, usage(Path("FOLDER"), facts)), encoding="utf-8")
    return facts


def _is_same(stored: dict[str, Any], made_from: dict[str, Any]) -> bool:
    """Return whether an export was made from the same weights, prompt format and correction in the same way.

    A model's folder may have been moved, so its path is compared only if there are no hashes of the weights.
    """
    names = {*stored, *made_from} - ({"model"} if made_from["sha256"] else set())
    return all(stored.get(name) == made_from.get(name) for name in names)


def _is_intact(folder: Path, digests: dict[str, str]) -> bool:
    """Return whether an export still contains all its files unchanged, given their SHA-256."""
    return all((folder / name).is_file() and sha256(folder / name) == digest for name, digest in digests.items())


def format_named(name: str) -> ExportFormat:
    """Return the export format of this name. Raises ModelError if there is none."""
    if name not in KINDS:
        raise ModelError(f"Unknown export format {name!r}. Formats: {', '.join(KINDS)}, hub.")
    return KINDS[name]


def export_folder(home: Path, to: str, weights: str) -> Path:
    """Return the folder for an export of the model in `home`. Weights other than the default have their own folder."""
    is_coarse = weights != (KINDS[to].weights or gguf.DEFAULT)
    return home / EXPORTS / (f"{to}-{weights}" if is_coarse else to)


def _model_type(place: str) -> str:
    """Return the architecture of the model at `place`, or of its adapter's base."""
    from transformers import AutoConfig

    base = locate(base_of(Path(place))) if (Path(place) / ADAPTER_FILE).is_file() else place
    with loading(place, base):
        return str(AutoConfig.from_pretrained(**model_source(base)).model_type)


def usage(folder: Path, facts: dict[str, Any]) -> str:
    """Return the shell command that serves the export in `folder`; for Ollama, the command that imports it."""
    if facts["kind"] == "ollama":
        return f"ollama create NAME -f {shlex.quote(str(folder / templates.MODELFILE))}"
    if facts["kind"] == "vllm":
        return (
            f"vllm serve {shlex.quote(str(folder))} --dtype bfloat16 --max-model-len {facts['context_tokens']} "
            f"--override-generation-config '{{\"temperature\": 0}}'"
        )
    return f"meditune serve {shlex.quote(str(folder))}"


@contextmanager
def _plain(name: str, place: str, home: Path | None, to: str) -> Iterator[Path]:
    """Yield the plain folder from which other formats are made. A local model's plain folder is stored as an export."""
    if to == PLAIN:
        yield Path()
    elif home:
        export(name, PLAIN)
        yield home / EXPORTS / PLAIN
    else:
        with TemporaryDirectory() as temporary:
            write_merged(place, Path(temporary))
            yield Path(temporary)


def _facts(folder: Path, kind: ExportFormat, inputs: dict[str, Any], to: str, tools: dict[str, str]) -> dict[str, Any]:
    import torch
    import transformers

    config = read_json(folder / "config.json")
    # GenAI's paged attention and llama.cpp ignore the sliding window if all layers have one (Mistral's first version).
    ignores_windows = kind.engine in {"openvino", "llamacpp"}
    return {
        "kind": to,
        "engine": kind.engine,
        "weights": kind.weights,
        "stop_tokens": stop_tokens(folder),
        "context_tokens": gguf.context_tokens(config, ignores_windows),
        "made_from": inputs,
        "tools": tools | {"torch": torch.__version__, "transformers": transformers.__version__},
        "sha256": {path.name: sha256(path) for path in sorted(folder.iterdir()) if path.is_file()},
        "drift": None,
    }


def _checked(name: str, folder: Path, home: Path | None, form: PromptFormat, to: str, is_tuned: bool) -> dict[str, Any]:
    """Return the export's deviation from the model, and the number of chats whose prompts equal those of training.

    Raises ModelError if the deviation is too large, or if a prompt's tokens differ.
    """
    weights = read_json(folder / EXPORT)["weights"]
    checks = checks_of(Path(locate(name)), home, form)
    looseness, prompts = openvino_onnx.TOLERANCE_FACTORS.get(weights, 1.0), None
    with closing(open_engine(str(folder))) as exported:
        if isinstance(exported, LlamacppEngine):
            looseness = gguf.QUANTIZATIONS[weights].looseness
            if to == "ollama" or is_tuned:
                prompts = _checked_prompts(exported, form, to)
        elif to == "vllm" and is_tuned:
            prompts = templates.check_chat_template(folder, form)
        outputs = [check.outputs(exported, f"Checking the {to} export") for check in checks]
    deviations = [_deviation(name, home, check, after) for check, after in zip(checks, outputs, strict=True)]
    if problems := [text for each in deviations for text in each.problems(looseness)]:
        raise ModelError(
            f"The {weights} {to} export deviates from the original on {checks[-1].origin}: {'; '.join(problems)}. "
            f"Nothing was kept. {_remedy(to, weights, checks[-1].origin)}"
        )
    drift: dict[str, Any] = {"summary": " ".join(map(str, deviations))}
    for each in deviations:
        drift |= {"claims": asdict(each)} if isinstance(each, ClaimDeviation) else asdict(each)
    return {"drift": drift, "checked_prompts": prompts}


def _remedy(to: str, weights: str, origin: str) -> str:
    """Return what users can do about an export that deviates too much."""
    kind = KINDS[to]
    order = list(gguf.QUANTIZATIONS) if not kind.weights else [kind.weights, *kind.others]
    if finer := order[: order.index(weights)]:
        remedy = f"Try finer weights: {' or '.join(f'--quantization {each}' for each in reversed(finer))}."
    elif kind.weights == KINDS[PLAIN].weights:
        remedy = "This format only rounds weights to 16 bits, so check with `meditune evaluate` that the model works."
    else:
        remedy = f"These are the finest weights of this format. Keep 16 bits: --to {PLAIN}."
    if origin == SAMPLE:
        remedy += (
            " This sample says little about a model: export the run's folder, so that the check uses the run's own "
            "data; or put PubMedQA into $MEDITUNE_DATA/pubmedqa, or go online, so that it is downloaded."
        )
    return remedy


def _deviation(name: str, home: Path | None, check: Check | ClaimCheck, after: Any) -> Deviation | ClaimDeviation:
    """Return the deviation of an export's outputs from the original's, which are cached in the model's folder."""
    request = {
        "model": weights_digest(Path(locate(name))),
        "items": [[example.id, example.style] for example in check.examples],
        "form": check.form.model_dump(mode="json"),
        "limits": check.limits,
    }
    path = home / EXPORTS / check.file if home else None
    stored = read_json(path) if path and path.is_file() else {}
    with closing(open_engine(name, "transformers")) as original:
        same = stored.get("request") == request
        before: Any = check.output(**stored["output"]) if same else check.original(original)
        if path and not same:
            write_json(path, {"request": request, "output": asdict(before)})
        if before.prompts != after.prompts:
            raise ModelError("The exported tokenizer splits prompts into different tokens than the original tokenizer.")
        return check.compare(before, after, original)


def _checked_prompts(engine: LlamacppEngine, form: PromptFormat, to: str) -> int:
    """Return the number of chats whose prompts, tokenized by llama.cpp, equal those of training."""
    tokenizer = engine.tokenizer
    if to == "ollama":
        write, accepts_system = templates.ollama_prompt(tokenizer, form), form.is_chat or not form.quoted
        return templates.check_prompts(tokenizer, form, write, engine.tokenize, "Ollama", accepts_system)
    jinja, bos = templates.jinja_prompt(tokenizer), templates.added_bos(tokenizer)
    return templates.check_prompts(
        tokenizer, form, lambda messages: jinja(messages).removeprefix(bos), engine.tokenize, "llama.cpp"
    )


def _readme(facts: dict[str, Any], name: str, use: str) -> str:
    tools = ", ".join(f"{tool} {version}" for tool, version in facts["tools"].items())
    return "\n\n".join(
        [
            f"# A Meditune model for the {facts['engine']} engine ({facts['weights']})",
            f"**Limits.** {LIMITS}",
            "## Use",
            f"    {use}",
            "`prompt.json` describes the prompt format; `export.json` names the source model and the tools.",
            "## Comparison with the original model",
            facts["drift"]["summary"],
            f"Made from {name}; tools: {tools}.\n",
        ]
    )
