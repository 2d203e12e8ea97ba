"""Names of people, recognized by context (titles, degrees, labels, relatives, ages) and by lists of names.

All other occurrences of such a name in the text are found, too. Eponyms ("Parkinson's disease", "Foley catheter")
don't count as people unless they have a title.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from meditune.phi import name_words
from meditune.phi.name_words import ALSO_NAMES, DEGREE, PIECE, TOKEN, Cue, is_eponym, is_titled, name_at, plain, stem
from meditune.phi.spans import Span, View, word_list

_NOT_FIRST = name_words.EPONYMS | name_words.CITIES | name_words.SURNAMES
_DOUBLE = name_words.EPONYMS | name_words.CITIES
_SURNAME_LIKE = name_words.GIVEN | ALSO_NAMES
_JOINT = re.compile(r"(?:, and |,? ?(?:and|&|or) |/|, )(?=[^\W\d_])")
_COMMA = re.compile(r",[ ]?(?=[^\W\d_])")
_PROOF = re.compile(
    r",?\s{1,3}(?:(?:is|was) (?:an? |the )?|an? )?(?:(?:\d{1,3}|\[AGE\]|\[\*\*Age)[^\n]{0,12}?(?:years?|yrs?|y\.?o|y/o|"
    r"yo)(?![a-z])|(?:very )?(?:pleasant|delightful|right-handed|unfortunate|elderly|lovely) )|, \d{1,3} ?(?:M|F|male|"
    r"female)(?![a-zA-Z])|[ ,]{1,2}\(?(?:DOB|D\.O\.B|MRN|Mrn|SSN)(?![a-z])|(?:,| -| \() ?(?:(?:his|her|the|"
    r"patient['’]s|pt['’]s) )?(?:wife|husband|daughter|son|mother|father|sister|brother|niece|nephew|spouse|partner|"
    r"friend|neighbor|proxy|HCP|POA|guardian|granddaughter|grandson|caregiver)(?![a-z])| \((?:[Pp]t|PT|[Pp]atient)\)"
)  # Evidence that the words directly before are a name: an age, a date of birth, a relationship
_LIKELY_PROOF = re.compile(
    r" ?[-/|(][ ]?\d{1,3} ?(?:y(?:rs?|o)?)?[ ]?[/|,]?[ ]?(?:M|F|male|female)(?![a-zA-Z])|,? aged? \d{1,3}(?!\d|[.-]\d)"
    r"| \d{1,2} ?(?:weeks?|wks?|months?)[ -](?:old|pregnant|postpartum|pp)(?![a-z])",
    re.IGNORECASE,
)  # Evidence only after two words, or after a listed name: catheters have sizes such as "16F"
_AGE_BETWEEN_COMMAS = re.compile(r", (?:\d{1,2}|1[01]\d),(?! ?\d)")
_BED = re.compile(
    r"^[ \t]{0,8}(?:(?P<label>[Bb]ed|BED|[Rr](?:oo)?m|RM|ROOM) ?\d{1,4}|\d{2,4})[A-Z]?[ \t:]{1,3}(?=[A-Z])",
    re.MULTILINE,
)
_AFTER_PATIENT = re.compile(r" ?[-–:] |, \d| \(?\d{1,3} ?[MFmfy]")
_SIGNED_LINE = re.compile(r"^[ \t]{0,40}(?:--?|—|/s/|~|x_{2,9})?[ \t]{0,3}(?=[^\W\d_])", re.MULTILINE)
_SIGNED_OFF = re.compile(
    rf"(?<![A-Za-z])(?i:regards|thanks|thank you|cheers|ta|best|sincerely|truly|faithfully|wishes|love|"
    rf"gr(?:u|ü)(?:ss|ß)|saludos),?[ \t]?\n?[ \t]{{0,4}}(?P<name>{name_words.WORD})[ ]?x{{0,3}}[.!]?[ ]?(?=\n|$)"
)
_LINE_END = re.compile(r"[ \t]{0,20}(?:,[^\n]{0,30})?(?:\n|$)")
_SPEAKS = re.compile(
    r"(?<![a-z])(?:i am|i['’]m|this is|named|called|hi|hello|thanks|regards|patient|dear|sincerely),? $"
)
_SMALL_WORDS = re.compile(r"[a-z]{3,}")
_SMALL_WORD = re.compile(r"(?:[od](?<![^\W_].)['’])?[a-z](?<![^\W_].)[a-z]{2,24}(?:['’-][a-z]{2,24})?(?![^\W_]|['’]t)")
_SMALL_TITLE = re.compile(
    r"(?<![^\W_])(?:(?<!my )(?<!the )(?<!his )(?<!her )(?<!our )(?<!your )(?<!their )(?<!a )(?<!other )[Dd]r|[Mm]rs?|"
    r"[Pp]rof)\.? (?=((?:[od]['’])?[a-z]{3,}))"
)
_LINE_OR_LABEL = re.compile(r"(?:\A|\n|: ?|; |[|] ?|(?:\A|\n)[ \t]*(?:\d{1,2}[.)]|[-*•])[ \t]+|(?<![a-z])[Pp][Tt]\. )$")
_INSIDE = re.compile(r"[a-z0-9,;:)] $")
_APART = re.compile(
    r"(?: [A-Z]\.?)?(?:[ \t]{2}|[ \t]+[-/]|[ \t]*(?:[|;]|\n|$)|[ \t]+(?:MRN|DOB|\((?:MRN|DOB|#|\d)|#|[♂♀]|\d)"
    r"|, \d{1,3} ?[MFmf](?![a-z]))"
)
_TWO_INITIALS = re.compile(r"(?<![\w.,])(?<!, )(?<!and )(?:[A-Z]\.[ ]?){2}$")
_AUTHOR = re.compile(r",? (?:and |& )?(?:[A-Z]\.[ ]?){1,2}[A-Z]|[,.]? \(?(?:19|20)\d\d")
_SPOKEN_OF = re.compile(r"[ \t]([a-z]+)")
_VERBS = word_list("verbs")


def find(view: View) -> Iterator[Span]:
    """Yield the spans of people's names."""
    found = [*_capitalized_names(view), *_signatures(view), *_lowercase_names(view)]
    found += [*_initials(view), *_patients_in_beds(view)]
    yield from found
    yield from repeated_names(view, found)


