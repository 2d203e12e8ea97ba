"""Detection of patient identifiers (PHI) by rules, masking, and replacement by invented identifiers: see `mask`."""

from meditune.phi.detector import find, mask

__all__ = ["find", "mask"]
