"""What was not measured in a large run: every cell is counted, the first causes have a row."""

from __future__ import annotations

from dataclasses import replace

from bench.report.columns import to_frame
from bench.report.large import CHOSEN_CELLS
from bench.report.large.run import LargeRun
from bench.report.tables import Table, cause_of, failures
from bench.results.record import Status


def all_failures(data: LargeRun) -> Table:
    """As `failures`, over all cells: also where none of those that failed is drawn."""
    statuses, reasons, passes = (data.index.columns[name] for name in ("status", "reason", "pass_id"))
    first: dict[tuple[str, str], int] = {}
    lost: dict[tuple[str, str], int] = {}
    for row in data.rows:
        if statuses[row] != Status.OK:
            key = passes[row], cause_of(reasons[row])
            first.setdefault(key, row)
            lost[key] = lost.get(key, 0) + 1
    records = [data.index.record(row) for row in list(first.values())[:CHOSEN_CELLS]]
    table = failures(replace(data, records=records, frame=to_frame(records, data.words.metrics)), lost)
    if len(first) > len(records):
        table.notes.append(
            f"The first {len(records):,} of {len(first):,} causes; full.csv has the status and the reason of "
            "every cell."
        )
    return table
