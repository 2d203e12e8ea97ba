"""Prompt injection: detecting and removing sentences that give orders to the model that reads them.

Medical texts are full of instructions to patients ("Do not take ..."), so a verb form or a word alone isn't enough.
Each rule combines a verb form (an imperative at the start of a clause, "you must") with a subject that is typical of
messages to a model: the model's instructions, answer, user, prompt, tools or role. Disguised text (look-alike letters,
digits for letters, spaces between letters, base64, ROT13) is decoded and checked, too. Text that is hidden from readers
and markup that is used in prompts are removed as well. `benchmarks/injections.py` measures the rules.
"""

from __future__ import annotations

import base64
import binascii
import codecs
import html
import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from functools import cache, lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from meditune.config.data_options import PromptFormat
from meditune.data.quality.quality_filters import is_health_word
from meditune.files import package_table
from meditune.text import sentences, without_invisible

RULES = Path(__file__).with_name("prompt_injection.yaml")
_DISGUISED = re.compile(
    r"ignor|disregard|instruct|prompt|rules|answer|guideline|system|yourtask|newtask|output|assistant|forget|overrid|respond"
)  # Words of orders, searched for in text whose letters were separated by spaces and have been joined
_STRONG = re.compile(
    r"\b(?:prompts?|overrid\w+|unrestricted|verbatim|directives?|instructions?|compl(?:y|iance)|jailbreak\w*|assistant"
    r"|chat ?bots?|AI|LLMs?|GPT\w*|language models?|plaintext|uncensored|exfiltrat\w+)\b",
    re.IGNORECASE,
)
_WEAK = re.compile(
    r"\b(?:system|mode|restrictions?|execute|output|confirm|filter\w*|session|configuration|users?|hidden|secret"
    r"|translat\w+|display|reveal|ignore|disregard|follow|obey|respond|reply|answers?|quer(?:y|ies)|tasks?|admin\w*|operator"
    r"|developer|tokens?|conversation|polic(?:y|ies)|rules?|guidelines?|text|messages?|documents?|decod\w+|encod\w+"
    r"|print|enter|activate|acknowledge|priority|authori[sz]ed|disable\w*|debug|access|summari[sz]e|responses?|commands?"
    r"|contents?|reset|bypass|settings|role|persona)\b",
    re.IGNORECASE,
)
_ADDRESSES = re.compile(r"\byour?\b|\bAI\b|\bassistant\b", re.IGNORECASE)
DENSITY = 4  # Minimum points of an order without health words: 2 for each strong word, 1 for each weak word
MAX_ADJACENT_WORDS = 12  # Maximum number of words in a sentence that is removed because an order is next to it
MAX_ADJACENT_READER_WORDS = 30  # The same for a sentence that addresses the reader and has no health words
_ADJACENT = re.compile(
    r"\b(?:you|your|i|i'm|it's me|we|us|me|my|do so|say|speak|answer|reply|respond|assistant|user|secret|mistake"
    r"|first|second|third|important|attention|urgent|hello|one more thing|them"
    r"|(?:the|this|that) (?:test|task|question|answer|update|note|message|real)|it should)\b",
    re.IGNORECASE,
)


def is_instruction(sentence: str) -> bool:
    """Return whether a sentence tells a model what to do, instead of saying something about health."""
    return any(
        _matches(text, "overrides", "abroad", "orders") or _is_dense(text) or _spelled_out(text)
        for text in decodings(sentence)
    )


def is_override(sentence: str) -> bool:
    """Return whether a sentence tells the model to ignore or reveal its instructions, or to change its role.

    A request about the form of the answer, such as "please only answer in short sentences", doesn't count.
    """
    return any(_matches(text, "overrides", "abroad") or _spelled_out(text) for text in decodings(sentence))


def is_part_of_instruction(sentence: str) -> bool:
    """Return whether a sentence next to an order is part of it: short, and addressed to the model or about it."""
    plain = _visible_text(sentence)
    words = re.findall(r"[^\W\d_]+", plain)
    if len(words) <= MAX_ADJACENT_WORDS and _ADJACENT.search(plain):
        return True
    addressed = _matches(plain, "imperatives") or re.search(r"\byour?\b", plain, re.IGNORECASE)
    return bool(len(words) <= MAX_ADJACENT_READER_WORDS and addressed) and not any(
        is_health_word(word.lower()) for word in words
    )


