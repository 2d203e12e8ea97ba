"""Export a model to one format: write it, open it with its engine, verify it, and only then put it in place."""

from __future__ import annotations

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
from meditune.engines.open_engine import open_engine
from meditune.errors import ModelError
from meditune.evidence.support_model import copy_correction
from meditune.export import hub
from meditune.export.verify import Check, ModelOutput, items
from meditune.files import is_result_of, read_json, replace_folder, sha256, write_json
from meditune.models.api_client import find_api_model
from meditune.models.load import locate
from meditune.prompts import load_format, save_format

TEXTS = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "config.json",
    "generation_config.json",
)
"""Files that accompany the weights in every format"""
ORIGINAL = "original.json"
"""File beside a run's exports with the original model's outputs for the verification questions"""


@dataclass(frozen=True)
class ExportFormat:
    """A format that a model can be exported to."""

    engine: str
    """Name of the engine that opens it"""
    weights: str
    """Number format of the weights"""


KINDS = {
    "merged": ExportFormat("transformers", "bfloat16"),
    "openvino": ExportFormat("openvino", "int8"),
    "gguf": ExportFormat("llamacpp", "Q8_0"),
    "onnx": ExportFormat("onnx", "int8"),
    "ollama": ExportFormat("llamacpp", "Q8_0"),
}
PLAIN = "merged"
"""The format that the others are made from: a folder of transformers in BF16"""


def _convert(source: Path, folder: Path, to: str) -> dict[str, str]:
    """Convert a plain folder, and return the packages that were used with their versions."""
    from meditune.export import gguf, onnx, openvino

    write = {
        "openvino": openvino.write_openvino,
        "gguf": gguf.write_gguf,
        "onnx": onnx.write_onnx,
        "ollama": gguf.write_ollama,
    }
    for file in TEXTS:
        if (source / file).is_file():
            shutil.copyfile(source / file, folder / file)
    return write[to](source, folder)


def export(name: str, to: str, output: Path | None = None) -> dict[str, Any]:
    """Export the model of a run, a folder or the catalogue, and return the content of export.json.

    The export goes to `output`, or to `export/KIND` in the run's or model's folder. An export from the same weights is
    left unchanged. Raises ModelError if the model can't be exported or the export deviates from the original, and
    then leaves nothing behind.
    """
    if to not in KINDS:
        raise ModelError(f"Unknown export format {to!r}. Formats: {', '.join(KINDS)}.")
    if find_api_model(name, ApiSpec()):
        raise ModelError(f"{name} is behind an API, so there are no weights here to export.")
    place = locate(name)
    home = Path(name).expanduser() if Path(name).expanduser().is_dir() else None
    if output is None and home is None:
        raise ModelError(f"{name} has no folder of its own. Choose a folder for the export: --output DIR")
    folder = output or (home or Path()) / EXPORTS / to
    form = (load_format(Path(place)) if Path(place).is_dir() else None) or PromptFormat()
    made_from = {
        "model": str(Path(place).resolve()) if home else name,
        "sha256": weights_digest(Path(place)),
        "prompt": form.model_dump(mode="json"),
        "to": to,
    }
    if is_result_of(folder, EXPORT, made_from):
        facts: dict[str, Any] = read_json(folder / EXPORT)
        return facts
    from meditune.export.merged import write_merged

    kind = KINDS[to]
    with _plain(name, place, home, to) as source, replace_folder(folder) as partial:
        tools = {"meditune": __version__}
        if to == PLAIN:
            write_merged(place, partial)
        else:
            tools |= _convert(source, partial, to)
        save_format(form, partial)
        if Path(place).is_dir():
            copy_record(Path(place), partial)
            copy_correction(Path(place), partial)
        facts = _facts(partial, kind, made_from, to, tools)
        write_json(partial / EXPORT, facts)
        facts["drift"] = _checked(name, partial, home, form)
        write_json(partial / EXPORT, facts)
        (partial / "README.md").write_text(hub.readme(facts, name), encoding="utf-8")
    return facts


@contextmanager
def _plain(name: str, place: str, home: Path | None, to: str) -> Iterator[Path]:
    """Yield the plain BF16 folder that other formats are made from; a run keeps it as an export of its own."""
    from meditune.export.merged import write_merged

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
    config = config.get("text_config", config)
    most = config.get("max_position_embeddings") or config.get("n_positions") or 2048
    window = config.get("sliding_window")
    if kind.engine == "openvino" and window and not config.get("layer_types"):
        # GenAI's paged attention ignores a sliding window in every layer (Mistral's first version).
        most = min(most, window)
    return {
        "kind": to,
        "engine": kind.engine,
        "weights": kind.weights,
        "stop_tokens": stop_tokens(folder),
        "context_tokens": most,
        "made_from": inputs,
        "tools": tools | {"torch": torch.__version__, "transformers": transformers.__version__},
        "sha256": {path.name: sha256(path) for path in sorted(folder.iterdir()) if path.is_file()},
        "drift": None,
    }


def _checked(name: str, folder: Path, home: Path | None, form: PromptFormat) -> dict[str, Any]:
    """Return how the export deviates from the model; raise ModelError if the deviation is too large."""
    check = Check(items(home), form)
    with closing(open_engine(str(folder))) as exported:
        after = check.outputs(exported)
    asked = {
        "model": weights_digest(Path(locate(name))),
        "items": [[example.id, example.style] for example in check.examples],
        "form": form.model_dump(mode="json"),
    }
    path = home / EXPORTS / ORIGINAL if home else None
    stored = read_json(path) if path and path.is_file() else {}
    with closing(open_engine(name, "transformers")) as original:
        before = ModelOutput(**stored["said"]) if stored.get("asked") == asked else check.outputs(original)
        if path:
            write_json(path, {"asked": asked, "said": asdict(before)})
        drift = check.compare(before, after, original)
    problems = drift.problems()
    if problems:
        raise ModelError(f"The exported model deviates from the original: {'; '.join(problems)}. Nothing was kept.")
    return drift.facts() | {"said": str(drift)}
