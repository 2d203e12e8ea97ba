"""Compute the price of 1,000 answers on virtual machines, AWS Lambda and a GPU from engines.py's measurements.

    python benchmarks/engines.py RUN --users 1 8 32 --json measured.json
    python benchmarks/serving_cost.py measured.json
    python benchmarks/serving_cost.py measured.json --vm-hour 0.10 --gpu-hour 4   # other prices, in dollars

- A small VM has as many cores as the machine that was measured, and is always busy with the largest number of users.
- A large VM has eight times the cores and the price of eight small ones. It isn't measured: throughput is assumed to
  grow with the number of cores, so its price per answer is the same. Several server processes share one store.
- Lambda answers one request at a time in each instance. It is billed by time and memory, and gives one core for each
  1,769 MB (https://docs.aws.amazon.com/lambda/latest/dg/configuration-memory.html). Cold starts are billed, too.
- No GPU was measured. The table states how many answers per second a GPU must give to be as cheap as the small VM.

Prices are those of AWS's region us-east-1 in 2026, on demand. The small VM is m7i.large, which has two vCPUs of an
Intel Xeon with AMX: $0.1008, half of m7i.xlarge (https://c3x.dev/blog/m5-vs-m6i-vs-m7i-cost-performance). Pass
--vm-hour if another kind of processor was measured: m7g.large (Arm) costs $0.0816. The GPU machine is g5.xlarge
(https://www.factualminds.com/blog/amazon-ec2-on-demand-pricing-instance-families-2026/). Lambda is priced on x86
(https://aws.amazon.com/lambda/pricing/). Networks, disks and free tiers are left out.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

LAMBDA_GB_SECOND = 0.0000166667
LAMBDA_REQUEST = 0.20 / 1_000_000
LAMBDA_MB_PER_CORE = 1769
HEADS = (
    "server",
    "answers/s",
    "small VM, busy",
    "small VM, 1 user",
    "large VM, busy",
    "Lambda, warm",
    "Lambda, cold start for every answer",
    "answers/s at which a GPU costs the same",
)


def answers_per_second(row: Mapping[str, Any]) -> float:
    """Return how many answers per second all users of one row of engines.py got together."""
    return float(row["tokens_per_s"] / (row["tokens"] / row["answers"]))


def dollars(found: Mapping[str, Any], cores: int, vm_hour: float, gpu_hour: float) -> list[float]:
    """Return the numbers of one server: answers per second, five prices of 1,000 answers, and the GPU's break-even."""
    by_users = {row["users"]: answers_per_second(row) for row in found["rows"]}
    if 1 not in by_users:
        sys.exit(f"{found['side']} wasn't measured with one user: run engines.py again with --users 1 8 32.")
    alone, busy = by_users[1], by_users[max(by_users)]
    on_vm = 1000 * vm_hour / 3600 / busy
    gigabytes = max(found["rss_mb"], cores * LAMBDA_MB_PER_CORE) / 1024
    warm = 1000 * (gigabytes / alone * LAMBDA_GB_SECOND + LAMBDA_REQUEST)
    cold = warm + 1000 * gigabytes * found["cold_start_s"] * LAMBDA_GB_SECOND
    return [busy, on_vm, 1000 * vm_hour / 3600 / alone, on_vm, warm, cold, gpu_hour / vm_hour * busy]


def table(every: Sequence[Mapping[str, Any]], cores: int, vm_hour: float, gpu_hour: float) -> Iterator[str]:
    """Yield the lines of a Markdown table, with prices in dollars."""
    yield "| " + " | ".join(HEADS) + " |"
    yield "|" + "---|" * len(HEADS)
    for found in every:
        busy, *prices, gpu = dollars(found, cores, vm_hour, gpu_hour)
        cells = [f"{busy:.2f}", *(f"${price:.3f}" for price in prices), f"{gpu:.0f}"]
        yield f"| {found['side']} | {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("measured", type=Path, help="the file that engines.py wrote with --json")
    parser.add_argument("--cores", type=int, default=2, help="cores of the machine that was measured")
    parser.add_argument("--vm-hour", type=float, default=0.1008, help="dollars per hour of a VM with these cores")
    parser.add_argument("--gpu-hour", type=float, default=1.006, help="dollars per hour of a machine with one GPU")
    given = parser.parse_args()
    every = json.loads(given.measured.read_text(encoding="utf-8"))
    print("\n".join(table(every, given.cores, given.vm_hour, given.gpu_hour)))


if __name__ == "__main__":
    main()
