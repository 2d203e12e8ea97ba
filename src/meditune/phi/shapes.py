"""How names are written: capitals, hyphens, apostrophes, initials, particles."""

from __future__ import annotations

import re
from functools import lru_cache

_CAPITALS = "A-Z" + "".join(chr(code) for code in range(0xC0, 0x250) if chr(code).isupper())
_SMALL = "a-z" + "".join(chr(code) for code in range(0xDF, 0x250) if chr(code).islower())
_LETTER = rf"[{_CAPITALS}{_SMALL}]"
_PARTICLES = (
    r"(?:de la|de los|del|de|della|di|da|dos|do|du|van der|van den|van de|van|von|der|den|ten|ter|bin|ibn|le|la|st\.|y)"
)

WORD = (
    rf"(?:[DdL]['’])?(?:al-|el-|van-|von-|ben-)?[{_CAPITALS}]{_LETTER}{{1,24}}(?:['’-]{_LETTER}{{2,24}}){{0,3}}"
    rf"|[OD]['’][{_CAPITALS}]{_LETTER}{{1,24}}"
)
INITIAL = rf"[{_CAPITALS}]\.(?:[ ]?[{_CAPITALS}]\.)?|[{_CAPITALS}](?![^\W_]|['’.])"
TOKEN = re.compile(
    rf"[{_CAPITALS}](?<![^\W_].)(?:{_LETTER}{{1,24}}|"
    rf"['’][{_CAPITALS}]{_LETTER}{{1,24}})(?:['’-]{_LETTER}{{2,24}}){{0,3}}(?![^\W_])"
)
"""One word of a name."""
PIECE = re.compile(rf"{WORD}|{INITIAL}")
"""... or an initial."""
FIRST = re.compile(rf"(?:{_PARTICLES}[ ]){{0,2}}({WORD}|{INITIAL})")
NEXT = re.compile(rf"(?:[ \t]{{1,2}}|[ \t]?\n[ \t]{{0,8}}|(?<=\.))(?:{_PARTICLES}[ ]){{0,2}}({WORD}|{INITIAL})")
"""What a name goes on with, its gap included."""
BEFORE = re.compile(rf"(?<![^\W_])(?:{_PARTICLES}[ ]|(?:al|el|van|von|ben)-|(?:{INITIAL})[ ]?){{1,3}}$")
"""Particles and initials right before a word."""
DEGREE = re.compile(
    r"(?:,[ ]?| )(?:M\.?D\.?|D\.?O\.?|Ph\.?D\.?|R\.?N\.?|N\.?P\.?|P\.?A\.?(?:-C)?|ARNP|APRN|CRNA|CNM|LPN|LVN|LICSW|"
    r"LCSW|"
    r"MSW|BSN|MSN|DNP|RPh|Pharm\.?D\.?|PT|DPT|OTR/?L?|OT|RD|LDN|RRT|SLP|DDS|DMD|DPM|MBBS|MPH|FACS|FACP|FRCS|CCC|CNS|"
    r"Esq\.?|Jr\.?|Sr\.?)(?![^\W_])"
)
_POSSESSIVE = re.compile(r"['’][sS]$")


def stem(word: str) -> str:
    """The word without a possessive ending."""
    return _POSSESSIVE.sub("", word)


@lru_cache(1 << 14)
def plain(word: str) -> str:
    """The word as the lists have it: in small letters, without possessive ending or full stop."""
    return stem(word).lower().strip(".")
