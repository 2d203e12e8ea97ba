"""Meditune: fine-tune a small open language model for medical questions, and show whether it improved.

The functions for Python programs are in `meditune.python_api`; they are imported when they are first used.
"""

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = [
    "Assistant",
    "Comparison",
    "Judge",
    "MedituneError",
    "ProgressUpdate",
    "Recipe",
    "Run",
    "build_index",
    "compare",
    "export_model",
    "load_recipe",
    "open_assistant",
    "open_index",
    "open_judge",
    "open_run",
    "run",
    "supports",
]

if TYPE_CHECKING:
    from meditune.config.recipe import Recipe
    from meditune.errors import MedituneError
    from meditune.progress import ProgressUpdate
    from meditune.python_api import (
        Assistant,
        Comparison,
        Judge,
        Run,
        build_index,
        compare,
        export_model,
        load_recipe,
        open_assistant,
        open_index,
        open_judge,
        open_run,
        run,
        supports,
    )


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from meditune import python_api

    return getattr(python_api, name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
