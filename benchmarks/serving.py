"""Put a server under twice its capacity, and check that its queue and memory stay bounded and that it refuses properly.

    python benchmarks/serving.py runs/quickstart --minutes 10
    python benchmarks/serving.py runs/quickstart --minutes 60              # a soak: does memory grow?
    python benchmarks/serving.py runs/quickstart --minutes 10 --rude       # also with slow and half-open clients
    python benchmarks/serving.py runs/quickstart --minutes 0 --kill        # kill it under load and start it again
    python benchmarks/serving.py runs/quickstart --index library --route ask --tokens 96 --judge runs/evidence
    python benchmarks/serving.py runs/quickstart --index library --route ask --tokens 96 --servers 2

The server is a separate process. First its capacity is measured, with as many users as it answers at once; each asks
the next question when the last is answered. Then questions arrive at random (Poisson) at twice that rate, whether or
not earlier ones were answered. The benchmark reports answers per second, refusals (429), the waiting times of admitted
requests, and the server's memory (over all its processes, with shared pages counted once), threads and open files over
time. `CPU seconds per answer` is the server's CPU time, which other programs disturb least.

By default, the questions are chats, each with its own passage and about 450 tokens. A chat uses no index and no judge.
With `--route ask`, the questions go to the assistant (`/v1/ask`), which searches the index, decides, writes, cites and
checks. The questions are the titles of the index's documents that end with a question mark, in random order, or the
questions of a JSONL file (`--questions RUN/data/test.jsonl`). Answers are counted by outcome. The times and the answers
per second include answers that the assistant withheld (`abstained`), but not urgent help (`escalated`) and refusals
(`declined`), which need no model. The last lines show how many sentences the server checked during the load and, if
the server's metrics say so, what checked them.

`--servers 2` compares one server with two servers that share a store in PostgreSQL. Each server may use only one core
of its own. The questions go to the two servers in turn. The benchmark and the database use the same cores.

A stream that ends with an error isn't an answer; it counts as its error's status "in a stream". If a connection ends
without a response, the result says whether the connection was new or had already served a request. If
questions are sent late by seconds, the benchmark itself gets too little processor time, and the results aren't the
server's alone.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import math
import os
import random
import re
import statistics
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import psutil

import servers
from meditune.assistant.assistant import asks_yes_or_no
from meditune.files import read_jsonl
from meditune.retrieve import index, storage
from servers import Served

TEXT = (
    "patients trial dose placebo pain blood pressure heart kidney liver treatment weeks group risk "
    "outcome adults children significant difference mean follow-up symptoms therapy diabetes infection "
    "surgery were was the of in and with after compared to reduced increased no that at "
)
WORDS = TEXT.split()
SAMPLE_S = 5.0
WARM_MINUTES = 10
"""Minutes in which caches fill; growth is measured after them"""
RUDE = 8
CITED, UNCITED, ABSTAINED = "answered with citations", "answered without citations", "abstained"
BY_MODEL = ("200", CITED, UNCITED, ABSTAINED)
"""Outcomes that count as answers"""
WITHOUT_MODEL = ("escalated", "declined")
GAUGES = ("meditune_running", "meditune_waiting")
COUNTERS = ("meditune_cancelled_total", "meditune_sentences_total", "meditune_sentences_checked_total")


@dataclass
class Seen:
    """Outcomes, times and tokens of the requests."""

    statuses: Counter[str] = field(default_factory=Counter)
    """The number of requests by outcome: of the assistant's answers what the assistant did, otherwise the status"""
    decided: int = 0
    """Answers with a decision"""
    seconds: list[float] = field(default_factory=list)
    first: list[float] = field(default_factory=list)
    refused_s: list[float] = field(default_factory=list)
    retry_after: list[int] = field(default_factory=list)
    failed: list[float] = field(default_factory=list)
    """When requests ended that were neither answered nor refused, on the monotonic clock"""
    tokens: int = 0


