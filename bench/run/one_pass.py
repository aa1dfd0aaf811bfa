"""One pass on its way: from the child that is started to a record of every cell.

A pass cannot fail, it can only end: answered cells are written the moment the child reports them, and how
the child ended becomes the outcome of the cells it did not answer.
"""

from __future__ import annotations

import dataclasses
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import NoneType
from typing import Any, Protocol

from pydantic import ValidationError

from bench.errors import UserError
from bench.results.record import Record, Status
from bench.results.store import Store
from bench.run.child import End, Event
from bench.run.context import SCRATCH
from bench.run.launch import Launcher, Running
from bench.run.worker import Job
from bench.workload import Cell, Pass, Scalar, Workload

LOSSES = 2  # machines that may go away under a pass before it counts as its own fault
RETRIED = frozenset({Status.OOM, Status.TIMEOUT, Status.ERROR, Status.SKIPPED})  # a NaN is a measurement
NOT_REACHED = "not reached: "  # begins the reason of cells that lay behind the one that failed

Held = Callable[[], AbstractContextManager[None]]


class Observer(Protocol):
    """Who watches a run. All calls come from one thread; none may raise or take long."""

    def run_started(self, passes: Sequence[Pass], kept: int) -> None:
        """These passes will be measured; ``kept`` cells were answered before."""

    def pass_started(self, work: Pass) -> None:
        """A child for this pass is being started."""

    def progress(self, work: Pass, done: int, total: int, values: Mapping[str, float]) -> None:
        """The running pass reports progress and running values, e.g. a perplexity so far."""

    def usage(self, work: Pass, usage: Mapping[str, float]) -> None:
        """What a running child uses now; about twice a second."""

    def cell_answered(self, record: Record) -> None:
        """A record has been written."""

    def pass_ended(self, work: Pass, end: End) -> None:
        """The child of this pass is gone."""

    def message(self, text: str) -> None:
        """Something the user should know; one sentence."""

    def run_ended(self) -> None:
        """Nothing more will be reported, also after an interruption."""


@dataclass(frozen=True)
class RunSession:
    """What all passes of one run share."""

    suite: str
    workload: Workload
    target: str  # the workload as module:attribute, for the children
    folder: Path
    env: str  # fingerprint id
    timeout: float | None = None
    memory_limit: int | None = None
    jobs: int = 1  # passes side by side


