"""Engines side by side on a run's exports: first token and tokens a second at several users, memory, start, CPU time.

    python benchmarks/engines.py RUN [--users 1 8 32] [--tokens 64] [--sides openvino llamacpp ...]

Each side runs in a process of its own, one after the other in one call. Every user asks one question about sources of
its own (a prompt of 450 tokens) at the same time; then, for one user, another question about the same sources. `naive`
is what a plain transformers server does: `generate` behind a lock. `llama-server` is llama.cpp's own HTTP server on the
same GGUF file. CPU seconds are those of the whole process, so they hold beside other work; clock times don't.
"""

from __future__ import annotations

import argparse
import json
import os
import queue
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psutil

SIDES = ("openvino", "llamacpp", "transformers", "naive", "llama-server")
PROMPT_TOKENS = 450
SHARED_TOKENS = 400
"""Of those that are the sources', which the repeated prompt has, too"""
Started = Callable[[Sequence[int], int, Callable[[int, bool], None]], None]
"""Begins an answer of so many tokens; told of each piece how many tokens came, and whether it was the last"""


def texts(run: Path, count: int) -> list[str]:
    """Running text of the run's training examples, one for each user."""
    from meditune.data.prepare import stored

    train = stored(run / "data").splits.train
    joined = [" ".join(passage.text for passage in example.context) for example in train]
    return [" ".join(joined[3 * number : 3 * number + 3]) for number in range(count)]


def prompts(tokenizer: Any, run: Path, count: int) -> list[list[int]]:
    """`count` prompts of PROMPT_TOKENS tokens that begin differently, and one more that begins as the first."""
    cue = tokenizer("\nQuestion: What do these results say?\nConclusion:", add_special_tokens=False)["input_ids"]
    sources = [tokenizer(text)["input_ids"] for text in texts(run, count)]
    made = [ids[: PROMPT_TOKENS - len(cue)] + cue for ids in sources]
    other = tokenizer("\nQuestion: Who was asked, and when was it?", add_special_tokens=False)["input_ids"]
    first = sources[0][:SHARED_TOKENS] + other + other + cue
    return [*made, first[:PROMPT_TOKENS]]


def of_engine(engine: Any) -> Started:
    from meditune.engines.engine import Job

    def start(prompt: Sequence[int], more: int, told: Callable[[int, bool], None]) -> None:
        engine.start(Job(prompt, more), lambda piece: told(len(piece.tokens), bool(piece.finish or piece.error)))

    return start


def naive(run: Path) -> tuple[Any, Started]:
    """transformers' generate, one request after the other."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = run / "export" / "merged"
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto").eval()
    lock = threading.Lock()

    class Streamer:
        def __init__(self, told: Callable[[int, bool], None]) -> None:
            self.told, self.prompt = told, True

        def put(self, value: Any) -> None:
            if not self.prompt:
                self.told(value.numel(), False)
            self.prompt = False

        def end(self) -> None:
            self.told(0, True)

    def start(prompt: Sequence[int], more: int, told: Callable[[int, bool], None]) -> None:
        def work() -> None:
            ids = torch.tensor([list(prompt)])
            with lock, torch.inference_mode():
                model.generate(
                    ids,
                    attention_mask=torch.ones_like(ids),
                    max_new_tokens=more,
                    do_sample=False,
                    streamer=Streamer(told),
                )

        threading.Thread(target=work).start()

    return AutoTokenizer.from_pretrained(folder), start


def llama_server(run: Path, at_once: int) -> tuple[Any, Started]:
    """llama.cpp's server over HTTP, with as many slots as there are users."""
    import httpx2

    from meditune.engines.llamacpp_engine import server
    from meditune.engines.tokenizer import PlainTokenizer
    from meditune.export.gguf import NAME

    folder = run / "export" / "gguf"
    started = server(folder / NAME, 32 * 1024, at_once, "key")
    client = httpx2.Client(timeout=600, headers={"Authorization": "Bearer key"})

    def start(prompt: Sequence[int], more: int, told: Callable[[int, bool], None]) -> None:
        def work() -> None:
            body = {"prompt": list(prompt), "n_predict": more, "stream": True, "temperature": 0, "cache_prompt": True}
            with client.stream("POST", f"{started.listening_address}/completion", json=body) as response:
                for line in response.iter_lines():
                    if line.startswith("data:"):
                        said = json.loads(line[5:])
                        told(0 if said.get("stop") else 1, bool(said.get("stop")))

        threading.Thread(target=work).start()

    return PlainTokenizer(folder), start


