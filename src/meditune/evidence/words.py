"""Words of medical English as the detector compares them.

Words have stems and weights by information content. Words that reverse a finding are negations, directions, limits and
advice. Names (drugs, diseases, procedures, abbreviations, proper names) are recognised by their shape.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, lru_cache
from math import log
from pathlib import Path
from typing import Literal

from meditune.evidence.quantities import AMOUNT, amount

_TOKEN = re.compile(r"\d+(?:[.,]\d+)*|[^\W\d_][^\W_]*(?:['’][^\W\d_]+)?")
_SHORT = re.compile(r"['’](?:s|re|ve|ll|d|m)$")
_FUNCTION_TEXT = (
    "a an the about above after again against all also although am among an and another any are as at be because been "
    "before being below between both but by can could did do does doing down during each either else even ever every "
    "few for from further had has have having he her here hers him his how however i if in into is it its itself just "
    "may me might more most much must my nor of off on once only onto or other our out over own per rather same shall "
    "she should since so some such than that the their theirs them then there thereby therefore these they this those "
    "though through throughout thus to together too toward towards under until up upon us very was we well were what "
    "when where whereas whether which while who whom whose why will with within would yet you your yours not no "
    "cannot without"
)
_REPORTING_TEXT = (
    "study studies studied result results resulted finding findings found find conclude concludes concluded "
    "conclusion conclusions suggest suggests suggested suggesting show shows showed shown showing demonstrate "
    "demonstrates demonstrated indicate indicates indicated indicating report reports reported data evidence analysis "
    "analyses investigation research author authors present paper article patient patients group groups compared "
    "comparison significant significantly important importance need needs needed necessary future support supports "
    "supported confirm confirms confirmed appear appears appeared seem seems likely probably possible possibly "
    "potential potentially consider considered considering recommend recommended recommendation use used using useful "
    "usefulness given based regarding despite thus overall clinical clinically effect effects effective effectively "
    "related associated association role factor factors method methods outcome outcomes population populations year "
    "years identify identified observed observation provide provides provided require requires required case cases "
    "number rate rates level levels risk value values new first current currently determine determined evaluate "
    "evaluated evaluation assess assessed assessment explain explained relationship difference differences different "
    "benefit benefits care practice treatment treatments treated therapy improve improved improvement improving "
    "approach strategy strategies particularly especially addition moreover furthermore nevertheless still among "
    "experience good better best great many several large small high higher low lower increased increase decreased "
    "decrease reduce reduced understanding understand knowledge information example answer question yes maybe"
)
"""Words used to report any finding, which carry little information about it"""
_SYNONYMS = (
    "increase|increased|increases|increasing|rise|rose|rising|raise|raised|elevated|elevation|higher|greater|more",
    "decrease|decreased|decreases|decreasing|decline|declined|reduce|reduced|reduction|lower|lowered|fewer|less|fell|drop",
    "mortality|death|deaths|died|die|dying|fatal|fatality|fatalities",
    "child|children|childhood|pediatric|paediatric|infant|infants|baby|babies|neonate|neonatal|newborn",
    "woman|women|female|females", "man|men|male|males", "old|older|elderly|aged|geriatric|age",
    "kidney|kidneys|renal|nephrology", "heart|cardiac|cardiovascular|coronary", "liver|hepatic",
    "lung|lungs|pulmonary", "stomach|gastric", "brain|cerebral|cranial", "bone|bones|osseous|skeletal",
    "skin|cutaneous|dermal", "eye|eyes|ocular|ophthalmic",
    "tumor|tumors|tumour|tumours|neoplasm|cancer|cancers|carcinoma|malignancy|malignant",
    "doctor|doctors|physician|physicians|clinician|clinicians|practitioner",
    "drug|drugs|medication|medications|medicine", "surgery|surgical|operation|operative|surgeon|surgeons|procedure",
    "high blood pressure|hypertension|hypertensive", "sugar|glucose",
    "fat|adipose|obesity|obese|overweight|weight|bmi", "clot|thrombosis|thrombus|thromboembolism",
    "bleeding|hemorrhage|haemorrhage|bleed", "stroke|strokes|cerebrovascular",
    "infection|infections|infected|infectious",
    "pregnancy|pregnant|gestation|gestational|maternal|antenatal|prenatal", "birth|delivery|labor|labour|obstetric",
    "smoking|smoker|smokers|tobacco|cigarette", "diet|dietary|nutrition|nutritional|food",
    "test|tests|testing|screening|diagnosis|diagnostic|diagnose|diagnosed|detection|detect", "safe|safely|safety",
    "effective|effectiveness|efficacy|efficacious",
    "predict|predicts|predictor|predictive|prediction|prognostic|prognosis",
    "correlate|correlated|correlation|associated|association|related|relation|relationship|linked|link",
    "cause|causes|caused|lead|leads|led|induce|induces|induced",
    "prevent|prevents|prevention|preventive|protect|protective",
    "complication|complications|adverse|harm|harms|harmful", "pain|painful|ache|analgesia|analgesic",
    "hospital|hospitals|inpatient|admission|admitted|hospitalization", "school|schools|student|students",
    "nurse|nurses|nursing", "worry|anxiety|anxious", "depression|depressive|depressed", "teeth|tooth|dental|dentist",
)  # fmt: skip
_ENDING_TEXT = (
    "izations ization isations isation ations ation itions ition ingly edly fulness ements ement ments ment ities ity "
    "ively iveness ives ive ions ion ings ing ically ical ics ic ies ied ates ated ating ate ally al ers er ed es ly "
    "ence ency ances ance ant ents ent ous ary ory e s y"
)
_FUNCTION_WORDS = frozenset(_FUNCTION_TEXT.split())
_REPORTING = frozenset(_REPORTING_TEXT.split())
_ENDINGS = tuple(sorted(_ENDING_TEXT.split(), key=len, reverse=True))


@dataclass(frozen=True)
class Token:
    """A word or number of a text."""

    text: str
    start: int
    end: int

    @property
    def stem(self) -> str:
        """The stem, which is compared."""
        return stem(self.text)

    @property
    def is_number(self) -> bool:
        """Return whether it is written in digits."""
        return self.text[0].isdigit()


def tokens(text: str) -> list[Token]:
    """Return the words and numbers of a text in order; a hyphen separates two words."""
    return [Token(match[0], match.start(), match.end()) for match in _TOKEN.finditer(text)]


@lru_cache(maxsize=65536)
def stem(word: str) -> str:
    """Return the word in lowercase and without its ending; synonyms (_SYNONYMS) share one stem."""
    return _synonyms().get(plain := _bare(word.lower()), plain)


@lru_cache(maxsize=65536)
def information_weight(word: str) -> float:
    """Return a word's information weight, 0 to 1.

    It is 0 for function words and 0.1 for words that report any finding; otherwise it grows with the word's rank among
    English words, up to 1 for words that aren't in the list of common ones.
    """
    low = _SHORT.sub("", word.lower())
    if low in _FUNCTION_WORDS or (len(low) < 3 and low.islower() and not word.isupper()):
        return 0.0
    if low in _REPORTING:
        return 0.1
    return 0.25 + 0.75 * rarity(low)


@lru_cache(maxsize=65536)
def rarity(word: str) -> float:
    """Return 0 for the most common English words, 1 for words that aren't in the list, and values between by rank."""
    ranks = _ranks()
    low = word.lower()
    rank = min(ranks.get(form, len(ranks)) for form in (low, low.removesuffix("s"), low.removesuffix("es")))
    return max(0.0, log((rank + 1) / 100) / log((len(ranks) + 1) / 100))


