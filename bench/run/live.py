"""What a run looks like while it happens: moving bars in a terminal, plain lines anywhere else.

Only an observer: it is told what happens and shows it. Progress is counted in the workload's own
unit of cost (e.g. tokens), because passes differ far too much in size for "7 of 12" to mean anything.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from bench.results.record import Record
from bench.run.child import End
from bench.run.one_pass import Observer
from bench.run.terminal import answer_text, duration_text, pass_name, usage_text, values_text
from bench.text import plural
from bench.workload import Metric, Pass

PLAIN_SECONDS = 15.0  # between two progress lines where nobody watches


def observer(console: Console, metrics: Sequence[Metric], *, plain: bool = False) -> Observer:
    """Bars if ``console`` is a terminal and ``plain`` is not asked for, else lines."""
    kind = PlainView if plain or not console.is_terminal else LiveView
    return kind(console, metrics)


class Tracker:
    """How far the run is, in units of cost; when it will be done, from what it has cost so far."""

    def __init__(self, passes: Sequence[Pass]) -> None:
        self.total = sum(work.cost.amount for work in passes)
        self.unit = passes[0].cost.unit if passes else ""
        self.done = 0.0  # of finished passes
        self.running: dict[str, float] = {}  # cost that lies behind each running pass
        self.started = time.monotonic()

    def begin(self, work: Pass) -> None:
        """A pass has started."""
        self.running[work.id] = 0.0

    def advance(self, work: Pass, done: int, total: int) -> None:
        """A running pass has come so far."""
        self.running[work.id] = work.cost.amount * min(1.0, done / total) if total else 0.0

    def finish(self, work: Pass) -> None:
        """A pass is over, however it went: its cost is not ahead of us any more."""
        self.running.pop(work.id, None)
        self.done += work.cost.amount

    @property
    def amount(self) -> float:
        """Cost that lies behind us."""
        return self.done + sum(self.running.values())

    @property
    def left_s(self) -> float | None:
        """Estimated seconds to go; None while there is nothing to estimate from."""
        if self.amount <= 0:
            return None
        return (time.monotonic() - self.started) / self.amount * max(0.0, self.total - self.amount)


class PlainView:
    """One line per event; for logs, pipes and CI."""

    def __init__(self, console: Console, metrics: Sequence[Metric]) -> None:
        self._console = console
        self._metrics = metrics
        self._tracker = Tracker(())
        self._next_line: dict[str, float] = {}
        self._usage: dict[str, Mapping[str, float]] = {}

    def run_started(self, passes: Sequence[Pass], kept: int) -> None:
        """See ``bench.run.one_pass.Observer``."""
        self._tracker = Tracker(passes)

    def pass_started(self, work: Pass) -> None:
        """See ``bench.run.one_pass.Observer``."""
        self._tracker.begin(work)
        self._next_line[work.id] = time.monotonic() + PLAIN_SECONDS

    def progress(self, work: Pass, done: int, total: int, values: Mapping[str, float]) -> None:
        """See ``bench.run.one_pass.Observer``; one line every quarter of a minute."""
        self._tracker.advance(work, done, total)
        if time.monotonic() < self._next_line[work.id]:
            return
        self._next_line[work.id] = time.monotonic() + PLAIN_SECONDS
        usage = usage_text(self._usage.get(work.id, {}))
        details = [f"{done:,}/{total:,}", values_text(values), usage, self._left()]
        self._say(f"  …  {pass_name(work)}: {' · '.join(filter(None, details))}")

    def usage(self, work: Pass, usage: Mapping[str, float]) -> None:
        """See ``bench.run.one_pass.Observer``."""
        self._usage[work.id] = usage

    def cell_answered(self, record: Record) -> None:
        """See ``bench.run.one_pass.Observer``."""
        self._say(answer_text(record, self._metrics))

    def pass_ended(self, work: Pass, end: End) -> None:
        """See ``bench.run.one_pass.Observer``."""
        self._tracker.finish(work)

    def message(self, text: str) -> None:
        """See ``bench.run.one_pass.Observer``."""
        self._say(escape(text))

    def run_ended(self) -> None:
        """See ``bench.run.one_pass.Observer``."""

    def _left(self) -> str:
        """Time to go, e.g. ``12 s left``; empty while unknown."""
        left = self._tracker.left_s
        return "" if left is None else f"{duration_text(left)} left"

    def _say(self, text: str) -> None:
        self._console.print(text, soft_wrap=True, highlight=False)


class LiveView(PlainView):
    """Answers scroll by above two bars: the whole run and the pass that is being measured."""

    def __init__(self, console: Console, metrics: Sequence[Metric]) -> None:
        super().__init__(console, metrics)
        bar = BarColumn(bar_width=24)
        percent = TextColumn("{task.percentage:>3.0f} %")
        self._overall = Progress(
            TextColumn("[bold]{task.description}"),
            bar,
            percent,
            TimeElapsedColumn(),
            TextColumn("{task.fields[left]}"),
        )
        self._current = Progress(
            TextColumn("{task.description}"), bar, percent, TextColumn("{task.fields[now]}")
        )
        self._whole: TaskID | None = None
        self._passes: dict[str, TaskID] = {}
        self._values: dict[str, Mapping[str, float]] = {}
        # Twice a second: the view must not take cycles from what is being measured.
        self._live = Live(Group(self._overall, self._current), console=console, refresh_per_second=2)

    def run_started(self, passes: Sequence[Pass], kept: int) -> None:
        """See ``bench.run.one_pass.Observer``."""
        super().run_started(passes, kept)
        self._whole = self._overall.add_task(
            plural(len(passes), "pass"), total=self._tracker.total or 1, left=""
        )
        self._live.start()

    def pass_started(self, work: Pass) -> None:
        """See ``bench.run.one_pass.Observer``."""
        super().pass_started(work)
        name = escape(pass_name(work))
        self._passes[work.id] = self._current.add_task(name, total=work.cost.amount, now="starting")

    def progress(self, work: Pass, done: int, total: int, values: Mapping[str, float]) -> None:
        """See ``bench.run.one_pass.Observer``."""
        self._tracker.advance(work, done, total)
        self._values[work.id] = values
        self._refresh(work)

    def usage(self, work: Pass, usage: Mapping[str, float]) -> None:
        """See ``bench.run.one_pass.Observer``."""
        super().usage(work, usage)
        self._refresh(work)

    def pass_ended(self, work: Pass, end: End) -> None:
        """See ``bench.run.one_pass.Observer``."""
        super().pass_ended(work, end)
        self._current.remove_task(self._passes.pop(work.id))
        self._refresh(work)

    def run_ended(self) -> None:
        """See ``bench.run.one_pass.Observer``."""
        self._live.stop()

    def _refresh(self, work: Pass) -> None:
        if self._whole is not None:
            self._overall.update(self._whole, completed=self._tracker.amount, left=self._left())
        if (task := self._passes.get(work.id)) is not None:
            values, usage = self._values.get(work.id, {}), self._usage.get(work.id, {})
            now = " · ".join(filter(None, (values_text(values), usage_text(usage))))
            self._current.update(task, completed=self._tracker.running[work.id], now=now)