def asked(start: Started, chosen: Sequence[Sequence[int]], more: int) -> dict[str, float]:
    """All prompts at once: seconds to the first token (median, longest), tokens a second together, CPU seconds."""
    pieces: queue.SimpleQueue[tuple[int, int, bool, float]] = queue.SimpleQueue()
    process = psutil.Process()
    begun, cpu = time.perf_counter(), sum(process.cpu_times()[:2])
    for number, prompt in enumerate(chosen):
        start(prompt, more, lambda count, last, number=number: pieces.put((number, count, last, time.perf_counter())))
    first: dict[int, float] = {}
    tokens = left = 0
    left = len(chosen)
    while left:
        number, count, last, now = pieces.get(timeout=600)
        tokens += count
        left -= last
        if count:
            first.setdefault(number, now - begun)
    seconds = time.perf_counter() - begun
    waited = sorted(first.values())
    return {
        "users": len(chosen),
        "first_token_s": statistics.median(waited),
        "first_token_last_s": waited[-1],
        "tokens": tokens,
        "tokens_per_s": tokens / seconds,
        "cpu_s": sum(process.cpu_times()[:2]) - cpu,
        "cpu_s_per_answer": (sum(process.cpu_times()[:2]) - cpu) / len(chosen),
    }


def side(name: str, run: Path, users: Sequence[int], more: int) -> dict[str, Any]:
    """Everything measured of one side, in this process."""
    begun = time.perf_counter()
    if name == "naive":
        tokenizer, start = naive(run)
    elif name == "llama-server":
        tokenizer, start = llama_server(run, max(users))
    else:
        from meditune.engines.opening import open_engine

        engine = open_engine(str(run), name, at_once=max(users))
        tokenizer, start = engine.tokenizer, of_engine(engine)
    short = tokenizer("Question: What is asthma?\nConclusion:")["input_ids"]
    asked(start, [short], 1)
    cold = time.perf_counter() - begun
    made = prompts(tokenizer, run, sum(users))
    rows, taken = [], 0
    for count in users:
        rows.append(asked(start, made[taken : taken + count], more))
        taken += count
    # What is shared with the first prompt may have left the memory since.
    fresh = asked(start, [made[0][:1] + made[0][50:] + made[0][1:50]], more)
    asked(start, [made[0]], 1)
    again = asked(start, [made[-1]], more)
    return {
        "side": name,
        "cold_start_s": cold,
        "rows": rows,
        "first_token_fresh_s": fresh["first_token_s"],
        "first_token_same_sources_s": again["first_token_s"],
        "rss_mb": psutil.Process().memory_info().rss / 1e6,
    }


def table(found: Sequence[dict[str, Any]]) -> str:
    """Markdown."""
    users = [row["users"] for row in found[0]["rows"]]
    heads = [
        "engine",
        "cold start s",
        *(f"first token s, {n} users" for n in users),
        *(f"tokens/s, {n}" for n in users),
    ]
    heads += ["first token s: new, same sources", "CPU-hours per 1,000 answers", "MB"]
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for one in found:
        hours = one["rows"][-1]["cpu_s_per_answer"] * 1000 / 3600
        cells = [one["side"], f"{one['cold_start_s']:.1f}"]
        cells += [f"{row['first_token_s']:.2f}" for row in one["rows"]]
        cells += [f"{row['tokens_per_s']:.0f}" for row in one["rows"]]
        cells += [f"{one['first_token_fresh_s']:.2f}, {one['first_token_same_sources_s']:.2f}", f"{hours:.2f}"]
        lines.append("| " + " | ".join([*cells, f"{one['rss_mb']:.0f}"]) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--users", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--tokens", type=int, default=64, help="tokens that each answer may have")
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=SIDES)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--one", choices=SIDES, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        print(json.dumps(side(given.one, given.run, given.users, given.tokens)), flush=True)
        os._exit(0)
    found = []
    for name in given.sides:
        words = [sys.executable, __file__, str(given.run), "--one", name, "--tokens", str(given.tokens)]
        done = subprocess.run(
            [*words, "--users", *map(str, given.users)], stdout=subprocess.PIPE, text=True, check=False
        )
        if done.returncode:
            print(f"{name} failed", file=sys.stderr)
            continue
        found.append(json.loads(done.stdout.strip().splitlines()[-1]))
        print(json.dumps(found[-1]), file=sys.stderr)
    print(table(found))
    if given.json:
        given.json.write_text(json.dumps(found, indent=2), encoding="utf-8")


if __name__ == "__main__":
    main()