@cache
def _ranks() -> dict[str, int]:
    text = (Path(__file__).parent / "common.txt").read_text(encoding="utf-8")
    words = (word for line in text.splitlines() if not line.startswith("#") for word in line.split())
    return {word: rank for rank, word in enumerate(words)}


@cache
def _synonyms() -> dict[str, str]:
    found: dict[str, str] = {}
    for group in _SYNONYMS:
        words = [word for word in group.split("|") if " " not in word]
        for word in words:
            found.setdefault(_bare(word), _bare(words[0]))
    return found


def _bare(low: str) -> str:
    low = _SHORT.sub("", low).replace("aemi", "emi").replace("oede", "ede").replace("our", "or")
    for ending in _ENDINGS:
        if low.endswith(ending) and len(low) - len(ending) >= 4:
            low = low[: -len(ending)]
            break
    return low[:-1] if low.endswith(("duct", "e")) and len(low) > 4 else low


NUMBER = re.compile(r"(?<![\w.,-])\d+(?:,\d{3})*(?:\.\d+)?(?!\w)")
AUXILIARY = r"is|are|was|were|do|does|did|can|could|may|might|must|should|has|have|had|will|would"
NEGATED = re.compile(
    rf"\b(?:(?P<plain>{AUXILIARY})(?: not\b|n't\b|n’t\b)|cannot\b|can['’]t\b|no(?= [a-z]))", re.IGNORECASE
)
"""A negation that can be removed; `plain` is the auxiliary verb without it, if there is one"""
NEGATABLE = re.compile(rf"\b(?:{AUXILIARY})\b(?! not\b|['’]t)", re.IGNORECASE)
"""An auxiliary verb that can be negated"""
NEGATIVE = re.compile(
    r"\b(?:not|no|none|never|neither|nor|without|cannot|lack(?:s|ed|ing)?|fail(?:s|ed)?|absence)\b|n['’]t\b",
    re.IGNORECASE,
)
"""A word that negates a sentence"""
_OPPOSITES = (
    "increase/decrease increases/decreases increased/decreased increasing/decreasing higher/lower high/low more/less "
    "greater/smaller better/worse improve/worsen improves/worsens improved/worsened improving/worsening "
    "improvement/deterioration reduce/raise reduces/raises reduced/raised reducing/raising reduction/rise rose/fell "
    "positive/negative positively/negatively effective/ineffective safe/unsafe beneficial/harmful superior/inferior "
    "longer/shorter long/short early/late earlier/later before/after significant/insignificant "
    "significantly/insignificantly likely/unlikely feasible/infeasible useful/useless helps/harms help/harm "
    "strong/weak common/rare frequent/infrequent necessary/unnecessary appropriate/inappropriate "
    "adequate/inadequate sufficient/insufficient reliable/unreliable accurate/inaccurate similar/different"
)
_PAIRS = [(pair.partition("/")[0], pair.partition("/")[2]) for pair in _OPPOSITES.split()]
OPPOSITE = dict(_PAIRS) | {second: first for first, second in _PAIRS}
"""Direction words, each with its opposite, which reverses a finding"""
DIRECTION = re.compile(rf"\b(?:{'|'.join(sorted(OPPOSITE, key=len, reverse=True))})\b", re.IGNORECASE)
_SIDES = (
    ("start starts started starting begin begins beginning began continue continues continued continuing keep",
     "stop stops stopped stopping discontinue discontinues discontinued discontinuing"),
    ("use uses used give gives given giving take takes taken indicated recommend recommends recommended",
     "avoid avoids avoided avoiding contraindicated"),
)  # fmt: skip
"""Words of advice in opposite pairs of groups: a word of one group reverses advice with a word of the other.
meditune.data.preference.pairs doesn't replace these words."""
_SIDE = {
    word: (axis, side) for axis, sides in enumerate(_SIDES) for side, text in enumerate(sides) for word in text.split()
}
_ADVICE = re.compile(rf"\b(?:{'|'.join(sorted(_SIDE, key=len, reverse=True))})\b", re.IGNORECASE)
_LIMIT = re.compile(
    r"\b(?:(?P<above>above|over|exceeding|at least|(?:more|greater|higher|older) than)|"
    r"(?P<below>below|under|at most|up to|(?:less|fewer|lower|younger) than))\b"
    rf"(?: (?:the )?(?:age )?(?:of )?(?P<number>{AMOUNT})\b)?",
    re.IGNORECASE,
)
_REACH = 60
"""Number of characters before a word that are searched for a negation of it"""
_DENIED = re.compile(r"(?:\b(?:not|never|no|cannot|without)|n['’]t)(?: \w+){0,3} $", re.IGNORECASE)
_ADVISED_AGAINST = re.compile(r"\b(?:avoid|stop|discontinu|contraindicat|against)\w*(?: \w+){0,3} $", re.IGNORECASE)