def _is_dense(text: str) -> bool:
    """Return whether a sentence addresses the reader and contains many prompt words but no health words."""
    strong = {match[0].lower() for match in _STRONG.finditer(text)}
    if not strong or 2 * len(strong) + len({match[0].lower() for match in _WEAK.finditer(text)} - strong) < DENSITY:
        return False
    if not (_ADDRESSES.search(text) or _matches(text, "imperatives")):
        return False
    return not any(is_health_word(word.lower()) for word in re.findall(r"[^\W\d_]+", text))


def _spelled_out(text: str) -> bool:
    return any(_DISGUISED.search(re.sub(r"[^a-z]", "", each[0].lower())) for each in _SPELLED.finditer(text))


def _matches(text: str, *names: str) -> bool:
    """Return whether a text matches a rule in these groups. Some rules apply only at the start of a clause."""
    anywhere, starting = _rules(*names)
    if any(rule.search(text) for rule in anywhere):
        return True
    places = {start.end() for start in _start().finditer(text)}
    return any(rule.match(text, place) for rule in starting for place in places)


@cache
def _rules(*names: str) -> tuple[list[re.Pattern[str]], list[re.Pattern[str]]]:
    """Return the rules in these groups of prompt_injection.yaml: without @start, and with @start."""
    words: dict[str, str] = _texts()["words"]
    found: tuple[list[re.Pattern[str]], list[re.Pattern[str]]] = ([], [])
    for source in (rule for name in names for rule in _texts()[name]):
        rule = source.removeprefix("@start")
        while (longer := re.sub(rf"@({'|'.join(words)})\b", lambda match: words[match[1]], rule)) != rule:
            rule = longer
        found[source.startswith("@start")].append(re.compile(rule, re.IGNORECASE))
    return found


@cache
def _start() -> re.Pattern[str]:
    return re.compile(_texts()["words"]["start"], re.IGNORECASE)


@cache
def _texts() -> dict[str, Any]:
    loaded: dict[str, Any] = package_table(RULES)
    return loaded


def decodings(sentence: str) -> Iterator[str]:
    """Yield the sentence as a reader sees it and, if letters are disguised, each decoded form once."""
    plain = _visible_text(sentence)
    seen = {plain}
    yield plain
    # Replace digits with letters if several words mix both, and correct misspelled words of orders.
    several = sum(bool(_LEET.search(word)) for word in plain.split()) > 1
    letters = plain.translate(_DIGITS) if several else ""
    corrected = re.sub(r"[^\W\d_]{5,}", lambda match: _nearest(match[0].lower()) or match[0], plain)
    for other in (_joined(plain), letters, corrected, *_decoded(html.unescape(sentence))):
        if other and other not in seen:
            seen.add(other)
            yield other


def _visible_text(text: str) -> str:
    """Return the text as a reader sees it: letters normalized, escapes decoded, invisible characters removed."""
    text = html.unescape(text)
    if re.search(r"(?:%[0-9a-fA-F]{2}\w*){2}", text):
        text = unquote(text)
    text = _ADDRESS.sub(" URL ", text)
    text = "".join(char for char in unicodedata.normalize("NFKC", text) if unicodedata.category(char) not in _HIDDEN)
    decomposed = unicodedata.normalize("NFD", text)
    letters = [char for char in decomposed if char.isalpha()]
    if 2 * sum(char.isascii() for char in letters) > len(letters):  # skip texts in Greek or Cyrillic, for example
        text = "".join(char for char in decomposed.translate(_LOOKALIKES) if unicodedata.category(char) != "Mn")
    return text.replace("_", " ")


def _joined(text: str) -> str:
    """Return the text with spaced-out and hyphenated words joined, or "" if there are none."""
    together = _SPELLED.sub(lambda match: re.sub(r"[\s.\-*]", "", re.sub(r"\s{2,}", "\0", match[0])), text)
    together = re.sub(r"(?<=[^\W\d_])-(?=[^\W\d_])", "", together).replace("\0", " ")
    return together if together != text else ""


@lru_cache(maxsize=4096)
def _nearest(word: str) -> str:
    near = (
        each
        for each in _MISSPELLED
        if (each[0] == word[0] and 0 < abs(len(each) - len(word)) <= 2)
        or sorted(each) == sorted(word)
        or (len(each) == len(word) and sum(a != b for a, b in zip(each, word, strict=True)) == 1)
    )
    return next((each for each in near if SequenceMatcher(None, each, word).ratio() >= 0.83), "")


