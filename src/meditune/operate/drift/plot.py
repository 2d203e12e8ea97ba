"""The statistics over time with their threshold, as a drawing for the page."""

from __future__ import annotations

import base64
import io

import numpy as np

from meditune.operate.drift.monitor import Monitor
from meditune.operate.drift.report import evidence_share

INK, OPEN, QUIET, LIMIT = "#1c2730", "#a12a2a", "#9aa5ad", "#6b5310"
SHOWN = 3000
"""Points of a curve"""


def drawn(monitor: Monitor) -> str:
    """A PNG as a data URI: each signal's evidence, open ones in colour; its words are beside it on the page."""
    from matplotlib.figure import Figure

    history = np.array(monitor.history, dtype=np.float64)
    numbers = np.arange(monitor.count - len(history) + 1, monitor.count + 1)
    step = max(1, len(history) // SHOWN)
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


def described(monitor: Monitor) -> str:
    """The drawing in words."""
    limits = monitor.limits()
    highest = max(
        monitor.tracks, key=lambda name: evidence_share(monitor.tracks[name].seat.statistic, limits[name]), default=""
    )
    said = ", ".join(f"{alert.signal} at request {alert.opened:,}" for alert in monitor.all_alerts) or "none"
    counted = f"{len(monitor.tracks)} signals over {monitor.count:,} requests"
    return f"Evidence of {counted}. Alerts: {said}. Highest now: {highest}."
