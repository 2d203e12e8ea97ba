"""How many emergencies escalate, how many ordinary questions do too, and what else is declined or bounded.

    python benchmarks/triage.py                # the battery, and the messages in triage_*.yaml
    python benchmarks/triage.py --questions    # questions of LiveQA, MedQuAD and PubMedQA; MEDITUNE_DATA names the data
    python benchmarks/triage.py --show         # with each message that isn't as expected

The rules were made with the battery and triage_development.yaml, and looked at with LiveQA's questions. The messages of
triage_held_out.yaml were written before there were rules, and those of triage_second.yaml after them, both by whoever
wrote the rules; what is wrong in them wasn't looked at before their figures were written down.
"""

from __future__ import annotations

import argparse
import os
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import yaml

from meditune.data import liveqa, medquad, pubmedqa
from meditune.data.rejects import Rejects
from meditune.evaluate.safety.battery import battery
from meditune.serve.safety.emergencies import numbers
from meditune.serve.safety.triage import Triage, triage

HERE = Path(__file__).parent
SETS = ("development", "held_out", "second")
EXPECTED = {
    "emergency": ("urgent",),
    "ordinary": ("answer",),
    "control": ("answer",),
    "dose": ("bound",),
    "dosage": ("bound", "urgent"),
    "diagnosis": ("bound",),
    "unsafe": ("decline", "urgent"),
    "outside": ("decline",),
    "premise": ("answer", "bound", "decline"),
    "injection": ("answer", "decline"),
}
READERS = {"liveqa": liveqa.read, "medquad": medquad.read, "pubmedqa": pubmedqa.read}
ANYWHERE = numbers()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--questions", action="store_true")
    parser.add_argument("--show", action="store_true")
    parser.add_argument("--sets", nargs="+", default=list(SETS))
    arguments = parser.parse_args()
    print(
        "\n".join(of_questions(arguments.show) if arguments.questions else of_messages(arguments.sets, arguments.show))
    )


def of_messages(sets: Sequence[str], show: bool) -> Iterator[str]:
    """How many messages of each kind are handled as expected, and how many that should not escalate do."""
    yield "| messages | kind | as expected | escalate |\n|---|---|---|---|"
    for name in ("battery", *sets):
        for kind, texts in messages(name).items():
            found = [(text, judged(text)) for text in texts]
            right = [each.action in EXPECTED[kind] for _, each in found]
            urgent = sum(each.action == "urgent" for _, each in found)
            yield f"| {name} | {kind} | {sum(right)} of {len(right)} | {urgent} |"
            if show:
                yield from (
                    f"    {each.action} {each.kind}: {text}"
                    for (text, each), good in zip(found, right, strict=True)
                    if not good
                )


def of_questions(show: bool) -> Iterator[str]:
    """What becomes of questions that are nearly all ordinary."""
    folder = Path(os.environ["MEDITUNE_DATA"]).expanduser()
    yield "| questions | | escalate | declined | bounded | with a remark | ms each |\n|---|---|---|---|---|---|---|"
    for name, read in READERS.items():
        asked = list(dict.fromkeys(each.question for each in read(folder / name, Rejects())))
        begun = time.process_time()
        found = [(text, judged(text)) for text in asked]
        spent = (time.process_time() - begun) / len(asked) * 1000
        count = Counter(each.action for _, each in found)
        remarked = sum(bool(each.remarks) for _, each in found)
        share = count["urgent"] / len(asked)
        yield (
            f"| {name} | {len(asked):,} | {count['urgent']} ({share:.1%}) | {count['decline']} | "
            f"{count['bound']} | {remarked} | {spent:.1f} |"
        )
        if show:
            yield from (
                f"    {each.action} {each.kind}: {' '.join(text.split())[:300]}"
                for text, each in found
                if each.action in ("urgent", "decline")
            )


def messages(name: str) -> dict[str, list[str]]:
    """The messages of a set by kind."""
    if name != "battery":
        loaded: dict[str, list[str]] = yaml.safe_load((HERE / f"triage_{name}.yaml").read_text(encoding="utf-8"))
        return loaded
    found: dict[str, list[str]] = {}
    for each in battery().values():
        found.setdefault(each.category, []).append(each.text)
    return found


def judged(text: str) -> Triage:
    return triage(text, ANYWHERE)


if __name__ == "__main__":
    main()
