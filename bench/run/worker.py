"""The child's end of one pass: runs the workload and tells the parent, one JSON line per event.

The child leads its own process group, writes its output and any fatal traceback to the pass's log,
and dies with its parent. Everything a workload can do wrong in Python becomes a ``failed`` event with
a status and a one-line reason; what it can do wrong below Python (segfault, kill, hang) is seen from
outside, in ``bench.run.child``.
"""

from __future__ import annotations

import errno
import faulthandler
import os
import signal
import sys
import threading
import time
import traceback
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import connection, parent_process
from pathlib import Path
from typing import Any

from bench.results.status import DISK_FULL, Status
from bench.run.context import Events, WorkerContext
from bench.run.meaning import check_planned
from bench.workload import Pass, Skip, Workload

try:
    import resource
except ImportError:  # no Unix: `bench.run.launch.check_system` says so before there is a child
    resource = None  # type: ignore[assignment]

DUMP_SIGNAL = getattr(signal, "SIGUSR1", 0)  # asks a child for the stacks of all its threads, in its log
# How allocators say it in a RuntimeError, on the host and on CUDA.
OUT_OF_MEMORY = (
    "can't allocate memory",
    "not enough memory",
    "Cannot allocate memory",
    "CUDA out of memory",
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
)


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
        startup_s = time.monotonic() - launched
        events.send("ready", startup_s=startup_s, not_preloaded=absent)
        print(f"pass {job.work.id}, {len(job.work.cells)} cells; the child took {startup_s:.3f} s to start")
        job.out.mkdir(parents=True, exist_ok=True)
        _limit_memory(job.memory_limit)
        check_planned(workload, job.work)
        workload.run(job.work, WorkerContext(job.work, workload, events, job.out, job.root))
        events.send("done")
    except BaseException as error:  # SystemExit and KeyboardInterrupt too: the parent must hear of it
        _limit_memory(None)
        status, reason = outcome(error)
        if status is not Status.SKIPPED:
            with suppress(OSError):  # the log may be what there is no room for
                traceback.print_exc()
        events.send("failed", status=status, reason=reason)
    finally:
        with suppress(OSError):
            sys.stdout.flush()
        os._exit(0)  # no atexit handlers: a library that hangs in one has nothing more to say


def outcome(error: BaseException) -> tuple[Status, str]:
    """Status and one-line reason of an exception, told apart by class name: torch is not imported here.

    An exception says by an attribute ``nan`` that numbers were none.
    """
    text = " ".join(str(error).split())[:300]
    name = type(error).__name__
    if isinstance(error, Skip):
        return Status.SKIPPED, text or "a need of this workload is missing"
    reason = f"{name}: {text}" if text else name
    if _is_full(error):
        return Status.ERROR, f"{DISK_FULL}: {reason}"
    refused = isinstance(error, OSError) and error.errno == errno.ENOMEM
    refused |= isinstance(error, RuntimeError) and any(words in text for words in OUT_OF_MEMORY)
    if refused or isinstance(error, MemoryError) or name == "OutOfMemoryError":
        return Status.OOM, reason
    return Status.NAN if getattr(error, "nan", False) else Status.ERROR, reason


def _is_full(error: BaseException) -> bool:
    """Whether there was no room on a disk, however a library has wrapped that."""
    seen: set[int] = set()
    one: BaseException | None = error
    while one is not None and id(one) not in seen:
        seen.add(id(one))
        if isinstance(one, OSError) and one.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        if "No space left on device" in str(one):
            return True
        one = one.__cause__ or one.__context__
    return False


def load_target(target: str) -> Workload:
    """Import ``module:attribute``; an attribute that is a class is instantiated."""
    import importlib

    module, _, attribute = target.partition(":")
    found: Any = importlib.import_module(module)
    for part in attribute.split("."):
        found = getattr(found, part)
    return found() if isinstance(found, type) else found


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
