"""The loop: every pass that has no answer yet goes to a child, and whatever comes of it is recorded.

What becomes of a single pass is in ``bench.run.one_pass``. Only what makes further work pointless stops the
loop: Ctrl-C, and a disk that takes no more records.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext

from bench.results.record import Record, Status
from bench.results.status import DISK_FULL
from bench.results.store import Store
from bench.run.launch import Launcher
from bench.run.one_pass import NOT_REACHED, RETRIED, Held, Observer, PassRun, RunSession
from bench.workload import Cell, Pass

FAILED = frozenset({Status.OOM, Status.TIMEOUT, Status.ERROR, Status.NAN})
POLL_SECONDS = 0.5


def remaining(passes: Iterable[Pass], store: Store, *, retry_failed: bool = False) -> list[Pass]:
    """The passes with the cells that still have to be measured; passes without any are left out.

    A cell that found the disk full was not measured, and is no failure of its own: it is measured next time.
    """

    def wanted(cell: Cell) -> bool:
        record = store.records.get(cell.id)
        return record is None or (retry_failed and record.status in RETRIED) or found_no_room(record)

    reduced = (dataclasses.replace(work, cells=tuple(filter(wanted, work.cells))) for work in passes)
    return [work for work in reduced if work.cells]


def measure(
    passes: Sequence[Pass],
    session: RunSession,
    launcher: Launcher,
    store: Store,
    observer: Observer,
    held: Held = nullcontext,
) -> None:
    """Measure ``passes``, as many side by side as ``launcher`` has places, and record every cell of them.

    ``held`` guards what an interruption must not cut (see ``bench.run.interrupt``). Raises
    KeyboardInterrupt (the children are stopped, their answers so far are kept) and UserError when
    records cannot be written or children cannot be started.
    """
    waiting = [
        PassRun(work, session, store, observer, held, first=number == 0) for number, work in enumerate(passes)
    ]
    active: list[PassRun] = []
    try:
        while waiting or active:
            while waiting and len(active) < launcher.places():
                observer.pass_started(waiting[0].work)
                active.append(waiting.pop(0))
                active[-1].begin(launcher)
            for one in active:
                one.advance(POLL_SECONDS / len(active))
            for one in [one for one in active if one.ended]:
                active.remove(one)
                if (again := one.again()) is not None:
                    assert one.running is not None
                    assert one.running.end is not None
                    observer.message(f"{one.running.end.reason}; its pass is measured again")
                    waiting.insert(0, again)
                else:
                    observer.pass_ended(one.work, one.close())
    except KeyboardInterrupt:
        for one in active:  # answers on their way are answers
            one.drain()
        raise
    finally:
        for one in active:
            if one.running:
                one.running.stop()


def found_no_room(record: Record) -> bool:
    """Whether a cell was not measured because a disk was full."""
    # The status first: an index has no reason of what went well, and would read on.
    if record.status is not Status.ERROR:
        return False
    return (record.reason or "").removeprefix(NOT_REACHED).startswith(DISK_FULL)


def tally(cells: Iterable[Cell], store: Store) -> Counter[Status]:
    """How the given cells ended; cells without a record are not counted."""
    return Counter(store.records[cell.id].status for cell in cells if cell.id in store.records)


def exit_code(counts: Mapping[Status, int]) -> int:
    """3 if a cell failed or if nothing at all was measured, else 0."""
    failed = any(counts.get(status) for status in FAILED)
    return 3 if failed or not counts.get(Status.OK) else 0