@dataclass(frozen=True)
class Direction:
    """A word that gives a finding or advice its direction, with its position."""

    start: int
    end: int
    direction: str
    """A code that words of the same direction share"""
    opposite: str
    """The code of the words of the opposite direction"""
    only_turned: bool = False
    """Whether it counts only if the sources clearly say the opposite, as with words of advice and limits"""


def directions(text: str) -> Iterator[Direction]:
    """Yield the direction words and limits of a text; limits are opposites only with the same number.

    Negated words of advice are left out: "not recommended", "avoid using".
    """
    for match in DIRECTION.finditer(text):
        yield Direction(match.start(), match.end(), stem(match[0]), stem(OPPOSITE[match[0].lower()]))
    for match in _ADVICE.finditer(text):
        axis, side = _SIDE[match[0].lower()]
        before = text[max(0, match.start() - _REACH) : match.start()]
        if not _DENIED.search(before) and (side or not _ADVISED_AGAINST.search(before)):
            yield Direction(match.start(), match.end(), f"{axis}/{side}", f"{axis}/{1 - side}", only_turned=True)
    for match in _LIMIT.finditer(text):
        word = match["above"] or match["below"]
        if not match["number"] and word.lower() not in ("above", "below"):
            continue
        if not _DENIED.search(text[max(0, match.start() - _REACH) : match.start()]):
            value = amount(match["number"]) if match["number"] else ""
            sides = (f"above {value}", f"below {value}")
            stated, opposite = sides if match["above"] else sides[::-1]
            yield Direction(match.start(), match.start() + len(word), stated, opposite, only_turned=True)


