"""What a message asks for, out of all that it says: the topic, the kind of question, and words to search with.

Patients tell a story around their question, open with a greeting, and misspell names. All of this is done by rules, so
that one can see why a passage was found.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from meditune.retrieve import cues
from meditune.retrieve.synonyms import Mention, Synonyms
from meditune.text import sentences

SUBJECT_WORDS = 12
"""A first line of at most so many words, with others after it, is a subject"""


@dataclass(frozen=True)
class Focused:
    """A message reduced to what it asks."""

    query: str
    """What to search with: its subject and what it asks, without greetings and story"""
    focus: str
    """The topic that it is about, in the index's spelling; empty where no known topic is named"""
    question_type: str
    """One of `titles.KINDS`, the likeliest; "information" where nothing points elsewhere"""
    mentions: tuple[Mention, ...] = ()
    """All topics that it names, the most telling first"""
    kinds: tuple[str, ...] = ()
    """All kinds of question that it has cues for, `question_type` first"""


def focus(question: str, synonyms: Synonyms) -> Focused:
    """What is asked in a message, whose first line may be a subject."""
    question = synonyms.corrected(question)
    subject, parts = _parts(question)
    asking = [part for part in parts if cues.ASKS.search(part)] or parts
    query = " ".join(dict.fromkeys([subject, *asking] if subject else asking)) or " ".join(question.split())
    mentions = _mentions(subject, asking, question, synonyms)
    main = mentions[0] if mentions else None
    topic = main.topic if main else ""
    if topic and topic not in query.casefold():
        query = f"{topic}. {query}"
    kinds = _kinds(" ".join([subject, *asking])) or _kinds(question) or ["information"]
    return Focused(query, topic, kinds[0], tuple(mentions), tuple(kinds))


def _parts(question: str) -> tuple[str, list[str]]:
    """The subject, empty where there is none that says something, and the message's sentences without greetings."""
    first, _, rest = question.strip().partition("\n")
    subject = first.strip() if rest.strip() and len(first.split()) <= SUBJECT_WORDS else ""
    message = " ".join((rest if subject else question).split())
    stripped = [cues.GREETING.sub("", sentence).strip() for sentence in sentences(message)]
    return "" if cues.SAYS_NOTHING.match(subject) else subject, [sentence for sentence in stripped if sentence]


def _mentions(subject: str, asking: Sequence[str], question: str, synonyms: Synonyms) -> list[Mention]:
    """The topics named, each once, the most telling first: those in the subject or in what is asked count more."""
    found: dict[str, Mention] = {}
    weight: dict[str, float] = {}
    for text, share in ((subject, 1.0), (" ".join(asking), 0.9), (question, 0.5)):
        for mention in synonyms.find(text):
            key = min(mention.topics) if len(mention.topics) == 1 else mention.name
            found.setdefault(key, mention)
            weight[key] = max(weight.get(key, 0.0), share * mention.weight)
    return sorted(found.values(), key=lambda m: -weight[min(m.topics) if len(m.topics) == 1 else m.name])


def _kinds(text: str) -> list[str]:
    """Kinds that the text has cues for, the most particular first."""
    return [kind for kind, pattern in cues.KINDS.items() if pattern.search(text)]
