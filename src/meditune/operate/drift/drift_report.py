"""Reports of a drift check: JSON, terminal lines, and an HTML page with a plot. All texts in them are masked."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Iterator
from dataclasses import asdict
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np

from meditune.evaluate.report.formatting import write_page
from meditune.operate.drift.drift_detection import CheckResult
from meditune.operate.drift.monitor import Monitor
from meditune.operate.drift.signals import DESCRIBED


def as_dict(result: CheckResult) -> dict[str, Any]:
    """Return a dict with the stable keys `requests`, `new`, `reference`, `policy`, `signals`, `alerts`, `remarks`."""
    monitor = result.monitor
    return {
        "requests": monitor.count,
        "new": result.new,
        "reference": {"sha256": monitor.reference.sha256} | monitor.reference.about,
        "policy": asdict(monitor.policy),
        "signals": signals(monitor),
        "alerts": [alert.as_dict() for alert in monitor.all_alerts],
        "remarks": result.remarks,
    }


def signals(monitor: Monitor) -> dict[str, dict[str, Any]]:
    """Return a dict for each signal, by name.

    The keys are `title`, `about`, `state` (quiet, open or unknown), `statistic`, `threshold` and `missing`.
    """
    open_now = {alert.signal for alert in monitor.alerts()}
    limits, rows = monitor.limits(), {}
    for name, track in monitor.tracks.items():
        unknown = bool(monitor.count) and monitor.missing[name] == monitor.count
        rows[name] = {
            "title": DESCRIBED[name].title,
            "about": DESCRIBED[name].about,
            "state": "open" if name in open_now else "unknown" if unknown else "quiet",
            "statistic": track.detector.statistic,
            "threshold": limits[name],
            "missing": monitor.missing[name],
        }
    return rows


def evidence_share(statistic: float, threshold: float) -> float:
    """Return how close a statistic is to the threshold on a logarithmic scale, from 0 to 1."""
    return min(1.0, max(0.0, math.log10(max(statistic, 1.0)) / math.log10(threshold)))


def lines(result: CheckResult) -> Iterator[str]:
    """Yield the check's results as terminal lines."""
    monitor = result.monitor
    size = monitor.reference.about["requests"]
    yield f"{result.new:,} new requests, {monitor.count:,} since the reference, which was fitted to {size:,}."
    yield ""
    yield f"{'signal':<15}{'state':<9}{'evidence':<22}description"
    for name, row in signals(monitor).items():
        share = evidence_share(row["statistic"], row["threshold"])
        yield f"{name:<15}{row['state']:<9}{'█' * round(10 * share):<11}{100 * share:>4.0f}%      {row['title']}"
    for alert in monitor.alerts():
        yield ""
        yield f"ALERT {alert.signal}, {alert.severity} ({alert.effect_name} {alert.effect:+.2f}): {alert.message}"
        since = f" ({alert.since_id})" if alert.since_id else ""
        lasting = monitor.count - alert.opened
        yield f"  since request {alert.since:,}{since}, detected at {alert.opened:,}, open for {lasting:,} requests"
        for example in alert.evidence.get("examples", [])[:3]:
            yield f"  {example['id']}: {example['question'] or '(text not stored)'}"
        for group in alert.evidence.get("groups", [])[:3] if alert.signal in ("novelty", "topics", "meaning") else []:
            yield f"  new: {group['questions']} questions ({100 * group['share']:.0f}%) in the group: {group['name']}"
    closed = [alert for alert in monitor.all_alerts if not alert.is_open]
    if closed:
        yield ""
        yield "Closed alerts: " + "; ".join(
            f"{a.signal} (requests {a.opened:,} to {a.closed:,}, {a.severity})" for a in closed[-10:]
        )
    for remark in result.remarks:
        yield ""
        yield f"Note: {remark}"


QUIET, LIMIT = "#9aa5ad", "#6b5310"
COLOURS = ("#a12a2a", "#0b6670", "#c08a3e", "#5b4b9a", "#2f7d4f", "#8a3b7a", "#3a5f95", "#7a6a1f")
MAX_CURVE_POINTS = 3000


def draw_statistics(monitor: Monitor) -> str:
    """Return a plot of each signal's evidence as a PNG data URI; signals that had an alert are in colour."""
    from matplotlib.figure import Figure

    history = np.array(monitor.history, dtype=np.float64)
    numbers = np.arange(monitor.count - len(history) + 1, monitor.count + 1)
    step = max(1, len(history) // MAX_CURVE_POINTS)
    limits = np.array(list(monitor.limits().values()))
    shares = np.log10(np.maximum(history, 1)) / np.log10(limits)
    alerted = {alert.signal for alert in monitor.all_alerts}
    figure = Figure(figsize=(9, 3.6), layout="constrained", dpi=150)
    axes = figure.add_subplot()
    colours = cycle(COLOURS)
    for place, name in enumerate(monitor.tracks):
        curve = np.minimum(shares[::step, place], 1.6)
        if name in alerted:
            axes.plot(numbers[::step], curve, color=next(colours), linewidth=1.6, label=name, zorder=3)
        else:
            axes.plot(numbers[::step], curve, color=QUIET, linewidth=0.6, alpha=0.6)
    axes.axhline(1, color=LIMIT, linewidth=1.2, linestyle=(0, (5, 3)))
    axes.text(numbers[0], 1.03, "alert", color=LIMIT, fontsize=9)
    axes.set(xlabel="request since the reference", ylabel="evidence (1: threshold)", ylim=(0, 1.65))
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    if alerted:
        axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False, fontsize=9)
    stream = io.BytesIO()
    figure.savefig(stream, format="png")
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()


def write(result: CheckResult, canary: dict[str, Any] | None, path: Path) -> None:
    """Write the HTML page atomically."""
    monitor, open_alerts = result.monitor, result.monitor.alerts()
    rows = [
        {"name": name, **row, "share": round(100 * evidence_share(row["statistic"], row["threshold"]))}
        for name, row in signals(monitor).items()
    ]
    highest = max(rows, key=lambda row: row["share"], default={"name": ""})["name"]
    alerts = ", ".join(f"{alert.signal} at request {alert.opened:,}" for alert in monitor.all_alerts) or "none"
    write_page(
        path,
        "drift_page.html",
        open_alerts=open_alerts,
        closed=[alert for alert in monitor.all_alerts if not alert.is_open],
        rows=rows,
        groups=next((groups for alert in open_alerts if (groups := alert.evidence.get("groups"))), []),
        canary=canary,
        monitor=monitor,
        new=result.new,
        remarks=result.remarks,
        plot=draw_statistics(monitor) if monitor.history else "",
        described=f"Evidence of {len(monitor.tracks)} signals. Alerts: {alerts}. Highest now: {highest}.",
    )
