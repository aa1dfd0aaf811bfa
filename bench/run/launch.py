"""The parent's end of one pass: a child process whose every possible end becomes an outcome.

A child is forked from a server that has imported the heavy modules once, so that start-up costs
milliseconds instead of the import of torch for every pass, and yet every pass begins with a fresh
process. The server never runs a workload and never touches a device: CUDA does not survive a fork.

``Launcher`` and ``Running`` are all that ``bench.run.loop`` knows, so that children may live elsewhere.
"""

from __future__ import annotations

import atexit
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import current_process, forkserver, get_all_start_methods, get_context
from pathlib import Path
from typing import Any, Protocol

from bench import temporary
from bench.errors import UserError
from bench.results.status import Status
from bench.run.child import End, Event, LocalRunning, Place
from bench.run.worker import Job, main, resource
from bench.waiting import waiting_variables

START_ATTEMPTS = 20  # two seconds in all
KILLED_SERVERS = 3  # that died of a signal while they imported: after these, one without imports


class Running(Protocol):
    """A pass being measured."""

    end: End | None  # set once nothing more will come
    place: Place | None  # known before the first event; None: this machine

    def poll(self, timeout: float) -> list[Event]:
        """Events since the last call; waits up to ``timeout`` seconds for the first one."""

    def usage(self) -> dict[str, float]:
        """What it uses now, for the eye only, e.g. ``{"rss_bytes": 1e9}``; empty if unknown."""

    def stop(self) -> None:
        """End it and all its descendants now. Does nothing after the end."""


class Launcher(Protocol):
    """Starts passes somewhere."""

    def await_ready(self) -> None:
        """Wait until passes can be started. Raises UserError if they never can."""

    def places(self) -> int:
        """How many passes may be on their way now. Raises UserError if none ever may again."""

    def launch(self, job: Job) -> Running:
        """Start a pass; quick once ready. Raises UserError only if no pass could ever be started."""


class Refused:
    """A pass that has ended before it was started; see ``Running``."""

    place: Place | None = None

    def __init__(self, reason: str) -> None:
        self.end: End | None = End(Status.ERROR, reason)

    def poll(self, timeout: float) -> list[Event]:
        """Nothing was said."""
        return []

    def usage(self) -> dict[str, float]:
        """Nothing was used."""
        return {}

    def stop(self) -> None:
        """It does not run."""


class LocalLauncher:
    """Children on this machine, forked from a pre-imported server.

    The server starts at once, in the background; ``preload`` are the modules it imports and ``log``
    receives what they print; ``jobs`` passes run side by side. ``server_s`` is how long
    the first pass had to wait for it, in seconds; None until then.
    """

    def __init__(self, preload: tuple[str, ...], log: Path, jobs: int = 1) -> None:
        check_system()
        self._jobs = jobs
        self.server_s: float | None = None
        self._preload = ("bench.run.worker", *preload)
        self._log = log
        self._killed = 0
        self._exited = False  # whether a server ended of its own while it imported
        self._context = get_context("forkserver")
        # A fork server that asks CUDA whether it is there would spoil CUDA for every child.
        os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
        os.environ.update(waiting_variables(os.environ))
        with _start_errors(log):
            _own_folder_of_sockets()
            self._start_server(self._preload)

    def await_ready(self) -> None:
        """Wait for the server's imports: a child that does nothing begins when they are done."""
        if self.server_s is None:
            started = time.monotonic()
            child = self._context.Process(target=time.monotonic)
            with _start_errors(self._log):
                self._start(child)
            child.join()
            self.server_s = time.monotonic() - started

    def places(self) -> int:
        """How many passes may run side by side."""
        return self._jobs

    def launch(self, job: Job) -> LocalRunning:
        """Start ``job`` in a child."""
        self.await_ready()
        with _start_errors(self._log):
            reader, writer = self._context.Pipe(duplex=False)
            child = self._context.Process(target=main, args=(job, writer, time.monotonic()))
            self._start(child)
            writer.close()
            return LocalRunning(child, reader, job)

    def _start_server(self, preload: tuple[str, ...]) -> None:
        self._look_at_the_dead()
        if self.server_s is None and (self._exited or self._killed >= KILLED_SERVERS):
            preload = ()
        self._context.set_forkserver_preload(list(preload))
        with _output_to(self._log):
            forkserver.ensure_running()

    def _start(self, child: Any) -> None:
        """Start a child, on a new server if the old one is dead; after one that died of its imports, one
        without. A server that was killed is no reason to do without them.
        """
        for left in reversed(range(START_ATTEMPTS)):
            try:
                return child.start()
            except (OSError, EOFError):
                if not left:
                    raise
                time.sleep(0.1)  # a dying server still counts as running for a moment
                self._start_server(self._preload)

    def _look_at_the_dead(self) -> None:
        """Count a server that is gone by the way it went; leaves it to be collected by its module."""
        pid = getattr(forkserver._forkserver, "_forkserver_pid", None)
        if pid is None or not hasattr(os, "waitid"):
            return
        try:
            found = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return
        if found is not None:
            self._exited |= found.si_code == os.CLD_EXITED
            self._killed += found.si_code != os.CLD_EXITED


def check_system() -> None:
    """Raises UserError where passes cannot be measured: a child is forked, and limited as Unix does it."""
    if resource is None or "forkserver" not in get_all_start_methods():
        raise UserError(
            f"passes cannot be measured on {sys.platform}: they are forked from a server, which this system "
            "cannot do",
            hint="on Windows use WSL; plan, report, compare, history and publish work here",
        )


def _own_folder_of_sockets() -> None:
    """Let multiprocessing keep its sockets in a folder that the next run removes if this one is killed."""
    config: dict[str, Any] = getattr(current_process(), "_config", {})
    temporary.tidy("run")
    if "tempdir" not in config:
        folder = temporary.own("run")
        config["tempdir"] = str(folder.path)
        atexit.register(folder.remove)


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
