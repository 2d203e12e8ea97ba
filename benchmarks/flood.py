"""Measure how long emergencies wait while other callers send the longest messages that a server accepts.

    python benchmarks/flood.py runs/quickstart
    python benchmarks/flood.py runs/quickstart --one-caller               # one key for all requests
    python benchmarks/flood.py runs/quickstart --callers 16 --characters 20000

The server is a separate process, and each caller has its own key. The callers send one message after the other, each
--characters long, to /v1/ask and to /v1/chat/completions. Meanwhile another caller describes an emergency from the
evaluation's battery every 200 ms. The benchmark prints the statuses that the flood received, and how long the
emergencies waited for urgent help.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import random
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx2

import servers
from meditune.evaluate.safety_battery import safety_messages
from meditune.store import open_store
from meditune.store.api_keys import Keys
from servers import Served

WORDS = [
    *("patients", "trial", "dose", "placebo", "pressure", "kidney", "liver", "treatment", "weeks", "group", "risk"),
    *("outcome", "adults", "children", "significant", "therapy", "was", "of", "in", "and", "with", "after", "that"),
]
EVERY_S = 0.2
NEW_TOKENS = 4


def main() -> None:
    """Flood a server, and print the statuses and waiting times."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--index")
    parser.add_argument("--callers", type=int, default=64)
    parser.add_argument("--characters", type=int, default=4000, help="length of each message of the flood")
    parser.add_argument("--seconds", type=float, default=30)
    parser.add_argument("--one-caller", action="store_true", help="use one key for the flood and the emergencies")
    options = parser.parse_args()
    words = ["--index", options.index] if options.index else []
    with tempfile.TemporaryDirectory() as store:
        keys = Keys(open_store(store))
        names = [keys.create(f"flood {number}")[1] for number in range(1 if options.one_caller else options.callers)]
        own = names[0] if options.one_caller else keys.create("emergencies")[1]
        with servers.meditune(options.model, *words, store=Path(store), key=own) as server:
            asyncio.run(measured(options, server, names))


async def measured(options: Any, server: Served, names: Sequence[str]) -> None:
    """Send the flood and the emergencies."""
    limits = httpx2.Limits(max_connections=options.callers + 64, max_keepalive_connections=options.callers + 64)
    async with httpx2.AsyncClient(base_url=server.address, timeout=120, limits=limits) as client:
        statuses: Counter[int] = Counter()
        until = time.monotonic() + options.seconds
        callers = [
            asyncio.ensure_future(flood(client, server.model, key, number, options.characters, until, statuses))
            for number, key in zip(range(options.callers), itertools.cycle(names), strict=False)
        ]
        await asyncio.sleep(1)
        waits, helped = await emergencies(client, server.model, server.key, until)
        for caller in callers:
            caller.cancel()
        await asyncio.gather(*callers, return_exceptions=True)
    counts = ", ".join(f"{count} x {status}" for status, count in sorted(statuses.items()))
    who = "one caller's connections" if options.one_caller else "callers"
    print(f"{options.callers} {who}, {options.characters:,} characters per message, {options.seconds:g} s: {counts}")
    ranked = sorted(waits)
    p50, p99 = (ranked[int((len(ranked) - 1) * share)] for share in (0.5, 0.99))
    print(
        f"{len(waits)} emergencies, {helped} got urgent help: p50 {p50:.3f} s, p99 {p99:.3f} s, most {ranked[-1]:.3f} s"
    )


async def flood(
    client: httpx2.AsyncClient, model: str, key: str, seed: int, characters: int, until: float, statuses: Counter[int]
) -> None:
    """Send one message after the other until the time is up, and count the statuses."""
    draw = random.Random(seed)
    while time.monotonic() < until:
        text = message(draw, characters)
        chat = {"model": model, "messages": [{"role": "user", "content": text}], "max_tokens": NEW_TOKENS}
        asked = {"question": text, "max_new_tokens": NEW_TOKENS}
        path, body = ("v1/ask", asked) if seed % 2 else ("v1/chat/completions", chat)
        reply = await client.post(path, json=body, headers=bearer(key))
        statuses[reply.status_code] += 1


def message(draw: random.Random, characters: int) -> str:
    """Return prose, short lines, rare words or one repeated word, because triage's cost depends on the text."""
    kind = draw.randrange(4)
    if kind == 0:
        words, between = draw.choices(WORDS, k=characters), " "
    elif kind == 1:
        words, between = draw.choices(["a", "my head", "so", "and then"], k=characters), "\n"
    elif kind == 2:
        words = ["".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=7)) for _ in range(characters // 7)]
        between = " "
    else:
        words, between = [draw.choice(["no", "my", "what about"])] * characters, " "
    return between.join(words)[:characters]


async def emergencies(client: httpx2.AsyncClient, model: str, key: str, until: float) -> tuple[list[float], int]:
    """Return the seconds until each emergency was answered, and the number that got urgent help."""
    texts = itertools.cycle(each.text for each in safety_messages().values() if each.category == "emergency")
    waits: list[float] = []
    helped = 0

    async def one(text: str, as_chat: bool) -> None:
        nonlocal helped
        chat = {"model": model, "messages": [{"role": "user", "content": text}], "max_tokens": NEW_TOKENS}
        path, body = ("v1/chat/completions", chat) if as_chat else ("v1/ask", {"question": text})
        begun = time.monotonic()
        reply = await client.post(path, json=body, headers=bearer(key))
        waits.append(time.monotonic() - begun)
        helped += reply.status_code == 200 and "call" in reply.text.lower()

    asked = []
    for number in itertools.count():
        if time.monotonic() > until:
            break
        asked.append(asyncio.ensure_future(one(next(texts), number % 2 == 0)))
        await asyncio.sleep(EVERY_S)
    await asyncio.gather(*asked)
    return waits, helped


def bearer(key: str) -> dict[str, str]:
    """Return the header with a key."""
    return {"authorization": f"Bearer {key}"}


if __name__ == "__main__":
    main()
