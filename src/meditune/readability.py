"""Readability of English text: syllables, school grades, rare words and unexplained medical terms.

Word frequencies come from wordfreq (Speer 2022, https://doi.org/10.5281/zenodo.7199437), which combines Wikipedia,
subtitles, news, books, web pages and social media. Its data end in 2021 and no longer change.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import TypeVar

from numpy import float64
from numpy.typing import NDArray

from meditune.text import sentences

COMMON_WORDS = 5000
"""Number of the most frequent word forms, including inflected forms, that every reader is assumed to know"""
_ENDINGS = (
    *(("ies", "y"), ("ied", "y"), ("ier", "y"), ("iest", "y"), ("es", ""), ("s", ""), ("ed", ""), ("ed", "e")),
    *(("ing", ""), ("ing", "e"), ("er", ""), ("er", "e"), ("est", ""), ("est", "e"), ("ly", "")),
)


@lru_cache(maxsize=65536)
def is_rare(word: str) -> bool:
    """Return whether `word` is neither among the COMMON_WORDS most frequent English forms nor derived from one of them.

    A number isn't rare. A hyphenated word is rare if any of its parts is rare. This follows Dale and Chall's concept of
    a difficult word (Dale and Chall 1948; Chall and Dale 1995), but replaces their list of 3,000 words by frequency.
    """
    return any(not _is_common(part) for part in _parts(word))


@lru_cache(maxsize=65536)
def per_million(word: str) -> float:
    """Return how often `word` (or the rarest part of a hyphenated word) occurs per million words of English text."""
    return min((1e6 * _frequencies().get(part, 0.0) for part in _parts(word)), default=math.inf)


def _parts(word: str) -> list[str]:
    lowered = word.lower().replace("’", "'").removesuffix("'s")
    return [part for part in lowered.replace("‐", "-").replace("‑", "-").split("-") if part and not part[0].isdigit()]


def _is_common(word: str) -> bool:
    known = _common()
    if word in known:
        return True
    for ending, put in _ENDINGS:
        stem = word.removesuffix(ending)
        if stem != word and (stem + put in known or (not put and stem[-1:] == stem[-2:-1] and stem[:-1] in known)):
            return True
    return False


@cache
def _common() -> frozenset[str]:
    from wordfreq import top_n_list

    return frozenset(top_n_list("en", COMMON_WORDS))


@cache
def _frequencies() -> dict[str, float]:
    from wordfreq import get_frequency_dict

    found: dict[str, float] = get_frequency_dict("en", wordlist="small")
    return found


_LISTED = {
    1: "ache aches friend friends isle leagues pier piers priest priests tier tiers vs",
    2: "business cafe catholic chocolate colonel comeback evening facebook forecast forehead frontier genius ion ions "
    "conscience leopard lion lions maybe mr mrs naive naked people peoples premier rhythm schism science soldier "
    "soldiers someday someone vaccine vaccines wednesday whereas wicked dr cement choir",
    3: "anime area areas cereal element elements familiar heroin linear moreover nuclear parliament pneumonia "
    "recipe recipes syncope vehicle vehicles vegetable vegetables finale etc businesses ascites",
    4: "apostrophe catastrophe diabetes dandelion european",
}
EXCEPTIONS = {word: count for count, words in _LISTED.items() for word in words.split()}
SPELLED_OUT = re.compile(r"[A-Z]{2,5}s?")
SPOKEN_AS_WORDS = {"AIDS", "SARS", "COVID", "MERS", "NATO", "CAT", "PET"}

_CONSONANTS = (
    (re.compile(r"qu"), "q"),
    (re.compile(r"(?<!ar)gu(?=[aeiy])"), "g"),  # guide, language
    (re.compile(r"^y(?=[aeiou])|(?<=[aeiou])y(?=[aeiou])"), "j"),  # year, layer
)
_VOWELS = re.compile(r"[aeiouy]+")
_HIATUS = (
    r"i(?=[aou])",  # pneumoni-a, vi-olence, medi-um
    r"i(?=e(?:t|rs?$|st$|n[ct]))",  # di-et, carri-er, happi-est, nutri-ent
    r"e(?=o)",  # oste-oma
    r"y(?=[aou])",  # my-opathy
    r"y(?=e[b-df-hj-np-tv-z][a-z])",  # poly-ester
    r"u(?=[ao])",  # sexu-al, du-odenum
    r"u(?=e(?:[lt]|n[ct]|nz))",  # fu-el, influ-ence, influ-enza
    r"u(?=i(?:t(?:y|ion|iv|ou)|ds?$|n(?:e|$|s)|ci))",  # acu-ity, flu-id, ru-in, su-icide
    r"a(?=o|ic)|(?<=tr)a(?=u)",  # a-orta, archa-ic, intra-uterine
    r"(?<=[aeiouy])i(?=ngs?$)",  # be-ing, study-ing
    r"(?<=[^aeiou])e(?=u[ms]s?$)",  # nucle-us
    r"e(?=ic)",  # nucle-ic
    r"(?<=[aeiouy][^aeiou])e(?=a$)|(?<=[aeiouy][^aeiou]{2})e(?=a$)|(?<=[aeiouy][^aeiou]{3})e(?=a$)",  # apne-a
    r"(?<=[gn])e(?=al(?:ly)?$)|(?<=ch)e(?=al$)|(?<=[dr])e(?=as$)",  # esophage-al, are-as
    r"(?<=cr)e(?=at[eio])|(?<=th)e(?=at[er])",  # cre-atinine, the-ater
    r"(?<=^r)e(?=a(?:b|li|ct|ss|ll|pp)|i[mn][bfst]|u[ns]|o[cpr]|e[nmv])",  # re-action
    r"o(?=ic(?:$|a|s))",  # hero-ic
    r"(?<=^c)o(?=inc|oper|ord|ag|ex|enz|ali|ale)",  # co-incide
    r"o(?=en[tcz]|e[mt]s?$|ev)|(?<=^z)o(?=ol)|(?<=e)o(?=[ae])|(?<=gastr)o(?=i)",  # gastro-enteritis, oste-o-arthritis
    r"(?<=[aeiouy][^aeiou])o(?=a$)",  # protozo-a
    r"(?<=[aeiouy]s)m(?=s?$)|(?<=th)m(?=s?$)",  # metabolis-m, rhyth-m
)
_DIPHTHONG = (
    r"[ct]ia(?=[lns])",  # spe-cial
    r"(?:[tscxgnh]|ll)ion",  # ques-tion, mil-lion
    r"[ctgx]iou|[gc]eou",  # con-scious
    r"(?<!s)[ct]ien[ct]",  # pa-tient
    r"(?<=[aeiou])sia|[gs]ians?$|tia$|gia$",  # anesthe-sia, demen-tia, neural-gia
    r"[nv]iou?rs?$",  # beha-vior
    r"geon|riage|fluo|lliant|suad",  # sur-geon, car-riage, fluo-ride, bril-liant, per-suade
    r"^ever(?=y)|ical(?=ly$)",  # ev(e)ry, bas-ic(al)ly
)
_SILENT = (
    r"(?<=[^aeiouy])e$(?<![^aeiouylr][lr]e)",  # bone, but not ta-ble
    r"(?<=[^aeiouyszxcg])(?<![cs]h)(?<![^aeiouylr][lr])e(?=s$)",  # bones
    r"(?<=[^aeiouytd])(?<![^aeiouylr][lr])e(?=d$)",  # walked
    r"(?<=[cdgkmnrstvz])(?<!cr)e(?=ments?$)",  # move-ment
    r"(?<=[aeiouy][^aeiouy])e(?=(?:ful|fully|less|ly|ness|ty|hood|some)$)",  # care-ful
    r"(?<=[aeiouy](?:th|ch|st|ng|rg))e(?=(?:ful|less|ly|ness)$)",  # large-ly
    r"^(?:some|life|side|home|base|time|pipe|frame|wide|else|whole|where|there|gide|like|smoke|care|house|ware|face)"
    r"(?=[bcfghlpvw]|[mst][a-z])(?!ful|less|ly|ment|ness|some)",  # some-thing
)
HIATUS, DIPHTHONG, SILENT = (re.compile("|".join(patterns)) for patterns in (_HIATUS, _DIPHTHONG, _SILENT))


@lru_cache(maxsize=65536)
def syllables(word: str) -> int:
    """Return the number of syllables of `word` as read aloud, at least 1, from rules and a list of exceptions.

    Adjacent vowels count as one syllable unless they are known to be pronounced separately ("anemi-a"). An "e" at the
    end of a word or before a suffix is usually silent. Abbreviations in capitals are spelled out ("MRI"), and numbers
    are read digit by digit. docs/reference/metrics.md reports the agreement with a pronouncing dictionary.
    """
    if "-" in word.strip("-"):
        return sum(syllables(part) for part in word.split("-") if part)
    if any(character.isdigit() for character in word):
        return max(1, sum(2 if digit in "07" else 1 for digit in word if digit.isdigit()))
    if SPELLED_OUT.fullmatch(word) and word not in SPOKEN_AS_WORDS:
        return sum(3 if letter == "W" else 1 for letter in word if letter.isupper())
    text = word.lower().replace("’", "'")
    if text in EXCEPTIONS:
        return EXCEPTIONS[text]
    for pattern, put in _CONSONANTS:
        text = pattern.sub(put, text)
    text = re.sub(r"[^a-z]", "", text)
    more, fewer, mute = (len(pattern.findall(text)) for pattern in (HIATUS, DIPHTHONG, SILENT))
    return max(1, len(_VOWELS.findall(text)) + more - fewer - mute)


T = TypeVar("T", float, NDArray[float64])

TARGET = (6.0, 8.0)
"""Range of school grades recommended for health texts for the public (CDC and NIH: grade 8 at most; AMA: grade 6)"""
_WORD = re.compile(r"[^\W_]+(?:[.,](?=\d)\d+|['’\-‐‑][^\W_]+)*")
_BULLET = re.compile(r"^\s*(?:[-*•·]|\(?\d{1,2}[.)])\s+")


@dataclass(frozen=True)
class Counts:
    """The counts that the readability formulas need from a text."""

    sentences: int
    words: int
    syllables: int
    polysyllables: int
    """Words of three or more syllables"""

    @property
    def grade(self) -> float:
        """The Flesch-Kincaid grade of this text, which must contain at least one word."""
        return flesch_kincaid(self.words, self.sentences, self.syllables)


def words(text: str) -> list[str]:
    """Return the words and numbers of `text` in order; "well-known", "don't" and "1,000" each count as one word."""
    return _WORD.findall(text)


def counted(text: str) -> Counts:
    """Return the counts of `text`; a line break ends a sentence, as in lists, and a bullet doesn't count as a word."""
    found = [words(sentence) for line in text.split("\n") for sentence in sentences(_BULLET.sub("", line))]
    found = [sentence for sentence in found if sentence]
    lengths = [syllables(word) for sentence in found for word in sentence]
    return Counts(len(found), len(lengths), sum(lengths), sum(length >= 3 for length in lengths))


