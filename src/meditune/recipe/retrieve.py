"""Options under `evaluate.retrieve` and `train.retrieve`: passages that are found, in place of those that are given."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from meditune.recipe.spec import Spec

CONTEXTS = "contexts"
"""In place of an index: the contexts of the run's own examples"""


class SearchedSpec(Spec):
    """What is searched, and how much of it is shown."""

    index: str | None = Field(
        None,
        min_length=1,
        description="What is searched: the place of an index (`meditune index build`), or contexts: those of the run's "
        "own examples, by BM25 in memory.",
    )
    sources: list[str] = Field(default_factory=list, description="Only these sources of the index; all when empty.")
    words: int = Field(
        400,
        ge=0,
        description="Of each document that is found, so many words around the passage, which is any abstract as a "
        "whole; 0: the passage alone.",
    )

    @property
    def searched(self) -> dict[str, Any]:
        """What decides which passages are found."""
        return self.model_dump(mode="json")


class RetrieveSpec(SearchedSpec):
    """Measuring with passages that are found for each item, beside what it is given; off while index is empty."""

    k: int = Field(5, ge=1, le=100, description="Documents that are shown, the best first, as far as there is room.")


class TrainRetrieveSpec(SearchedSpec):
    """Training with passages that were found: an example's own one among others that don't bear on it.

    After RAFT (Zhang et al. 2024, arXiv:2403.10131). With index empty the contexts are searched. Nothing of a dev or
    test item is shown.
    """

    share: float = Field(
        0.0, ge=0, le=1, description="Share of the training examples that are shown found passages; 0 is off."
    )
    passages: int = Field(3, ge=1, le=20, description="Passages that such an example is shown, in random order.")
    missing: float = Field(
        0.2,
        ge=0,
        le=1,
        description="Share of these examples whose own passage isn't among them; they learn their answer all the same.",
    )
