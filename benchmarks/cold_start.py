"""Measure the time from starting a server to its first answer with an index, its CPU time and its memory.

    python benchmarks/cold_start.py RUN --index INDEX --engines openvino llamacpp --times 3

Each measurement starts a new `meditune serve`, as a serverless platform does. The first question goes to /v1/ask and
needs passages of the index; nine questions about other topics follow. Memory is the total of all the server's
processes, with shared pages counted once. The files are in the system's cache, as on a second start. The table has the
median of all starts.
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


def measured(engine: str, options: argparse.Namespace) -> dict[str, float]:
    """Start a server, ask it all questions, and return the measurements."""
    start = time.monotonic()
    arguments: list[Any] = ["--engine", engine, "--index", options.index]
    if options.judge:
        arguments += ["--judge", options.judge]
    with servers.meditune(options.run, *arguments) as server:
        ask(server, QUESTIONS[0], options.tokens)
        found = {"listening": server.ready_s, "answer": time.monotonic() - start}
        found |= {"cpu": server.cpu(), "first_mb": server.memory()}
        for question in QUESTIONS[1:]:
            ask(server, question, options.tokens)
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
    parser.add_argument("--judge", help="an evidence judge that checks each sentence")
    parser.add_argument("--engines", nargs="+", default=["openvino", "llamacpp"])
    parser.add_argument("--times", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=64)
    options = parser.parse_args()
    print("| engine | start to listening, s | start to first answer, s | CPU s till then | MB then | MB after ten |")
    print("|---|---|---|---|---|---|")
    for engine in options.engines:
        starts = [measured(engine, options) for _ in range(options.times)]
        middle = {name: statistics.median(start[name] for start in starts) for name in starts[0]}
        print(
            f"| {engine} | {middle['listening']:.1f} | {middle['answer']:.1f} | {middle['cpu']:.1f} | "
            f"{middle['first_mb']:.0f} | {middle['later_mb']:.0f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