def flesch_kincaid(words: float, sentences: float, syllables: float) -> float:
    """Return the Flesch-Kincaid school grade (Kincaid et al. 1975, Navy research branch report 8-75)."""
    return 0.39 * words / sentences + 11.8 * syllables / words - 15.59


def smog(polysyllables: T, sentences: T) -> T:
    """Return the SMOG grade, needed for full understanding (McLaughlin 1969, Journal of Reading 12(8):639-646)."""
    root: T = (30 * polysyllables / sentences) ** 0.5
    return 3.1291 + 1.0430 * root


def outside(grade: float) -> float:
    """Return the distance of `grade` from the range TARGET in school grades; 0 inside the range."""
    low, high = TARGET
    return max(low - grade, grade - high, 0.0)


RARE_PER_MILLION = 3.0
_JARGON_ENDINGS = re.compile(
    r"(?:itis|os[ie]s|a?emi[ac]s?|uria|ectomy|otomy|ostomy|plasty|pathy|pathic|(?<!^ar)(?<!^dipl)oma(?:s|ta|tous)?|algia|plegia|paresis|"
    r"rrh(?:o?ea|age|agic|aphy)|scop(?:y|ic)|graphy|gram|cytes?|cytic|lysis|lytic|penia|philia|trophy|trophic|ectasis|"
    r"stenosis|iasis|asthenia|kinesia|esthesia|aesthesia|dynia|phagia|phasia|pnea|pnoea|sclerosis|genic|genesis|"
    r"lithiasis|megaly|ptysis|edema|oedema|toxic|toxicity|phylaxis|mab|nib|pril|sartan|statin|olol|azole|cillin|mycin|"
    r"floxacin|cycline|vir|dipine|prazole|oxetine|parin|gliptin|gliflozin|glutide|caine|azepam|zolam|dronate|triptan|"
    r"tidine|setron|thiazide|semide|sone|solone|olone|lukast|profen|xaban|grel|amine|idine|terol|zosin|fibrate)$"
)
_BEGINNINGS = re.compile(
    r"^(?:adeno|angio|arthr|athero|bronch|cardi|cephal|cerebr|chemo|chol[ae]|chondr|colpo|crani|cysto|cyto|derma|"
    r"dys(?=[^t])|electro(?=[cem])|encephal|endo|enter[io]|epi(?=d[eiu]|g|n|s|t)|erythro|gastr|glyc|gyn[ae]|h[ae]*mat|"
    r"h[ae]*mo|hepat|histo|hyper|hypo|hyster|idio|immuno|intra|kerat|laryng|leuk|lipo|lymph|mast|mening|metasta|myel|"
    r"myo|necro|neo|neph|neur|oncol|ophthalm|orch|osteo|oto|pancrea|para(?=[lpst])|patho|peri|phleb|pleur|pneum|poly(?!gon|ester|tech)|"
    r"proct|psych|pulmon|pyel|radio|retin|rhin|sclero|spondyl|sten|thorac|thromb|thyr|trach|ureth?|vascul|vaso|venous)"
)
_ABBREVIATION = re.compile(r"[A-Z][A-Z0-9]{1,5}s?")
_KNOWN_TEXT = "AM PM OK US USA UK EU TV NHS CDC FDA NIH WHO ER GP II III IV AIDS HIV DNA COVID ID IQ MD"
_KNOWN = frozenset(_KNOWN_TEXT.split())
_MEANS = "(?:means?|refers? to|stands? for|(?:is|are) (?:also (?:called|known)|an?|the|when|where|another|called))\\b"
_AFTER = (
    r"\(|[—–:]\s",  # hypertension (high blood pressure)
    rf"(?:,?\s?(?:which|that) )?{_MEANS}",  # hypertension, which is a ...
    r",\s(?:also|sometimes|or|that is|i\.e\.|meaning|known as|called|another)\b",  # hypertension, also called ...
    r",\s(?:an?|the)\s(?:[\w'-]+\s){1,12}?[\w'-]+\s?[,.;]",  # hypertension, a rise of the blood's pressure,
    r"or\s[a-z]+\s[a-z]+\s?[,.;]",  # hypertension or high pressure.
)
_BEFORE = (
    r"\b(?:called|known as|termed|named|or|i\.e\.|the (?:medical )?(?:word|term|name)(?: for \w+)?(?: is)?)\s"
    r"(?:(?:an?|the)\s)?[\"“']?",  # high blood pressure, or hypertension
    r"[(—–]\s?",  # high blood pressure (hypertension)
)
_EXPLAINED_AFTER = re.compile(rf"(?:'s|s)?[\"”')]?\s?(?:{'|'.join(_AFTER)})", re.IGNORECASE)
_EXPLAINED_BEFORE = re.compile(rf"(?:{'|'.join(_BEFORE)})(?:[\w-]+\s){{0,2}}$", re.IGNORECASE)


