"""A run of which not all cells are drawn: those that are, and what it takes to say and write the rest."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from bench.report.frames import RunData
from bench.report.large.every import EveryCell
from bench.results.index import Index


@dataclass
class LargeRun(RunData):
    """The cells drawn, which behave like a run of their own, and the index of all."""

    index: Index = field(kw_only=True)
    rows: Sequence[int] = field(kw_only=True)  # of the index: every cell that counts, in the plan's order
    every: EveryCell = field(kw_only=True)  # the table of all of them

    def all_plain(self) -> Iterator[dict[str, Any]]:
        """Every cell's record as JSON data, read one after the other."""
        return map(self.index.plain, self.rows)
