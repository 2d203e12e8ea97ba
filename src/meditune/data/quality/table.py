"""What quality control found, for the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

DONE = {"drop": "left out", "merge": "merged", "mend": "mended", "flag": "flagged", "group": "kept in one split"}


def print_audit(quality: dict[str, Any], out: Console) -> None:
    """A line for each rule that found something, and what was left out and changed in all."""
    from rich.table import Table

    audit = quality["audit"]
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("Rule")
    table.add_column("Rows", justify="right")
    table.add_column("Share", justify="right")
    table.add_column("What was done")
    for name, row in audit["rules"].items():
        if row["rows"]:
            done = ", ".join(f"{count:,} {DONE[action]}" for action, count in row["done"].items())
            table.add_row(name, f"{row['rows']:,}", f"{row['share']:.1%}", done)
    if table.row_count:
        out.print(table)
    silent = [name for name, row in audit["rules"].items() if not row["rows"] and row["action"] != "off"]
    if silent:
        out.print(f"Nothing found by: {', '.join(silent)}", style="dim")
    touched = audit["dropped"] or audit["changed"]
    out.print(
        f"Quality control: {audit['rows']:,} rows, {audit['dropped']:,} left out, {audit['changed']:,} changed."
        + (" Each is in ledger.parquet; `meditune data restore DIR ID` gives it back." if touched else "")
    )
    if quality.get("not_split"):
        out.print(f"Not split: {quality['not_split']}", markup=False)
