"""Records and plans as text for a terminal; all of it rich markup, nothing of it measured here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from bench.plan import Plan
from bench.record import Record, Status
from bench.workload import Cell, Metric, Pass

COLOURS = {
    Status.OK: "green",
    Status.SKIPPED: "cyan",
    Status.NAN: "magenta",
    Status.TIMEOUT: "yellow",
    Status.OOM: "yellow",
    Status.ERROR: "red",
}


def pass_name(work: Pass) -> str:
    """The label of the pass's last cell: the one that costs most, along the prefix axis."""
    return work.cells[-1].label


def values_text(values: Mapping[str, float]) -> str:
    """Running values, e.g. ``perplexity 17.2``."""
    return ", ".join(f"{name} {value:.4g}" for name, value in values.items())


def usage_text(usage: Mapping[str, float]) -> str:
    """What the child uses, e.g. ``memory 1.2 GiB, GPU 3.0 GiB``."""
    names = {"rss_bytes": "memory", "gpu_bytes": "GPU"}
    return ", ".join(f"{names[key]} {value / 2**30:.1f} GiB" for key, value in usage.items() if key in names)


def duration_text(seconds: float) -> str:
    """Seconds as a person would say them: ``42 s``, ``3 min 20 s``, ``2 h 05 min``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def answer_text(record: Record, metrics: Sequence[Metric]) -> str:
    """One answered cell as a line of rich markup."""
    head = f"[{COLOURS[record.status]}]{record.status:>7}[/]  {escape(record.label)}"
    if record.status is not Status.OK:
        return f"{head}  {escape(record.reason or '')}"
    shown = [f"{m.label} {value_text(record, m)}" for m in metrics if m.headline and m.name in record.metrics]
    return f"{head}  {escape(', '.join(shown))}"


def value_text(record: Record, metric: Metric) -> str:
    """A metric with its unit, or a dash where there is none."""
    value = record.metrics.get(metric.name)
    if value is None or value.value is None:
        return "–"
    number = value.value
    if metric.unit in ("B", "bytes"):
        return f"{number / 2**20:,.1f} MiB"
    text = f"{number:,}" if isinstance(number, int) else f"{number:,.4g}"
    return f"{text} {metric.unit}".rstrip()


def summary_table(records: Iterable[Record], metrics: Sequence[Metric], cells: Sequence[Cell]) -> Table:
    """Headline metrics of the given cells, in plan order."""
    known: dict[str, Record] = {record.cell: record for record in records}
    shown = [metric for metric in metrics if metric.headline]
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("cell")
    for metric in shown:
        arrow = {"lower": " ↓", "higher": " ↑", "none": ""}[metric.direction]
        table.add_column(f"{metric.label}{arrow}", justify="right")
    table.add_column("")
    for cell in cells:
        record = known.get(cell.id)
        if record is not None:
            row: list[Any] = [escape(cell.label), *(value_text(record, metric) for metric in shown)]
            note = "" if record.status is Status.OK else f"[{COLOURS[record.status]}]{record.status}[/]"
            table.add_row(*row, note)
    return table


def show_plan(plan: Plan, passes: Sequence[Pass], console: Console) -> None:
    """What a run would do: its passes with their cells, and what sharing prefixes saves."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("pass")
    table.add_column("cells", justify="right")
    table.add_column(passes[0].cost.unit, justify="right")
    table.add_column("answers", overflow="fold")
    for work in passes:
        labels = ", ".join(cell.label for cell in work.cells)
        table.add_row(work.id[:8], str(len(work.cells)), f"{work.cost.amount:,}", escape(labels))
    console.print(table)
    for note in plan.notes:
        console.print(note, soft_wrap=True, highlight=False)
    cells = sum(len(work.cells) for work in passes)
    cost, unit = sum(work.cost.amount for work in passes), passes[0].cost.unit
    text = f"[bold]{plan.suite}[/]: {cells:,} cells in {len(passes):,} passes, {cost:,} {unit}"
    if cells == len(plan.cells) and plan.naive_cost.amount > plan.cost.amount:
        saved = 1 - plan.cost.amount / plan.naive_cost.amount
        text += f"; cell by cell it would be {plan.naive_cost.amount:,} {unit}: sharing saves {saved:.0%}"
    console.print(text, soft_wrap=True, highlight=False)
