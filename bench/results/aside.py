"""Moving lines out of a ``records.jsonl`` that are no records, or no longer what was measured."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from bench.results.atomic import replaced
from bench.results.digest import Integrity
from bench.results.index import Index
from bench.results.outline import DAMAGED_LINE
from bench.results.segment import moved


@dataclass(frozen=True)
class BadLines:
    """Rows of an index that were set aside."""

    damaged: list[int]
    edited: list[int]

    @property
    def rows(self) -> list[int]:
        """All of them, in the order of the file."""
        return sorted(self.damaged + self.edited)


def set_aside(index: Index, aside: Path) -> BadLines:
    """Append such lines to ``aside`` and take them out of the index's file. Raises OSError, UserError.

    Segments of the blocks behind them stay true: they are renamed to where their blocks are now.
    """
    bad = BadLines([*index.rows(DAMAGED_LINE)], [*index.rows(Integrity.BROKEN)])
    if not bad.rows:
        return bad
    with open(aside, "ab") as file:
        file.writelines(index.line(row) + b"\n" for row in (*bad.damaged, *bad.edited))
        file.flush()
        os.fsync(file.fileno())
    taken = [(index.columns["offset"][row], index.columns["length"][row] + 1) for row in bad.rows]
    with replaced(index.path) as file:
        place = 0
        for offset, length in taken:
            file.writelines(index.pieces(place, offset))
            place = offset + length
        file.writelines(index.pieces(place, index.end))
    with suppress(OSError):
        _move_segments(index, taken)
    return bad


def _move_segments(index: Index, taken: Sequence[tuple[int, int]]) -> None:
    for one in sorted(index.valid, key=lambda one: one.start):
        if any(one.start <= offset < one.end for offset, _ in taken):
            one.path.unlink()
        else:
            moved(one, sum(length for offset, length in taken if offset < one.start))
