"""Texts put right: wrong decoding, residue of a page's layout, words that belong to a page and not to an answer.

Layout and encoding lose no word; what is taken out with boilerplate stands in the ledger.
"""

from __future__ import annotations

import re

_SUSPECT = re.compile(
    r"[^\n\t\x20-\x7e\xa0-\xff\u2010-\u2027\u2030-\u205e\u0370-\u03ff\u2190-\u22ff]|[\xc2-\xf4][\x80-\xbf]|â"
)
_INVISIBLE = dict.fromkeys([*range(9), 11, *range(14, 32), 127, 0xAD, 0x200B, 0x200C, 0x200D, 0x2060, 0xFEFF])

_BULLET = re.compile(r"^[ \t]*(?:[•▪●◦‣·*\uf0b7]|[-–—])[ \t]+(?=\S)", re.MULTILINE)
_LONE_BULLET = re.compile(r"^[ \t]*[•▪●◦‣·*\uf0b7-][ \t]*\n+(?=\S)", re.MULTILINE)
_INLINE = re.compile(r"(?<=[.:;!?)]) +[-•▪●◦‣·\uf0b7] +(?=[A-Z(0-9])")
_TABLE = re.compile(r"(?<=patients \(when available\)) +|(?<= ) - (?=[A-Z(])")
_BROKEN = re.compile(r"(?<=[a-z,])[ \t]*\n(?=[a-z(])")
_BEFORE = re.compile(r"(?<=[\w)\]\"'%]) +(?=[,;.](?:\s|$)|:(?:\s|$))")
_MARKS = re.compile(r"(?<=\S)\s+(?=\?)|\?(?=\s*\?)")
_LOOSE_ITEM = re.compile(r"(?<=\S)\n\n+(?=- )")

_LINES = re.compile(
    r"^[ \t]*(?:[-•][ \t]*)?(?:key points?|see also\b.*|(?:return|back|go) to (?:the )?top.*|table of contents|"
    r"skip to (?:main )?content.*|share (?:this|on)\b.*|print this page.*|"
    r"related (?:links|topics|articles|pages|information)\b.*|"
    r"(?:home|start) ?[>»›|].*|(?:next|previous) (?:page|article).*|more on:.*|follow us\b.*|"
    r"advert(?:isement|ising)?|read more\b.*|[^\n.]{1,60}[»›]|(?:\w+ ?\| ?)+\w+|(?:this site|we) uses? cookies.*|"
    r"subscribe to our.*|last (?:reviewed|updated|modified):?.*|"
    r"frequently asked questions \(faqs\)|(?:top|close|menu|search))[ \t]*$",
    re.IGNORECASE | re.MULTILINE,
)
_START = r"(?:(?<=^)|(?<=[.!?:)\]] )|(?<=\n))"
_SENTENCES = re.compile(
    _START + r"(?:"
    r"You can use the MedlinePlus Medical Dictionary to look up the definitions for these medical terms|"
    r"If the information is available, the table below includes how often the symptom is seen in people with this "
    r"condition|"
    r"\(?Watch the video[^.)\n]*|To enlarge the video[^.)\n]*|To reduce the video[^.)\n]*|"
    r"Check the list of NCI-supported cancer clinical trials[^.\n]*|"
    r"(?:Copyright|©|\(c\)) ?(?:©|\(c\))? ?\d{4}[^.\n]*|All rights reserved|"
    r"This page (?:was )?last (?:updated|reviewed|modified)[^.\n]*|(?:Last|Page last) (?:updated|reviewed)[^.\n]*|"
    r"(?:Please )?[Cc]lick (?:here|on (?:the|this) link)[^.\n]*|"
    r"[^.!?\n]*\bclick here(?=[.!\n]|$)|"
    r"(?:Subscribe|Sign up) (?:to|for) our[^.\n]*|Follow us on[^.\n]*|"
    r"(?:We use|This (?:web)?site uses) cookies[^.\n]*|Skip to (?:main )?content"
    r")[.!)]*[ \t]*",
    re.MULTILINE,
)


def decoded(text: str) -> str:
    """`text` as it was before it was read in a wrong encoding, and without invisible characters.

    Only what can't be meant is touched: quotes, ligatures and widths stay as they are.
    """
    if text.isascii() and not _SUSPECT.search(text):
        return text
    import ftfy

    return str(ftfy.fix_encoding(text)).translate(_INVISIBLE)


def has_lost_characters(text: str) -> bool:
    """Whether a character was lost for good in a wrong decoding (U+FFFD stands for it)."""
    return "\ufffd" in text


def laid_out(text: str) -> str:
    """`text` as paragraphs and lists of "- " items, with all of its words in their order.

    Lines that were broken inside a sentence are joined, items that ran together after a colon or a full stop get lines
    of their own, blanks before punctuation and empty lines beyond one go.
    """
    lines = (re.sub(r"[ \t\xa0\u2000-\u200a\u3000]+", " ", line).strip() for line in text.splitlines())
    text = "\n".join(lines).strip()
    text = _LONE_BULLET.sub("- ", text)
    text = _BULLET.sub("- ", text)
    text = _BROKEN.sub(" ", text)
    if len(_INLINE.findall(text)) + text.count("\n- ") >= 2:
        text = _INLINE.sub("\n- ", text)
    if "Approximate number of patients (when available)" in text and text.count(" - ") >= 3:
        text = _TABLE.sub("\n- ", text)
    text = _BEFORE.sub("", text)
    return re.sub(r"\n{3,}", "\n\n", _LOOSE_ITEM.sub("\n", text))


def asked(question: str) -> str:
    """A question with one question mark, and no blank before it."""
    return _MARKS.sub("", laid_out(question))


def without_boilerplate(text: str) -> tuple[str, list[str]]:
    """`text` without lines and sentences that belong to a page, and these; as it was where nothing else is there."""
    gone = [match[0].strip() for pattern in (_LINES, _SENTENCES) for match in pattern.finditer(text)]
    if not gone:
        return text, []
    left = re.sub(r"\n{3,}", "\n\n", _SENTENCES.sub("", _LINES.sub("", text))).strip()
    return (left if re.search(r"\w", left) else text), gone
