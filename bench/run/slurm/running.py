"""A pass in a Slurm job, seen from the driver: its lines, what it has left, and that it is lost."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from bench.results.record import Status
from bench.results.store import clear_errors
from bench.run.child import LAST_WORDS_SECONDS, End, Event, Place
from bench.run.cluster.files import ChangedError, receive
from bench.run.kept import ROOT, keep_scratch
from bench.run.slurm.batch import ALIVE, LINES
from bench.run.worker import Job

SIGN_SECONDS = 2.0  # between two signs of life
LATE_SECONDS = 20.0  # after the end of a job, for its last lines to be seen on a shared file system
LOOK_SECONDS = 0.2

PlaceOf = Callable[[Event], Place]  # of a job's first line; raises UserError if it must not measure
# What Slurm says of a job that it has ended, where that is the fault of the pass.
ENDS = {
    "OUT_OF_MEMORY": End(Status.OOM, "killed by Slurm: out of host memory"),
    "TIMEOUT": End(Status.TIMEOUT, "ended by Slurm: its time was over"),
}
LOST = ("NODE_FAIL", "BOOT_FAIL", "PREEMPTED")  # not the fault of the pass, even before its first line


class SlurmRunning:
    """See ``bench.run.launch.Running``. ``submitted`` is submitit's job, ``folder`` that job's own."""

    def __init__(self, submitted: Any, folder: Path, job: Job, place_of: PlaceOf) -> None:
        self.end: End | None = None
        self.place: Place | None = None
        self._submitted, self._folder, self._job, self._place_of = submitted, folder, job, place_of
        self._read, self._signs, self._signed = 0, 0, 0.0
        self._over_since: float | None = None
        self._usage: dict[str, float] = {}

    def poll(self, timeout: float) -> list[Event]:
        """Events since the last call, their artifacts being here; sets ``end`` after the last one."""
        events: list[Event] = []
        deadline = time.monotonic() + timeout
        while self.end is None and not events:
            self._give_sign()
            try:
                for line in self._lines():
                    self._take(line, events)
            except ChangedError as error:
                self._leave(End(Status.ERROR, str(error)))
            if self.end is None and not events:
                self._look_at_the_job()
                if time.monotonic() >= deadline:
                    break
                time.sleep(min(LOOK_SECONDS, max(0.0, deadline - time.monotonic())))
        return events

    def usage(self) -> dict[str, float]:
        """What the child used when the job last said it."""
        return self._usage

    def stop(self) -> None:
        """Cancel the job."""
        if self.end is None:
            self._leave(End(Status.ERROR, "stopped"))

    def _lines(self) -> Iterator[Event]:
        """Whole lines that are new. Raises ChangedError for one that cannot be read."""
        try:
            with open(self._folder / LINES, "rb") as file:
                file.seek(self._read)
                data = file.read()
        except FileNotFoundError:  # it waits in the queue
            return
        whole = data[: data.rfind(b"\n") + 1]
        self._read += len(whole)
        for text in whole.splitlines():
            try:
                line = json.loads(text)
            except ValueError:
                line = None
            if not isinstance(line, dict) or "event" not in line:
                raise ChangedError("what the job says cannot be read: a line of it is damaged (a full disk?)")
            yield line

    def _take(self, line: Event, events: list[Event]) -> None:
        match line["event"]:
            case "hello":
                self.place = self._place_of(line)
            case "usage":
                self._usage = line["usage"]
            case "end":
                status = line["status"]
                self._await_the_job()
                self._leave(End(Status(status) if status else None, line["reason"]))
            case _:
                for artifact in line.get("artifacts", ()):
                    receive(self._job.root, artifact, self._piece)
                events.append(line)

    def _piece(self, path: str, start: int, size: int) -> bytes:
        place = (self._folder / ROOT / path).resolve()
        if not place.is_relative_to((self._folder / ROOT).resolve()):
            raise ChangedError(f"{path} leads out of the folder of its job")
        try:
            with open(place, "rb") as file:
                file.seek(start)
                return file.read(size)
        except FileNotFoundError:
            return b""

    def _give_sign(self) -> None:
        if time.monotonic() - self._signed >= SIGN_SECONDS:
            self._signs, self._signed = self._signs + 1, time.monotonic()
            with clear_errors(f"cannot write in {self._folder}"):
                (self._folder / ALIVE).write_text(str(self._signs))

    def _look_at_the_job(self) -> None:
        """A job that is over and has not told its end is lost, unless Slurm says why it ended it."""
        if not self._submitted.done():
            self._over_since = None
            return
        self._over_since = self._over_since or time.monotonic()
        if time.monotonic() - self._over_since < LATE_SECONDS:
            return
        state = str(self._submitted.state).split(" ")[0]
        begun = self.place is not None
        how = "ended without a word" if begun else "ended before it began"
        reason = f"Slurm job {self._submitted.job_id} {how} ({state})"
        if not begun and (said := (self._submitted.stderr() or "").strip()):
            reason += f": {said.splitlines()[-1][:300]}"
        lost = begun or state in LOST
        self._leave(ENDS.get(state, End(Status.ERROR, reason, lost=lost, counts=lost)))

    def _await_the_job(self) -> None:
        """Let a job that has said its last word leave by itself: cancelled, it would count as failed."""
        deadline = time.monotonic() + LAST_WORDS_SECONDS
        while not self._submitted.done() and time.monotonic() < deadline:
            time.sleep(0.05)

    def _leave(self, end: End) -> None:
        self.end = end
        if not self._submitted.done():
            with suppress(OSError):
                self._submitted.cancel(check=False)
        keep_scratch(self._folder, self._job.root)
        shutil.rmtree(self._folder, ignore_errors=True)