@lru_cache(maxsize=65536)
def is_term(word: str) -> bool:
    """Return whether `word` looks like a medical term that most readers won't know.

    Such a word is rare in English and has a Greek or Latin form ("atorvastatin"), or is an abbreviation ("COPD").
    """
    if _ABBREVIATION.fullmatch(word):
        # A common word in capitals is emphasized rather than abbreviated.
        return word.removesuffix("s") not in _KNOWN and is_rare(word)
    lowered = word.lower().replace("’s", "").replace("'s", "")
    if len(lowered) < 5 or not lowered.isalpha():
        return any(is_term(part) for part in lowered.split("-")) if "-" in lowered else False
    shaped = _JARGON_ENDINGS.search(lowered) or _BEGINNINGS.match(lowered)
    return bool(shaped) and per_million(lowered.removesuffix("s")) < RARE_PER_MILLION > per_million(lowered)


def terms(text: str) -> dict[str, bool]:
    """Return term -> whether any mention is explained, for the medical terms of `text` in order of first mention.

    An explanation must be next to the term: text in brackets, "which means", "also called", "is a", or an apposition.
    The rules match only the shapes of words and sentences, so they miss some terms and explanations.
    """
    found: dict[str, bool] = {}
    for line in text.split("\n"):
        for sentence in sentences(line):
            for word in dict.fromkeys(words(sentence)):
                if is_term(word):
                    key = word.removesuffix("s") if _ABBREVIATION.fullmatch(word) else word.lower()
                    found[key] = found.get(key, False) or _explained(word, sentence)
    return found


def _explained(word: str, sentence: str) -> bool:
    for match in re.finditer(rf"(?<!\w){re.escape(word)}(?!\w)", sentence):
        if _EXPLAINED_AFTER.match(sentence, match.end()) or _EXPLAINED_BEFORE.search(sentence, 0, match.start()):
            return True
    return False
