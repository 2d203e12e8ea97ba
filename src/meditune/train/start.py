"""What tuning starts from: the base model, or, where that is an adapter, a copy with the adapter merged into it.

Without the copy, what is trained would be saved as if it belonged on the adapter's own base.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from meditune import ranks
from meditune.data.example import Example
from meditune.data.trained_on import Record, carry, read_record
from meditune.errors import DataError, ModelError
from meditune.files import full_disk_said, read_json, replacing_folder, sha256, write_json
from meditune.models.load import load, locate
from meditune.models.merging import is_virtual
from meditune.models.names import ADAPTER_FILE, MERGED, START
from meditune.models.quantized import trained_on
from meditune.models.quiet import quiet_transformers
from meditune.prompts import load_format, save_format
from meditune.recipe import Recipe
from meditune.train import checkpoint

CUES = ("question_cue", "answer_cue", "plain_cue", "decision_cue")


def base_records(name: str) -> list[Record]:
    """What the base model was trained on, as far as it keeps a record."""
    place = Path(locate(name))
    found = read_record(place) if place.is_dir() else None
    return [found] if found else []


def check_start(recipe: Recipe) -> None:
    """Raise ModelError where the base model is a tuned one that can't be tuned further, or not with this prompt."""
    name, place = recipe.model.base, Path(locate(recipe.model.reference))
    if (place / ADAPTER_FILE).is_file():
        if is_virtual(place):
            raise ModelError(
                f"model.base: {name} is an adapter of virtual tokens, which can't be merged into its base model to "
                "tune it further. Take a model that was tuned with another strategy."
            )
        if recipe.model.quantize != "none" or trained_on(place) != "none":
            raise ModelError(
                f"model.base: {name} is an adapter, and it or this recipe has a quantized base, into which an adapter "
                "can't be merged to tune it further. Take quantize none for both."
            )
    form = load_format(place) if place.is_dir() else None
    asked = {cue: getattr(form, cue) for cue in CUES} if form else {}
    # One that it never learnt may be added.
    differing = [cue for cue, text in asked.items() if text and text != getattr(recipe.prompt, cue)]
    if form and differing:
        named = "; ".join(f"prompt.{cue} is {asked[cue]!r} there" for cue in differing)
        raise ModelError(f"model.base: {name} was tuned with another prompt: {named}. Give this recipe the same.")


def check_plain(train: Sequence[Example], recipe: Recipe) -> None:
    """Raise DataError where the cue for plain words would be asked with and was never learnt."""
    cue, name = recipe.prompt.plain_cue, recipe.model.reference
    known = load_format(Path(locate(name))) if Path(name).expanduser().is_dir() else None
    if not cue or (known and known.plain_cue == cue):
        return
    answered = [example for example in train if example.answer.strip() and "answer" in recipe.train.tasks]
    if not any(example.style == "plain" for example in answered):
        raise DataError(
            f"prompt.plain_cue is never learnt: none of the {len(answered):,} answers that are trained on is in plain "
            f"words. They are in a source of data.sources with style: plain, up to grade {recipe.data.plain_grade:g} "
            "(data.plain_grade). Change these, or do without: --set prompt.plain_cue=null"
        )


def starting_point(recipe: Recipe, folder: Path) -> str:
    """Name of the model that tuning starts from: `model.base`, or the run's `start/`, which is made if need be.

    All processes must call; the first makes it, because they share the run's folder.
    """
    name = _made(recipe, folder) if ranks.is_first() else ""
    return str(folder / START) if ranks.told(name == str(folder / START)) else recipe.model.reference


def _made(recipe: Recipe, folder: Path) -> str:
    name, copy = recipe.model.reference, folder / START
    if (copy / MERGED).is_file() and any((folder / name).exists() for name in ("predictions", checkpoint.FOLDER)):
        return str(copy)
    place = Path(locate(name))
    if not (place / ADAPTER_FILE).is_file():
        return name
    weights = place / "adapter_model.safetensors"
    origin = {"adapter": str(place.resolve()), "sha256": sha256(weights), "dtype": recipe.model.dtype}
    if (copy / MERGED).is_file() and read_json(copy / MERGED).get("made_from") == origin:
        return str(copy)
    loaded = load(name, recipe.model)
    with full_disk_said(copy), replacing_folder(copy) as partial, quiet_transformers():
        loaded.model.save_pretrained(partial)
        loaded.tokenizer.save_pretrained(partial)
        save_format(loaded.form or recipe.prompt, partial)
        write_json(partial / MERGED, {"made_from": origin})
        carry(place, partial)
    return str(copy)
