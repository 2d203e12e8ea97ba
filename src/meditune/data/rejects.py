"""Rows that a reader refused, and why, so that nothing vanishes in silence."""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from meditune.files import write_jsonl

ROW_CHARACTERS = 500
READ_CHARACTERS = 2 * ROW_CHARACTERS
"""So many are cleaned, so that nothing is cut in two where the row is cut."""
MEMORY_BYTES = 1_000_000


class Rejects:
    """Collects refused rows. Beyond a megabyte they wait in an unnamed temporary file, so memory stays small."""

    def __init__(self, clean: Callable[[str], str] = str) -> None:
        """`clean` takes out of a row's text what may not be kept."""
        self._clean = clean
        self._counts: Counter[tuple[str, str]] = Counter()
        self._spool = tempfile.SpooledTemporaryFile(  # noqa: SIM115 (lives as long as this object)
            max_size=MEMORY_BYTES, mode="w+", encoding="utf-8", newline="\n"
        )

    def __len__(self) -> int:
        return self._counts.total()

    def add(self, source: str, where: str, reason: str, row: Mapping[str, Any] | str) -> None:
        """Note one refused row.

        `where` is "file:line" or "file, item id". Of `row` the first 500 characters are kept; a reader of
        restricted text passes an identifier only.
        """
        try:
            text = row if isinstance(row, str) else json.dumps(row, ensure_ascii=False, default=str)
        except RecursionError:
            text = "(too deep to show)"
        self._counts[source, reason] += 1
        shown = self._clean(text[:READ_CHARACTERS])[:ROW_CHARACTERS]
        line = {"source": source, "where": where, "reason": reason, "row": shown}
        line = {key: value.encode(errors="backslashreplace").decode() for key, value in line.items()}
        self._spool.seek(0, 2)
        self._spool.write(json.dumps(line) + "\n")

    def count_only(self, source: str, reason: str, count: int = 1) -> None:
        """Count rows that are left out as expected (no answer published), without a line for each."""
        if count:
            self._counts[source, reason] += count

    def counts(self) -> dict[str, dict[str, int]]:
        """For each source, how many rows were left out for each reason, most frequent first."""
        result: dict[str, dict[str, int]] = {}
        for (source, reason), number in self._counts.most_common():
            result.setdefault(source, {})[reason] = number
        return result

    def rows(self) -> Iterator[dict[str, str]]:
        """The rows passed to `add`, in order: `source`, `where`, `reason`, `row`."""
        self._spool.seek(0)
        for line in self._spool:
            yield json.loads(line)

    def places(self, most: int = 3) -> dict[tuple[str, str], list[str]]:
        """Where the first rows were that a source's reason was given for, by source and reason."""
        found: dict[tuple[str, str], list[str]] = {}
        for row in self.rows():
            some = found.setdefault((row["source"], row["reason"]), [])
            if len(some) < most and row["where"] not in some:
                some.append(row["where"])
        return found

    def taken(self) -> list[dict[str, str]]:
        """The rows that were added since they were last taken, which are kept elsewhere from now on."""
        rows = list(self.rows())
        self._spool.seek(0)
        self._spool.truncate()
        return rows

    def write(self, path: Path) -> int:
        """Store the rows as JSON Lines; returns the number of lines (rows only counted have none)."""
        return write_jsonl(path, self.rows())
