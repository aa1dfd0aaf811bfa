"""What runs on a node: starts a pass in a child of that machine, and answers the driver's questions.

An agent is a plain class, made a Ray actor by the launcher. It keeps the fork server warm between passes. The
child is the local launcher's: limits, outcomes, crashes and logs are the same code, and the child dies with
the agent as it dies with any parent. Neither the agent's process nor Ray is imported into the child.
"""

from __future__ import annotations

import dataclasses
import os
import platform
import shutil
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing import current_process
from pathlib import Path
from types import ModuleType
from typing import Any

from bench import temporary
from bench.results import environment
from bench.results.environment import Fingerprint
from bench.results.status import Status
from bench.run.child import End, Event, LocalRunning
from bench.run.cluster.scratch import BUSY_SECONDS, Snapshot, Watch, write_piece
from bench.run.launch import LocalLauncher
from bench.run.meaning import Meaning, check_meaning
from bench.run.worker import Job, load_target

CHUNK = 8 * 2**20  # bytes of a file or log in one answer
PUMP_SECONDS = 0.2
NEVER_AT_REST = End(
    Status.ERROR,
    "what the pass keeps changes all the time, so no answer can be taken: it must replace its files, not "
    "append to them",
)

Variables = Mapping[str, str | None]  # of the environment, as the driver has them; None: not set


@dataclass(frozen=True)
class Description:
    """What a node is, asked before anything is started on it."""

    fingerprint: Fingerprint
    version: str  # of the workload's code as it is there


@dataclass(frozen=True)
class Hello:
    """What an agent is: the machine as its children see it."""

    fingerprint: Fingerprint
    host: str
    devices: tuple[str, ...]  # UUIDs of the GPUs that are its


@dataclass(frozen=True)
class Report:
    """What has happened since the last report. ``end`` comes with the last one, after all of the log."""

    events: list[Event] = field(default_factory=list)
    log: bytes = b""
    log_end: int = 0  # where the log's next piece begins
    usage: dict[str, float] = field(default_factory=dict)
    kept: Snapshot | None = None  # of what the pass keeps, if the driver has not had it; to be taken first
    end: End | None = None


def describe(target: str, variables: Variables) -> Description:
    """Fingerprint of this machine, and version of the workload ``target`` (``module:attribute``) here."""
    take_over(variables)
    return Description(environment.fingerprint(), load_target(target).version())


