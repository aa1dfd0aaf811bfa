"""What the index keeps of a line: enough to find, match and count records without reading them.

The rest of a record (its values, columns, conformance) is read from the line itself when it is asked for.
"""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any, NamedTuple

from bench.results.digest import Integrity
from bench.results.record import Record, canonical

DAMAGED_LINE = "damaged"  # stands for an integrity: the line is no record
_SLACK = 1e-6  # relative; samples are stored as measured, summaries computed from them


class Outline(NamedTuple):
    """A line of a ``records.jsonl`` that is not empty. Of a damaged line only the first four are known."""

    offset: int  # of the line's first byte
    length: int  # bytes, without the newline
    line: int  # counted from 0
    seal: str  # an Integrity, or DAMAGED_LINE
    suite: str | None = None
    workload: str | None = None
    run: str | None = None
    cell: str | None = None
    pass_id: str | None = None
    label: str | None = None
    setting: str | None = None  # digest of the parameters; None if they are no JSON
    names: str | None = None  # of the parameters, JSON
    seed: int | None = None
    repeat: int | None = None
    status: str | None = None
    reason: str | None = None
    env: str | None = None
    started: str | None = None
    artifacts: str | None = None  # JSON: [[path, sha256], …]; None if there are none
    units: str | None = None  # of the metrics by name, JSON in their own order
    column_names: str | None = None  # JSON
    outside: str | None = None  # a metric whose value lies outside its own samples


def outline(place: tuple[int, int, int], parsed: tuple[Record, Integrity] | None) -> Outline:
    """The outline of a line at ``place`` (offset, length, number), given what ``parse_line`` says of it."""
    if parsed is None:
        return Outline(*place, DAMAGED_LINE)
    record, seal = parsed
    kept = [[artifact.path, artifact.sha256] for artifact in record.artifacts]
    own: dict[str, Any] = {name: getattr(record, name) for name in _COPIED}
    own |= {"names": canonical(list(record.params)), "units": json.dumps(record.units)}
    own |= {"artifacts": canonical(kept) if kept else None, "outside": outside_samples(record)}
    own |= {"column_names": canonical(list(record.columns))}
    with suppress(ValueError):  # parameters that are no JSON (NaN): who needs them reads the record
        own["setting"] = record.setting
    return Outline(*place, str(seal), status=str(record.status), **own)


_COPIED = (
    "suite", "workload", "run", "cell", "pass_id", "label", "seed", "repeat", "reason", "env", "started",
)  # fmt: skip


def outside_samples(record: Record) -> str | None:
    """A metric whose value no mean or median of its samples can be; None if there is none."""
    for name, value in record.metrics.items():
        if value.value is None or not value.samples:
            continue
        slack = _SLACK * max(map(abs, value.samples))
        if not min(value.samples) - slack <= value.value <= max(value.samples) + slack:
            return name
    return None
