"""What passes tell while they run, written where people look at trainings: TensorBoard or trackio.

Only an observer, like ``bench.run.live``, and of the same events: it runs beside the measuring, never in it,
so no number depends on it, and it hears passes on clusters too.
"""

from __future__ import annotations

import contextlib
import contextvars
import io
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from bench.errors import UserError
from bench.results.record import Record
from bench.run.child import End
from bench.run.one_pass import Observer
from bench.run.terminal import pass_name
from bench.text import slug
from bench.workload import Pass

FOLDER = "tensorboard"  # in the run folder: one folder below it for each pass


class Log(Protocol):
    """Where the numbers of one pass go."""

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Numbers by name, at a point of the pass (in its unit of cost: tokens, training steps)."""

    def close(self) -> None:
        """No more will come."""


class TensorBoardLog:
    """An event file in the run folder; a pass that goes on has a second one beside the first.

    Written here and now: TensorBoard's own writers have a thread, which nobody asks what became of it.
    """

    def __init__(self, folder: Path, work: Pass) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.summary.writer.record_writer import RecordWriter

        above = folder / FOLDER
        known = sorted(above.glob(f"*-{work.id}"))  # an earlier attempt's, whose last open cell was another
        place = known[0] if known else above / f"{slug(pass_name(work))}-{work.id}"
        place.mkdir(parents=True, exist_ok=True)
        self._file = open(place / f"events.out.tfevents.{time.time_ns()}", "xb", buffering=0)  # noqa: SIM115
        self._writer, self._event = RecordWriter(self._file), Event
        self._writer.write(Event(wall_time=time.time(), file_version="brain.Event:2").SerializeToString())

    def log(self, values: Mapping[str, float], step: int) -> None:
        """See `Log`; on the disk at once, for who looks is waiting."""
        event = self._event(wall_time=time.time(), step=step)
        for name, value in values.items():
            event.summary.value.add(tag=name, simple_value=value)
        self._writer.write(event.SerializeToString())

    def close(self) -> None:
        """See `Log`."""
        self._file.close()


class TrackioLog:
    """A run of the suite's project in trackio's own folder; a pass that goes on goes on there."""

    def __init__(self, folder: Path, work: Pass) -> None:
        import trackio

        settings = {
            "project": slug(folder.parent.name),
            "name": f"{pass_name(work)} · {folder.name}",
            "config": dict(work.cells[-1].params),
            "resume": "allow",
            "embed": False,
            "auto_log_gpu": False,
            "auto_log_cpu": False,
        }
        # It knows one run at a time and would end the one before; in a context of its own it knows none.
        context = contextvars.copy_context()
        with contextlib.redirect_stdout(io.StringIO()):  # what it prints would tear the live view
            self._run: Any = context.run(lambda: trackio.init(**settings))

    def log(self, values: Mapping[str, float], step: int) -> None:
        """See `Log`."""
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        """See `Log`; waits until all of it is written."""
        with contextlib.redirect_stdout(io.StringIO()):
            self._run.finish()


KINDS: dict[str, Callable[[Path, Pass], Log]] = {"tensorboard": TensorBoardLog, "trackio": TrackioLog}


def check_installed(kind: str | None) -> None:
    """Raise UserError if what is to be written with is not there."""
    if kind is not None and find_spec(kind) is None:
        raise UserError(f"--log-with {kind}: {kind} is not installed", hint=f"pip install {kind}")


class Tracked:
    """Hands everything on to ``inner`` and writes the numbers of passes and their answers.

    Trouble with writing is told once and ends the writing, never the run.
    """

    def __init__(self, inner: Observer, kind: str, folder: Path, axis: str | None) -> None:
        self._inner, self._kind, self._folder, self._axis = inner, kind, folder, axis
        self._logs: dict[str, Log] = {}
        self._broken = False

    def run_started(self, passes: Sequence[Pass], kept: int) -> None:
        """See ``bench.run.one_pass.Observer``."""
        self._inner.run_started(passes, kept)

    def pass_started(self, work: Pass) -> None:
        """See ``bench.run.one_pass.Observer``."""
        self._inner.pass_started(work)
        self._close(work.id)  # of an attempt that was lost

        def opened() -> None:
            self._logs[work.id] = KINDS[self._kind](self._folder, work)

        self._guarded(opened)

    def progress(self, work: Pass, done: int, total: int, values: Mapping[str, float]) -> None:
        """See ``bench.run.one_pass.Observer``."""
        self._inner.progress(work, done, total, values)
        self._log(work.id, {name.removeprefix("/"): value for name, value in values.items()}, done)

    def usage(self, work: Pass, usage: Mapping[str, float]) -> None:
        """See ``bench.run.one_pass.Observer``."""
        self._inner.usage(work, usage)

    def cell_answered(self, record: Record) -> None:
        """See ``bench.run.one_pass.Observer``; an answer stands where its cell does in the pass."""
        self._inner.cell_answered(record)
        where = record.params.get(self._axis, 0) if self._axis else 0
        found = {f"result/{name}": metric.value for name, metric in record.metrics.items()}
        self._log(record.pass_id, {name: value for name, value in found.items() if value is not None}, where)

    def pass_ended(self, work: Pass, end: End) -> None:
        """See ``bench.run.one_pass.Observer``."""
        self._inner.pass_ended(work, end)
        self._close(work.id)

    def message(self, text: str) -> None:
        """See ``bench.run.one_pass.Observer``."""
        self._inner.message(text)

    def run_ended(self) -> None:
        """See ``bench.run.one_pass.Observer``."""
        self._inner.run_ended()
        for name in list(self._logs):
            self._close(name)

    def _log(self, name: str, values: Mapping[str, float], step: int) -> None:
        if values and (log := self._logs.get(name)) is not None:
            self._guarded(lambda: log.log(values, step))

    def _close(self, name: str) -> None:
        if (log := self._logs.pop(name, None)) is not None:
            self._guarded(log.close)

    def _guarded(self, write: Callable[[], None]) -> None:
        if self._broken:
            return
        try:
            write()
        except Exception as error:  # of another's code: whatever it is, the run goes on
            self._broken = True
            self._inner.message(f"{self._kind} takes no more numbers ({type(error).__name__}: {error})")