def _decoded(text: str) -> Iterator[str]:
    for match in _BASE64.finditer(text):
        try:
            yield base64.b64decode(match[0] + "=" * (-len(match[0]) % 4), validate=True).decode("ascii")
        except (binascii.Error, UnicodeDecodeError):
            continue
    for match in _HEX.finditer(text):
        try:
            yield bytes.fromhex(match[0]).decode("ascii")
        except (ValueError, UnicodeDecodeError):
            continue
    if not _ENGLISH.search(text) and len(text) < 1000:
        for other in (codecs.encode(text, "rot13"), text[::-1]):
            if len(_ENGLISH.findall(other)) > 1:
                yield other


_ADDRESS = re.compile(
    r"\b(?:https?|ftp)://[^\s)\]\"'>]+|\bwww\.[^\s)\]\"'>]+|\b[\w.+-]+@[\w-]+\.[\w.-]+", re.IGNORECASE
)
_MISSPELLED = (
    *("ignore", "disregard", "instructions", "previous", "guidelines", "system"),
    *("prompt", "assistant", "override"),
)
_HIDDEN = {"Cf", "Cc"}
_LOOKALIKES = str.maketrans(
    "\u0430\u0435\u043e\u0440\u0441\u0443\u0445\u0456\u0455\u0458\u04bb\u0501\u051b\u051d\u043a\u043c\u0442\u0432\u043d"
    "\u0410\u0415\u041e\u0420\u0421\u0423\u0425\u0406\u0405\u0408\u041a\u041c\u0422\u0412\u041d"
    "\u03b1\u03bf\u03c1\u03b5\u03b9\u03ba\u03bd\u03c4\u03c5\u03c7\u03b3\u0391\u0392\u0395\u0396\u0397\u0399\u039a\u039c"
    "\u039d\u039f\u03a1\u03a4\u03a7\u03a5\u0131\u0261",
    "aeopcyxisjhdqwkmtbhAEOPCYXISJKMTBHaopeikvtuxyABEZHIKMNOPTXYig",
)
_DIGITS = str.maketrans("013457@$", "oieastas")
_LEET = re.compile(r"[^\W\d_][013457@$]|[013457@$][^\W\d_]")
_SPELLED = re.compile(r"(?<!\w)[^\W\d_](?:(?:\s{1,3}|[.\-*])[^\W\d_](?!\w)){4,}")
_BASE64 = re.compile(r"(?<![\w+/])[A-Za-z0-9+/]{16,}={0,2}(?![\w+/])")
_HEX = re.compile(r"(?<!\w)(?:[0-9a-fA-F]{2}){10,}(?!\w)")
_ENGLISH = re.compile(
    r"\b(?:the|all|and|your|you|yes|no|say|of|to|is|ignore|previous|rules|answer|instructions)\b", re.I
)


