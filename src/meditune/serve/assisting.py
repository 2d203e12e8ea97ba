"""Opening an assistant: its index, and what a run's folder tells of how to correct decisions."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

from meditune.engines.engine import Engine
from meditune.errors import ModelError
from meditune.files import read_jsonl
from meditune.recipe import PromptFormat
from meditune.retrieve import manifest
from meditune.retrieve.embedders import DEFAULT, INT8
from meditune.retrieve.index import Index
from meditune.retrieve.place import place
from meditune.serve.assistant import Assistant, AssistantSettings
from meditune.serve.deciding import Correction
from meditune.serve.logs import LOGGER
from meditune.serve.safety import classifier


def open_assistant(
    engine: Engine,
    model: Path,
    form: PromptFormat | None,
    index: Index | str | None,
    settings: AssistantSettings | None = None,
    versions: Mapping[str, str] | None = None,
) -> Assistant:
    """An assistant for an open engine; `model` is the run's folder, if it is one.

    Raises DataError where the index can't be opened.
    """
    settings = settings or AssistantSettings()
    # A model that never learnt to decide in this format has no say in it.
    settings = replace(
        settings,
        correction=settings.correction or correction_of(model),
        decides=settings.decides and form is not None,
    )
    opened = open_index(index) if isinstance(index, str) else index
    return Assistant(engine, opened, settings, form=form, versions=versions, classifier=triage_classifier())


def open_index(index: str) -> Index:
    """An index with its embedding model, or that model's form without torch where this process has no torch.

    Raises DataError where it can't be opened.
    """
    return Index.open(index, _light(index))


def _light(index: str) -> str | None:
    """The sentence model's form without torch for an index whose vectors it may be compared with.

    Torch takes seconds to start and half a gigabyte; a process that has it anyway takes the index's own form.
    """
    own = manifest.read(place(index)).embedding["name"]
    return INT8 if own == DEFAULT and "torch" not in sys.modules and find_spec("onnxruntime") else None


def triage_classifier() -> classifier.TriageClassifier | None:
    """Return triage's classifier; None, with an error in the log, if it can't be loaded."""
    try:
        return classifier.load()
    except ModelError as error:
        LOGGER.error("triage has no classifier: rules alone miss most emergencies", extra={"why": str(error)})
        return None


def correction_of(run: Path) -> Correction | None:
    """What was fitted on dev to correct the tuned model's decisions; None where the run has nothing of the kind."""
    path = run / "predictions" / "tuned-calibration.jsonl"
    if not path.is_file():
        return None
    (row,) = read_jsonl(path)
    return Correction(float(row["temperature"]), row["bias"])