def main() -> None:
    """Start the server, put it under load, and print the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--tokens", type=int, default=64, help="tokens of each answer")
    parser.add_argument("--words", type=int, default=330, help="words of each passage; 330 words are about 450 tokens")
    parser.add_argument("--times", type=float, default=2.0, help="load as a multiple of the capacity")
    parser.add_argument("--rate", type=float, help="questions per second, instead of a multiple of the capacity")
    parser.add_argument("--at-once", type=int, default=16)
    parser.add_argument("--waiting", type=int, default=64)
    parser.add_argument("--engine", default="auto")
    parser.add_argument("--index")
    parser.add_argument("--route", choices=["chat", "ask"], default="chat", help="ask: cited answers, from the index")
    parser.add_argument("--questions", help="with --route ask: a JSONL file with questions")
    parser.add_argument("--judge", help="an evidence judge that checks each sentence")
    parser.add_argument("--servers", type=int, default=1, choices=[1, 2], help="2: compare one server with two")
    parser.add_argument("--rude", action="store_true", help="add slow and half-open clients")
    parser.add_argument("--kill", action="store_true", help="kill the server under load afterwards, and start it again")
    options = parser.parse_args()
    cores = sorted(os.sched_getaffinity(0))
    if options.route == "ask" and not options.index:
        parser.error("--route ask needs --index: the assistant cites the passages of an index.")
    if options.servers > len(cores):
        parser.error(f"--servers {options.servers} needs a core for each server, but there is only one.")
    if options.servers > 1 and options.kill:
        parser.error("--kill works with one server only.")
    asked = questions(options) if options.route == "ask" else []
    words = ["--concurrency", options.at_once, "--queue-size", options.waiting, "--engine", options.engine]
    words += ["--index", options.index] if options.index else []
    words += ["--judge", options.judge] if options.judge else []
    if options.servers > 1:
        compared(options, words, asked, cores)
        return
    with tempfile.TemporaryDirectory() as store:
        with servers.meditune(options.model, *words, store=Path(store)) as server:
            asyncio.run(measured(options, [server], asked))
        if options.kill:
            killed(options.model, words, Path(store))


def questions(options: Any) -> list[str]:
    """Return the questions for the assistant, in random order."""
    if options.questions:
        found = {row["question"] for row in read_jsonl(Path(options.questions))}
    else:
        place = storage.index_storage(options.index)
        table = storage.connect(place).open_table(index.read(place).table)
        titles = (title for batch in storage.scan(table, ["title"]) for title in batch["title"].to_pylist())
        found = {title for title in titles if title.endswith("?")}
    if not found:
        raise SystemExit(f"No document of {options.index} has a question as its title. Name a file with --questions.")
    print(f"{len(found)} different questions, {sum(map(asks_yes_or_no, found))} of them yes/no questions")
    return random.Random(17).sample(sorted(found), len(found))


def compared(options: Any, words: Sequence[Any], asked: Sequence[str], cores: Sequence[int]) -> None:
    """Measure one server, then several, each on its own core."""
    with servers.postgresql() as cluster:
        for count in (1, options.servers):
            print(f"\n{count} server{'s, each' if count > 1 else ''} on one core, with a store in PostgreSQL")
            store = cluster.new()
            with ExitStack() as stack:
                running = []
                for core in cores[:count]:
                    with on_core(core):
                        server = servers.meditune(options.model, *words, "--store", store)
                        running.append(stack.enter_context(server))
                asyncio.run(measured(options, running, asked))


@contextmanager
def on_core(core: int) -> Iterator[None]:
    """Let processes that are started in the block use only one core."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


