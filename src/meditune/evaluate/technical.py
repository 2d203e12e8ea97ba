"""Technical English that every Python carries: the prose of Python's language reference.

`help("assignment")` shows it. It stands under the PSF licence, needs no download, and has nothing to do with medicine.
"""

from __future__ import annotations

import re

WORD = re.compile(r"[^\W\d_]+(?:[-'’][^\W\d_]+)*")
AROUND = '.,;:!?()"“”*'
BULLET = re.compile(r"^(?:[*+-]|\d+\.|\[\d+\])\s+")
SHORTEST = 8
"""Words of the shortest paragraph that is kept; what has fewer is mostly a heading or a signature."""
ENGLISH = 0.8
"""Share of a paragraph's words that must be plain words; in code and grammar it is lower."""


def language_reference() -> str | None:
    """The reference's paragraphs in the order of its topics, each once; None where this Python came without it.

    The same for the same version of Python.
    """
    try:
        from pydoc_data.topics import topics
    except ImportError:
        return None
    blocks = (block for name in sorted(topics) for block in re.split(r"\n\s*\n", topics[name]))
    # Topics contain one another, so most paragraphs come more than once.
    paragraphs = dict.fromkeys(BULLET.sub("", " ".join(block.split())) for block in blocks)
    return "\n\n".join(paragraph for paragraph in paragraphs if is_prose(paragraph))


def is_prose(paragraph: str) -> bool:
    """Whether it is sentences, not code, grammar, a heading or a signature."""
    words = paragraph.split()
    if len(words) < SHORTEST or paragraph[-1] not in ".:;!?)" or "::=" in paragraph or ">>>" in paragraph:
        return False
    return sum(bool(WORD.fullmatch(word.strip(AROUND))) for word in words) >= ENGLISH * len(words)
