"""How a workload's answers leave the child: checked, as plain JSON, one line per event.

What a workload may get wrong (a foreign cell, an undeclared metric, a tensor for a number) is refused
here, in the child, where the traceback points at the culprit. No number leaves as NaN: it becomes null
with the reason.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.results.status import Status
from bench.track.contention import Contention, is_disturbed
from bench.workload import Cell, Missing, Pass, Samples, Scalar, Workload

SCRATCH = "scratch"  # folder of what passes keep for their next attempt, one folder a pass
PROGRESS_SECONDS = 0.2  # at most five progress events per second


class Events:
    """Writes one JSON line per event; safe to use from several threads."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._lock = threading.Lock()

    def send(self, event: str, **data: Any) -> None:
        """Send an event; returns when the parent's pipe has taken all of it."""
        line = json.dumps({"event": event, **data}, allow_nan=False).encode() + b"\n"
        with self._lock:
            view = memoryview(line)
            while view:
                view = view[os.write(self._fd, view) :]


class WorkerContext:
    """What a running workload may tell the harness; see ``bench.workload.Context``."""

    def __init__(self, work: Pass, workload: Workload, events: Events, out: Path, root: Path) -> None:
        self.out = out
        self.scratch = root / SCRATCH / work.id
        self._root = root
        self._events = events
        self._units = {metric.name: metric.unit for metric in workload.metrics}
        self._open = {cell.id for cell in work.cells}
        self._next_progress = 0.0
        self._contention = Contention()

    def progress(self, done: int, total: int, **values: float) -> None:
        """Report progress; more often than five times a second only the last step gets through."""
        now = time.monotonic()
        if now < self._next_progress and done < total:
            return
        self._next_progress = now + PROGRESS_SECONDS
        finite = {name: float(value) for name, value in values.items() if math.isfinite(value)}
        self._events.send("progress", done=int(done), total=int(total), values=finite)

    def emit(
        self,
        cell: Cell,
        metrics: Mapping[str, float | int | Missing | Samples | None],
        *,
        status: str = "ok",
        reason: str | None = None,
        facts: Mapping[str, Scalar] | None = None,
        conformance: Mapping[str, Scalar] | None = None,
        artifacts: Sequence[Path] = (),
    ) -> None:
        """Answer a cell. A metric that is NaN or infinite turns ``ok`` into ``nan``.

        Raises ValueError for a cell of another pass or answered before, and for an undeclared metric.
        """
        if cell.id not in self._open:
            raise ValueError(f"cell {cell.label} is not part of this pass or has been answered already")
        unknown = metrics.keys() - self._units.keys()
        if unknown:
            raise ValueError(f"metrics not declared by the workload: {', '.join(sorted(unknown))}")
        if Status(status) is not Status.OK and not reason:
            raise ValueError(f"status {status} of cell {cell.label} needs a reason")
        values = {name: as_value(value, self._units[name]) for name, value in metrics.items()}
        conformance = {**self._contention.facts(), **(conformance or {})}
        if is_disturbed(conformance):
            conformance["disturbed"] = True
        strange = {name: odd for name, (_, odd) in values.items() if odd}
        if strange and Status(status) is Status.OK:
            status, reason = Status.NAN, ", ".join(f"{name} is {odd}" for name, odd in strange.items())
        self._events.send(
            "cell",
            cell=cell.id,
            metrics={name: value for name, (value, _) in values.items()},
            status=Status(status),
            reason=reason,
            facts=_plain(facts),
            conformance=_plain(conformance),
            artifacts=[self._artifact(Path(path)) for path in artifacts],
            finished=time.time(),
        )
        self._open.discard(cell.id)
        self._contention.restart()

    def _artifact(self, path: Path) -> dict[str, Any]:
        with open(path, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        relative = path.resolve().relative_to(self._root.resolve()).as_posix()
        return {"path": relative, "sha256": digest, "bytes": path.stat().st_size}


def as_value(value: Any, unit: str) -> tuple[dict[str, Any], str | None]:
    """A metric as data of ``results.record.Value``, and ``"nan"`` or ``"inf"`` where it was no number."""
    if value is None:
        value = Missing("not reported by the workload")
    if isinstance(value, Missing):
        return {"value": None, "unit": unit, "reason": value.reason}, None
    samples = None
    if isinstance(value, Samples):
        # Seven digits are all that single precision has; the value itself is kept as it is.
        samples = [float(f"{sample:.7g}") for sample in value.values if math.isfinite(sample)]
        value = value.value
    number = _number(value)
    data = {"value": number, "unit": unit, "reason": None, "samples": samples}
    if math.isfinite(number):
        return data, None
    return {**data, "value": None, "reason": f"measured {number}"}, str(number)


def _number(value: Any) -> int | float:
    """A plain number; those of numpy and torch know ``item``."""
    plain = value.item() if hasattr(value, "item") else value
    if isinstance(plain, bool) or not isinstance(plain, int | float):
        raise TypeError(f"a metric must be a number, Missing or Samples, not {plain!r}")
    return plain


def _plain(data: Mapping[str, Any] | None) -> dict[str, Scalar]:
    """Facts as JSON scalars; NaN and infinity become null."""
    plain = {key: value.item() if hasattr(value, "item") else value for key, value in (data or {}).items()}
    return {
        key: None if isinstance(value, float) and not math.isfinite(value) else value
        for key, value in plain.items()
    }