def value(number: str) -> float:
    """Return the value of a match of NUMBER."""
    return float(number.replace(",", ""))


_WHAT = (
    *(r"significan\w+", r"differen\w+", r"associat\w+", r"correlat\w+", r"relation\w*", r"change\w*"),
    *("effect", "evidence", "benefit", r"improve\w*", r"increase\w*"),
)
NULL_FINDING = re.compile(
    rf"\b(?:no|not|without)\b(?:\s+\w+){{0,3}}\s+(?:{'|'.join(_WHAT)})|\b(?:did|do|does|was|were) not\b|"
    r"\b(?:similar\w*|comparable|equal|equally|unchanged|identical|failed to|nonsignificant)\b|"
    r"\bp\s*(?:>|=\s*(?:0?\.[1-9]|0?\.0[5-9]))",
    re.IGNORECASE,
)
"""A finding that there is no difference, no effect or no association"""


NameKind = Literal["drug", "disease", "procedure", "abbreviation", "name"]

_DRUG = (
    "mab nib pril sartan statin olol azole cillin mycin micin cycline floxacin vir prazole tidine gliptin gliflozin "
    "glitazone formin parin xaban gatran dipine setron triptan oxetine azepam azolam barbital caine profen coxib sone "
    "solone terol lukast zosin thiazide semide oxacin cef conazole quine tinib ciclib platin taxel rubicin bicin "
    "mustine trexate bendazole mectin dronate fibrate stigmine curium afil asone onide steride sulfa amide idone "
    "azine apine etine ipramine triptyline codone morphine phylline insulin aspirin warfarin heparin digoxin"
)
_DISEASE = (
    "itis osis oma omas emia aemia pathy pathies algia plegia paresis uria penia trophy sclerosis ectasis ectasia "
    "phobia itides philia rrhea rrhoea rrhage malacia megaly iasis ismus dynia asthenia kinesia praxia phasia phagia "
    "pnea pnoea dactyly cephaly plasia dysplasia lexia iosis esthesia phoria cytosis emesis igus pnoia ectopia ptosis "
    "stenosis lithiasis otension ertension"
)
_PROCEDURE = "ectomy oscopy plasty graphy ostomy otomy centesis pexy desis scopic metry therapy ectomies"
_PLAIN_DISEASE = (
    "acne allergy amnesia anemia aneurysm angina anorexia anthrax anxiety apnea arrhythmia asthma autism blindness "
    "bulimia cancer cataract cholera cirrhosis colic concussion conjunctivitis constipation coronavirus covid croup "
    "cyst deafness delirium dementia dengue depression diabetes diphtheria dystonia dystrophy ebola eczema edema "
    "embolism emphysema epilepsy fibroids fracture gangrene glaucoma goiter gout heartburn hemophilia hemorrhage "
    "hepatitis hernia herpes hiv hives hypertension hypothermia impetigo infarction influenza insomnia jaundice "
    "leprosy leukemia lupus lymphoma malaria measles melanoma migraine mumps obesity osteoporosis pellagra pneumonia "
    "polio porphyria psoriasis rabies rickets ringworm rosacea rubella scabies schizophrenia sciatica scoliosis "
    "scurvy seizure sepsis shingles smallpox spina stroke syphilis tetanus thrombosis tinnitus tuberculosis typhoid "
    "ulcer vertigo vitiligo warts"
)
_PLAIN_DRUG = (
    "acetaminophen adrenaline aspirin codeine cortisone digoxin epinephrine estrogen fentanyl heparin ibuprofen "
    "insulin ketamine levothyroxine lithium melatonin metformin methadone methotrexate morphine naloxone naproxen "
    "nitroglycerin opium oxytocin paracetamol penicillin progesterone propofol quinine steroids tamoxifen "
    "testosterone thyroxine warfarin"
)
_HEAD = re.compile(r"[ -](?:disease|syndrome|disorder|fever|palsy|virus|infection|deficiency|anomaly)s?\b", re.I)
_NAME_ENDINGS: dict[NameKind, str] = {"disease": _DISEASE, "drug": _DRUG, "procedure": _PROCEDURE}
_SHAPES = {
    kind: re.compile(rf"\w{{2,}}(?:{'|'.join(endings.split())})s?", re.I) for kind, endings in _NAME_ENDINGS.items()
}
_WHOLE: dict[NameKind, frozenset[str]] = {
    "disease": frozenset(_PLAIN_DISEASE.split()),
    "drug": frozenset(_PLAIN_DRUG.split()),
}
_CAPITALS = re.compile(r"(?:[A-Z][a-z]?[\d/-]*){2,}s?")
_DEFINED = re.compile(r"\(\s*([A-Za-z][\w/-]{1,9})\s*[;,)]")
COMMON = 0.75
"""A word with a lower rarity isn't a drug or disease, whatever its ending: examine, promise"""
_ORDINARY = "diploma diplomas aroma aromas chromosome telephone microphone saxophone"


