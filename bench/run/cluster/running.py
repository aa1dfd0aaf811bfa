"""A pass on a node, seen from the driver: asks its agent, fetches what it left, and knows when it is lost."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import ActorUnavailableError, OutOfMemoryError, RayActorError, RayError, RayTaskError

from bench.results.record import Status
from bench.results.store import clear_errors
from bench.run.child import End, Event, Place, shorten
from bench.run.cluster.agent import Hello, Report
from bench.run.cluster.files import ChangedError, receive
from bench.run.cluster.scratch import Copy, Snapshot
from bench.run.meaning import Meaning
from bench.run.worker import Job, outcome

REPORT_SECONDS = 0.5  # how long an agent may wait for something to report
AWAY_SECONDS = 60.0  # an agent that cannot be reached for so long is lost
GREETING_SECONDS = 15.0  # after which the user is told that a node is not free


@dataclass(frozen=True)
class Contact:
    """An agent and what belongs to it. ``hello`` is its answer to who it is, still on its way."""

    agent: Any
    hello: Any
    node: str  # for people
    place_of: Callable[[Hello], Place]  # what records say of it
    lost: Callable[[], None]  # to be called once it is gone
    waiting: Callable[[], None]  # to be called if it has long not begun
    say: Callable[[str], None]  # what the user should know
    meaning: Meaning  # of the names in the pass, here


class _OverError(Exception):
    """The agent gives no answer: ``end`` says why."""

    def __init__(self, end: End) -> None:
        super().__init__(end.reason)
        self.end = end


class RayRunning:
    """A pass of an agent; see ``bench.run.launch.Running``."""

    def __init__(self, contact: Contact, job: Job) -> None:
        self.end: End | None = None
        self.place: Place | None = None
        self._contact, self._agent, self._job = contact, contact.agent, job
        self._begun = time.monotonic()
        self._away_since: float | None = None
        self._taken, self._log_end, self._kept = 0, 0, 0
        self._copy = Copy(job.root, job.work.id)
        self._usage: dict[str, float] = {}
        self._found: Place | None = None  # where it will be, once it has started
        self._started: Any = None
        self._report: Any = None

    def poll(self, timeout: float) -> list[Event]:
        """Events since the last call, their artifacts being here; sets ``end`` after the last one."""
        events: list[Event] = []
        if self.end is not None:
            return events
        try:
            if self.place is None:
                self._greet(timeout)
            elif ray.wait([self._report], timeout=timeout)[0]:
                self._take(self._answer(self._report), events)
                self._away_since = None
        except ActorUnavailableError:
            self._stay_away(timeout)
        except ChangedError as error:
            self._leave(End(Status.ERROR, str(error)))
        except _OverError as over:
            self._leave(over.end)
        return events

    def usage(self) -> dict[str, float]:
        """What the child used at the last report."""
        return self._usage

    def stop(self) -> None:
        """End the pass: its agent goes, and the child with it."""
        if self.end is None:
            self._leave(End(Status.ERROR, "stopped"))

    def _take(self, report: Report, events: list[Event]) -> None:
        """Add to ``events`` those of a report, once all that belongs to them is here."""
        self._usage = report.usage
        self._keep_log(report)
        for event in report.events:
            for artifact in event.get("artifacts", ()):
                receive(self._job.root, artifact, self._read)
        if report.kept is not None:
            self._keep(report.kept, any(event["event"] == "cell" for event in report.events))
        events += report.events
        self._taken += len(report.events)
        if report.end is not None:
            self.end = report.end
        else:
            self._report = self._ask()

    def _keep_log(self, report: Report) -> None:
        self._log_end = report.log_end
        if report.log:
            with clear_errors(f"cannot write {self._job.log}"):
                self._job.log.parent.mkdir(parents=True, exist_ok=True)
                with open(self._job.log, "ab") as file:
                    file.write(report.log)
            shorten(self._job.log)

    def _keep(self, snapshot: Snapshot, answered: bool) -> None:
        """Have what the pass keeps. Where that is not possible, a next attempt has less to go on from.

        Raises ChangedError if answers depend on it: recorded, they would be ahead of what is here.
        """
        try:
            self._copy.take(snapshot, self._read)
        except (ChangedError, OSError) as error:
            if answered:
                raise ChangedError(
                    "what the pass keeps could not be brought here; its answers would be ahead of it: "
                    f"{error}"
                ) from error
            self._contact.say(f"what pass {self._job.work.id} keeps was not brought here: {error}")
        self._kept = snapshot.number

    def _greet(self, timeout: float) -> None:
        """Start the pass once its agent is there, with what an earlier attempt has kept.

        Others are not kept waiting: an agent takes seconds to start its first pass.
        """
        if self._started is not None:
            if ray.wait([self._started], timeout=timeout)[0]:
                started, self._started = self._started, None  # again from the beginning, if it is away
                self._answer(started)
                self.place, self._report, self._away_since = self._found, self._ask(), None
        elif ray.wait([self._contact.hello], timeout=timeout)[0]:
            self._found = self._contact.place_of(self._answer(self._contact.hello))
            self._answer(self._agent.clear.remote())
            for path, start, piece in self._copy.pieces():
                self._answer(self._agent.put.remote(path, start, piece))
            self._started = self._agent.start.remote(self._job, self._contact.meaning)
        elif time.monotonic() - self._begun > GREETING_SECONDS:
            self._contact.waiting()

    def _ask(self) -> Any:
        return self._agent.report.remote(self._taken, self._log_end, self._kept, REPORT_SECONDS)

    def _read(self, path: str, start: int, size: int) -> bytes:
        data: bytes = self._answer(self._agent.read.remote(path, start, size))
        return data

    def _answer(self, ref: Any) -> Any:
        """What the agent answers. Raises _OverError if it never will, ActorUnavailableError if not now."""
        try:
            return ray.get(ref)
        except ActorUnavailableError:
            raise
        except RayError as error:
            raise _OverError(end_of(error, self._contact.node)) from error

    def _stay_away(self, timeout: float) -> None:
        """The network may come back; ask again, but not for ever."""
        now = time.monotonic()
        self._away_since = self._away_since or now
        if now - self._away_since > AWAY_SECONDS:
            self._leave(End(Status.ERROR, f"node {self._contact.node} cannot be reached", lost=True))
            return
        time.sleep(min(timeout, 0.5))
        if self.place is not None:
            self._report = self._ask()

    def _leave(self, end: End) -> None:
        self.end = end
        with suppress(RayError):
            ray.kill(self._agent)
        self._contact.lost()


def end_of(error: RayError, node: str) -> End:
    """What an agent's error makes of its pass. It is lost if the agent or its node went away unasked."""
    text = " ".join(str(error).split())
    if isinstance(error, OutOfMemoryError) or "memory monitor" in text or "low on memory" in text:
        return End(Status.OOM, f"killed by Ray: node {node} ran out of memory")
    if isinstance(error, RayTaskError) and isinstance(error.cause, Exception):
        status, reason = outcome(error.cause)
        return End(status, f"{reason} (on node {node})")
    if isinstance(error, RayActorError) and error.actor_init_failed:
        return End(Status.ERROR, f"node {node} cannot start passes: {text[-300:]}")
    return End(Status.ERROR, f"the worker on node {node} went away", lost=True)