def _capitalized_names(view: View) -> Iterator[Span]:
    text, done = view.text, 0
    for token in TOKEN.finditer(text):
        if token.start() < done:
            continue
        name = _after_cue(view, token) or _before_proof(view, token) or _listed(view, token)
        if name is None or name.end == token.end():
            name = _with_initial(view, token, name) or name or _beside_description(view, token)
        if name:
            name = _with_first(view, name)
            yield name
            done = name.end
            if text[name.end : name.end + 1] in {",", "/", " ", "&"}:
                for further in _further(view, name.end):
                    yield further
                    done = further.end


def _after_cue(view: View, token: re.Match[str]) -> Span | None:
    start = token.start()
    before = (
        name_words.BEFORE.search(view.text, max(0, start - 14), start)
        if view.text[start - 1 : start] in {" ", ".", "-"}
        else None
    )
    if before:
        start = before.start()
    cue = name_words.before(view, start)
    possessive = view.text[token.end() : token.end() + 2] in {"'s", "’s"}
    if cue is Cue.DOUBTFUL and possessive and plain(token[0]) in name_words.EPONYMS:
        return None
    return name_at(view, start, cue) if cue else None


def _before_proof(view: View, token: re.Match[str]) -> Span | None:
    following = view.text[token.end() : token.end() + 1]
    if following not in {",", " ", "\n", "-", "/", "|"}:
        return None
    if DEGREE.match(view.text, token.end()):
        if plain(token[0]) in name_words.EPONYMS and following != ",":
            return None
        is_town = plain(token[0]) in name_words.CITIES and re.match(r", (?:MD|PA)", view.text[token.end() :][:4])
        return None if is_town else _last_words(view, token)
    if _PROOF.match(view.text, token.end()):
        return _last_words(view, token)
    word = plain(token[0])
    if _AGE_BETWEEN_COMMAS.match(view.text, token.end()) and word in name_words.GIVEN and word not in _DOUBLE:
        return _last_words(view, token)
    if _LIKELY_PROOF.match(view.text, token.end()) and word not in name_words.EPONYMS:
        name = _last_words(view, token)
        listed = word in _SURNAME_LIKE or word in name_words.SURNAMES
        return name if name and (listed or " " in view.text[name.start : name.end]) else None
    return None


