"""Detection of patient identifiers (PHI) by rules, masking, and replacement by invented identifiers.

The main entry point is `mask`: it returns a text with placeholders for the identifiers.
"""

from meditune.phi.detector import find, mask

__all__ = ["find", "mask"]
