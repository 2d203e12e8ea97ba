"""Medical terms that a text uses without saying what they mean.

A term is a word that is rare in English and either built like medicine's Greek and Latin ("nephrolithiasis",
"atorvastatin") or an abbreviation in capitals ("COPD"). It counts as explained where any mention of it stands beside an
explanation: brackets, "which means", "also called", "a kind of", or an apposition. These are shapes of words and
sentences, so some terms are missed, and some explanations too.
"""

from __future__ import annotations

import re
from functools import lru_cache

from meditune.readability.familiar import is_rare, per_million
from meditune.readability.grades import words
from meditune.text import sentences

RARE_PER_MILLION = 3.0
_ENDINGS = re.compile(
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
_KNOWN = frozenset(
    [
        "AM",
        "PM",
        "OK",
        "US",
        "USA",
        "UK",
        "EU",
        "TV",
        "NHS",
        "CDC",
        "FDA",
        "NIH",
        "WHO",
        "ER",
        "GP",
        "II",
        "III",
        "IV",
        "AIDS",
        "HIV",
        "DNA",
        "COVID",
        "ID",
        "IQ",
        "MD",
    ]
)
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
    """Whether `word` looks like a medical term that most readers won't know."""
    if _ABBREVIATION.fullmatch(word):
        # Words are written in capitals for emphasis, too.
        return word.removesuffix("s") not in _KNOWN and is_rare(word)
    lowered = word.lower().replace("’s", "").replace("'s", "")
    if len(lowered) < 5 or not lowered.isalpha():
        return any(is_term(part) for part in lowered.split("-")) if "-" in lowered else False
    shaped = _ENDINGS.search(lowered) or _BEGINNINGS.match(lowered)
    return bool(shaped) and per_million(lowered.removesuffix("s")) < RARE_PER_MILLION > per_million(lowered)


def terms(text: str) -> dict[str, bool]:
    """Each medical term of `text` in the order of its first mention, and whether it is explained."""
    found: dict[str, bool] = {}
    for line in text.split("\n"):
        for sentence in sentences(line):
            for word in words(sentence):
                if is_term(word):
                    key = word.removesuffix("s") if _ABBREVIATION.fullmatch(word) else word.lower()
                    found[key] = found.get(key, False) or _explained(word, sentence)
    return found


def _explained(word: str, sentence: str) -> bool:
    for match in re.finditer(rf"(?<!\w){re.escape(word)}(?!\w)", sentence):
        if _EXPLAINED_AFTER.match(sentence, match.end()) or _EXPLAINED_BEFORE.search(sentence, 0, match.start()):
            return True
    return False
