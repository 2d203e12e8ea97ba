"""Prune a model, save it, and measure its size, speed and quality before and after, on text set aside for this."""

from __future__ import annotations

import math
import random
import statistics
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from meditune.config.recipe import Recipe
from meditune.config.training_options import ApiSpec, ModelSpec
from meditune.data.leakage import copy_record
from meditune.data.prepare import Prepared, prepare
from meditune.errors import DataError, ModelError, RecipeError
from meditune.evaluate.general_knowledge import WINDOW, general_texts, tokens_of
from meditune.evaluate.likelihood import score
from meditune.evidence.support_model import copy_correction
from meditune.export.merged import stored_dtype, write_model
from meditune.files import is_result_of, read_json, replace_folder, write_json
from meditune.models import pruning
from meditune.models.api_client import find_api_model
from meditune.models.catalogue import ADAPTER_FILE, PRUNING, public_name
from meditune.models.inference import batch_limit
from meditune.models.load import LoadedModel, load, locate
from meditune.models.shared_prefix_batch import Row, by_length, rows_of
from meditune.prompts import Encoder, QuestionTooLongError, save_format
from meditune.run_folder import machine
from meditune.train import replay
from meditune.train.dataset import encode

CALIBRATION_ROWS = 64
"""Number of rows from which the methods wanda and layers determine which weights or layers matter"""
DENSE = (
    "The zeros are stored and multiplied like other numbers: on a CPU, a dense matrix product takes as long with zeros "
    "as without, so zeros alone make the model neither faster nor smaller."
)
FILLED = (
    "Tuning fills the zeros, because LoRA updates and full fine-tuning are dense. `meditune merge --keep-sparsity` "
    "sets those weights to zero again."
)


@dataclass(frozen=True)
class Texts:
    """The rows for calibration (none for magnitude pruning), their source, and title -> rows for measuring quality."""

    calibration: list[Row]
    source: str
    measured: dict[str, list[Row]]

    def some(self) -> list[Row]:
        """Return the rows of one of the texts on which quality is measured."""
        return next(iter(self.measured.values()))


def prune(name: str, recipe: Recipe, folder: Path, data: Prepared | None) -> dict[str, Any]:
    """Prune a model as in `recipe.model.prune`, write it to `folder`, and return the content of pruning.json.

    An existing result is reused. Calibration uses the training examples of `data` or, without `data`, WikiText-2's
    validation text. Quality is measured on general text, and on the development examples of `data` if it is given.
    Raises ModelError if the model can't be pruned, DataError if there is no text, and MedituneError if `folder`
    contains something else.
    """
    place, spec = _whole_model(name), recipe.model.prune
    if spec.method == "none":
        raise RecipeError(
            "Choose how to prune: --method magnitude, --method wanda, or --layers N (model.prune.method)."
        )
    made_from = {
        "model": str(Path(place).resolve()) if Path(place).is_dir() else place,
        "prune": spec.model_dump(mode="json"),
        "seed": recipe.seed,
        "text": data.sha256 if data else "wikitext-2",
    }
    if is_result_of(folder, PRUNING, made_from):
        done: dict[str, Any] = read_json(folder / PRUNING)
        return done
    started = time.monotonic()
    dtype = stored_dtype(place)
    # On CPUs, FP16 models are computed in FP32: FP16 is slow there, and BF16 would round the weights.
    known = {torch.float32, torch.bfloat16} | ({torch.float16} if torch.cuda.is_available() else set())
    computed: Any = str(dtype if dtype in known else torch.float32).removeprefix("torch.")
    loaded = load(place, ModelSpec(base=place, dtype=computed))
    if spec.layers is not None:
        pruning.check_count(loaded.model, spec.layers)
    texts = _texts(loaded, recipe, data)
    measured = {"before": _measured(loaded, texts, recipe.train.micro_batch_tokens, "before")}
    found = _pruned(loaded, recipe, texts)
    expected = _logits(loaded.model, texts)
    with replace_folder(folder) as partial:
        write_model(loaded.model, loaded.tokenizer, dtype, partial)
        if loaded.form:
            save_format(loaded.form, partial)
        copy_record(Path(place), partial)
        copy_correction(Path(place), partial)
        loaded.model = loaded.frozen = None  # type: ignore[assignment]
        written = load(str(partial), ModelSpec(base=str(partial), dtype=computed))
        _check_same(expected, _logits(written.model, texts), name)
        measured["after"] = _measured(written, texts, recipe.train.micro_batch_tokens, "after")
        rows = texts.calibration
        calibrated = {"text": texts.source, "rows": len(rows), "tokens": sum(map(len, rows))} if rows else None
        facts = {
            "made_from": made_from,
            "base": public_name(name),
            "what": spec.summary,
            "method": spec.method,
            **({} if spec.method == "layers" else {"sparsity": spec.sparsity, "pattern": spec.pattern}),
            "calibration": calibrated,
            **found,
            **{key: {when: each[key] for when, each in measured.items()} for key in measured["before"]},
            "bytes": {key: each["parameters"] * dtype.itemsize for key, each in measured.items()},
            "measured_in": computed,
            "machine": machine(),
            "seconds": round(time.monotonic() - started, 1),
            "remarks": [DENSE, FILLED] if spec.method != "layers" else [],
        }
        write_json(partial / PRUNING, facts)
    return facts


def prune_with_text_of(recipe: Recipe, name: str, folder: Path) -> dict[str, Any]:
    """Call `prune` with the recipe's data, prepared in a temporary folder."""
    _whole_model(name)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".", dir=folder.parent) as place:
        return prune(name, recipe, folder, prepare(recipe, Path(place) / "data"))