def _last_words(view: View, token: re.Match[str]) -> Span | None:
    """Return the span of the words up to and including `token` that can be a name, or None."""
    pieces: list[re.Match[str]] = []
    begin = view.text.rfind("\n", max(0, token.start() - 60), token.start()) + 1 or max(0, token.start() - 60)
    for piece in reversed(list(PIECE.finditer(view.text, begin, token.end()))):
        word = plain(piece[0])
        apart = pieces and not re.fullmatch(
            r"[ \t]{1,2}(?:[a-z]{1,3}[ ]){0,2}", view.text[piece.end() : pieces[0].start()]
        )
        english = name_words.is_ordinary(word) and word not in name_words.WORD_NAMES and len(word) > 2
        # After a given name, an English word is a surname: "Jane Sunshine, MD".
        before = view.text[max(0, piece.start() - 26) : piece.start()]
        words = before.split() if before.endswith(" ") else []
        surname = english and not pieces and bool(words) and plain(words[-1]) in name_words.GIVEN
        if apart or name_words.is_other(word) or (english and not surname):
            break
        pieces.insert(0, piece)
    if not pieces or all(
        len(plain(piece[0])) < 2
        or (piece[0].isupper() and len(piece[0]) < (4 if name_words.is_name(plain(piece[0])) else 5))
        for piece in pieces
    ):
        return None
    return Span(pieces[0].start(), pieces[-1].end(), "name")


def _with_first(view: View, last: Span) -> Span:
    """Return the span of "Doe, Jane" if `last` is "Doe" and a given name follows; otherwise, return `last`."""
    comma = _COMMA.match(view.text, last.end)
    if comma is None or DEGREE.match(view.text, last.end) or " " in view.text[last.start : last.end]:
        return last
    capitals = view.text[last.start : last.end].isupper()
    listed = name_words.is_name(plain(view.text[last.start : last.end]))
    first = name_at(view, comma.end(), Cue.SURE if capitals or listed else Cue.LIKELY)
    return Span(last.start, first.end, "name") if first else last


def _further(view: View, end: int) -> Iterator[Span]:
    """Yield the names that directly follow a name, as in "and Jones" and "/Jones"."""
    while joint := _JOINT.match(view.text, end):
        name = None if DEGREE.match(view.text, end) else name_at(view, joint.end(), Cue.LIKELY)
        if not name:
            return
        yield name
        end = name.end


def _listed(view: View, token: re.Match[str]) -> Span | None:
    """Return the span of a listed given name with its surname ("DOE, JANE", too), or of a listed name before a verb."""
    low = plain(token[0])
    sure = low in name_words.GIVEN
    text, end = view.text, token.end()
    if text[end : end + 1] == "," and not name_words.is_other(low) and low not in name_words.CITIES:
        return _last_first(view, token)
    unlisted = not name_words.is_ordinary(low) and low not in _NOT_FIRST and is_titled(token[0])
    if not sure and low not in name_words.WORD_NAMES and low not in name_words.SURNAMES and not unlisted:
        return None
    surname = _end_of_surname(view, end, sure)
    if surname:
        return Span(token.start(), surname, "name")
    if initials := _TWO_INITIALS.search(text, max(0, token.start() - 6), token.start()):
        by_author = _AUTHOR.match(text, end) or is_eponym(view, end)
        return Span(initials.start(), end, "name") if name_words.is_name(low) and not by_author else None
    if (sure or low in name_words.SURNAMES) and low not in _DOUBLE:
        following = _SPOKEN_OF.match(text, end)
        spoken_of = following and (following[1] in _VERBS or (sure and following[1].endswith("ed")))
        if spoken_of and not token[0].isupper():
            return _last_words(view, token)
    return None