async def measured(options: Any, running: Sequence[Served], asked: Sequence[str]) -> None:
    """Measure capacity and overload of the running servers, and print the results."""
    limits = httpx2.Limits(max_connections=400, max_keepalive_connections=100)
    async with httpx2.AsyncClient(timeout=300, limits=limits) as client:
        ready = max(each.ready_s for each in running)
        print(f"start to listening {ready:.1f} s, CPU {cpu(running):.1f} s, memory {memory(running):.0f} MB")
        ask = Asking(client, running, options, asked)
        for _ in running:
            await ask.one(Seen())
        print(f"after the first answer: memory {memory(running):.0f} MB")
        if not options.minutes:
            return
        rate = options.rate or await capacity(ask, options.at_once * len(running)) * options.times
        before = await metrics(client, running)
        rude = asyncio.ensure_future(rudeness(running[0].address)) if options.rude else None
        await overload(ask, rate, options.minutes * 60)
        if rude:
            rude.cancel()
        for name, value in (await metrics(client, running)).items():
            print(f"  {name} {value if name in GAUGES else value - before[name]:.0f}")


def cpu(running: Sequence[Served]) -> float:
    """Return the CPU seconds so far of all servers."""
    return sum(each.cpu() for each in running)


def memory(running: Sequence[Served]) -> float:
    """Return the memory of all servers in MB."""
    return sum(each.memory() for each in running)


async def metrics(client: httpx2.AsyncClient, running: Sequence[Served]) -> Counter[str]:
    """Return the GAUGES and COUNTERS of all servers, added up."""
    found: Counter[str] = Counter()
    for server in running:
        for line in (await client.get(f"{server.address}metrics")).text.splitlines():
            name, _, value = line.rpartition(" ")
            if name.split("{")[0] in GAUGES + COUNTERS:
                found[name] += float(value)
    return found


class Asking:
    """Sends requests to the servers in turn: chats, each with its own passage, or questions to the assistant."""

    def __init__(
        self, client: httpx2.AsyncClient, running: Sequence[Served], options: Any, asked: Sequence[str]
    ) -> None:
        self.client, self.running, self.options = client, running, options
        self.random = random.Random(17)
        self._turns, self._questions = itertools.cycle(running), itertools.cycle(asked)

    def _request(self, model: str) -> tuple[str, dict[str, Any]]:
        """Return the route and the body of the next request."""
        if self.options.route == "ask":
            question = next(self._questions)
            return "v1/ask", {"question": question, "max_new_tokens": self.options.tokens, "stream": True}
        text = " ".join(self.random.choices(WORDS, k=self.options.words))
        messages = [{"role": "system", "content": text}, {"role": "user", "content": "Does the treatment help?"}]
        body = {"model": model, "messages": messages, "max_tokens": self.options.tokens, "stream": True}
        return "v1/chat/completions", body | {"stream_options": {"include_usage": True}}

    async def one(self, seen: Seen) -> None:
        """Ask one question, and record the result in `seen`."""
        server = next(self._turns)
        route, body = self._request(server.model)
        begun, first, outcome = time.monotonic(), 0.0, ""
        passed: set[str] = set()

        async def trace(event: str, _: Any) -> None:
            passed.add(event)

        try:
            async with self.client.stream(
                "POST", f"{server.address}{route}", json=body, extensions={"trace": trace}
            ) as reply:
                async for line in reply.aiter_lines():
                    said = servers.streamed(line) or {}
                    if "error" in said:
                        outcome = f"{said['error']['status']} in a stream"
                    elif "outcome" in said:
                        outcome = outcome_of(said)
                        seen.decided += said["decision"] is not None
                        seen.tokens += said["tokens"]["completion"]
                    elif usage := said.get("usage"):
                        seen.tokens += usage["completion_tokens"]
                    elif not first and shows_text(said):
                        first = time.monotonic() - begun
                status = outcome or str(reply.status_code)
                if status == "200" and route == "v1/ask":
                    status = "200 without an answer"
        except httpx2.HTTPError as error:
            place = "on a new connection" if "connection.connect_tcp.complete" in passed else "on a reused connection"
            if "http11.receive_response_headers.complete" in passed:
                place = "in a response"
            status = f"{type(error).__name__} {place}"
        seconds = time.monotonic() - begun
        seen.statuses[status] += 1
        if status in BY_MODEL:
            seen.seconds.append(seconds)
            if first:
                seen.first.append(first)
        elif status == "429":
            seen.refused_s.append(seconds)
            seen.retry_after.append(int(reply.headers.get("retry-after", 0)))
        elif status not in WITHOUT_MODEL:
            seen.failed.append(time.monotonic())


