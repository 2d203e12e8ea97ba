"""Functions that damage good rows in known ways; benchmarks/quality.py measures how much of the damage is found."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence

from meditune.data.example import Example

Damage = Callable[[Example, random.Random, Sequence[Example]], Example | None]
"""Returns a damaged copy of a row, given random numbers and other rows; None if the row has nothing to damage."""

FOREIGN = {
    "de": "Die Behandlung richtet sich nach der Ursache der Beschwerden. Viele erhalten zunächst Medikamente. "
    "Wenn diese nicht helfen, kann eine Operation nötig sein. Fragen Sie Ihre Ärztin oder Ihren Arzt.",
    "fr": "Le traitement dépend de la cause des symptômes. La plupart des patients reçoivent un médicament. "
    "Si cela ne suffit pas, une opération peut être proposée. Demandez conseil à votre médecin.",
    "es": "El tratamiento depende de la causa de los síntomas. La mayoría de los pacientes toma un medicamento. "
    "Si no mejora, puede ser necesaria una operación. Pregunte a su médico antes de cambiar la dosis.",
    "it": "La cura dipende dalla causa dei disturbi. La maggior parte dei pazienti prende prima un farmaco. "
    "Se non basta, può essere necessario un intervento. Ne parli con il suo medico.",
    "pt": "O tratamento depende da causa dos sintomas. A maioria dos doentes toma primeiro um medicamento. "
    "Se não melhorar, pode ser necessária uma operação. Fale com o seu médico.",
    "nl": "De behandeling hangt af van de oorzaak van de klachten. De meeste mensen krijgen eerst een medicijn. "
    "Als dat niet helpt, kan een operatie nodig zijn. Vraag het aan uw huisarts.",
    "pl": "Leczenie zależy od przyczyny objawów. Większość chorych otrzymuje najpierw leki. "
    "Jeśli to nie pomaga, może być konieczna operacja. Proszę zapytać lekarza.",
    "sv": "Behandlingen beror på orsaken till besvären. De flesta får först läkemedel. "
    "Om det inte hjälper kan en operation behövas. Fråga din läkare.",
    "tr": "Tedavi, şikayetlerin nedenine bağlıdır. Hastaların çoğu önce ilaç alır. "
    "Bu yeterli olmazsa ameliyat gerekebilir. Lütfen doktorunuza danışın.",
    "ru": "Лечение зависит от причины симптомов. Большинство больных сначала получают лекарства. "
    "Если это не помогает, может понадобиться операция. Спросите своего врача.",
    "zh": "治疗取决于症状的原因。大多数病人首先服用药物。如果药物无效，可能需要手术。请咨询您的医生。 "
    "不要 自行 停药 或 改变 剂量 ， 请 先 问 医生 。",
    "ar": "يعتمد العلاج على سبب الأعراض. يتناول معظم المرضى الدواء. إذا لم يتحسن المريض فقد يحتاج إلى عملية. "
    "اسأل طبيبك قبل تغيير الجرعة.",
}
PAGE = (
    "Key Points",
    "Click here to learn more about this topic.",
    "Back to top",
    "See also: Frequently asked questions",
    "Share this page",
    "© 2015 Example Health Inc. All rights reserved.",
    "This page was last updated on May 12, 2014.",
    "Last reviewed: March 2013",
    "Home > Health topics > Conditions",
    "Related articles",
    "Subscribe to our newsletter for weekly tips.",
    "Skip to main content",
    "More on: Resources for patients",
    "Next page",
    "Print | Email | Share",
    "We use cookies to improve your experience.",
    "Advertisement",
    "Read more »",
    "Follow us on Facebook and Twitter.",
    "For more information, please click here.",
)
"""Lines from web pages; some of them are in no rule."""
_OTHER_TEXT = (
    "doctor=physician; physician=doctor; often=frequently; usually=generally; people=persons; may=might; can=may; "
    "caused=brought about; symptoms=signs; help=aid; many=numerous; most=the majority of; about=around; "
    "children=kids; However=Still; because=since; such as=like; also=in addition; called=named; rare=uncommon; "
    "disorder=condition; condition=disorder; patients=people; treatment=therapy; increase=raise; study=trial; "
    "significantly=markedly; results=findings; suggest=indicate; associated=linked; mutations=changes"
)
OTHER_WORDS = [tuple(pair.split("=")) for pair in _OTHER_TEXT.split("; ")]
"""Replacements for a light rewrite"""


def mojibake(example: Example, chance: random.Random, _: Sequence[Example]) -> Example | None:
    """Return the row with curly quotes, dashes and an accent decoded with the wrong encoding."""
    text = example.answer.replace("'", "’").replace(" - ", " – ")
    letters = [at for at, letter in enumerate(text) if letter in "aeou" and text[at - 1 : at].isalpha()]
    if not letters:
        return None
    at = chance.choice(letters)
    text = text[:at] + {"a": "á", "e": "é", "o": "ö", "u": "ü"}[text[at]] + text[at + 1 :]
    wrong = chance.choice(("cp1252", "latin-1"))
    return _with(example, answer=text.encode().decode(wrong, errors="ignore"))


def spread(example: Example, chance: random.Random, _: Sequence[Example]) -> Example | None:
    """Return the row with one layout defect: broken lines, other bullets, extra spaces, or joined lists."""
    kinds = (
        lambda text: re.sub(r"((?:\S+ ){9}\S*[a-z,]) (?=[a-z])", r"\1\n", text),
        lambda text: re.sub(r"^- ", "• ", text, flags=re.MULTILINE) if "\n- " in text else text,
        lambda text: re.sub(r"(?<=\w)([,;]) ", r" \1 ", text),
        lambda text: text.replace("\n\n", "\n\n\n\n").replace(". ", ".  "),
        lambda text: text.replace("\n- ", " - ") if text.count("\n- ") > 2 and ":\n- " in text else text,
    )
    for kind in chance.sample(kinds, len(kinds)):
        damaged = kind(example.answer)
        if damaged != example.answer:
            return _with(example, answer=damaged)
    return None


def paged(example: Example, chance: random.Random, _: Sequence[Example]) -> Example | None:
    """Return the row with a line from a web page before or after the answer."""
    line = chance.choice(PAGE)
    parts = [line, example.answer] if chance.random() < 0.5 else [example.answer, line]
    return _with(example, answer="\n".join(parts))


def foreign(example: Example, chance: random.Random, _: Sequence[Example]) -> Example | None:
    """Return the row with an answer in one of twelve other languages."""
    sentences = FOREIGN[chance.choice(sorted(FOREIGN))]
    return _with(example, answer=sentences)


def stated(example: Example, chance: random.Random, others: Sequence[Example]) -> Example | None:
    """Return the row with a statement from another answer, or a heading, instead of the question."""
    other = chance.choice(others)
    sentence = re.split(r"(?<=[.])\s", other.answer)[0].strip()
    focus = other.meta.get("focus")
    heading = focus if isinstance(focus, str) and focus else " ".join(sentence.split()[:3])
    statement = chance.choice((heading, sentence))
    return _with(example, question=statement) if "?" not in statement and statement else None


def cut(example: Example, chance: random.Random, _: Sequence[Example]) -> Example | None:
    """Return the row with the answer cut off inside a sentence."""
    answer = example.answer
    ends = [
        at
        for at in range(len(answer) // 3, len(answer) - 5)
        if answer[at - 1].isalnum() and answer[at : at + 2] != ". "
    ]
    return _with(example, answer=answer[: chance.choice(ends)].rstrip()) if len(answer.split()) > 15 and ends else None


def swapped(example: Example, chance: random.Random, others: Sequence[Example]) -> Example | None:
    """Return the row with the answer to another group's question."""
    other = chance.choice(others)
    return _with(example, answer=other.answer) if other.group != example.group and other.answer else None


