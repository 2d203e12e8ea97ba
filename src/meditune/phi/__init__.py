"""Identifiers of patients (PHI): found by rules, masked, or replaced by invented ones.

`mask` is what code outside needs most: text in, the same text with placeholders out.
"""

from meditune.phi.detect import find
from meditune.phi.masking import mask
from meditune.phi.spans import KINDS, Kind, Span

__all__ = ["KINDS", "Kind", "Span", "find", "mask"]
