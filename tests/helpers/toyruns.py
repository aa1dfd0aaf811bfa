"""What is asked of runs of a suite of toys, whatever started them."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from bench.results.record import Record, Status
from bench.results.store import RECORDS, read_records


def eventually(condition: Callable[[], Any], seconds: float = 30.0) -> Any:
    """What ``condition`` says when it first holds, or at the end of its time."""
    deadline = time.monotonic() + seconds
    while not (found := condition()) and time.monotonic() < deadline:
        time.sleep(0.02)
    return found


def whole_records(results: Path) -> list[Record]:
    """All records of all runs below a results folder, of which no line is damaged."""
    found = []
    for path in sorted(results.glob(f"*/*/{RECORDS}")):
        records, damaged = read_records(path)
        assert not damaged
        found += records
    return found


def check_all_there_once(records: Sequence[Record], count: int) -> None:
    """Every one of ``count`` cells has one record, with the right sum."""
    assert len(records) == len({record.cell for record in records}) == count
    for record in records:
        assert record.status is Status.OK, record.reason
        length = record.params["length"]
        assert isinstance(length, int)
        assert record.metrics["total"].value == length * (length - 1) // 2
