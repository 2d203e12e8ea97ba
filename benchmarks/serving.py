"""Put a server under twice its capacity, and check that its queue and memory stay bounded and that it refuses properly.

    python benchmarks/serving.py runs/quickstart --minutes 10
    python benchmarks/serving.py runs/quickstart --minutes 60              # a soak: does memory grow?
    python benchmarks/serving.py runs/quickstart --minutes 10 --rude       # also with slow and half-open clients
    python benchmarks/serving.py runs/quickstart --minutes 0 --kill        # kill it under load and start it again

The server is a separate process. First its capacity is measured, with as many users as it answers at once; each asks
the next question when the last is answered. Then questions arrive at random (Poisson) at twice that rate, whether or
not earlier ones were answered. Each has its own passage and about 450 tokens. The benchmark reports answers per second,
refusals (429), the waiting times of admitted requests, and the server's memory (over all its processes, with shared
pages counted once), threads and open files over time. `CPU seconds per answer` is the server's CPU time, which other
programs disturb least.

A stream that ends with an error isn't an answer; it counts as its error's status "in a stream". If a connection ends
without a response, the result says whether the connection was new or had already served a request. If
questions are sent late by seconds, the benchmark itself gets too little processor time, and the results aren't the
server's alone.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import random
import re
import statistics
import tempfile
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import psutil

import servers
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


@dataclass
class Seen:
    """Statuses, times and tokens of the requests."""

    statuses: Counter[str] = field(default_factory=Counter)
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
    parser.add_argument("--rude", action="store_true", help="add slow and half-open clients")
    parser.add_argument("--kill", action="store_true", help="kill the server under load afterwards, and start it again")
    options = parser.parse_args()
    words = ["--concurrency", options.at_once, "--queue-size", options.waiting, "--engine", options.engine]
    words += ["--index", options.index] if options.index else []
    with tempfile.TemporaryDirectory() as store:
        with servers.meditune(options.model, *words, store=Path(store)) as server:
            asyncio.run(measured(options, server))
        if options.kill:
            killed(options.model, words, Path(store))


async def measured(options: Any, server: Served) -> None:
    """Measure capacity and overload, and print the results."""
    limits = httpx2.Limits(max_connections=400, max_keepalive_connections=100)
    async with httpx2.AsyncClient(base_url=server.address, timeout=300, limits=limits) as client:
        print(f"start to listening {server.ready_s:.1f} s, CPU {server.cpu():.1f} s, memory {server.memory():.0f} MB")
        ask = Asking(client, server.model, options)
        await ask.one(Seen())
        print(f"after the first answer: memory {server.memory():.0f} MB")
        if not options.minutes:
            return
        rate = options.rate or await capacity(ask, options.at_once, server) * options.times
        rude = asyncio.ensure_future(rudeness(server.address)) if options.rude else None
        await overload(ask, server, rate, options.minutes * 60)
        if rude:
            rude.cancel()
        figures = (await client.get("metrics")).text
        for kept in ("meditune_running", "meditune_waiting", "meditune_cancelled_total"):
            print(next(line for line in figures.splitlines() if line.startswith(f"{kept} ")))


class Asking:
    """Sends questions, each with its own passage."""

    def __init__(self, client: httpx2.AsyncClient, model: str, options: Any) -> None:
        self.client, self.model, self.options = client, model, options
        self.random = random.Random(17)

    async def one(self, seen: Seen) -> None:
        """Ask one question, and record the result in `seen`."""
        text = " ".join(self.random.choices(WORDS, k=self.options.words))
        messages = [{"role": "system", "content": text}, {"role": "user", "content": "Does the treatment help?"}]
        body = {"model": self.model, "messages": messages, "max_tokens": self.options.tokens, "stream": True}
        body |= {"stream_options": {"include_usage": True}}
        begun, first, failure = time.monotonic(), 0.0, ""
        passed: set[str] = set()

        async def trace(event: str, _: Any) -> None:
            passed.add(event)

        try:
            async with self.client.stream(
                "POST", "v1/chat/completions", json=body, extensions={"trace": trace}
            ) as reply:
                async for line in reply.aiter_lines():
                    if line.startswith('data: {"error"'):
                        failure = f"{json.loads(line[6:])['error']['status']} in a stream"
                    elif line.startswith("data: {") and '"content": ""' not in line and not first:
                        first = time.monotonic() - begun
                    if line.startswith("data: {") and '"usage"' in line:
                        seen.tokens += json.loads(line[6:])["usage"]["completion_tokens"]
                status = failure or str(reply.status_code)
        except httpx2.HTTPError as error:
            place = "on a new connection" if "connection.connect_tcp.complete" in passed else "on a reused connection"
            if "http11.receive_response_headers.complete" in passed:
                place = "in a response"
            status = f"{type(error).__name__} {place}"
        seconds = time.monotonic() - begun
        seen.statuses[status] += 1
        if status == "200":
            seen.seconds.append(seconds)
            seen.first.append(first)
        elif status == "429":
            seen.refused_s.append(seconds)
            seen.retry_after.append(int(reply.headers.get("retry-after", 0)))
        else:
            seen.failed.append(time.monotonic())


async def capacity(ask: Asking, users: int, server: Served) -> float:
    """Return the answers per second with `users` users who wait for each answer."""
    seen, until, used = Seen(), time.monotonic() + 60, server.cpu()

    async def user() -> None:
        while time.monotonic() < until:
            await ask.one(seen)

    begun = time.monotonic()
    await asyncio.gather(*(user() for _ in range(users)))
    seconds = time.monotonic() - begun
    if not seen.seconds:
        raise SystemExit(f"The server answered no question in {seconds:.0f} s: {dict(seen.statuses)}")
    rate = len(seen.seconds) / seconds
    print(
        f"capacity with {users} users: {rate:.2f} answers/s, {seen.tokens / seconds:.0f} tokens/s, first token p50 "
        f"{statistics.median(seen.first):.2f} s, "
        f"CPU seconds per answer {(server.cpu() - used) / len(seen.seconds):.2f}, {dict(seen.statuses)}"
    )
    return rate


async def overload(ask: Asking, server: Served, rate: float, seconds: float) -> None:
    """Send questions at random times at this rate, sample memory, and print the results."""
    seen, asked = Seen(), set()
    begun, looked, used = time.monotonic(), 0.0, server.cpu()
    sizes: list[tuple[float, float, int, int]] = []
    late: list[tuple[float, float]] = []
    chance = random.Random(18)
    coming = begun
    while (now := time.monotonic()) < begun + seconds:
        if now - looked > SAMPLE_S:
            looked = now
            sizes.append((now, server.memory(), server.process.num_threads(), server.process.num_fds()))
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
    print(f"{rate:.2f} questions/s for {seconds / 60:.1f} minutes: {dict(seen.statuses)}")
    print(
        f"  answers/s {len(seen.seconds) / took:.2f}, CPU seconds per answer "
        f"{(server.cpu() - used) / max(1, len(seen.seconds)):.2f}"
    )
    print(f"  admitted: {spread(seen.seconds)}; first token {spread(seen.first)}")
    if seen.refused_s:
        print(f"  refused: {spread(seen.refused_s)}; Retry-After {min(seen.retry_after)} to {max(seen.retry_after)} s")
    last = int((sizes[-1][0] - begun) // 60)
    for minute in range(last + 1):
        start, end = begun + 60 * minute, begun + 60 * (minute + 1) if minute < last else math.inf
        part = [row for row in sizes if start <= row[0] < end] or sizes[-1:]
        _, mb, threads, files = (statistics.mean(column) for column in zip(*part, strict=True))
        print(
            f"  minute {minute + 1}: memory {mb:.0f} MB, {threads:.0f} threads, {files:.0f} open files, "
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
    """Return p50, p99 and the maximum, in seconds, as text."""
    if not values:
        return "none"
    ranked = sorted(values)
    return f"p50 {ranked[len(ranked) // 2]:.2f} s, p99 {ranked[int(len(ranked) * 0.99)]:.2f} s, max {ranked[-1]:.2f} s"


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