_ROLES = (
    "question answer conclusion user assistant system human instruction instructions response input output context "
    "prompt bot ai model"
)
_ROLE_CUE = re.compile(rf"(?:^|(?<=[\s.!?;,>*#\"'(\[]))(?:{_ROLES.replace(' ', '|')})\s*[:：﹕]", re.IGNORECASE)
_TEMPLATE = re.compile(
    r"<\s*\|[^<>\n]{0,40}\|\s*>|<\s*/?\s*(?:s|bos|eos|pad|unk|system|user|assistant|human|inst|instructions?|"
    r"answer|context|documents?|passage|question|"
    r"start_of_turn|end_of_turn|start_header_id|end_header_id|begin_of_text|end_of_text)\s*>|"
    r"\[\s*/?\s*(?:INST|SYSTEM|SYS)\s*\]|<<\s*/?\s*SYS\s*>>",
    re.IGNORECASE,
)
_HEADING = re.compile(r"(?m)^\s*(?:#{2,}|-{3,}|={3,}|`{3,}|>{2,})\s*")
_ELEMENTS = re.compile(
    (
        "a abbr abstracttext acronym address applet area article aside audio b base bdi bdo big blink blockquote body "
        "bold br button canvas caption center cite code col colgroup data datalist dd del details dfn dialog dir div "
        "dl dt em embed fieldset figcaption figure font footer form frame frameset h1 h2 h3 h4 h5 h6 head header "
        "hgroup hr html i iframe img input ins italic kbd label legend li link main map mark marquee menu meta meter "
        "monospace nav nobr noframes noscript object ol optgroup option output p param path picture pre progress q rp "
        "rt ruby s samp script search section select slot small source span strike strong style sub summary sup svg "
        "table tbody td template textarea tfoot th thead time title tr track tt u ul underline var video wbr xref"
    ).replace(" ", "|")
)  # Of HTML, and of articles in the JATS format
_NEVER_CLOSED = ("area", "br", "col", "embed", "hr", "img", "input", "link", "meta", "source", "track", "wbr")
_ATTRIBUTES = re.compile(
    r"(?:(?:\s+|(?<=[\"']))(?:[^\s<>\"'=/]+\s*=\s*(?:\"[^\"<>]*\"|'[^'<>]*'|[^\s\"'<>=]+)"
    r"|(?:allowfullscreen|alt|async|auto(?:focus|play)|checked|controls|default|defer|disabled|download|hidden|inert"
    r"|ismap|itemscope|loop|multiple|muted|nomodule|no(?:shade|validate|wrap)|open|playsinline|readonly|required"
    r"|reversed|selected|value|(?:aria|data)-[\w-]+)(?![\w-])))*\s*/?",
    re.IGNORECASE,
)  # Of a tag, unlike the text between two comparisons: "ALT <b or AST is normal, and bilirubin >2"
_QUOTED_VALUE = re.compile(r"[\w-]\s*=\s*[\"']")
_PROSE = re.compile(r",|\b(?:and|but|if|is|or|with)\b", re.IGNORECASE)
_TAG = re.compile(r"<(?P<slash>/?)(?P<name>[a-z][\w:.-]*)(?=[\s/>])(?P<attributes>[^<>]*)>", re.IGNORECASE)
_UNSEEN = re.compile(
    rf"<!--.*?(?:-->|\Z)|{_TAG.pattern}"
    r"|\[//\]:\s*#\s*\([^)\n]*\)|!\[[^\]\n]*\]\([^)\n]*\)|\{\s*\"(?:role|instruction|system)\"\s*:[^{}]*\}",
    re.IGNORECASE | re.DOTALL,
)  # Content that a reader of the page doesn't see: HTML comments, hidden elements, image links, chat messages in JSON
_HIDES = re.compile(
    r"\bhidden\b|display\s*:\s*none|visibility\s*:\s*hidden|(?:font-size|opacity)\s*:\s*(?:0+(?:\.0*)?|\.0+)(?![.\d])"
    r"|color\s*:\s*(?:white|transparent|#fff)",
    re.IGNORECASE,
)  # Attributes of a hidden element
_ELEMENT = re.compile(
    r"<\s*(system|instructions?|important|prompt|admin|developer|assistant|user|order|command|note|secret|override)\b"
    r"[^<>]*>.*?(?:<\s*/\s*\1\s*>|$)",
    re.IGNORECASE | re.DOTALL,
)
_PART = re.compile(r"(?<=[.!?])\s+|(?<=[。！？])")  # Between sentences, even if the next one begins in lowercase


@dataclass(frozen=True)
class CleanedText:
    """A passage's text as it may appear in a prompt and be quoted."""

    text: str  # Complete sentences; empty if nothing is left
    orders: tuple[str, ...] = ()  # What was removed: orders to the model, and hidden text


def clean_passage(text: str, form: PromptFormat, special_tokens: Sequence[str] = ()) -> CleanedText:
    """Return the text without orders to the model, special tokens, chat markup or prompt cues.

    `special_tokens` are those of the model's tokenizer. The lines are joined into one paragraph.
    """
    orders: list[str] = []
    text = text.replace("\r", "\n")
    visible = without_invisible(text, lambda char: char not in "\n\t" and unicodedata.category(char) in _HIDDEN)
    seen = _without_unseen(_taken_out(_ELEMENT, visible, orders), orders)
    plain = _without_markup(_without_tags(seen), special_tokens)
    remaining: list[str] = []
    found = [part for line in plain.splitlines() for sentence in sentences(line) for part in _PART.split(sentence)]
    is_one = [is_instruction(sentence) for sentence in found]
    if any(is_one):
        # A sentence next to an order may belong to the order, such as "I am the administrator."
        for places, step in ((range(1, len(found)), -1), (range(len(found) - 2, -1, -1), 1)):
            for place in places:
                is_one[place] = is_one[place] or (is_one[place + step] and is_part_of_instruction(found[place]))
    for sentence, is_order in zip(found, is_one, strict=True):
        (orders if is_order else remaining).append(sentence)
    cleaned = (_without_cues(sentence, form) for sentence in remaining)
    return CleanedText(" ".join(sentence for sentence in cleaned if sentence), tuple(orders))


