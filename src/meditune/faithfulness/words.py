"""Words as they are compared: stemmed, with a weight for how much they say."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache, lru_cache
from math import log
from pathlib import Path

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
"""Words with which any finding is told: they say little about what was found."""
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
        """What of it is compared."""
        return stem(self.text)

    @property
    def is_number(self) -> bool:
        """Whether it is written in digits."""
        return self.text[0].isdigit()


def tokens(text: str) -> list[Token]:
    """The words and numbers of a text in order; a hyphen parts two words."""
    return [Token(match[0], match.start(), match.end()) for match in _TOKEN.finditer(text)]


@lru_cache(maxsize=65536)
def stem(word: str) -> str:
    """A word without case and ending; words of one meaning in _SYNONYMS have one stem."""
    return _synonyms().get(plain := _bare(word.lower()), plain)


@lru_cache(maxsize=65536)
def weight(word: str) -> float:
    """How much a word says, 0 to 1: nothing for function words, little for those that tell any finding, and else by
    its rank among English words; 1 where it isn't among the common ones.
    """
    low = _SHORT.sub("", word.lower())
    if low in _FUNCTION_WORDS or (len(low) < 3 and low.islower() and not word.isupper()):
        return 0.0
    if low in _REPORTING:
        return 0.1
    return 0.25 + 0.75 * rarity(low)


@lru_cache(maxsize=65536)
def rarity(word: str) -> float:
    """0 for the commonest English words, 1 for those that aren't among the most frequent."""
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