def outcome_of(answer: Mapping[str, Any]) -> str:
    """Return what the assistant did with a question."""
    if answer["outcome"] != "answered":
        return str(answer["outcome"])
    return CITED if any(each["shown"] and each["citations"] for each in answer["sentences"]) else UNCITED


def shows_text(said: Mapping[str, Any]) -> bool:
    """Return whether an event of a stream shows text of the answer to the user."""
    return said.keys() == {"text"} or any(each["delta"].get("content") for each in said.get("choices", ()))


async def capacity(ask: Asking, users: int) -> float:
    """Return the answers per second with `users` users who wait for each answer."""
    seen, until, used = Seen(), time.monotonic() + 60, cpu(ask.running)

    async def user() -> None:
        while time.monotonic() < until:
            await ask.one(seen)

    begun = time.monotonic()
    await asyncio.gather(*(user() for _ in range(users)))
    seconds = time.monotonic() - begun
    if not seen.seconds:
        raise SystemExit(f"The server answered no question in {seconds:.0f} s: {dict(seen.statuses)}")
    rate = len(seen.seconds) / seconds
    print(f"capacity with {users} users: {rate:.2f} answers/s, {seen.tokens / seconds:.0f} tokens/s")
    described(seen, seconds, cpu(ask.running) - used)
    return rate


