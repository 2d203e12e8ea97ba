"""The evidence as one HTML page that opens anywhere, offline. Texts on it are masked before they come here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from meditune.evaluate.report.template import style
from meditune.files import replacing
from meditune.operate.drift import plot, report
from meditune.operate.drift.checking import Checked

HERE = Path(__file__).parent


def write(found: Checked, canary: dict[str, Any] | None, path: Path) -> None:
    """Write the page, whole or not at all."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    monitor = found.monitor
    environment = Environment(loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined)
    rows = [
        {"name": name, **row, "share": round(100 * report.evidence_share(row["statistic"], row["threshold"]))}
        for name, row in report.signals(monitor).items()
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
        new=found.new,
        remarks=found.remarks,
        plot=plot.drawn(monitor) if monitor.history else "",
        described=plot.described(monitor),
    )
    with replacing(path) as stream:
        stream.write(page)
