"""Which engine opens a model, and opening it."""

from __future__ import annotations

import difflib

from meditune.engines.engine import Engine
from meditune.errors import ModelError

NAMES = ("auto", "transformers")


def open_engine(model: str, engine: str = "auto", at_once: int = 32) -> Engine:
    """A model ready to answer: by catalogue name, hub id, or folder of a run or a model.

    `engine` is one of `NAMES`; auto takes what is fastest for what the folder holds. `at_once` bounds the answers that
    are written together. Raises ModelError where the model can't be had or the engine can't open it.
    """
    if engine not in NAMES:
        near = difflib.get_close_matches(engine, NAMES, n=1)
        hint = f" Did you mean {near[0]}?" if near else ""
        raise ModelError(f"There is no engine {engine!r}.{hint} Engines: {', '.join(NAMES)}.")
    from meditune.engines.transformers_engine import TransformersEngine
    from meditune.models.load import load

    return TransformersEngine(load(model), at_once)
