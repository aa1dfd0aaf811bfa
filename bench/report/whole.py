"""What a report says of all cells of a run, also where it draws only some of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bench.results.record import Record


@dataclass(frozen=True)
class Whole:
    """Counts over all answered cells that belong to the run's plan."""

    statuses: Mapping[str, int]  # how many cells came to what, in order of appearance
    planned: int  # cells of the plan; 0 if it is unknown
    unanswered: int  # of these
    passes: int
    spent: float  # seconds of measuring, of all passes
    begin: str  # ISO 8601, UTC; empty without records
    end: str
    environments: int
    edited: int  # records that do not match their digest
    chosen: str = ""  # where only some cells are drawn: which, as a sentence without its full stop

    @property
    def answered(self) -> int:
        """Cells that came to something."""
        return sum(self.statuses.values())

    @property
    def total(self) -> int:
        """Cells of the run, answered or not."""
        return max(self.planned, self.answered)


def whole_of(records: Sequence[Record], planned: Mapping[str, str], edited: int) -> Whole:
    """The counts of a run whose records are all at hand."""
    passes: dict[str, float] = {}
    for record in records:
        passes[record.pass_id] = max(passes.get(record.pass_id, 0.0), record.duration_s)
    return Whole(
        statuses=Counter(str(record.status) for record in records),
        planned=len(planned),
        unanswered=len(planned.keys() - {record.cell for record in records}),
        passes=len(passes),
        spent=sum(passes.values()),
        begin=min((record.started for record in records), default=""),
        end=max((record.finished for record in records), default=""),
        environments=len({record.env for record in records}),
        edited=edited,
    )
