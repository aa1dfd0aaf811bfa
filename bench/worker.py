"""The child's end of one pass: runs the workload and tells the parent, one JSON line per event.

The child leads its own process group, writes its output and any fatal traceback to the pass's log,
and dies with its parent. Everything a workload can do wrong in Python becomes a ``failed`` event with
a status and a one-line reason; what it can do wrong below Python (segfault, kill, hang) is seen from
outside, in ``bench.launch``. No number leaves here as NaN: it becomes null with the reason.
"""

from __future__ import annotations

import faulthandler
import hashlib
import json
import math
import os
import resource
import signal
import sys
import threading
import time
import traceback
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import connection, parent_process
from pathlib import Path
from typing import Any

from bench.record import Status
from bench.workload import Cell, Missing, Pass, Samples, Scalar, Skip, Workload

PROGRESS_SECONDS = 0.2  # at most five progress events per second
DUMP_SIGNAL = signal.SIGUSR1  # asks a child for the stacks of all its threads, in its log


@dataclass(frozen=True)
class Job:
    """All that a child needs to know of a pass. ``target`` is the workload as ``module:attribute``."""

    work: Pass
    target: str
    out: Path  # artifacts of this attempt; relative paths in records start at ``root``
    root: Path  # the run folder
    log: Path
    timeout: float | None = None  # seconds
    memory_limit: int | None = None  # bytes of host memory
    preload: tuple[str, ...] = ()


def main(job: Job, pipe: connection.Connection, launched: float) -> None:
    """Run ``job`` in this process and leave it; ``launched`` is the parent's ``time.monotonic()``."""
    os.setsid()
    threading.Thread(target=_die_with_parent, daemon=True).start()
    events = Events(pipe.fileno())
    absent = [name for name in job.preload if name not in sys.modules]
    try:
        _redirect(job.log)
        _offer_to_oom_killer()
        _check_cuda()
        workload = load_target(job.target)
        events.send("ready", startup_s=time.monotonic() - launched, not_preloaded=absent)
        job.out.mkdir(parents=True, exist_ok=True)
        _limit_memory(job.memory_limit)
        workload.run(job.work, WorkerContext(job, workload, events))
        events.send("done")
    except BaseException as error:  # SystemExit and KeyboardInterrupt too: the parent must hear of it
        _limit_memory(None)
        status, reason = outcome(error)
        if status is not Status.SKIPPED:
            traceback.print_exc()
        events.send("failed", status=status, reason=reason)
    finally:
        with suppress(OSError):
            sys.stdout.flush()
        os._exit(0)  # no atexit handlers: a library that hangs in one has nothing more to say


def outcome(error: BaseException) -> tuple[Status, str]:
    """Status and one-line reason of an exception, told apart by class name: torch is not imported here."""
    text = " ".join(str(error).split())[:300]
    name = type(error).__name__
    reason = f"{name}: {text}" if text else name
    if isinstance(error, Skip):
        return Status.SKIPPED, text or "a need of this workload is missing"
    if isinstance(error, MemoryError) or name == "OutOfMemoryError":
        return Status.OOM, reason
    refused = ("can't allocate memory", "not enough memory", "CUDA out of memory", "CUDA error: out of memory")
    if isinstance(error, RuntimeError) and any(words in text for words in refused):
        return Status.OOM, reason
    return Status.ERROR, reason


def load_target(target: str) -> Workload:
    """Import ``module:attribute``; an attribute that is a class is instantiated."""
    import importlib

    module, _, attribute = target.partition(":")
    found: Any = importlib.import_module(module)
    for part in attribute.split("."):
        found = getattr(found, part)
    return found() if isinstance(found, type) else found


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

    def __init__(self, job: Job, workload: Workload, events: Events) -> None:
        self.out = job.out
        self._root = job.root
        self._events = events
        self._units = {metric.name: metric.unit for metric in workload.metrics}
        self._open = {cell.id for cell in job.work.cells}
        self._next_progress = 0.0

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
        metrics: Mapping[str, float | int | None | Missing | Samples],
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

    def _artifact(self, path: Path) -> dict[str, Any]:
        with open(path, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        relative = path.resolve().relative_to(self._root.resolve()).as_posix()
        return {"path": relative, "sha256": digest, "bytes": path.stat().st_size}


def as_value(value: Any, unit: str) -> tuple[dict[str, Any], str | None]:
    """A metric as JSON data of ``bench.record.Value``, and ``"nan"`` or ``"inf"`` where it was no number."""
    if value is None:
        value = Missing("not reported by the workload")
    if isinstance(value, Missing):
        return {"value": None, "unit": unit, "reason": value.reason}, None
    samples = None
    if isinstance(value, Samples):
        samples = [float(sample) for sample in value.values if math.isfinite(sample)]
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


def _redirect(log: Path) -> None:
    """Send everything this process and its children print to the log, fatal tracebacks included."""
    log.parent.mkdir(parents=True, exist_ok=True)
    fd = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    os.dup2(fd, 1)
    os.dup2(fd, 2)
    os.close(fd)
    sys.stdout = open(1, "w", buffering=1, closefd=False)  # noqa: SIM115  (lives as long as the process)
    sys.stderr = open(2, "w", buffering=1, closefd=False)  # noqa: SIM115
    faulthandler.enable(2)
    faulthandler.register(DUMP_SIGNAL, 2, all_threads=True)


def _die_with_parent() -> None:
    """Wait until the parent is gone, however it went, and take the whole process group along."""
    parent = parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os.killpg(0, signal.SIGKILL)


def _offer_to_oom_killer() -> None:
    """When the kernel runs out of memory it should take this child, not the parent or the fork server."""
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("500")


def _limit_memory(limit: int | None) -> None:
    """Limit this process's private writable memory; a refused allocation is then a MemoryError.

    RLIMIT_DATA rather than RLIMIT_AS: CUDA reserves far more address space than it ever uses.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    soft = hard if limit is None else limit if hard == resource.RLIM_INFINITY else min(limit, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def _check_cuda() -> None:
    """A fork server that has touched CUDA hands down a broken driver: say so instead of failing oddly."""
    torch = sys.modules.get("torch")
    poisoned = getattr(getattr(torch, "cuda", None), "_is_in_bad_fork", None)
    if poisoned is not None and poisoned():
        raise RuntimeError("a preloaded module has initialised CUDA in the fork server; do not preload it")
