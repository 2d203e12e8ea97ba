"""Compare false alarms and delays of `meditune drift` with ADWIN and Page-Hinkley (river) on the same streams.

MEDITUNE_DATA=DIR python benchmarks/drift.py --seeds 20 [--vectors FILE] [--kinds none,sudden] -o drift.json
python benchmarks/drift.py --show drift.json [more.json ...]
"""

from __future__ import annotations

import argparse
import json
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from river.drift import ADWIN, PageHinkley

from drift_streams import Stream, pool, streams
from meditune.operate.drift.monitor import Monitor
from meditune.operate.drift.reference import Reference, fit
from meditune.operate.drift.signals import BY_NAME

UNDRIFTED = 10_000
TUNING = 1000
"""Seeds from this number on are used to choose the rivals' settings"""
Detector = Callable[[], Any]
Series = dict[str, tuple[list[float], list[int], list[float]]]
RIVALS: dict[str, list[tuple[str, Detector]]] = {
    "ADWIN": [(f"delta={delta:g}", lambda delta=delta: ADWIN(delta=delta)) for delta in (0.002, 1e-5, 1e-9)],
    "Page-Hinkley": [
        (f"threshold={limit}", lambda limit=limit: PageHinkley(threshold=limit)) for limit in (50, 150, 450)
    ],
}
"""The library's default first, then increasingly strict settings"""


def ours(stream: Stream, seed: int) -> tuple[dict[str, Any], Reference]:
    """Return the positions of Meditune's alerts by signal, with the time per request, and the fitted reference."""
    reference = fit(stream.reference, {"name": "benchmark"}, "benchmark", seed)
    monitor = Monitor(reference)
    spent = time.process_time()
    for request in stream.requests:
        monitor.add(request)
        monitor.add_outcome(request)
    spent = time.process_time() - spent
    opened: dict[str, list[int]] = {name: [] for name in reference.signals}
    closed: dict[str, list[int | None]] = {name: [] for name in reference.signals}
    for alert in monitor.all_alerts:
        opened[alert.signal].append(alert.opened - 1)
        closed[alert.signal].append(alert.closed)
    details = [
        (alert.signal, alert.effect_name, abs(alert.effect), alert.severity, alert.since - 1)
        for alert in monitor.all_alerts
    ]
    return {"opened": opened, "closed": closed, "ms": 1000 * spent / monitor.count, "alerts": details}, reference


def columns(stream: Stream, reference: Reference, rng: np.random.Generator) -> Series:
    """Return the reference's values and the requests' positions and values for each signal with one value per request.

    Values are scaled by the reference's mean and deviation. A category becomes 1 if it is the reference's most common
    one, else 0.
    """
    found = {}
    for name in [*reference.numbers, *reference.shares]:
        common = None
        if name in reference.shares:
            counts = reference.shares[name]
            common = max(counts, key=lambda each: counts[each])
            ones = np.repeat([1.0, 0.0], [counts[common], sum(counts.values()) - counts[common]])
            before = rng.permutation(ones)[:, None]
        else:
            before = reference.numbers[name]
        told = [(place, BY_NAME[name].read(each, reference.shape)) for place, each in enumerate(stream.requests)]
        known = [(place, values) for place, values in told if None not in values]
        rows = np.array(
            [[float(v == common) if common else v for v in values] for _, values in known], dtype=np.float64
        )
        mean, deviation = before.mean(axis=0), np.maximum(before.std(axis=0), 1e-3)
        for column in range(before.shape[1]):
            label = name if before.shape[1] == 1 else f"{name} {column + 1}"
            scaled = [(each[:, column] - mean[column]) / deviation[column] for each in (before, rows)]
            found[label] = (scaled[0].tolist(), [place for place, _ in known], scaled[1].tolist())
    return found


def rival(make: Detector, series: Series) -> dict[str, list[int]]:
    """Return the positions at which river's detector reports a change, by signal, after the reference's values."""
    found = {}
    for name, (before, places, values) in series.items():
        detector, seen = make(), []
        for value in before:
            detector.update(value)
        for place, value in zip(places, values, strict=True):
            detector.update(value)
            if detector.drift_detected:
                seen.append(place)
        found[name] = seen
    return found


def measured(of: Any, seed: int, wanted: Sequence[str]) -> list[dict[str, Any]]:
    rows = []
    for name, stream in streams(of, seed, UNDRIFTED).items():
        if not any(name.startswith(each) for each in wanted) or (seed >= TUNING and name != "none"):
            continue
        row: dict[str, Any] = {"stream": name, "said": stream.said, "seed": seed, "change": stream.change}
        row["requests"] = len(stream.requests)
        row["ours"], reference = ours(stream, seed)
        series = columns(stream, reference, np.random.default_rng(seed))
        row["rivals"] = {}
        for method, settings in RIVALS.items():
            for setting, make in settings:
                row["rivals"][f"{method} {setting}"] = rival(make, series)
        rows.append(row)
        first = min((places[0] for places in row["ours"]["opened"].values() if places), default=None)
        print(
            f"seed {seed}, {name}: first alert {first}, change {stream.change}, {row['ours']['ms']:.2f} ms", flush=True
        )
    return rows


