"""Pruning a model, with what it costs and gains measured on the model that was written.

The calibration text and the text that quality is measured on have nothing in common, and neither is the test set that a
run's figures come from.
"""

from __future__ import annotations

import random
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from meditune.config.recipe import Recipe
from meditune.config.training_options import ApiSpec, ModelSpec
from meditune.data.leakage import copy_record
from meditune.data.prepare import Prepared, prepare
from meditune.errors import DataError, ModelError, RecipeError
from meditune.files import is_result_of, read_json, replace_folder, write_json
from meditune.models.api_client import find_api_model
from meditune.models.catalogue import ADAPTER_FILE, PRUNING, public_name
from meditune.models.load import LoadedModel, load, locate
from meditune.models.shared_prefix_batch import Row, rows_of
from meditune.prompts import Encoder, QuestionTooLongError, save_format
from meditune.run_folder import machine

DENSE = (
    "The zeros are stored and multiplied like other numbers: on a CPU a dense product with zeros takes as long as "
    "without, so zeros alone make nothing faster or smaller."
)
FILLED = (
    "Tuning puts numbers where the zeros are: a LoRA update is dense, and so is full fine-tuning. `meditune merge "
    "--keep-zeros` sets those weights to zero again."
)


@dataclass(frozen=True)
class Texts:
    """What a model is calibrated on and what it is measured on."""

    calibration: list[Row]
    """None for magnitude, which looks at weights alone"""
    source: str
    """Of the calibration rows, for people"""
    measured: dict[str, list[Row]]
    """By name, for people; one text at least"""

    def said(self) -> dict[str, Any] | None:
        """What was calibrated on, if anything."""
        rows = self.calibration
        return {"text": self.source, "rows": len(rows), "tokens": sum(map(len, rows))} if rows else None

    def some(self) -> list[Row]:
        """Rows of a text that quality is measured on."""
        return next(iter(self.measured.values()))


def prune(name: str, recipe: Recipe, folder: Path, data: Prepared | None) -> dict[str, Any]:
    """Prune a model by `recipe.model.prune` and leave it in `folder`, whole or not at all; what is there is kept.

    Calibrated on `data`'s training examples and measured on its development examples; without `data` on WikiText-2's
    validation and test text. Returns the content of pruning.json. Raises ModelError where the model can't be pruned,
    DataError where there is no text, MedituneError where `folder` holds something else.
    """
    from meditune.models import merging
    from meditune.models.pruning import check_count

    place, spec = _whole_model(name), recipe.model.prune
    if spec.method == "none":
        raise RecipeError("Say how to prune: --method magnitude, --method wanda, or --layers N (model.prune.method).")
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
    dtype = merging.stored_dtype(place)
    loaded = _load(place, str(dtype).removeprefix("torch."))
    if spec.layers is not None:
        check_count(loaded.model, spec.layers)
    texts = _texts(loaded, recipe, data)
    before = _measured(loaded, texts, recipe.evaluate.batch_tokens, "before")
    found = _pruned(loaded, recipe, texts)
    expected = _said(loaded.model, texts)
    with replace_folder(folder) as partial:
        merging.write(loaded.model, loaded.tokenizer, dtype, partial)
        if loaded.form:
            save_format(loaded.form, partial)
        copy_record(Path(place), partial)
        loaded.model = loaded.frozen = None  # type: ignore[assignment]
        written = _load(str(partial), str(dtype).removeprefix("torch."))
        _check_same(expected, _said(written.model, texts), name)
        after = _measured(written, texts, recipe.evaluate.batch_tokens, "after")
        sizes = {
            key: facts_of["parameters"] * dtype.itemsize for key, facts_of in (("before", before), ("after", after))
        }
        facts = {
            "made_from": made_from,
            "base": public_name(name),
            "what": spec.said,
            "method": spec.method,
            **({} if spec.method == "layers" else {"sparsity": spec.sparsity, "pattern": spec.pattern}),
            "calibration": texts.said(),
            **found,
            **{key: {"before": before[key], "after": after[key]} for key in before},
            "bytes": sizes,
            "measured_in": str(_computed_in(dtype)).removeprefix("torch."),
            "machine": machine(),
            "seconds": round(time.monotonic() - started, 1),
            "remarks": [DENSE, FILLED] if spec.method != "layers" else [],
        }
        write_json(partial / PRUNING, facts)
    return facts


def prune_with_text_of(recipe: Recipe, name: str, folder: Path) -> dict[str, Any]:
    """As `prune`, with the recipe's data, which are prepared for it and not kept."""
    _whole_model(name)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".", dir=folder.parent) as place:
        return prune(name, recipe, folder, prepare(recipe, Path(place) / "data"))


def _whole_model(name: str) -> str:
    """Where the model is. Raises ModelError where its weights aren't all there as one model."""
    if find_api_model(name, ApiSpec()):
        raise ModelError(f"{name} is behind an API, so there are no weights here to prune.")
    place = locate(name)
    if (Path(place) / ADAPTER_FILE).is_file():
        raise ModelError(
            f"{name} is an adapter, which belongs on the base model as it was. Merge it first (meditune merge), and "
            "prune what comes out."
        )
    return place


