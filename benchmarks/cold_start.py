"""Measure a server's cold start with an index: seconds, CPU time and memory until the first answer, for each engine.

    python benchmarks/cold_start.py RUN --index INDEX --engines openvino llamacpp transformers --times 3

Each repetition starts a new `meditune serve`; a cloud function has the same cost at each cold start. The first answer
comes from /v1/ask with passages of the index; nine answers about other topics follow. Memory is the sum over all of the
server's processes, with shared pages counted once. Files are in the system's cache, as after an earlier start.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

import httpx2

import servers

QUESTIONS = (
    "Does walking help with back pain?",
    "What are the symptoms of gout?",
    "Is metformin used for type 2 diabetes?",
    "What causes high blood pressure?",
    "Can children get arthritis?",
    "How is asthma treated?",
    "Does vitamin D prevent fractures?",
    "What is a hernia?",
    "Is sickle cell anaemia inherited?",
    "Do statins lower cholesterol?",
)


def once(engine: str, given: argparse.Namespace) -> dict[str, float]:
    """Return the measurements of one start."""
    begun = time.monotonic()
    words: list[Any] = ["--engine", engine, "--index", given.index]
    with servers.meditune(given.run, *words) as server:
        ask(server, QUESTIONS[0], given.tokens)
        found = {"listening": server.ready_s, "answer": time.monotonic() - begun}
        found |= {"cpu": server.cpu(), "first_mb": server.memory()}
        for question in QUESTIONS[1:]:
            ask(server, question, given.tokens)
        return found | {"later_mb": server.memory()}


def ask(server: servers.Served, question: str, tokens: int) -> None:
    body = {"question": question, "max_new_tokens": tokens}
    reply = httpx2.post(f"{server.address}v1/ask", json=body, timeout=120)
    reply.raise_for_status()
    assert reply.json()["sources"], "no passages were found"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run")
    parser.add_argument("--index", required=True)
    parser.add_argument("--engines", nargs="+", default=["openvino", "llamacpp"])
    parser.add_argument("--times", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=64)
    given = parser.parse_args()
    print("| engine | start to listening s | to first answer s | CPU s until then | MB then | MB after ten |")
    print("|---|---|---|---|---|---|")
    for engine in given.engines:
        all_of = [once(engine, given) for _ in range(given.times)]
        middle = {name: statistics.median(one[name] for one in all_of) for name in all_of[0]}
        print(
            f"| {engine} | {middle['listening']:.1f} | {middle['answer']:.1f} | {middle['cpu']:.1f} | "
            f"{middle['first_mb']:.0f} | {middle['later_mb']:.0f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