def chosen(rows: list[dict[str, Any]]) -> dict[str, str]:
    """Return for each rival the least strict setting with at most one false alarm per tuning stream, else the last."""
    tuning = [row for row in rows if row["seed"] >= TUNING and row["stream"] == "none"]
    found = {}
    for method, settings in RIVALS.items():
        names = [f"{method} {setting}" for setting, _ in settings]
        means = {n: np.mean([sum(map(len, row["rivals"][n].values())) for row in tuning]) for n in names}
        found[method] = next((name for name in names if means[name] <= 1), names[-1])
    return found


def show(rows: list[dict[str, Any]]) -> None:
    best = chosen(rows)
    sides: dict[str, Callable[[dict[str, Any]], dict[str, list[int]]]] = {"meditune": lambda row: row["ours"]["opened"]}
    for method, settings in RIVALS.items():
        for label in dict.fromkeys([f"{method} {settings[0][0]}", best[method]]):
            sides[label] = lambda row, label=label: row["rivals"][label]
    grouped: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        if row["seed"] < TUNING:
            grouped[row["stream"]].append(row)
    for name, group in grouped.items():
        print(f"\n{name}: {group[0]['said']}; {group[0]['requests']:,} requests, {len(group)} seeds")
        for side, of in sides.items():
            print(f"  {side:<24} {_line([(row, _merged(of(row))) for row in group])}")
        signals = sorted({signal for row in group for signal in row["ours"]["opened"]})
        for signal in signals:
            print(f"    {signal:<22} {_line([(row, row['ours']['opened'].get(signal, [])) for row in group])}")
            for method in ("ADWIN", "Page-Hinkley"):
                told = [(row, _merged(_own(row["rivals"][best[method]], signal))) for row in group]
                if any(_own(row["rivals"][best[method]], signal) for row in group):
                    print(f"      {best[method]:<28} {_line(told)}")
    print("\nms per request:", _spread([row["ours"]["ms"] for row in rows]))


def _own(by_signal: dict[str, list[int]], signal: str) -> dict[str, list[int]]:
    return {name: places for name, places in by_signal.items() if name.split(" ")[0] == signal}


def _merged(by_signal: dict[str, list[int]]) -> list[int]:
    return sorted(place for places in by_signal.values() for place in places)


def _line(told: list[tuple[dict[str, Any], list[int]]]) -> str:
    """Return a line with false alarms before the change, the seeds that found it, and the delay in requests."""
    false = [
        sum(place < (row["requests"] if row["change"] is None else row["change"]) for place in p) for row, p in told
    ]
    said = f"false alarms {np.mean(false):.2f} {_bootstrap(false)}"
    if told[0][0]["change"] is None:
        return said + f", streams with any {sum(map(bool, false))} of {len(false)}"
    delays = [next((place - row["change"] + 1 for place in p if place >= row["change"]), None) for row, p in told]
    found = [delay for delay in delays if delay is not None]
    said += f", found in {len(found)} of {len(delays)}"
    if not found:
        return said
    return said + f", after {np.median(found):.0f} (mean {np.mean(found):.0f} {_bootstrap(found)}, latest {max(found)})"


def _bootstrap(values: Sequence[float]) -> str:
    rng = np.random.default_rng(17)
    means = np.array(values, dtype=float)[rng.integers(len(values), size=(2000, len(values)))].mean(axis=1)
    low, high = np.quantile(means, [0.025, 0.975])
    return f"[{low:.2f}, {high:.2f}]" if high < 10 else f"[{low:.0f}, {high:.0f}]"


def _spread(values: Sequence[float]) -> str:
    return f"median {np.median(values):.2f}, most {max(values):.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=20, help="number of seeds")
    parser.add_argument(
        "--first", type=int, default=0, help=f"first seed; from {TUNING} on, only streams without change are run"
    )
    parser.add_argument("--vectors", type=Path, help="file that caches the questions' vectors between runs")
    parser.add_argument(
        "--kinds", default="none,sudden,gradual,seasonal,answers", help="comma-separated kinds of streams"
    )
    parser.add_argument("--output", "-o", type=Path, help="write the results to this file instead of printing tables")
    parser.add_argument("--show", type=Path, nargs="+", help="only print the tables of these files")
    given = parser.parse_args()
    if given.show:
        show([row for path in given.show for row in json.loads(path.read_text())])
        return
    of, rows = pool(given.vectors), []
    for seed in range(given.first, given.first + given.seeds):
        rows += measured(of, seed, given.kinds.split(","))
        if given.output:
            given.output.write_text(json.dumps(rows))
    if not given.output:
        show(rows)


if __name__ == "__main__":
    main()