def _load(place: str, dtype: str) -> LoadedModel:
    import torch

    spec: dict[str, Any] = {"dtype": str(_computed_in(getattr(torch, dtype))).removeprefix("torch.")}
    return load(place, ModelSpec(base=place, **spec))


def _computed_in(dtype: Any) -> Any:
    """FP16 has no fast products on CPUs, and BF16 would round it; the weights are written in their own format again."""
    import torch

    known = {torch.float32, torch.bfloat16} | ({torch.float16} if torch.cuda.is_available() else set())
    return dtype if dtype in known else torch.float32


def _texts(loaded: LoadedModel, recipe: Recipe, data: Prepared | None) -> Texts:
    from meditune.evaluate.general_knowledge import WINDOW, general_texts, tokens_of
    from meditune.train import replay
    from meditune.train.dataset import encode

    rows = recipe.model.prune.rows
    encoder = loaded.encoder(recipe.prompt)
    calibration: list[Row] = []
    if recipe.model.prune.method == "magnitude":
        source = ""
    elif data is None:
        calibration = replay.general_rows(loaded, WINDOW, rows, recipe.seed)
        source = "WikiText-2 valid.txt"
    else:
        fitted, _ = encode(data.splits.train, encoder, recipe.train.tasks)
        calibration = random.Random(f"{recipe.seed}/prune").sample(fitted, min(rows, len(fitted)))
        source = "training examples"
    measured = {"development answers": _answers(data, encoder)} if data else {}
    for kind, text in general_texts(recipe.evaluate).items():
        measured[text.title] = text.rows(loaded, tokens_of(recipe.evaluate, kind))
    measured = {name: found for name, found in measured.items() if found}
    if not measured:
        raise DataError(
            "There is no text to measure the pruned model on. Put WikiText-2's test.txt where the section Offline of "
            "docs/how-to/train-and-evaluate.md says, or use a recipe with answers."
        )
    return Texts(calibration, source, measured)


def _answers(data: Prepared, encoder: Encoder) -> list[Row]:
    found = []
    for example in data.splits.dev:
        if example.answer:
            try:
                found.append(encoder.supervised(example, "answer"))
            except QuestionTooLongError:
                continue
    return rows_of(found)


def _pruned(loaded: LoadedModel, recipe: Recipe, texts: Texts) -> dict[str, Any]:
    """Prune in place; returns what was decided on the way."""
    from meditune.models.pruning import block_influence, least, magnitude, passages, remove_layers, wanda

    spec, model = recipe.model.prune, loaded.model
    if spec.method == "magnitude":
        magnitude(model, spec)
        return {}
    batches = passages(model, texts.calibration, loaded.pad_id, recipe.evaluate.batch_tokens)
    if spec.method == "wanda":
        wanda(model, spec, batches)
        return {}
    assert spec.layers is not None, "the recipe was checked"
    influence = block_influence(model, batches)
    removed = least(influence, spec.layers)
    remove_layers(model, removed)
    return {"removed_layers": removed, "block_influence": influence}


def _measured(loaded: LoadedModel, texts: Texts, batch_tokens: int, when: str) -> dict[str, Any]:
    """Perplexity of each text, size, and speed."""
    import math

    from meditune.evaluate.likelihood import score
    from meditune.models.load import forward_tokens_per_s
    from meditune.models.pruning import sparsity

    perplexity = {}
    for name, rows in texts.measured.items():
        scores = score(loaded, rows, batch_tokens, f"{name[0].upper()}{name[1:]}, {when}").answers.values()
        perplexity[name] = math.exp(sum(each.nll for each in scores) / sum(each.tokens for each in scores))
    weights = list(loaded.model.parameters())
    return {
        "perplexity": perplexity,
        "parameters": sum(weight.numel() for weight in weights),
        "nonzero_share": sum(int(weight.count_nonzero()) for weight in weights) / sum(w.numel() for w in weights),
        "zeros_in_layers": sparsity(loaded.model),
        "layers": loaded.model.config.get_text_config().num_hidden_layers,
        "tokens_per_s": forward_tokens_per_s(loaded, texts.some(), batch_tokens),
    }


def _said(model: Any, texts: Texts) -> Any:
    """Logits of one row by transformers' own forward pass, (T, vocabulary)."""
    import torch

    ids = torch.tensor([texts.some()[0].tokens], device=next(model.parameters()).device)
    with torch.inference_mode():
        return model.eval()(input_ids=ids, use_cache=False).logits[0].float()


def _check_same(expected: Any, found: Any, name: str) -> None:
    import torch

    if not torch.allclose(expected, found, atol=1e-3, rtol=1e-3):
        raise ModelError(
            f"{name}: the pruned model says something else when it is loaded again, so this architecture depends on "
            "its layers in a way that isn't known here. Nothing was kept. With zeros (--method magnitude or wanda) it "
            "may work."
        )
