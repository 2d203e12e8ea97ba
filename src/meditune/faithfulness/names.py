"""Names in medical prose, recognised by their shape: drugs, diseases, procedures, abbreviations, proper names."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from meditune.faithfulness.words import rarity, tokens

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
_ENDINGS: dict[NameKind, str] = {"disease": _DISEASE, "drug": _DRUG, "procedure": _PROCEDURE}
_SHAPES = {kind: re.compile(rf"\w{{2,}}(?:{'|'.join(endings.split())})s?", re.I) for kind, endings in _ENDINGS.items()}
_WHOLE: dict[NameKind, frozenset[str]] = {
    "disease": frozenset(_PLAIN_DISEASE.split()),
    "drug": frozenset(_PLAIN_DRUG.split()),
}
_CAPITALS = re.compile(r"(?:[A-Z][a-z]?[\d/-]*){2,}s?")
_DEFINED = re.compile(r"\(\s*([A-Za-z][\w/-]{1,9})\s*[;,)]")
COMMON = 0.75
"""A word that is commoner than this (words.rarity) is no drug or disease, whatever its ending: examine, promise"""
_ORDINARY = "diploma diplomas aroma aromas chromosome telephone microphone saxophone"


@dataclass(frozen=True)
class Name:
    """A name where it stands."""

    text: str
    kind: NameKind
    start: int
    end: int


def names(text: str) -> Iterator[Name]:
    """The names of a text in order, one word each."""
    shouted = sum(char.isupper() for char in text) > 0.5 * sum(char.isalpha() for char in text)
    for token in tokens(text):
        kind = kind_of(token.text, first=_opens(text, token.start))
        if not kind and rarity(token.text) > 0.6 and _HEAD.match(text, token.end):
            kind = "disease"
        if kind and not (shouted and kind in ("abbreviation", "name")):
            yield Name(token.text, kind, token.start, token.end)


def kind_of(word: str, first: bool = False) -> NameKind | None:
    """What kind of name the shape of a word shows; None where it shows none. `first` in its sentence, a capital says
    nothing.
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
    """The first letters of its words, in lower case: an abbreviation of some of them is a part of this."""
    return "".join(token.text[0].lower() for token in tokens(text))


def defined(text: str) -> set[str]:
    """What a text introduces in brackets: "double balloon enteroscopy (DBE)"."""
    return {match[1] for match in _DEFINED.finditer(text)}


def _opens(text: str, start: int) -> bool:
    before = text[:start].rstrip("\"'([ ")
    return not before or before[-1] in ".!?:"