def _taken_out(pattern: re.Pattern[str], text: str, orders: list[str]) -> str:
    """Return the text without the pattern's matches, which are added to `orders`."""

    def noted(match: re.Match[str]) -> str:
        orders.append(" ".join(match[0].split()))
        return " "

    return pattern.sub(noted, text)


def _without_unseen(text: str, orders: list[str]) -> str:
    """Return the text without what a reader of the page doesn't see, which is added to `orders`."""
    parts: list[str] = []
    kept_until = at = 0
    ended = _ended(text)
    while match := _UNSEEN.search(text, at):
        at = match.end()
        if name := match["name"]:
            if not _is_hidden(match, ended):
                continue
            end = re.compile(rf"</{re.escape(name)}(?=[\s/>])[^<>]*>", re.IGNORECASE).search(text, at)
            at = end.end() if end else len(text)
        parts.append(text[kept_until : match.start()])
        orders.append(" ".join(text[match.start() : at].split()))
        kept_until = at
    return " ".join([*parts, text[kept_until:]])


def _without_tags(text: str) -> str:
    ended = _ended(text)
    return _TAG.sub(lambda match: " " if match["slash"] or _is_tag(match, ended) else match[0], text)


def _ended(text: str) -> set[str]:
    """Return the lowercase names of all end tags."""
    return {match["name"].lower() for match in _TAG.finditer(text) if match["slash"]}


def _is_hidden(tag: re.Match[str], ended: set[str]) -> bool:
    """Return whether a match of _TAG starts a hidden element, instead of lying between two comparisons."""
    name, attributes = tag["name"].lower(), tag["attributes"]
    if tag["slash"] or name in _NEVER_CLOSED or not _HIDES.search(attributes):
        return False
    is_name = _ELEMENTS.fullmatch(name) or name in ended
    return bool(is_name or _ATTRIBUTES.fullmatch(attributes) or _QUOTED_VALUE.search(attributes))


def _is_tag(tag: re.Match[str], ended: set[str]) -> bool:
    """Return whether a match of _TAG is a start tag, instead of text between two comparisons."""
    name, attributes = tag["name"].lower(), tag["attributes"]
    if _QUOTED_VALUE.search(attributes) or (name in ended and not _PROSE.search(attributes)):
        return True
    is_name = _ELEMENTS.fullmatch(name) or re.search(r":[a-z]", name)
    return bool(is_name and _ATTRIBUTES.fullmatch(attributes))


def _without_markup(text: str, special_tokens: Sequence[str]) -> str:
    marks = [re.escape(token) for token in sorted(special_tokens, key=len, reverse=True) if len(token) > 2]
    every = re.compile("|".join((_TEMPLATE.pattern, *marks)), re.IGNORECASE)
    # Repeat, because a removal may leave another token behind ("<|im<|x|>_end|>").
    while (shorter := every.sub(" ", text)) != text:
        text = shorter
    return _HEADING.sub("", text)


def _without_cues(sentence: str, form: PromptFormat) -> str:
    """Return the sentence with dashes in place of the colons of cues, so that it contains no prompt cue."""
    for cue in (form.question_cue, form.answer_cue, form.decision_cue, *([form.plain_cue] if form.plain_cue else [])):
        word = cue.rstrip(":： ")
        sentence = re.sub(rf"{re.escape(word)}\s*[:：﹕]", f"{word} -", sentence, flags=re.IGNORECASE)
        if word == cue.rstrip():  # a cue without a colon must not stay unchanged
            sentence = re.sub(re.escape(word), " - ".join(word.split(" ", 1)), sentence)
    return " ".join(_ROLE_CUE.sub(lambda match: f"{match[0].rstrip(':：﹕ ')} -", sentence).split())