def _last_first(view: View, token: re.Match[str]) -> Span | None:
    low = plain(token[0])
    comma = _COMMA.match(view.text, token.end())
    first = name_words.FIRST.match(view.text, comma.end()) if comma else None
    heads = first is not None and _heads_line(view, token, first)
    in_list = view.text[max(0, token.start() - 2) : token.start()].strip() == "," or (
        first and view.text[first.end() : first.end() + 1] == "," and not heads
    )
    if (
        comma is None
        or first is None
        or in_list
        or is_eponym(view, first.end())
        or DEGREE.match(view.text, token.end())
    ):
        return None
    if plain(first[1]) not in name_words.GIVEN:
        return Span(token.start(), first.end(), "name") if heads else None
    unlikely = name_words.is_ordinary(low) and low not in ALSO_NAMES
    written = token[0].isupper() or heads
    if not name_words.is_name(low) and (unlikely or not written):
        return None
    return Span(token.start(), token.end(), "name")


def _heads_line(view: View, token: re.Match[str], first: re.Match[str]) -> bool:
    """Return True if "DOE, JANE" is at the beginning of a line or after a colon, and a gap or number follows."""
    both = (plain(token[0]), plain(first[1]))
    if not _LINE_OR_LABEL.search(view.text, max(0, token.start() - 8), token.start()):
        return False
    ordinary = any(name_words.is_ordinary(low) and low not in ALSO_NAMES and len(low.strip(".")) > 1 for low in both)
    ordinary = ordinary or any(map(name_words.is_surely_medical, both))
    return not ordinary and bool(_APART.match(view.text, first.end()) or DEGREE.match(view.text, first.end()))


def _end_of_surname(view: View, place: int, sure: bool) -> int | None:
    """Return the end of the surname after a given name that ends at `place`, or None.

    If the given name is `sure`, unlisted words can be the surname, too.
    """
    end = None
    for _ in range(3):
        piece = name_words.NEXT.match(view.text, place)
        if piece is None or "\n" in piece[0]:
            break
        word, place = plain(piece[1]), piece.end()
        if len(word) > 1:
            known = word in name_words.SURNAMES or (sure and (word in _SURNAME_LIKE or _is_rare(word, piece[1])))
            if not known or is_eponym(view, piece.start(1) + len(stem(piece[1]))):
                break
            end = piece.start(1) + len(stem(piece[1]))
    return end


def _is_rare(word: str, written: str) -> bool:
    return not name_words.is_ordinary(word) and not (written.isupper() and len(written) < 5)


def _signatures(view: View) -> Iterator[Span]:
    """Yield the names on lines that contain only a name, and possibly degrees."""
    for line in _SIGNED_LINE.finditer(view.text):
        name = name_at(view, line.end(), Cue.LIKELY)
        if name and " " in view.text[name.start : name.end] and _LINE_END.match(view.text, name.end):
            pieces = [plain(piece[0]) for piece in PIECE.finditer(view.text, name.start, name.end)]
            if any(map(name_words.is_name, pieces)):
                yield name
    for signed in _SIGNED_OFF.finditer(view.text):
        low = plain(signed["name"])
        if not name_words.is_ordinary(low) or low in ALSO_NAMES:
            yield Span(*signed.span("name"), "name")


def _patients_in_beds(view: View) -> Iterator[Span]:
    """Yield the listed names after the number of a bed or room in a handover: "412A Jefferson - CHF"."""
    for bed in _BED.finditer(view.text):
        name = name_at(view, bed.end(), Cue.LIKELY)
        if name and _AFTER_PATIENT.match(view.text, name.end):
            words = list(map(plain, re.split("[ -]", view.text[name.start : name.end])))
            listed = any(word in _SURNAME_LIKE or name_words.is_name(word) for word in words)
            if listed or (bed["label"] and all(map(is_strange, words))):
                yield name