async def overload(ask: Asking, rate: float, seconds: float) -> None:
    """Send questions at random times at this rate, sample memory, and print the results."""
    seen, asked = Seen(), set()
    begun, looked, used = time.monotonic(), 0.0, cpu(ask.running)
    sizes: list[tuple[float, float, int, int]] = []
    late: list[tuple[float, float]] = []
    chance = random.Random(18)
    coming = begun
    while (now := time.monotonic()) < begun + seconds:
        if now - looked > SAMPLE_S:
            looked = now
            processes = [each.process for each in ask.running]
            threads, files = sum(each.num_threads() for each in processes), sum(each.num_fds() for each in processes)
            sizes.append((now, memory(ask.running), threads, files))
        if now >= coming:
            late.append((now, now - coming))
            coming += chance.expovariate(rate)
            task = asyncio.ensure_future(ask.one(seen))
            asked.add(task)
            task.add_done_callback(asked.discard)
            continue
        await asyncio.sleep(min(coming - now, 0.2))
    if asked:
        await asyncio.wait(asked)
    took = time.monotonic() - begun
    print(f"{rate:.2f} questions/s for {seconds / 60:.1f} minutes: {len(seen.seconds) / took:.2f} answers/s")
    described(seen, took, cpu(ask.running) - used)
    if seen.refused_s:
        print(f"  refused: {spread(seen.refused_s)}; Retry-After {min(seen.retry_after)} to {max(seen.retry_after)} s")
    last = int((sizes[-1][0] - begun) // 60)
    for minute in range(last + 1):
        start, end = begun + 60 * minute, begun + 60 * (minute + 1) if minute < last else math.inf
        part = [row for row in sizes if start <= row[0] < end] or sizes[-1:]
        _, mb, *counts = (statistics.mean(column) for column in zip(*part, strict=True))
        print(
            f"  minute {minute + 1}: memory {mb:.0f} MB, {counts[0]:.0f} threads, {counts[1]:.0f} open files, "
            f"{sum(start <= when < end for when in seen.failed)} failed, "
            f"sent late by at most {max((by for when, by in late if start <= when < end), default=0.0):.1f} s"
        )
    print(f"  peak memory {max(row[1] for row in sizes):.0f} MB")
    warm = [row for row in sizes if row[0] - begun > 60 * WARM_MINUTES]
    if warm and warm[-1][0] - begun > 2 * 60 * WARM_MINUTES:
        hours, mb = [row[0] / 3600 for row in warm], [row[1] for row in warm]
        half = len(mb) // 2
        print(
            f"  after minute {WARM_MINUTES}: {statistics.mean(mb[:half]):.0f} MB in the first half, "
            f"{statistics.mean(mb[half:]):.0f} MB in the second; growth "
            f"{statistics.linear_regression(hours, mb).slope:+.1f} MB per hour"
        )


def described(seen: Seen, took: float, used: float) -> None:
    """Print the outcomes of the requests, the times of the answers, and the CPU time in seconds that they used."""
    print(f"  {', '.join(f'{count} {status}' for status, count in seen.statuses.most_common())}")
    if seen.statuses[CITED]:
        print(f"  {seen.statuses[CITED] / took:.2f} cited answers/s; {seen.decided} answers with a decision")
    print(f"  CPU seconds per answer {used / max(1, len(seen.seconds)):.2f}")
    print(f"  admitted: {spread(seen.seconds)}; first text {spread(seen.first)}")


async def rudeness(address: str) -> None:
    """Run clients that repeatedly disconnect, send slowly, never read or never send."""
    host, port = re.findall(r"//([^:/]+):(\d+)", address)[0]

    async def one(number: int) -> None:
        while True:
            reader, writer = await asyncio.open_connection(host, int(port))
            try:
                await act(number, reader, writer)
            except OSError:
                pass
            finally:
                writer.transport.abort()

    async def act(number: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if number % 4 == 0:
            await asyncio.sleep(30)
        elif number % 4 == 1:
            for byte in b"POST /v1/ask HTTP/1.1\r\nHost: 127.0.0.1\r\nX: " + b"x" * 50:
                writer.write(bytes([byte]))
                await writer.drain()
                await asyncio.sleep(0.5)
        elif number % 4 == 2:
            writer.write(b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\nX: " + b"x" * (1 << 20))
            await writer.drain()
            await reader.read()
        else:
            writer.write(
                b"POST /v1/ask HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
                b"Content-Length: 38\r\n\r\n" + b'{"question": "Does it help at all?   "}'[:38]
            )
            await writer.drain()
            await asyncio.sleep(1)
        await asyncio.sleep(0.5)

    await asyncio.gather(*(one(number) for number in range(RUDE)))


def spread(values: list[float]) -> str:
    """Return p50, p95, p99 and the maximum, in seconds, as text."""
    if not values:
        return "none"
    ranked = sorted(values)
    shares = (f"p{share} {ranked[len(ranked) * share // 100]:.2f} s" for share in (50, 95, 99))
    return f"{', '.join(shares)}, max {ranked[-1]:.2f} s"


def killed(model: str, words: list[Any], store: Path) -> None:
    """Kill the server while it answers, start it again on the same store, and print how many answers are stored."""
    told: list[str] = []
    with servers.meditune(model, *words, store=store) as server:

        def ask() -> None:
            body = {"model": server.model, "messages": [{"role": "user", "content": "Does it help?"}], "max_tokens": 8}
            try:
                while True:
                    told.append(httpx2.post(f"{server.address}v1/chat/completions", json=body, timeout=60).json()["id"])
            except httpx2.HTTPError:
                return

        people = [threading.Thread(target=ask) for _ in range(8)]
        for each in people:
            each.start()
        while len(told) < 20:
            time.sleep(0.05)
        engines = server.process.children(recursive=True)
        server.process.kill()
        for each in people:
            each.join()
    _, left = psutil.wait_procs(engines, timeout=10)
    with servers.meditune(model, *words, store=store) as server:
        rated = [httpx2.post(f"{server.address}v1/feedback", json={"id": id, "rating": "up"}) for id in told]
        print(
            f"killed after {len(told)} answers: {sum(reply.is_success for reply in rated)} of them are stored, "
            f"{len(left)} of its processes are still running, it listens again after {server.ready_s:.1f} s"
        )


if __name__ == "__main__":
    main()
