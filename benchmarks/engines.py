"""Compare servers on a run's exports: first token, tokens per second at several loads, CPU time, start, memory.

    python benchmarks/engines.py RUN --users 1 8 32 --tokens 64 --sides openvino llama-server

Each server is a separate process; they run one after the other in one call. The same client sends each the same
requests through /v1/completions: prompts of 450 tokens, each about its own sources. The given number of users ask at
the same time, each asking the next question when the last is answered. Then one user asks about new sources, and asks
several questions about the same sources. CPU seconds are the server's, so other work on the machine hardly affects
them; wall-clock times are affected.

`openvino`, `llamacpp` and `transformers` are `meditune serve` with that engine. `llama-server` is llama.cpp's own
server on the same GGUF file: the server of the package xllamacpp or, with `--llama-server`, a program that was built
from llama.cpp's source. `openvino-int4`, `llamacpp-q4` and `llama-server-q4` use exports with 4-bit weights. `vllm` is
vLLM's own server on the merged model, and `transformers-serve` is transformers' own, with `-batching` for continuous
batching and `-fp32` for 32-bit weights. RUN needs the exports; `--texts` takes the sources from another run.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2

import servers
from servers import Served, streamed

OURS = ("openvino", "openvino-int4", "llamacpp", "llamacpp-q4", "transformers")
PEERS = (
    *("llama-server", "llama-server-q4", "vllm"),
    *("transformers-serve", "transformers-serve-batching", "transformers-serve-fp32"),
)
EXPORTS = {
    "openvino": "openvino",
    "openvino-int4": "openvino-int4",
    "llamacpp": "gguf",
    "llamacpp-q4": "gguf-Q4_K_M",
    "llama-server": "gguf",
    "llama-server-q4": "gguf-Q4_K_M",
}
"""Side -> folder of its export; the other sides use the merged model"""
PROMPT_TOKENS = 450
SHARED_TOKENS = 400
"""Number of these tokens that are from the sources; repeated prompts share them"""
REPEATED = 4
"""Number of questions about the same sources, and about new ones"""


@dataclass
class Answer:
    """The text and the times of one answer."""

    first_s: float
    seconds: float
    text: str


class Prompts:
    """Prompts of PROMPT_TOKENS tokens, each about its own sources."""

    def __init__(self, tokenizer: Any, run: Path) -> None:
        from meditune.data.prepare import stored_data

        self.tokenizer = tokenizer
        train = stored_data(run / "data").splits.train
        joined = [" ".join(passage.text for passage in example.context) for example in train]
        self._sources = itertools.cycle(" ".join(joined[at : at + 3]) for at in range(0, len(joined) - 3, 3))

    def new(self) -> str:
        """Return a prompt about new sources."""
        return self.about(next(self._sources), "What do these results say?")

    def about(self, source: str, question: str) -> str:
        """Return a prompt about the first tokens of this source."""
        cue = self._ids(f"\nQuestion: {question}\nConclusion:")
        ids = self._ids(source)[: PROMPT_TOKENS - len(cue) if len(cue) < PROMPT_TOKENS - SHARED_TOKENS else None]
        text: str = self.tokenizer.decode([*ids, *cue])
        return text

    def repeated(self) -> list[str]:
        """Return several prompts about the same new sources."""
        source = self.tokenizer.decode(self._ids(next(self._sources))[:SHARED_TOKENS])
        asked = ("Who was asked?", "When was it?", "What was measured?", "Where was it done?", "Is it certain?")
        return [self.about(source, question) for question in asked[: REPEATED + 1]]

    def count(self, text: str) -> int:
        """Return the number of tokens of a text."""
        return len(self._ids(text))

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids


def served(side: str, run: Path, users: int, program: Path | None) -> AbstractContextManager[Served]:
    """Return the server of one side as a context manager. `program` is a `llama-server` that replaces the package's."""
    folder = run / "export" / EXPORTS.get(side, "merged")
    if side in OURS:
        words = ["--engine", side.partition("-")[0], "--concurrency", users, "--queue-size", 2 * users]
        return servers.meditune(str(folder), *words, "--timeout", 600, "--raw-chat")
    if side.startswith("llama-server"):
        file, tokens = next(folder.glob("*.gguf")), max(16, users) * 1024
        return servers.llama_server(program, file, tokens, users) if program else servers.llama_cpp(file, tokens, users)
    if side == "vllm":
        return servers.vllm(folder, users)
    words = {"batching": ["--continuous-batching"], "fp32": ["--dtype", "float32"]}.get(side.rpartition("-")[2], [])
    return servers.transformers(folder, *words)


async def asked(client: httpx2.AsyncClient, server: Served, prompt: str, more: int) -> Answer:
    """Return the streamed answer to one prompt."""
    body = {"model": server.model, "prompt": prompt, "max_tokens": more, "temperature": 0, "stream": True}
    begun, first, texts = time.perf_counter(), 0.0, []
    async with client.stream("POST", f"{server.address}v1/completions", json=body) as reply:
        reply.raise_for_status()
        async for line in reply.aiter_lines():
            said = streamed(line)
            for choice in (said or {}).get("choices", []):
                if choice.get("text"):
                    first = first or time.perf_counter() - begun
                    texts.append(choice["text"])
    return Answer(first, time.perf_counter() - begun, "".join(texts))