def _whole_model(name: str) -> str:
    """Return the model's folder or hub id. Raises ModelError if it is an adapter or behind an API."""
    if find_api_model(name, ApiSpec()):
        raise ModelError(f"{name} is behind an API, so there are no weights here to prune.")
    place = locate(name)
    if (Path(place) / ADAPTER_FILE).is_file():
        raise ModelError(
            f"{name} is an adapter, which fits only the unpruned base model. Merge it first (meditune merge), then "
            "prune the merged model."
        )
    return place


def _texts(loaded: LoadedModel, recipe: Recipe, data: Prepared | None) -> Texts:
    encoder = loaded.encoder(recipe.prompt)
    calibration: list[Row] = []
    if recipe.model.prune.method == "magnitude":
        source = ""
    elif data is None:
        calibration = replay.general_rows(loaded, WINDOW, CALIBRATION_ROWS, recipe.seed)
        source = "WikiText-2 valid.txt"
    else:
        fitted, _ = encode(data.splits.train, encoder, recipe.train.tasks)
        calibration = random.Random(f"{recipe.seed}/prune").sample(fitted, min(CALIBRATION_ROWS, len(fitted)))
        source = "training examples"
    measured = {"development answers": _answers(data, encoder)} if data else {}
    for kind, text in general_texts(recipe.evaluate).items():
        measured[text.title] = text.rows(loaded, tokens_of(recipe.evaluate, kind))
    measured = {name: found for name, found in measured.items() if found}
    if not measured:
        raise DataError(
            "There is no text to measure the pruned model on. Put WikiText-2's test.txt into the folder "
            "$MEDITUNE_DATA/wikitext-2 (docs/reference/data-and-models.md says where to get it), or use a recipe "
            "with answers (--recipe)."
        )
    return Texts(calibration, source, measured)


def _answers(data: Prepared, encoder: Encoder) -> list[Row]:
    found = []
    for example in data.splits.dev:
        with suppress(QuestionTooLongError):
            if example.answer:
                found.append(encoder.supervised(example, "answer"))
    return rows_of(found)


def _pruned(loaded: LoadedModel, recipe: Recipe, texts: Texts) -> dict[str, Any]:
    spec, model = recipe.model.prune, loaded.model
    if spec.method == "magnitude":
        pruning.magnitude(model, spec)
        return {}
    batches = pruning.passages(model, texts.calibration, loaded.pad_id, recipe.train.micro_batch_tokens)
    if spec.method == "wanda":
        pruning.wanda(model, spec, batches)
        return {}
    assert spec.layers is not None, "the recipe was checked"
    influence = pruning.block_influence(model, batches)
    removed = pruning.least(influence, spec.layers)
    pruning.remove_layers(model, removed)
    return {"removed_layers": removed, "block_influence": influence}


def _measured(loaded: LoadedModel, texts: Texts, batch_tokens: int | None, label: str) -> dict[str, Any]:
    perplexity = {}
    for name, rows in texts.measured.items():
        scores = score(loaded, rows, batch_tokens, f"{name[0].upper()}{name[1:]}, {label}").answers.values()
        perplexity[name] = math.exp(sum(each.nll for each in scores) / sum(each.tokens for each in scores))
    weights = list(loaded.model.parameters())
    count = sum(weight.numel() for weight in weights)
    return {
        "perplexity": perplexity,
        "parameters": count,
        "nonzero_share": sum(int(weight.count_nonzero()) for weight in weights) / count,
        "zeros_in_layers": pruning.sparsity(loaded.model),
        "layers": loaded.model.config.get_text_config().num_hidden_layers,
        "tokens_per_s": _tokens_per_s(loaded, texts.some(), batch_tokens),
    }


def _logits(model: Any, texts: Texts) -> Any:
    """Return the logits of one row from transformers' own forward pass, (T, vocabulary)."""
    ids = torch.tensor([texts.some()[0].tokens], device=next(model.parameters()).device)
    with torch.inference_mode():
        return model.eval()(input_ids=ids, use_cache=False).logits[0].float()


def _check_same(expected: Any, actual: Any, name: str) -> None:
    if not torch.allclose(expected, actual, atol=1e-3, rtol=1e-3):
        raise ModelError(
            f"{name}: the pruned model gives different outputs after it is saved and loaded again, because its "
            "architecture depends on its layers in a way that Meditune doesn't support. Nothing was kept. Zeroing "
            "weights (--method magnitude or wanda) may work."
        )


SECONDS, LEAST, MOST = 3.0, 5, 10
"""Duration of a speed measurement in seconds, and its minimum and maximum number of passes"""


def _tokens_per_s(loaded: LoadedModel, rows: Sequence[Row], batch_tokens: int | None) -> float:
    """Return the median speed of forward passes over one batch, in tokens per second, not counting padding."""
    chosen = [rows[index] for index in by_length(rows, batch_limit(loaded.model, batch_tokens))[0]]
    tokens = sum(len(row) for row in chosen)
    seconds: list[float] = []
    with torch.inference_mode():
        loaded.frozen.predict(loaded.model, chosen, loaded.pad_id)
        while len(seconds) < LEAST or (sum(seconds) < SECONDS and len(seconds) < MOST):
            started = time.perf_counter()
            loaded.frozen.predict(loaded.model, chosen, loaded.pad_id)
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - started)
    return tokens / statistics.median(seconds)