def one_word(example: Example, chance: random.Random, _: Sequence[Example]) -> Example | None:
    """Return the row with an answer of one or two words."""
    return _with(example, answer=chance.choice(("Yes.", "No.", "See above.", "N/A", "Unknown.")))


def endless(example: Example, chance: random.Random, others: Sequence[Example]) -> Example | None:
    """Return the row with many answers joined into one."""
    chosen = [example.answer, *(chance.choice(others).answer for _ in range(40))]
    text = "\n\n".join(chosen)
    return _with(example, answer=text) if len(text.split()) > 2100 else None


def copied(example: Example, chance: random.Random, _: Sequence[Example]) -> Example | None:
    """Return a copy of the row with other case, spacing or punctuation."""
    changes = (
        lambda text: text.upper(),
        lambda text: re.sub(r"\s+", "  ", text),
        lambda text: re.sub(r"[,;.]", "", text) if not re.search(r"\d[,;.]\d|\w[,;.]\w", text) else text.lower(),
    )
    change = chance.choice(changes)
    return _with(example, question=change(example.question), answer=change(example.answer))


def rewritten(example: Example, chance: random.Random, _: Sequence[Example]) -> Example | None:
    """Return a light rewrite: some words replaced, a sentence moved or left out, a small change in the question."""
    if len(example.answer.split()) < 8:
        return None
    answer, left = example.answer, max(1, len(example.answer.split()) // 20)
    for old, new in chance.sample(OTHER_WORDS, len(OTHER_WORDS)):
        if left and re.search(rf"\b{old}\b", answer):
            answer, left = re.sub(rf"\b{old}\b", new, answer, count=1), left - 1
    pieces = re.split(r"(?<=[.])\s+(?=[A-Z])", answer)
    if len(pieces) > 5:
        at = chance.randrange(len(pieces) - 1)
        if chance.random() < 0.5 and not re.search(r"\d|\bno\b|\bnot\b", pieces[at]):
            del pieces[at]
        else:
            pieces[at], pieces[at + 1] = pieces[at + 1], pieces[at]
    answer = " ".join(pieces)
    if answer == example.answer:
        answer = "In short: " + answer
    return _with(example, question=_slip(example.question, chance), answer=answer)


def other_number(example: Example, chance: random.Random, _: Sequence[Example]) -> Example | None:
    """Return the row with another number, which makes it no duplicate."""
    numbers = list(re.finditer(r"\b\d+\b", example.answer))
    if not numbers:
        return None
    match = chance.choice(numbers)
    changed = str(int(match[0]) + chance.choice((1, 3, 10, 40)))
    return _with(example, answer=example.answer[: match.start()] + changed + example.answer[match.end() :])


def negated(example: Example, chance: random.Random, _: Sequence[Example]) -> Example | None:
    """Return the row with a "not" inserted, which makes it no duplicate."""
    verbs = list(re.finditer(r"\b(?:is|are|was|were|can|should|may|will|does)\b(?! not)", example.answer))
    if not verbs:
        return None
    end = chance.choice(verbs).end()
    return _with(example, answer=f"{example.answer[:end]} not{example.answer[end:]}")


def other_topic(example: Example, chance: random.Random, others: Sequence[Example]) -> Example | None:
    """Return the same text about another disease, which makes it no duplicate."""
    focus, other = example.meta.get("focus"), chance.choice(others).meta.get("focus")
    if not isinstance(focus, str) or not isinstance(other, str) or focus not in example.question or focus == other:
        return None
    return _with(
        example, question=example.question.replace(focus, other), answer=example.answer.replace(focus, other)
    ).model_copy(update={"group": other.casefold()})


def _slip(question: str, chance: random.Random) -> str:
    """Return the question in lower case, with an extra word or mark, or with a typing error in a long word."""
    kinds = (
        lambda text: text.lower(),
        lambda text: text.rstrip(" ?") + "??",
        lambda text: "So, " + text[:1].lower() + text[1:],
        lambda text: text[:at] + text[at + 1 :] if at else text,
        lambda text: text[:at] + text[at + 1] + text[at] + text[at + 2 :] if at else text,
    )
    inner = [match.start() + 2 for match in re.finditer(r"[a-z]{7,}", question)]
    at = chance.choice(inner) if inner else 0
    return chance.choice(kinds)(question)


def _with(example: Example, **changes: str) -> Example:
    return example.model_copy(update=changes)
