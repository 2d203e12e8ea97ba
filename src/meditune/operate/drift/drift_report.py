"""Reports of a drift check: JSON, terminal lines, and a self-contained HTML page with a plot of the statistics.

Texts are masked before they arrive here.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from meditune.evaluate.report.formatting import style
from meditune.files import replace_file
from meditune.operate.drift.alerts import Alert
from meditune.operate.drift.drift_detection import CheckResult
from meditune.operate.drift.monitor import Monitor
from meditune.operate.drift.signals import BY_NAME, MEANING_TITLE


def as_dict(result: CheckResult) -> dict[str, Any]:
    """Return `requests`, `new`, `reference`, `policy`, `signals`, `alerts`, `remarks`. The keys are stable."""
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
    """Return for each signal `title`, `about`, `state` (quiet, open, unknown), `statistic`, `threshold`, `missing`."""
    open_now = {alert.signal for alert in monitor.alerts()}
    limits = monitor.limits()
    rows = {}
    for name, track in monitor.tracks.items():
        signal = BY_NAME.get(name)
        unknown = bool(monitor.count) and monitor.missing[name] == monitor.count
        rows[name] = {
            "title": signal.title if signal else MEANING_TITLE,
            "about": signal.about if signal else "inputs",
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
    yield f"{result.new:,} new requests, {monitor.count:,} since the reference of {size:,}."
    yield ""
    yield f"{'signal':<15}{'state':<9}{'evidence':<22}what"
    for name, row in signals(monitor).items():
        share = evidence_share(row["statistic"], row["threshold"])
        bar = "█" * round(10 * share)
        yield f"{name:<15}{row['state']:<9}{bar:<11}{100 * share:>4.0f} %     {row['title']}"
    for alert in monitor.alerts():
        yield ""
        yield from alert_lines(alert, monitor.count)
    closed = [alert for alert in monitor.all_alerts if not alert.is_open]
    if closed:
        yield ""
        yield "Over: " + "; ".join(
            f"{a.signal} (requests {a.opened:,} to {a.closed:,}, {a.severity})" for a in closed[-10:]
        )
    for remark in result.remarks:
        yield ""
        yield f"Note: {remark}"


def alert_lines(alert: Alert, count: int) -> Iterator[str]:
    """Yield one open alert as terminal lines."""
    yield f"ALERT {alert.signal}, {alert.severity} ({alert.effect_name} {alert.effect:+.2f}): {alert.message}"
    since = f" ({alert.since_id})" if alert.since_id else ""
    lasting = count - alert.opened
    yield f"  since request {alert.since:,}{since}, detected at {alert.opened:,}, open for {lasting:,} requests"
    for example in alert.evidence.get("examples", [])[:3]:
        yield f"  {example['id']}: {example['question'] or '(text not stored)'}"
    for group in alert.evidence.get("groups", [])[:3] if alert.signal in ("novelty", "topics", "meaning") else []:
        yield f"  new: {group['questions']} questions ({100 * group['share']:.0f} %) about {group['name']}"


INK, OPEN, QUIET, LIMIT = "#1c2730", "#a12a2a", "#9aa5ad", "#6b5310"
MAX_CURVE_POINTS = 3000
"""Number of points of a curve"""


def draw_statistics(monitor: Monitor) -> str:
    """Return a plot of each signal's evidence as a PNG data URI; open signals are in colour."""
    from matplotlib.figure import Figure

    history = np.array(monitor.history, dtype=np.float64)
    numbers = np.arange(monitor.count - len(history) + 1, monitor.count + 1)
    step = max(1, len(history) // MAX_CURVE_POINTS)
    limits = np.array(list(monitor.limits().values()))
    shares = np.log10(np.maximum(history, 1)) / np.log10(limits)
    alerted = {alert.signal for alert in monitor.all_alerts}
    figure = Figure(figsize=(9, 3.6), layout="constrained", dpi=150)
    axes = figure.add_subplot()
    colours = iter(("#a12a2a", "#0b6670", "#c08a3e", "#5b4b9a", "#2f7d4f", "#8a3b7a", "#3a5f95", "#7a6a1f"))
    for place, name in enumerate(monitor.tracks):
        curve = np.minimum(shares[::step, place], 1.6)
        if name in alerted:
            axes.plot(numbers[::step], curve, color=next(colours, OPEN), linewidth=1.6, label=name, zorder=3)
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


def describe_statistics(monitor: Monitor) -> str:
    """Return a description of the plot."""
    limits = monitor.limits()
    highest = max(
        monitor.tracks,
        key=lambda name: evidence_share(monitor.tracks[name].detector.statistic, limits[name]),
        default="",
    )
    alerts = ", ".join(f"{alert.signal} at request {alert.opened:,}" for alert in monitor.all_alerts) or "none"
    counted = f"{len(monitor.tracks)} signals over {monitor.count:,} requests"
    return f"Evidence of {counted}. Alerts: {alerts}. Highest now: {highest}."


HERE = Path(__file__).parent


def write(result: CheckResult, canary: dict[str, Any] | None, path: Path) -> None:
    """Write the page atomically."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    monitor = result.monitor
    environment = Environment(loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined)
    rows = [
        {"name": name, **row, "share": round(100 * evidence_share(row["statistic"], row["threshold"]))}
        for name, row in signals(monitor).items()
    ]
    open_alerts = monitor.alerts()
    groups: list[dict[str, Any]] = next(
        (alert.evidence["groups"] for alert in open_alerts if alert.evidence.get("groups")), []
    )
    page = environment.get_template("page.html").render(
        style=style(),
        open_alerts=open_alerts,
        closed=[alert for alert in monitor.all_alerts if not alert.is_open],
        rows=rows,
        groups=groups,
        canary=canary,
        monitor=monitor,
        new=result.new,
        remarks=result.remarks,
        plot=draw_statistics(monitor) if monitor.history else "",
        described=describe_statistics(monitor),
    )
    with replace_file(path) as stream:
        stream.write(page)
