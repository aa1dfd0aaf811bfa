"""What a page says of a comparison."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bench.report.tables import Table


@dataclass(frozen=True)
class Compared:
    """A comparison ready to be shown. ``counts`` maps each verdict to how many numbers came to it."""

    title: str
    lines: Sequence[str]
    counts: Mapping[str, int]
    table: Table
    machines: Table