@dataclass(frozen=True)
class Name:
    """A name with its position."""

    text: str
    kind: NameKind
    start: int
    end: int


def names(text: str) -> Iterator[Name]:
    """Yield the names of a text in order, one word each."""
    shouted = sum(char.isupper() for char in text) > 0.5 * sum(char.isalpha() for char in text)
    for token in tokens(text):
        kind = kind_of(token.text, first=_opens(text, token.start))
        if not kind and rarity(token.text) > 0.6 and _HEAD.match(text, token.end):
            kind = "disease"
        if kind and not (shouted and kind in ("abbreviation", "name")):
            yield Name(token.text, kind, token.start, token.end)


def kind_of(word: str, first: bool = False) -> NameKind | None:
    """Return the kind of name that a word's shape indicates, or None.

    With `first`, the word begins a sentence, so its capital letter is ignored.
    """
    if word.isdigit() or len(word) < 2:
        return None
    if sum(char.isupper() for char in word) > 1 and _CAPITALS.fullmatch(word):
        return "abbreviation"
    low = word.lower()
    for kind, words in _WHOLE.items():
        if low in words or low.removesuffix("s") in words:
            return kind
    if len(word) > 5 and rarity(word) >= COMMON and low not in _ORDINARY.split():
        for kind, shape in _SHAPES.items():
            if shape.fullmatch(word):
                return kind
    if word[0].isupper() and not first and len(word) > 2 and rarity(word) > 0.3:
        return "name"
    return None


def initials(text: str) -> str:
    """Return the first letters of the text's words, in lowercase, in which abbreviations can be looked up."""
    return "".join(token.text[0].lower() for token in tokens(text))


def defined(text: str) -> set[str]:
    """Return the terms that a text defines in brackets: "double balloon enteroscopy (DBE)"."""
    return {match[1] for match in _DEFINED.finditer(text)}


def _opens(text: str, start: int) -> bool:
    before = text[:start].rstrip("\"'([ ")
    return not before or before[-1] in ".!?:"