async def together(
    client: httpx2.AsyncClient, server: Served, prompts: Prompts, users: int, answers: int, more: int
) -> dict[str, float]:
    """Return the metrics of `answers` answers to `users` users, who each ask again when they are answered."""
    wanted = iter([prompts.new() for _ in range(answers)])
    found: list[Answer] = []

    async def user() -> None:
        for prompt in wanted:
            found.append(await asked(client, server, prompt, more))

    begun, used = time.perf_counter(), server.cpu()
    await asyncio.gather(*(user() for _ in range(users)))
    seconds, used = time.perf_counter() - begun, server.cpu() - used
    # Count the tokens of all servers alike, whatever they report.
    tokens = sum(prompts.count(answer.text) for answer in found)
    first = sorted(answer.first_s for answer in found if answer.first_s)
    return {
        "users": users,
        "answers": answers,
        "first_token_s": statistics.median(first),
        "first_token_last_s": first[-1],
        "tokens": tokens,
        "tokens_per_s": tokens / seconds,
        "cpu_s_per_answer": used / answers,
        "cpu_ms_per_token": 1000 * used / tokens,
    }


async def measured(side: str, run: Path, prompts: Prompts, given: argparse.Namespace) -> dict[str, Any]:
    """Return all measurements of one side."""
    # Use a new connection for each question, because servers close idle ones at different times.
    async with httpx2.AsyncClient(timeout=600, limits=httpx2.Limits(max_keepalive_connections=0)) as client:
        begun = time.perf_counter()
        with served(side, run, max(given.users), given.llama_server) as server:
            client.headers["Authorization"] = f"Bearer {server.key or 'none'}"
            await asked(client, server, "Question: What is asthma?\nConclusion:", 1)
            cold, cold_cpu = time.perf_counter() - begun, server.cpu()
            rows = []
            for users in given.users:
                answers = max(users, given.answers)
                rows.append(await together(client, server, prompts, users, answers, given.tokens))
                print(side, json.dumps(rows[-1]), file=sys.stderr, flush=True)
            fresh = [(await asked(client, server, prompts.new(), 8)).first_s for _ in range(REPEATED)]
            same = [(await asked(client, server, prompt, 8)).first_s for prompt in prompts.repeated()][1:]
            return {
                "side": side,
                "cold_start_s": cold,
                "cold_start_cpu_s": cold_cpu,
                "rows": rows,
                "first_token_fresh_s": statistics.median(fresh),
                "first_token_same_sources_s": statistics.median(same),
                "rss_mb": server.memory(),
            }


def table(found: Sequence[dict[str, Any]]) -> Iterator[str]:
    """Yield the lines of a Markdown table."""
    users = [str(row["users"]) for row in found[0]["rows"]]
    many = ", ".join(users)
    heads = [
        "server",
        f"first token s, {many} users",
        f"tokens/s, {many} users",
        f"CPU seconds per answer, {many} users",
        "first token s: new, same sources",
        f"CPU-hours per 1,000 answers, {users[-1]} users",
        "start to first answer s",
        "MB",
    ]
    yield "| " + " | ".join(heads) + " |"
    yield "|" + "---|" * len(heads)
    for one in found:
        rows = one["rows"]
        cells = [
            one["side"],
            ", ".join(f"{row['first_token_s']:.2f}" for row in rows),
            ", ".join(f"{row['tokens_per_s']:.0f}" for row in rows),
            ", ".join(f"{row['cpu_s_per_answer']:.2f}" for row in rows),
            f"{one['first_token_fresh_s']:.2f}, {one['first_token_same_sources_s']:.2f}",
            f"{rows[-1]['cpu_s_per_answer'] * 1000 / 3600:.2f}",
            f"{one['cold_start_s']:.1f}",
            f"{one['rss_mb']:.0f}",
        ]
        yield "| " + " | ".join(cells) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--users", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--answers", type=int, default=16, help="the minimum number of answers in a cell")
    parser.add_argument("--tokens", type=int, default=64, help="the most tokens of an answer")
    parser.add_argument("--sides", nargs="+", choices=OURS + PEERS, default=OURS + PEERS)
    parser.add_argument("--texts", type=Path, help="the run whose data the prompts are made of")
    parser.add_argument("--llama-server", type=Path, help="a program `llama-server` instead of the package xllamacpp")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    from meditune.engines.tokenizer import PlainTokenizer

    tokenizer = PlainTokenizer(given.run / "export" / "merged")
    found = []
    for side in given.sides:
        prompts = Prompts(tokenizer, given.texts or given.run)
        try:
            found.append(asyncio.run(measured(side, given.run, prompts, given)))
        except (httpx2.HTTPError, RuntimeError) as error:
            print(f"{side} failed: {error!r}", file=sys.stderr, flush=True)
            continue
        print(json.dumps(found[-1]), file=sys.stderr, flush=True)
        if given.json:
            given.json.write_text(json.dumps(found, indent=2), encoding="utf-8")
    print("\n".join(table(found)))


if __name__ == "__main__":
    main()
