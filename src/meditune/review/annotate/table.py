"""Results in the terminal."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table


def print_results(found: dict[str, Any], out: Console) -> None:
    """Verdicts, agreement, raters, signals, and what is open."""
    table = Table(box=None, pad_edge=False)
    for title in ("verdict", "rows", "ratings"):
        table.add_column(title, justify="left" if title == "verdict" else "right")
    for verdict, rows in found["rows_by_verdict"].items():
        table.add_row(verdict, str(rows), str(found["ratings_by_verdict"][verdict]))
    table.add_row("undecided", str(len(found["undecided"])), "")
    out.print(table)
    out.print(
        f"{found['judged']} of {found['rows']} rows judged, {found['ratings']} ratings ({found['cannot']} couldn't "
        f"judge). Texts changed: {found['changed']}. Rows that rest on one rater's word: {found['by_one_rater']}."
    )
    for name, share in {"all": found["correct"], **found["sources"], **found["kinds"]}.items():
        if share["decided"]:
            low, high = share["ci95"]
            out.print(
                f"Correct as they stand, {name}: {share['percent']:.0f} % of {share['decided']} "
                f"(95 % interval {low:.0f} to {high:.0f}).",
                highlight=False,
            )
    if "decisions" in found:
        given = ", ".join(f"{name} {count}" for name, count in found["decisions"].items())
        out.print(f"Decisions: {given}.", highlight=False)
    alpha = found["agreement"]["alpha"]
    if alpha["value"] is not None:
        out.print(f"Agreement: Krippendorff's alpha {alpha['value']:.2f} on {alpha['items']} rows.")
    for name, seen in found["suspicions"].items():
        if seen["decided"]:
            out.print(f"Suspicion {name}: {seen['faulty']} of {seen['decided']} such rows aren't correct.")
    for rater in found["raters"]:
        known = f"{rater['known_right']} of {rater['known_judged']} known items right"
        out.print(f"{rater['code']} {rater['name']}: {known}.", markup=False, highlight=False)
    open_ = [row for row in found["disputed"] if not row["settled"]]
    if open_:
        out.print(f"Disputed rows: {len(open_)}. To settle them: meditune annotate serve DIR --adjudicate")
    for remark in found["remarks"]:
        out.print(remark, style="yellow", markup=False)