def _lowercase_names(view: View) -> Iterator[Span]:
    """Yield names that people type in lowercase: "my name is jane doe", "dr smith", "mrs okwonga"."""
    name: Span | None = None
    titled = {found.start(1) for found in _SMALL_TITLE.finditer(view.text) if is_strange(found[1])}
    if not titled and name_words.ON_LISTS.isdisjoint(_SMALL_WORDS.findall(view.text)):
        return
    for found in _SMALL_WORD.finditer(view.text):
        if not name_words.is_name(found[0]) and found.start() not in titled:
            continue
        if name and found.start() == name.end + 1:
            name = Span(name.start, found.end(), "name")
        elif (
            found.start() in titled
            or (name_words.before(view, found.start()) or Cue.DOUBTFUL) > Cue.DOUBTFUL
            or _SPEAKS.search(view.before(found.start(), 16))
        ):
            if name:
                yield name
            name = Span(found.start(), found.end(), "name")
    if name:
        yield name


def is_strange(low: str) -> bool:
    """Return True if a lowercase word is neither English nor medical, nor an inflected, possibly misspelled, verb."""
    verb = low.endswith(("ed", "ing")) and not name_words.is_name(low)
    return not verb and not any(
        name_words.is_ordinary(part) or name_words.is_surely_medical(part) for part in low.split("-")
    )


def repeated_names(view: View, found: list[Span]) -> Iterator[Span]:
    """Yield all occurrences of words of the names that were found."""
    known = {
        stem(piece[0])
        for name in {view.text[span.start : span.end] for span in found}
        for piece in PIECE.finditer(name)
        if len(plain(piece[0])) > 2 and not name_words.is_other(plain(piece[0]))
    }
    known |= {word.upper() for word in known} | {word.title() for word in known if word.isupper()}
    if not known:
        return
    for token in TOKEN.finditer(view.text):
        word = stem(token[0])
        if word not in known:
            continue
        # Even after "Dr. Long", the word "Long" at the start of a sentence isn't a name.
        english = name_words.is_ordinary(word.lower()) or word.lower() in name_words.WORD_NAMES
        if not (english and not _is_capitalized_as_name(view, token, known)) and not is_eponym(
            view, token.start() + len(word)
        ):
            yield Span(token.start(), token.start() + len(word), "name")


def _is_capitalized_as_name(view: View, token: re.Match[str], known: set[str]) -> bool:
    """Return True if a known word is capitalized as a name: inside a sentence, or next to a name or a verb."""
    if _INSIDE.search(view.text, max(0, token.start() - 3), token.start()):
        return True
    spoken_of = _SPOKEN_OF.match(view.text, token.end())
    if spoken_of and (spoken_of[1] in _VERBS or spoken_of[1].endswith("ed")):
        return True
    following = name_words.NEXT.match(view.text, token.end())
    before = view.text[max(0, token.start() - 28) : token.start()].split()
    return bool((following and following[1] in known) or (before and before[-1] in known))


