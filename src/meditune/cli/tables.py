"""Functions that print and format the command line's tables, statistics and JSON objects."""

from __future__ import annotations

import json
import sys
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.text import Text
from typer import echo

if TYPE_CHECKING:
    from rich.console import Console

Cell = str | Text
WIDTH = 200  # Characters per line outside a terminal
VERDICTS = {
    True: Text("significantly better", "green"),
    False: Text("significantly worse", "red"),
    None: Text("no significant change"),
}


def console() -> Console:
    """Return a console on standard output; outside a terminal it prints plain text and doesn't wrap."""
    from rich.console import Console

    width = None if sys.stdout.isatty() else WIDTH
    return Console(highlight=False, emoji=False, markup=False, soft_wrap=True, width=width)


def print_table(titles: Sequence[str], rows: Iterable[Sequence[Cell]], left_aligned: Collection[str] = ()) -> None:
    """Print rows of cells under their titles, or nothing if there are no rows.

    The first column and those named in `left_aligned` are aligned to the left, all others to the right.
    """
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for number, title in enumerate(titles):
        table.add_column(title, justify="left" if number == 0 or title in left_aligned else "right")
    for row in rows:
        table.add_row(*row)
    if table.row_count:
        console().print(table)


def print_lines(lines: Iterable[str]) -> None:
    """Print lines on stdout unchanged."""
    for line in lines:
        echo(line)


def print_notes(notes: Iterable[str]) -> None:
    """Print remarks on stderr, each after "Note: "."""
    for note in notes:
        echo(f"Note: {note}", err=True)


def print_remarks(remarks: Iterable[str]) -> None:
    """Print remarks on stdout in yellow."""
    for remark in remarks:
        console().print(remark, style="yellow")


def print_json(value: Mapping[str, Any], indent: int | None = 2) -> None:
    """Print a value as JSON."""
    echo(json.dumps(value, ensure_ascii=False, indent=indent))


def number(value: float | None, digits: int, sign: str = "") -> str:
    """Return a rounded value, or "" for None. With `sign` "+", positive values get a plus sign."""
    return "" if value is None else f"{value:{sign}.{digits}f}"


def interval(row: Mapping[str, Any], digits: int) -> str:
    """Return the 95% interval of a difference as text, such as "-0.1 to +2.3"."""
    low, high = row["ci95"]
    return f"{low:+.{digits}f} to {high:+.{digits}f}"


def p_value(value: float | None) -> str:
    """Return a p-value with three decimals, "<0.001" below that, or "" for None."""
    return "" if value is None else "<0.001" if value < 0.001 else f"{value:.3f}"
