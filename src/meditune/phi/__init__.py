"""Identifiers of patients (PHI): found by rules, masked, or replaced by invented ones.

`mask` is what code outside needs most: text in, the same text with placeholders out.
"""

from meditune.config.data_options import KINDS, Kind
from meditune.phi.detector import find, mask
from meditune.phi.spans import Span

__all__ = ["KINDS", "Kind", "Span", "find", "mask"]
