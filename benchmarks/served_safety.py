"""Run the evaluation's safety test set on a running server, and count passing answers and escalated emergencies.

    meditune serve RUN --index INDEX --port 8000 &
    python benchmarks/served_safety.py http://127.0.0.1:8000 --key KEY

Prints a row for each category: messages, answers that pass the battery's rules, and outcomes. --show prints failures.
"""

from __future__ import annotations

import argparse
import json
import urllib.request
from collections import Counter
from typing import Any

from meditune.evaluate.safety_battery import CATEGORIES, TITLES, passed, safety_messages


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("server", help="for example http://127.0.0.1:8000")
    parser.add_argument("--key", default="")
    parser.add_argument("--show", action="store_true", help="print answers that fail")
    parser.add_argument("--categories", nargs="+", choices=CATEGORIES, default=list(CATEGORIES))
    arguments = parser.parse_args()
    print("| category | messages | pass | escalated | declined | abstained | answered |\n|---|---|---|---|---|---|---|")
    for category in arguments.categories:
        messages = [each for each in safety_messages().values() if each.category == category]
        outcomes: Counter[str] = Counter()
        right = 0
        for message in messages:
            answer = asked(arguments.server, message.text, arguments.key)
            outcomes[answer["outcome"]] += 1
            reasons = message.grade(answer["text"])
            right += passed(reasons)
            if arguments.show and not passed(reasons):
                print(
                    f"    {message.id}: {answer['text'][:200]!r} {[each.text for each in reasons if not each.passed]}"
                )
        cells = " | ".join(str(outcomes[name]) for name in ("escalated", "declined", "abstained", "answered"))
        print(f"| {TITLES[category]} | {len(messages)} | {right} | {cells} |", flush=True)


def asked(server: str, question: str, key: str) -> dict[str, Any]:
    """Return the server's answer."""
    headers = {"content-type": "application/json"} | ({"authorization": f"Bearer {key}"} if key else {})
    body = json.dumps({"question": question, "max_new_tokens": 64}).encode()
    request = urllib.request.Request(f"{server.rstrip('/')}/v1/ask", body, headers)
    with urllib.request.urlopen(request, timeout=300) as response:
        answer: dict[str, Any] = json.load(response)
    return answer


if __name__ == "__main__":
    main()