class Agent:
    """Runs one pass at a time on this node."""

    def __init__(self, variables: Variables, preload: tuple[str, ...], folder: str) -> None:
        take_over(variables)
        with suppress(OSError):  # a node may not have the folder where the run was started
            os.chdir(folder)
        be_a_plain_parent()
        temporary.tidy("agent")
        self._folder = temporary.own("agent")
        sockets = self._folder.path / "s"
        sockets.mkdir()
        config: dict[str, Any] = current_process()._config  # type: ignore[attr-defined]
        config["tempdir"] = str(sockets)  # so that all of it goes with our folder
        self._root = self._folder.path / "run"
        self._launcher = LocalLauncher(preload, self._folder.path / "server.log")
        self._changed = threading.Condition()
        self._events: list[Event] = []
        self._stopping = False
        self._pump = threading.Thread()
        self._running: LocalRunning | None = None
        self._watch: Watch | None = None
        self._job: Job | None = None
        self._covered, self._told = 0, 0
        self._held_since: float | None = None

    def hello(self) -> Hello:
        """What this agent is."""
        found, _ = environment.gpus()
        uuids = [str(gpu["uuid"]) for gpu in found]
        return Hello(
            environment.fingerprint(),
            platform.node(),
            visible(uuids, os.environ.get("CUDA_VISIBLE_DEVICES")),
        )

    def clear(self) -> None:
        """End what runs and begin with a clean folder."""
        self._end_pass()
        shutil.rmtree(self._root, ignore_errors=True)

    def put(self, path: str, start: int, piece: bytes) -> None:
        """A piece of what an earlier attempt has kept; ``path`` is relative to the run folder."""
        write_piece(self._root, path, start, piece)

    def start(self, job: Job, there: Meaning) -> None:
        """Start a pass in a folder of this node, after `clear` and `put`.

        ``there``: what its names mean where the run was started. Raises OtherDataError if not the same here.
        """
        check_meaning(load_target(job.target), job.work.cells[0], there)
        self._job = dataclasses.replace(
            job,
            root=self._root,
            out=self._root / job.out.relative_to(job.root),
            log=self._root / job.log.relative_to(job.root),
        )
        self._events, self._stopping = [], False
        self._covered, self._told, self._held_since = 0, 0, None
        self._watch = Watch(self._root, job.work.id)
        self._running = self._launcher.launch(self._job)
        # A thread of its own: a pass keeps its time limit whether or not the driver asks.
        self._pump = threading.Thread(target=self._take_events, args=(self._running,), daemon=True)
        self._pump.start()

    def report(self, taken: int, log_start: int, kept: int, wait: float) -> Report:
        """Events after the first ``taken``, and the log from ``log_start``; waits up to ``wait`` seconds.

        ``kept`` is the number of the last snapshot that the driver has dealt with.

        Asking twice gives the same answer: an answer may be lost on its way.
        """
        assert self._running is not None
        assert self._job is not None
        assert self._watch is not None
        with self._changed:
            self._changed.wait_for(lambda: len(self._events) > taken or not self._pump.is_alive(), wait)
            over = self._running.end if not self._pump.is_alive() else None
            events = self._events[taken:]
        log, log_end = _piece(self._job.log, log_start)
        answered = any(event["event"] == "cell" for event in events)
        cut_off = over is not None and over.status is not None
        snapshot = self._watch.look(kept, now=answered or cut_off, over=over is not None)
        events = self._covered_events(taken, events, snapshot)
        usage = {} if over else self._running.usage()
        end = over if taken + len(events) == len(self._events) else None
        if self._held_since and time.monotonic() - self._held_since > BUSY_SECONDS:
            self._stopping, end = True, NEVER_AT_REST
        whole = len(log) < CHUNK and snapshot is None
        return Report(events, log, log_end, usage, snapshot, end if whole else None)

    def _covered_events(self, taken: int, events: list[Event], snapshot: Snapshot | None) -> list[Event]:
        """Of the ``events`` after ``taken`` those that ``snapshot``, or the one before it, is not older than.

        An answer must not be recorded without what the pass kept before it: a next attempt would miss that.
        """
        assert self._watch is not None
        if snapshot is not None and snapshot.number != self._told:
            self._told, self._covered = snapshot.number, taken + len(events)
        answers = [number for number, event in enumerate(events) if event["event"] == "cell"]
        ahead = [number for number in answers if taken + number >= self._covered]
        if not ahead or self._watch.is_known():
            self._held_since = None
            return events
        self._held_since = self._held_since or time.monotonic()
        return events[: ahead[0]]  # it changes all the time; once more

    def read(self, path: str, start: int, size: int) -> bytes:
        """A piece of a file that the pass has left; ``path`` is relative to the run folder."""
        place = (self._root / path).resolve()
        if not place.is_relative_to(self._root.resolve()):
            raise ValueError(f"{path} leads out of the run folder")
        with open(place, "rb") as file:
            file.seek(start)
            return file.read(min(size, CHUNK))

    def close(self) -> None:
        """End what runs and remove all that is left on this node."""
        self._end_pass()
        self._folder.remove()

    def _end_pass(self) -> None:
        self._stopping = True
        if self._pump.is_alive():
            self._pump.join(30)

    def _take_events(self, running: LocalRunning) -> None:
        try:
            while running.end is None:
                events = running.poll(PUMP_SECONDS)
                if self._stopping:
                    running.stop()
                with self._changed:
                    self._events += events
                    self._changed.notify_all()
        finally:
            running.stop()  # nothing to do, unless we fail: then there must be an end all the same


def visible(uuids: list[str], setting: str | None) -> tuple[str, ...]:
    """Which GPUs ``CUDA_VISIBLE_DEVICES`` leaves, given all of them in the order of the PCI bus."""
    if setting is None:
        return tuple(uuids)
    words = [word.strip() for word in setting.split(",") if word.strip()]
    numbers = {str(number): uuid for number, uuid in enumerate(uuids)}
    return tuple(numbers.get(word, word) for word in words)


def take_over(variables: Variables) -> None:
    """Have the variables that say how threads work as the driver has them: Ray sets some of its own."""
    for name, value in variables.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
    os.environ["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"  # Ray counts GPUs in that order, CUDA need not


def be_a_plain_parent() -> None:
    """Let children be what a local run's are: Ray's main module would be imported into every one of them.

    And let the kernel that runs out of memory take the child: Ray offers its workers first.
    """
    sys.modules["__main__"] = ModuleType("__main__")
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("0")


def _piece(log: Path, start: int) -> tuple[bytes, int]:
    """The log from ``start``, and where the next piece begins; from its beginning if it was cut meanwhile."""
    try:
        with open(log, "rb") as file:
            if os.fstat(file.fileno()).st_size < start:
                start = 0
            file.seek(start)
            found = file.read(CHUNK)
    except FileNotFoundError:
        return b"", start
    return found, start + len(found)
