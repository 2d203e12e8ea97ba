"""The console, and tables in it: every table of the command line is printed here."""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

WIDTH = 200
"""The width outside a terminal, in characters"""


def console() -> Console:
    """Return a console on standard output; outside a terminal it prints plain text and doesn't wrap."""
    from rich.console import Console

    return Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else WIDTH)


def print_table(titles: Sequence[str], rows: Iterable[Sequence[str]], left_aligned: Collection[str] = ()) -> None:
    """Print rows of cells under their titles; nothing without rows. Cells may contain rich's markup.

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
