"""What a check found: as JSON, and in the terminal."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from meditune.operate.drift.alerts import Alert
from meditune.operate.drift.checking import Checked
from meditune.operate.drift.monitor import Monitor
from meditune.operate.drift.signals import BY_NAME, MEANING_TITLE


def as_dict(found: Checked) -> dict[str, Any]:
    """`requests`, `new`, `reference`, `policy`, `signals`, `alerts`, `remarks`. Stable keys."""
    monitor = found.monitor
    return {
        "requests": monitor.count,
        "new": found.new,
        "reference": {"sha256": monitor.reference.sha256} | monitor.reference.about,
        "policy": asdict(monitor.policy),
        "signals": signals(monitor),
        "alerts": [alert.as_dict() for alert in monitor.all_alerts],
        "remarks": found.remarks,
    }


def signals(monitor: Monitor) -> dict[str, dict[str, Any]]:
    """Of each signal: `title`, `about`, `state` (quiet, open, unknown), `statistic`, `threshold`, `missing`."""
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
            "statistic": track.seat.statistic,
            "threshold": limits[name],
            "missing": monitor.missing[name],
        }
    return rows


def evidence_share(statistic: float, threshold: float) -> float:
    """How far a statistic is on its way to the threshold, by its logarithm, 0 to 1."""
    return min(1.0, max(0.0, math.log10(max(statistic, 1.0)) / math.log10(threshold)))


def lines(found: Checked) -> Iterator[str]:
    """The check in the terminal."""
    monitor = found.monitor
    size = monitor.reference.about["requests"]
    yield f"{found.new:,} new requests, {monitor.count:,} since the reference of {size:,}."
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
    for remark in found.remarks:
        yield ""
        yield f"Note: {remark}"


def alert_lines(alert: Alert, count: int) -> Iterator[str]:
    """One open alert."""
    yield f"ALERT {alert.signal}, {alert.severity} ({alert.effect_name} {alert.effect:+.2f}): {alert.said}"
    since = f" ({alert.since_id})" if alert.since_id else ""
    lasting = count - alert.opened
    yield f"  since request {alert.since:,}{since}, seen at {alert.opened:,}, open for {lasting:,} requests"
    for example in alert.evidence.get("examples", [])[:3]:
        yield f"  {example['id']}: {example['question'] or 'its text was not kept'}"
    for group in alert.evidence.get("groups", [])[:3] if alert.signal in ("novelty", "topics", "meaning") else []:
        yield f"  new: {group['questions']} questions ({100 * group['share']:.0f} %) about {group['name']}"