_INITIAL = re.compile(
    r"[ ](?P<initial>[A-Z](?:\.(?:[ ]?[A-Z]\.)?)?)"
    r"(?=['’]s(?![a-z])|[,;:)?!\]]|[ \n]+[a-z@(&/]|[ \n]+\d|\.?\s*$|\.?[ \n])"
)
"""The initial of a surname after a given name: "Anna K., seen today", "Anna K seen today\""""
_AFTER_BARE_INITIAL = re.compile(r"['’]s|[,;:)?!]|[ \n]+(?:[a-z]{2,}|w/|@|\d|\()|\s*$")
_INTRODUCED = re.compile(
    r"(?:[,(:] ?|(?<![A-Za-z])(?:named|name|patients?|pts?|like|for|of|by|to|is|male|female|man|woman|boy|girl|[mf]|"
    r"y/?o|regarding|re|with|and|child|infant|adult|client) )$",
    re.IGNORECASE,
)
_SURELY_INTRODUCED = re.compile(
    r"(?<![A-Za-z])(?:named|name:?|patients? like|pts? like|case of|case like|similar to|for|of|pt|patient) $",
    re.IGNORECASE,
)
_CARED_FOR = re.compile(
    r"[,;(?)]|['’]s| (?:seen|treated|evaluated|admitted|who|from|diagnosed|presented|\d|was|is|w/|with|at|dx)(?![a-z])"
)
_AUTHOR_BEFORE = re.compile(r"[A-Z][a-z]+ [A-Z]{1,2}\.?(?:, | and |; )$")
_AUTHOR_AFTER = re.compile(r"\.?(?:, | and |; )[A-Z][a-z'’-]+ [A-Z]{1,2}[.,;]|\.?,? et al")
"""Text after a name in a list of a paper's authors: "Smith J, Allan K\""""
_LETTERED = word_list("lettered")
"""Words after which a letter isn't an initial: "hepatitis B\""""
_TITLES = frozenset(["dr", "mr", "mrs", "ms", "miss", "prof"])
_ONE_INITIAL = re.compile(r"[A-Z](?<=[a-z.] .)(?:\.|(?=['’]s|[ ,;:?)]|$))(?![A-Za-z.])")
_INITIALS = re.compile(r"[A-Z](?<![\w.].)\.[ ]?(?:[A-Z]\.[ ]?)?[A-Z]\.(?![A-Za-z])")
_IN_CAPITALS = re.compile(
    r"(?<![A-Za-z])(?:MRS?|MS|MISS|DR)\.? (?P<name>(?:[A-Z]\.? ){1,2}(?P<surname>[A-Z][A-Z'’-]{3,24}))(?![A-Za-z])"
)
_AGE_AFTER = re.compile(r",? ?\(?(?:an? )?\d{1,3}[- ]?(?:y|yo|y/o|m|f|year|m/o|months?)(?![a-z])")
_CALLED_PATIENT = re.compile(r"(?<![a-z])(?:patient|pt\.?|initials)(?: is| are|:)? $")
_STATED_INITIALS = re.compile(r"(?<![a-z])initials(?: are|:)? ([a-z]\.?[ ]?[a-z]\.?)(?![a-z])")
_NOUNS = word_list("persons")
_PERSON = frozenset([*_NOUNS, "like", "to", "of", "in", "for", "by", "with", "regarding", "about", "re:"])
"""Words directly before a name"""
_SAID_TO_BE = re.compile(
    r"(?<![a-z])(?:named|similar to|case of|patients? like|case like|man|woman|boy|girl|gentleman|lady) $"
)
_BEFORE_PAIR = re.compile(
    r"\d ?(?:y/?o|yrs?|y\.o\.|years? old)?,? ?(?:[a-z]+ )?(?:[mf]|male|female) \(?$|(?<![a-z])(?:regarding|re:|wife of|"
    r"husband of|mother of|father of|daughter of|son of|care of|letter for|visit of) $"
)  # Words before a name that consists of two unlisted words
_AGED = re.compile(r"\d[- ]?(?:year|yr|month|week|day|yo|y/o|y\.o)[^.;?!\n]*, $")
"""An age earlier in the sentence, up to the comma before a name: "a 52-year-old man with asthma, Xiomar Vasko\""""
_REST = re.compile(
    rf"(?P<last>(?:[ ][A-Z]\.?)?[ ](?:{name_words.WORD}))?"
    r"(?:[,;?)]|[ ](?:\(|w/|c/o|who|whose|is|was|has|had|seen|with|from|at|on|in|asks|asked|presents|presented|needs|"
    r"reports)(?![a-z])|: )"
)
_CARE_FOLLOWS = re.compile(
    r",?[ (]{0,2}(?:who|whose|(?:was |is |were |last |currently |recently |being )*(?:seen|treated|evaluated|admitted|"
    r"diagnosed|presented|presenting|hospitali[sz]ed|discharged|referred|visited|followed|examined|living|residing|under|"
    r"at|from|in|on|with|born|dob|mrn)(?![a-z])|\d)"
)


def _initials(view: View) -> Iterator[Span]:
    """Yield initials that stand for a name: after a title, before an age, after "patient" or "initials"."""
    for found in _ONE_INITIAL.finditer(view.text):
        words = view.before(found.start(), 8).split()
        if words and words[-1].lstrip("(").rstrip(".") in _TITLES:
            yield Span(found.start(), found.end(), "name")
    for found in _IN_CAPITALS.finditer(view.text):
        if is_strange(found["surname"].lower()):
            yield Span(*found.span("name"), "name")
    for found in _INITIALS.finditer(view.text):
        if _AGE_AFTER.match(view.low, found.end()) or _CALLED_PATIENT.search(view.before(found.start(), 16)):
            yield Span(found.start(), found.end(), "name")
    if view.has("initials"):
        for found in _STATED_INITIALS.finditer(view.low):
            if view.text[found.start(1)].isupper():
                yield Span(*found.span(1), "name")