@dataclass
class PassRun:
    """One pass on its way: which of its cells are still open, and since when."""

    work: Pass
    session: RunSession
    store: Store
    observer: Observer
    held: Held
    first: bool  # of the run
    open: dict[str, Cell] = field(default_factory=dict)
    columns: dict[str, Mapping[str, Scalar]] = field(default_factory=dict)  # by cell, as it began
    running: Running | None = None
    started: float = 0.0  # by the clock of the wall, which may be set back meanwhile
    begun: float = 0.0  # by a clock that only goes on
    startup_s: float | None = None
    preloaded: bool | None = None  # whether the child had its modules from the fork server
    losses: int = 0  # how often the machine under it went away

    def begin(self, launcher: Launcher) -> None:
        """Start the child."""
        self.open = {cell.id: cell for cell in self.work.cells}
        self.columns = {id: self.columns.get(id) or self._columns(cell) for id, cell in self.open.items()}
        launcher.await_ready()
        with self.held():
            self.running = launcher.launch(self._job())
            self.started, self.begun = time.time(), time.monotonic()

    def advance(self, timeout: float) -> None:
        """Take what the child says within ``timeout`` seconds."""
        assert self.running is not None
        with self.held():
            for event in self.running.poll(timeout):
                self._take(event)
        self.observer.usage(self.work, self.running.usage())

    @property
    def ended(self) -> bool:
        """Whether the child is gone."""
        return self.running is not None and self.running.end is not None

    def again(self) -> PassRun | None:
        """The same pass for what it has not answered, if the machine under it went away; None if it did not.

        A pass that loses one machine after the other may be the reason: then it is given an outcome.
        """
        assert self.running is not None
        end, losses = self.running.end, self.losses
        if end is None or not end.lost or not self.open:
            return None
        losses += self.running.place is not None or end.counts  # else it had not begun
        if losses > LOSSES:
            return None
        rest = dataclasses.replace(self.work, cells=tuple(self.open.values()))
        return dataclasses.replace(
            self, work=rest, open={}, running=None, startup_s=None, preloaded=None, losses=losses
        )

    def close(self) -> End:
        """The child is gone: give the cells it did not answer their outcome.

        What it kept for a next attempt goes with the last answer, unless a cell may be asked for again: a
        training whose reward server was away for a moment is worth no less than one that was killed.
        """
        assert self.running is not None
        assert self.running.end is not None
        with self.held():
            if not self.open and not any(self._failed(cell) for cell in self.work.cells):
                for kept in (self.session.folder / SCRATCH).glob(f"{self.work.id}*"):
                    shutil.rmtree(kept, ignore_errors=True)
            self._give_outcome(self.running.end)
        return self.running.end

    def _failed(self, cell: Cell) -> bool:
        """Whether ``cell`` has an answer that --retry-failed asks for again."""
        record = self.store.records.get(cell.id)
        return record is not None and record.status in RETRIED

    def drain(self) -> None:
        """Take what the child has said already."""
        for event in self.running.poll(0) if self.running else ():
            self._take(event)

    def _job(self) -> Job:
        folder = self.session.folder
        return Job(
            work=self.work,
            target=self.session.target,
            out=self._artifacts(),
            root=folder,
            log=folder / "logs" / f"{self.work.id}.log",
            timeout=self.session.timeout,
            memory_limit=self.session.memory_limit,
            preload=tuple(self.session.workload.preload),
        )

    def _artifacts(self) -> Path:
        """A clean folder that no record of an earlier attempt at this pass refers to."""
        earlier = self.store.records.of_pass(self.work.id)
        taken = {Path(kept.path).parts[1] for record in earlier for kept in record.artifacts}
        attempt, name = 1, self.work.id
        while name in taken:
            attempt += 1
            name = f"{self.work.id}.{attempt}"
        out = self.session.folder / "artifacts" / name
        shutil.rmtree(out, ignore_errors=True)
        return out

    def _take(self, event: Event) -> None:
        match event["event"]:
            case "ready":
                self.startup_s, self.preloaded = event["startup_s"], not event["not_preloaded"]
                if event["not_preloaded"] and self.first:
                    names = ", ".join(event["not_preloaded"])
                    self.observer.message(
                        f"{names} could not be imported ahead; every pass starts more slowly, and its host "
                        "memory is not compared with that of other runs"
                    )
            case "progress":
                self.observer.progress(self.work, event["done"], event["total"], event["values"])
            case "cell" if event["cell"] in self.open:
                self._answer(self.open[event["cell"]], event)

    def _give_outcome(self, end: End) -> None:
        """Give the open cells the outcome of the pass: the first one met it, the others lay behind it."""
        status, reason = end.status, end.reason
        if status is None or reason is None:
            status, reason = Status.ERROR, "the workload ended without answering this cell"
        elif self.open and status is not Status.SKIPPED:
            first = next(iter(self.open.values()))
            self._answer(first, {"status": status, "reason": reason})
            reason = NOT_REACHED + reason
        for cell in list(self.open.values()):
            self._answer(cell, {"status": status, "reason": reason})

    def _answer(self, cell: Cell, answer: Mapping[str, Any]) -> None:
        record = self._record(cell, answer)
        self.store.append(record)
        del self.open[cell.id]
        self.observer.cell_answered(record)

    def _record(self, cell: Cell, answer: Mapping[str, Any]) -> Record:
        session, finished = self.session, answer.get("finished", time.time())
        place = self.running.place if self.running else None
        columns = dict(self.columns[cell.id])
        common: dict[str, Any] = {
            "suite": session.suite,
            "workload": session.workload.name,
            "run": session.folder.name,
            "cell": cell.id,
            "pass_id": self.work.id,
            "label": cell.label,
            "params": dict(cell.params),
            "seed": cell.seed,
            "repeat": cell.repeat,
            "env": place.env if place else session.env,
            "started": _iso(self.started),
            "finished": _iso(finished),
            "duration_s": round(time.monotonic() - self.begun, 6),
        }
        try:
            return Record(
                **common,
                columns=columns | answer.get("facts", {}),
                status=answer["status"],
                reason=answer["reason"],
                metrics=answer.get("metrics", {}),
                conformance=answer.get("conformance", {}) | self._circumstances(),
                artifacts=answer.get("artifacts", []),
            )
        except ValidationError as error:
            wrong = error.errors()[0]
            where = ".".join(map(str, wrong["loc"]))
            reason = f"the workload's answer is no valid record: {where}: {wrong['msg']}"
            return Record(**common, columns=columns, status=Status.ERROR, reason=reason)

    def _columns(self, cell: Cell) -> Mapping[str, Scalar]:
        """As the workload has them; where a file of the suite has gone meanwhile, the plain parameters."""
        workload = self.session.workload
        try:
            return workload.columns(workload.Params.model_validate(dict(cell.params)))
        except (ValueError, UserError, OSError):
            plain = (str, int, float, bool, NoneType)
            return {name: value for name, value in cell.params.items() if isinstance(value, plain)}

    def _circumstances(self) -> dict[str, Any]:
        many = self.session.jobs > 1
        side_by_side: dict[str, Any] = {"passes_side_by_side": self.session.jobs} if many else {}
        place = self.running.place if self.running else None
        side_by_side |= place.facts if place else {}
        return {"child_startup_s": self.startup_s, "preloaded": self.preloaded} | side_by_side


def _iso(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")
