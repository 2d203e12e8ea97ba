"""Detection of patient identifiers (PHI) by rules, masking, and replacement by invented identifiers.

The main entry point is `mask`: it returns a text with placeholders for the identifiers.
"""

from meditune.config.data_options import KINDS, Kind
from meditune.phi.detector import find, mask
from meditune.phi.spans import Span

__all__ = ["KINDS", "Kind", "Span", "find", "mask"]