def _with_initial(view: View, token: re.Match[str], name: Span | None) -> Span | None:
    """Return a name that ends with the initial of a surname; `name` is the name that ends with `token`, if known.

    A given name that isn't listed counts only after words that introduce a name, as in "a patient named Xiomar K.".
    """
    text, low = view.text, plain(token[0])
    initial = _INITIAL.match(text, token.end())
    if initial is None or name_words.is_other(low) or token[0].isupper():
        return None
    stopped = "." in initial["initial"]
    if not stopped and (initial["initial"] in {"A", "I"} or not _AFTER_BARE_INITIAL.match(text, initial.end())):
        return None
    before = text[max(0, token.start() - 28) : token.start()]
    if _AUTHOR_BEFORE.search(before) or _AUTHOR_AFTER.match(text, initial.end()):
        return None
    known = name is not None or (low in name_words.GIVEN and low not in name_words.EPONYMS)
    if not known and not _is_introduced(view, token, initial, before):
        return None
    return Span(name.start if name else token.start(), initial.end("initial"), "name")


def _is_introduced(view: View, token: re.Match[str], initial: re.Match[str], before: str) -> bool:
    """Return True if the words around this word and its initial show that it is a given name."""
    low = plain(token[0])
    if not _INTRODUCED.search(before) or not is_titled(token[0]) or low in _LETTERED:
        return False
    if low in name_words.WORD_NAMES or low in name_words.SURNAMES:
        return True
    stopped = "." in initial["initial"] and low not in _DOUBLE
    surely = bool(_CARED_FOR.match(view.text, initial.end())) and bool(_SURELY_INTRODUCED.search(before))
    if not name_words.is_ordinary(low):
        return stopped or surely
    closed = bool(_CARED_FOR.match(view.text, initial.end()))
    return stopped and closed and (surely or _is_aged(view, token.start()))


def _beside_description(view: View, token: re.Match[str]) -> Span | None:
    """Return the name that follows a description of a person: "a 60-year-old man, Xiomar Vasko, seen ..."."""
    start = token.start()
    before = view.before(start, 28)
    words = before.split()
    last_word = words[-1] if words else ""
    after_comma = before.endswith(", ")
    if not is_titled(token[0]) or not (after_comma or last_word in _PERSON or last_word == "("):
        return None
    rest = _REST.match(view.text, token.end())
    if rest is None:
        return None
    pieces = [plain(word) for word in [token[0], *(rest["last"] or "").split()] if len(plain(word)) > 1]
    strange = sum(not name_words.is_ordinary(word) and not name_words.is_surely_medical(word) for word in pieces)
    if not strange or any(name_words.is_other(word) or word in name_words.GENERIC for word in pieces):
        return None
    is_pair = len(pieces) > 1 and strange == len(pieces)
    if last_word in {"patient", "pt"}:
        likely = len(pieces) > 1
    else:
        likely = (last_word.strip(",") in _NOUNS and after_comma) or bool(_SAID_TO_BE.search(before))
    likely = likely or (is_pair and _is_pair_of_person(view, start, before, rest))
    end = rest.end("last") if rest["last"] else token.end()
    if not likely or is_eponym(view, end) or (len(pieces) == 1 and pieces[0] in _DOUBLE):
        return None
    return Span(start, end, "name")


def _is_pair_of_person(view: View, start: int, before: str, rest: re.Match[str]) -> bool:
    """Return True if two unlisted words at `start` are a name, judged by the words before and after."""
    if _BEFORE_PAIR.search(before) or view.text[rest.end() - 4 : rest.end()] == " who":
        return True
    return _is_aged(view, start) and bool(_CARE_FOLLOWS.match(view.low, rest.end() - 1))


def _is_aged(view: View, place: int) -> bool:
    """Return True if a comma is directly before `place`, and an age is mentioned earlier in the same sentence."""
    return view.text[place - 2 : place] == ", " and bool(_AGED.search(view.low, max(0, place - 240), place))
