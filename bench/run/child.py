"""A child process seen from outside: what it says, what it uses, and how it ended.

A child may finish, fail, crash, be killed, hang, or leave grandchildren behind that hold its pipe
open. Each becomes an ``End`` in bounded time, and nothing of it survives: the whole process group goes.
"""

from __future__ import annotations

import json
import os
import selectors
import signal
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from bench.results.record import Status
from bench.run.worker import DUMP_SIGNAL, Job
from bench.track import nvml
from bench.workload import Missing, Scalar

LAST_WORDS_SECONDS = 5.0  # how long a child that has said its last word may take to leave
LOG_LIMIT = 32 * 2**20  # bytes of output kept per pass
LOG_KEPT = 2**20

Event = dict[str, Any]  # as sent by bench.run.worker: ready | progress | cell | done | failed


@dataclass(frozen=True)
class End:
    """How a child ended. ``status`` is None when the workload ran to its end, else ``reason`` says why.

    ``lost``: the machine under it went away, which says nothing of the pass. ``counts``: as one of the
    losses that a pass is granted, though it had not begun.
    """

    status: Status | None = None
    reason: str | None = None
    lost: bool = False
    counts: bool = False


@dataclass(frozen=True)
class Place:
    """Where a pass is measured, if not here: id of the fingerprint there, and facts for its records."""

    env: str
    facts: Mapping[str, Scalar] = field(default_factory=dict)


class LocalRunning:
    """A child process of this machine; see ``bench.run.launch.Running``."""

    place: Place | None = None  # this machine

    def __init__(self, child: Any, reader: Any, job: Job) -> None:
        self.end: End | None = None
        self._child, self._reader, self._job = child, reader, job
        self._deadline = None if job.timeout is None else time.monotonic() + job.timeout
        self._buffer = b""
        self._final: End | None = None  # what the child itself said of its end
        self._oom_kills = _oom_kills()
        gpus = nvml.devices()
        self._gpus = [] if isinstance(gpus, Missing) else gpus
        self._process: psutil.Process | None = None
        with suppress(psutil.Error):
            self._process = psutil.Process(child.pid)
        os.set_blocking(reader.fileno(), False)
        self._selector = selectors.DefaultSelector()
        self._selector.register(reader.fileno(), selectors.EVENT_READ)
        self._selector.register(child.sentinel, selectors.EVENT_READ)

    def poll(self, timeout: float) -> list[Event]:
        """Events since the last call; sets ``end`` when the child is gone or has been made to go."""
        if self.end is not None:
            return []
        if self._deadline is not None:
            timeout = max(0.0, min(timeout, self._deadline - time.monotonic()))
        ready = {key.fd for key, _ in self._selector.select(timeout)}
        events = self._read()
        if self._child.sentinel in ready:
            events += self._read()  # what it said between our reading and its end
            self._finish(self._final or self._death())
        elif self._final is not None:
            self._child.join(LAST_WORDS_SECONDS)
            self._finish(self._final)
        elif self._deadline is not None and time.monotonic() >= self._deadline:
            self._dump_stacks()
            events += self._read()
            self._finish(End(Status.TIMEOUT, f"timed out after {self._job.timeout:g} s"))
        shorten(self._job.log)
        return events

    def usage(self) -> dict[str, float]:
        """Resident memory of the child and memory in use on all GPUs together, in bytes."""
        usage: dict[str, float] = {}
        if self._process is not None:
            with suppress(psutil.Error):
                usage["rss_bytes"] = self._process.memory_info().rss
        memory = [gpu.memory() for gpu in self._gpus]
        if memory:
            usage["gpu_bytes"] = sum(m.used for m in memory if not isinstance(m, Missing))
        return usage

    def stop(self) -> None:
        """Kill the child, its process group and every descendant that can be found."""
        if self.end is None:
            self._finish(End(Status.ERROR, "stopped"))

    def _read(self) -> list[Event]:
        """Whole lines that the pipe holds now; a grandchild may keep it open, so its end is not awaited."""
        while True:
            try:
                chunk = os.read(self._reader.fileno(), 1 << 16)
            except BlockingIOError:
                break
            if not chunk:
                with suppress(KeyError):
                    self._selector.unregister(self._reader.fileno())
                break
            self._buffer += chunk
        *lines, self._buffer = self._buffer.split(b"\n")
        events = [json.loads(line) for line in lines]
        for event in events:
            if event["event"] == "done":
                self._final = End()
            elif event["event"] == "failed":
                self._final = End(Status(event["status"]), event["reason"])
        return events

    def _death(self) -> End:
        """The outcome of a child that went without a word."""
        self._child.join()
        code = self._child.exitcode
        if code >= 0:
            return End(Status.ERROR, f"the process ended without a word (exit code {code})")
        name = _signal_name(-code)
        killed = -code == signal.SIGKILL
        if killed and (self._job.memory_limit is not None or _oom_kills() > self._oom_kills):
            return End(Status.OOM, f"killed by {name}: out of host memory")
        return End(Status.ERROR, f"killed by {name}" if killed else f"crashed with {name}")

    def _dump_stacks(self) -> None:
        """Leave in the log where the child hangs."""
        with suppress(OSError):
            os.kill(self._child.pid, DUMP_SIGNAL)
            self._child.join(0.3)

    def _finish(self, end: End) -> None:
        descendants: list[psutil.Process] = []
        if self._process is not None:
            with suppress(psutil.Error):
                descendants = self._process.children(recursive=True)
        with suppress(OSError):
            os.killpg(self._child.pid, signal.SIGKILL)
        with suppress(OSError):
            self._child.kill()  # it may not lead its group yet
        for process in descendants:
            with suppress(psutil.Error):
                process.kill()
        self._child.join(LAST_WORDS_SECONDS)
        self._selector.close()
        self._reader.close()
        self.end = end


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _oom_kills() -> int:
    """How often the kernel has killed for want of memory, here or in our container, so far."""
    total = 0
    for path in ("/proc/vmstat", "/sys/fs/cgroup/memory.events"):
        with suppress(OSError, ValueError):
            for line in Path(path).read_text().splitlines():
                if line.startswith("oom_kill "):
                    total += int(line.split()[1])
    return total


def shorten(log: Path) -> None:
    """Keep only the end of a log that grows without bound. The child appends, so it may be cut meanwhile."""
    with suppress(OSError):
        if log.stat().st_size <= LOG_LIMIT:
            return
        with open(log, "r+b") as file:
            file.seek(-LOG_KEPT, os.SEEK_END)
            tail = file.read(LOG_KEPT)
            file.truncate(0)
        with open(log, "ab") as file:
            file.write(b"(the beginning of this log was cut)\n" + tail)
