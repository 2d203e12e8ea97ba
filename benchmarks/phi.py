"""Measure how many identifiers in synthetic notes the detector finds, its false alarms, and its speed.

    python benchmarks/phi.py                              # all sorts of notes, and speed
    MEDITUNE_DATA=... python benchmarks/phi.py --public   # also the share of published rows with a finding
    python benchmarks/phi.py --presidio                   # also Presidio, if the extra `phi` is installed

An identifier counts as found if every character of it is covered, by a finding of any kind. A finding counts as wrong
if less than half of it is inside an identifier.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from meditune.config.data_options import KINDS
from meditune.phi.detector import find
from meditune.phi.spans import Span
from phi_notes import HALVES, Note, notes

Find = Callable[[str], list[Span]]
STRUCTURED = tuple(kind for kind in KINDS if kind not in {"name", "hospital", "city", "bracket"})


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


def speed(made: Sequence[Note], finder: Find = find) -> str:
    """Return a text with notes and megabytes per second."""
    started = time.monotonic()
    for note in made:
        finder(note.text)
    seconds = time.monotonic() - started
    size = sum(len(note.text) for note in made) / 1e6
    return f"{len(made) / seconds:,.0f} notes/s, {size / seconds:.2f} MB/s ({1000 * size / len(made):.1f} kB each)"


def main() -> None:
    """Print the tables of docs/how-to/find-identifiers.md."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--notes", type=int, default=2000, help="number of notes of each sort")
    parser.add_argument("--half", action="append", choices=HALVES, help="only this sort of notes; repeatable")
    parser.add_argument("--errors", type=int, default=0, help="number of missed and wrong findings to show")
    parser.add_argument("--public", action="store_true", help="also measure published rows")
    parser.add_argument("--presidio", action="store_true", help="also measure Presidio")
    given = parser.parse_args()
    finders: dict[str, Find] = {"rules": find}
    if given.presidio:
        from meditune.phi import detector

        finders["Presidio"] = detector.find_with_presidio
    for half in given.half or HALVES:
        made = notes(given.notes, half)
        for name, finder in finders.items():
            table(f"{half}, {name}: {len(made):,} notes", measure(made, finder), given.errors)
            print(f"\n{speed(made[:200], finder)}")
    if given.public:
        public()


if __name__ == "__main__":
    main()
