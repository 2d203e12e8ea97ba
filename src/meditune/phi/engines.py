"""What looks for identifiers: our rules, or Presidio."""

from __future__ import annotations

from collections.abc import Callable, Collection

from meditune.phi import detect
from meditune.phi.spans import Kind, Span

Engine = Callable[[str, Collection[Kind] | None], list[Span]]
ENGINES = ("rules", "presidio")


def engine(name: str) -> Engine:
    """The function that finds spans of given kinds (or all) in a text. Raises DataError where Presidio isn't "
    "installed."""
    if name == "presidio":
        from meditune.phi import presidio

        return presidio.find
    return detect.find
