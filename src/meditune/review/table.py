"""Results in the terminal."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table

from meditune.evaluate.compare import LEVEL

VERDICTS = {True: "[green]better[/]", False: "[red]worse[/]", None: "not shown"}


def print_results(found: dict[str, Any], out: Console) -> None:
    """Each line of the form: scores of base, tuned and reference, tuned against base, agreement."""
    table = Table(box=None, pad_edge=False)
    titles = ("asked", "base", "tuned", "reference", "tuned - base", "95 % interval", "p, Holm", "verdict", "alpha")
    for title in titles:
        table.add_column(title, justify="left" if title in {"asked", "verdict"} else "right")
    for title, row in (
        ("Over all lines", found["overall"]),
        *((axis["title"], axis) for axis in found["axes"].values()),
    ):
        scores = [_number(row["origins"][name]["score"], 1) for name in ("base", "tuned", "reference")]
        table.add_row(title, *scores, *_difference(row["difference"]), _alpha(row))
    out.print(table)
    out.print("Scores: 100 is the best option every time. Alpha: Krippendorff's; 1 is full agreement, 0 chance.")
    out.print(
        f"{found['ratings']:,} ratings of {found['answers']:,} answers by {found['raters']} raters "
        f"({found['cannot']:,} couldn't judge); {len(found['disputed'])} answers disputed, "
        f"{found['adjudicated']} ratings settled."
    )
    for remark in found["remarks"]:
        out.print(remark, style="yellow", markup=False)


def _alpha(row: dict[str, Any]) -> str:
    return _number(row["agreement"]["alpha"]["value"], 2) if "agreement" in row else ""


def _difference(row: dict[str, Any] | None) -> tuple[str, str, str, str]:
    if not row:
        return "", "", "", ""
    low, high = row["ci95"]
    p = row.get("p_holm")
    shown = "" if p is None else "<0.001" if p < 0.001 else f"{p:.3f}"
    chance = row["better"] and p is not None and p >= LEVEL
    return f"{row['delta']:+.1f}", f"{low:+.1f} to {high:+.1f}", shown, VERDICTS[row["better"]] + "?" * bool(chance)


def _number(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:.{digits}f}"
