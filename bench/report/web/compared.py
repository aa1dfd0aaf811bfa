"""What a page says of a comparison."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bench.report.tables import Table


@dataclass(frozen=True)
class Compared:
    """A comparison ready to be shown. ``counts``: verdict, how many numbers came to it, and its words."""

    title: str
    lines: Sequence[str]
    counts: Sequence[tuple[str, int, str]]
    table: Table
    machines: Table
