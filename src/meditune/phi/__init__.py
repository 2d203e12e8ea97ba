"""Detection of patient identifiers (PHI) by rules; masking (`mask`) and replacement with invented identifiers."""

from meditune.phi.detector import find, mask

__all__ = ["find", "mask"]
