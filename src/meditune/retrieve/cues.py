"""Words by which a message shows where it asks, where it only greets, and what kind of thing it wants to know."""

from __future__ import annotations

import re


def _any(*patterns: str, start: str = r"\b", end: str = r"\b") -> re.Pattern[str]:
    return re.compile(f"{start}(?:{'|'.join(patterns)}){end}", re.IGNORECASE)


ASKS = _any(
    r"\?",
    r"^\W*(?:what|how|why|when|where|who|which|whom|is|are|am|can|could|do|does|did|should|would|will|has|have|any)\b",
    r"\b(?:what|how|why|which|when|where|whether|who)\b.*\b(?:is|are|was|can|could|do|does|did|should|would|will|to)\b",
    r"\b(?:tell|explain|inform|advise|suggest|send|provide|give|know|learn) (?:me|us|about|more|of|if|whether)\b",
    r"\b(?:looking for|look for|need|want|request|seek|seeking|wonder|wondering|curious|interested in|trying to)\b",
    r"\b(?:would like|like to know|let me know|(?:information|info) (?:on|about)|question (?:is|about))\b",
    r"\bhelp (?:me|us|with)\b",
    start="",
    end="",
)
"""A sentence that asks for something, with or without a question mark"""
GREETING = _any(
    r"(?:(?:hi|hello|hey|dear|sirs?|madam|greetings|good (?:morning|day|afternoon|evening)|to whom it may concern"
    r"|thank(?:s| you)|thanking|regards|sincerely|yours|please help(?: me)?|(?:please|kindly|plz) (?:reply",
    r"respond|advise)"
    r"|god bless|best (?:regards|wishes)|just curious|doctor|dr)\b[\s,.!/&]*(?:sir|madam|there|all|you|doctor"
    r"|very much|so much|in advance|for your (?:help|time)|me|us|again|and|or)*[\s,.!]*)+",
    start=r"^\W*",
    end="",
)
"""A beginning that can be left out"""
SAYS_NOTHING = _any(
    r"general(?: health| information| question| complaint)?",
    r"questions?|(?:medical )?question|i have a question.*|advice|consultation|in(?:quiry|fo|formation)|enquiry",
    r"feedback",
    r"health|help|other|none|hi|hello|customer service request|clinicaltrials\.gov.*|medlineplus.*",
    start=r"^\W*",
    end=r"\W*$",
)
"""A subject line that fits any message"""
KINDS = {
    "missed dose": _any(r"(?:forgot|forget|missed|skip\w*)\b.{0,30}\b(?:dose|pill|tablet|shot)"),
    "storage and disposal": _any(r"dispos\w+|expir\w+|storage|stored?|refrigerat\w+|throw away"),
    "interactions": _any(r"interact\w*|(?:together|along|mix\w*|combin\w+) with", r"take\b.{0,60}\b(?:together|with)"),
    "side effects": _any(r"side[- ]?ef+ect\w*|adverse|reactions? to"),
    "dosage": _any(
        r"dos(?:e|es|age|ages|ing)|how (?:much|many|often|long)\b.{0,40}\b(?:take|use|mg|ml)|maximum daily",
        r"taper\w*|wean\w*|stop (?:taking|using)|\d+ ?mg",
    ),
    "inheritance": _any(
        r"inherit\w*|heredit\w*|genetic\w*|pass(?:ed|ing)? (?:it |this |that )?(?:on|down)",
        r"runs? in (?:the|my|our) famil\w+",
    ),
    "genetic changes": _any(r"genes?|mutat\w+|chromosom\w+|homozyg\w+|heterozyg\w+"),
    "prevention": _any(r"prevent\w*|avoid\w*|protect\w*|vaccin\w*|reduce the risk"),
    "research": _any(r"research|clinical trials?|trials?|stud(?:y|ies)|stem cells?"),
    "support groups": _any(r"support groups?|organi[sz]ations?|foundation|association|community of"),
    "exams and tests": _any(
        r"diagnos\w+|tests?|tested|testing|detect\w*|screen\w*|scan|mri|x-?ray|biopsy|blood work",
        r"how (?:do|would|can) (?:i|you|we) (?:know|find out|tell)",
    ),
    "outlook": _any(
        r"prognosis|outlook|life (?:expectancy|span)|surviv\w+|long[- ]term|progress\w*|get(?:s|ting)? worse",
        r"recover\w*",
        r"how long (?:will|does|do|can|is)|curable|fatal|die|mortality|success rate",
    ),
    "complications": _any(r"complication\w*|lead to|damage\w*|consequence\w*"),
    "susceptibility": _any(
        r"at risk|risk (?:of|for|factors?)|chances? of|likely|prone|contagious|catch|transmit\w*|spread\w*|who gets?"
    ),
    "frequency": _any(r"how (?:common|rare|many people)|prevalen\w+|inciden\w+|statistics?|stats"),
    "stages": _any(r"stag(?:es?|ing)"),
    "symptoms": _any(r"symptom\w*|signs?|how does .{1,30} feel|feel like"),
    "causes": _any(
        r"caus\w+|why (?:do|does|is|am|are|did)|reasons?|due to|contribut\w+|result(?:s|ing)? (?:of|from)|trigger\w*",
        r"effects? of",
    ),
    "treatment": _any(
        r"treat\w*|cur(?:e|es|ed|ing)|remed\w+|therap\w+|medications?|medicines?|surger\w+|operation|relie\w+|help",
        r"manag\w+|heal\w*|get rid of|what (?:can|should|to) (?:i |we |he |she )?do|exercises?|diet|fix|doctor",
        r"specialist",
    ),
    "considerations": _any(
        r"should (?:i|he|she|we) (?:see|go|be concerned|worry)|emergency|(?:which|what|kind of) (?:doctor|specialist)"
    ),
    "usage": _any(r"what is .{1,40} (?:used|prescribed) for|indication\w*|purpose of|recommended|usage"),
    "precautions": _any(
        r"safe|safely|pregnan\w+|breast[- ]?feed\w*|alcohol|allerg\w+|ok(?:ay)? to|can i (?:take|use|drink|eat)|harm\w*"
    ),
    "information": _any(
        r"in(?:fo|formation)|learn|know(?:ledge)? (?:about|on|of|more)|literature|explain|define|tell me about",
        r"resources?",
        r"article|what (?:is|are) (?:an? |the )?\w+(?: \w+){0,3}\W*$",
        end="",
    ),
}
"""Cues for kinds of question, named as in `titles.KINDS`; the more particular kinds first"""
