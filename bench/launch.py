"""The parent's end of one pass: a child process whose every possible end becomes an outcome.

A child is forked from a server that has imported the heavy modules once, so that start-up costs
milliseconds instead of the import of torch for every pass, and yet every pass begins with a fresh
process. The server never runs a workload and never touches a device: CUDA does not survive a fork.

``Launcher`` and ``Running`` are all that ``bench.run`` knows, so that children may live elsewhere.
"""

from __future__ import annotations

import json
import os
import selectors
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import forkserver, get_context
from pathlib import Path
from typing import Any, Protocol

import psutil

from bench.errors import UserError
from bench.record import Status
from bench.track import nvml
from bench.worker import DUMP_SIGNAL, Job, main
from bench.workload import Missing

LAST_WORDS_SECONDS = 5.0  # how long a child that has said its last word may take to leave
START_ATTEMPTS = 20  # two seconds in all
LOG_LIMIT = 32 * 2**20  # bytes of output kept per pass
LOG_KEPT = 2**20

Event = dict[str, Any]  # as sent by bench.worker: ready | progress | cell | done | failed


@dataclass(frozen=True)
class End:
    """How a child ended. ``status`` is None when the workload ran to its end, else ``reason`` says why."""

    status: Status | None = None
    reason: str | None = None


class Running(Protocol):
    """A pass being measured."""

    end: End | None  # set once nothing more will come

    def poll(self, timeout: float) -> list[Event]:
        """Events since the last call; waits up to ``timeout`` seconds for the first one."""

    def usage(self) -> dict[str, float]:
        """What it uses now, for the eye only, e.g. ``{"rss_bytes": 1e9}``; empty if unknown."""

    def stop(self) -> None:
        """End it and all its descendants now. Does nothing after the end."""


class Launcher(Protocol):
    """Starts passes somewhere."""

    def launch(self, job: Job) -> Running:
        """Start a pass. Raises UserError only if no pass could ever be started."""


class LocalLauncher:
    """Children on this machine, forked from a pre-imported server.

    The server starts at once, in the background; ``preload`` are the modules it imports and ``log``
    receives what they print. ``server_s`` is how long the first pass had to wait for it, in seconds.
    """

    def __init__(self, preload: tuple[str, ...], log: Path) -> None:
        self.server_s: float | None = None
        self._preload = ("bench.worker", *preload)
        self._log = log
        self._context = get_context("forkserver")
        # A fork server that asks CUDA whether it is there would spoil CUDA for every child.
        os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
        with _start_errors(log):
            self._start_server(self._preload)

    def launch(self, job: Job) -> LocalRunning:
        """Start ``job`` in a child. The first call waits for the server's imports."""
        with _start_errors(self._log):
            if self.server_s is None:
                self._await_server()
            reader, writer = self._context.Pipe(duplex=False)
            child = self._context.Process(target=main, args=(job, writer, time.monotonic()))
            self._start(child)
            writer.close()
            return LocalRunning(child, reader, job)

    def _start_server(self, preload: tuple[str, ...]) -> None:
        self._context.set_forkserver_preload(list(preload))
        with _output_to(self._log):
            forkserver.ensure_running()

    def _await_server(self) -> None:
        """Fork a child that does nothing: it begins when the server has done its imports."""
        started = time.monotonic()
        child = self._context.Process(target=time.monotonic)
        self._start(child)
        child.join()
        self.server_s = time.monotonic() - started

    def _start(self, child: Any) -> None:
        """Start a child, on a new server if the old one is dead; one that died of its imports gets none."""
        for left in reversed(range(START_ATTEMPTS)):
            try:
                return child.start()
            except (OSError, EOFError):
                if not left:
                    raise
                time.sleep(0.1)  # a dying server still counts as running for a moment
                self._start_server(self._preload if self.server_s is not None else ())


@contextmanager
def _start_errors(log: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, EOFError) as error:
        raise UserError(f"cannot start a child process: {error}", hint=f"see {log}") from error


@contextmanager
def _output_to(log: Path) -> Iterator[None]:
    """Let a process started meanwhile (the fork server) print into ``log``, not across the live view."""
    log.parent.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    target = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    saved = [(fd, os.dup(fd)) for fd in (1, 2)]
    try:
        for fd, _ in saved:
            os.dup2(target, fd)
        yield
    finally:
        os.close(target)
        for fd, copy in saved:
            os.dup2(copy, fd)
            os.close(copy)


class LocalRunning:
    """A child process of this machine; see ``Running``."""

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
        _shorten(self._job.log)
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
        """Whole lines that the pipe holds now. A grandchild may keep it open for ever: no waiting for its end."""
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


def _shorten(log: Path) -> None:
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
