"""Records and plans as text for a terminal; all of it rich markup, nothing of it measured here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from bench.errors import inert
from bench.results.record import Record, Status
from bench.suite.plan import Plan
from bench.text import MISSING, Scale, number, plural, scale_for
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
    return inert(work.cells[-1].label)


def values_text(values: Mapping[str, float]) -> str:
    """Running values, e.g. ``perplexity 17.2``; see ``bench.workload.Context.progress``."""
    return ", ".join(f"{name} {value:.4g}" for name, value in values.items() if not name.startswith("/"))


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
    head = f"[{COLOURS[record.status]}]{record.status:>7}[/]  {escape(inert(record.label))}"
    if record.status is not Status.OK:
        return f"{head}  {escape(inert(record.reason or ''))}"
    shown = [f"{m.label} {value_text(record, m)}" for m in metrics if m.headline and _known(record, m)]
    taken = "  [yellow]disturbed[/]" if record.conformance.get("disturbed") else ""
    if warning := record.conformance.get("warning"):
        taken += f"  [yellow]{escape(str(warning))}[/]"
    return f"{head}  {escape(', '.join(shown))}{taken}"


def _known(record: Record, metric: Metric) -> bool:
    return metric.name in record.metrics and record.metrics[metric.name].value is not None


def value_text(record: Record, metric: Metric) -> str:
    """A metric with its unit, or a dash where there is none."""
    value = record.metrics.get(metric.name)
    if value is None or value.value is None:
        return MISSING
    scale = scale_for(metric.unit, [value.value])
    return f"{_scaled(value.value, scale)} {scale.unit}".rstrip()


def _scaled(value: float, scale: Scale) -> str:
    return number(value if scale.divisor == 1 else value / scale.divisor)


def summary(
    records: Iterable[Record], metrics: Sequence[Metric], cells: Sequence[Cell], console: Console
) -> None:
    """Print the headline metrics of the given cells, in plan order; as many columns as fit."""
    known: dict[str, Record] = {record.cell: record for record in records}
    answered = [(cell, known[cell.id]) for cell in cells if cell.id in known]
    shown = [m for m in metrics if m.headline and any(_known(record, m) for _, record in answered)]
    kept = list(shown)
    while kept and _width(_table(answered, kept), console) > console.width:
        kept.pop()
    console.print(_table(answered, kept))
    if len(kept) < len(shown):
        console.print(f"[dim]the report has more: {', '.join(m.label for m in shown[len(kept) :])}[/]")


def _width(table: Table, console: Console) -> int:
    """Columns that a table would take if it could."""
    return console.measure(table, options=console.options.update(max_width=10_000)).maximum


def _table(answered: Sequence[tuple[Cell, Record]], metrics: Sequence[Metric]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("cell", no_wrap=True)
    scales = {}
    for metric in metrics:
        values = [r.metrics[metric.name].value for _, r in answered if metric.name in r.metrics]
        scale = scales[metric.name] = scale_for(metric.unit, [value for value in values if value is not None])
        arrow = {"lower": " ↓", "higher": " ↑", "none": ""}[metric.direction]
        unit = f" ({scale.unit})" if scale.unit else ""
        table.add_column(f"{metric.label}{unit}{arrow}", justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    for (_, record), label in zip(answered, short_labels([cell.label for cell, _ in answered]), strict=True):
        found = {name: value.value for name, value in record.metrics.items() if value.value is not None}
        row = [
            _scaled(found[metric.name], scales[metric.name]) if metric.name in found else MISSING
            for metric in metrics
        ]
        note = "" if record.status is Status.OK else f"[{COLOURS[record.status]}]{record.status}[/]"
        if record.status is Status.OK and record.conformance.get("disturbed"):
            note = "[yellow]disturbed[/]"
        elif record.conformance.get("warning"):
            note = "[yellow]warning[/]"
        table.add_row(escape(inert(label)), *row, note)
    return table


def short_labels(labels: Sequence[str]) -> list[str]:
    """Labels without the words that all of them begin with; the last word always stays."""
    if len(set(labels)) < 2:
        return list(labels)
    split = [label.split(" ") for label in labels]
    shared = 0
    for words in zip(*(words[:-1] for words in split), strict=False):
        if len(set(words)) > 1:
            break
        shared += 1
    return [" ".join(words[shared:]) for words in split]


def show_plan(plan: Plan, passes: Sequence[Pass], console: Console) -> None:
    """What a run would do: its passes with their cells, and what sharing prefixes saves."""
    unit = passes[0].cost.unit
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("pass", no_wrap=True)
    table.add_column("cells", justify="right")
    table.add_column(unit, justify="right")
    table.add_column("answers", overflow="fold")
    for work in passes:
        labels = [cell.label for cell in work.cells]
        answers = [labels[0], *short_labels(labels)[1:]]
        told = escape(", ".join(map(inert, answers)))
        table.add_row(work.id[:8], str(len(work.cells)), f"{work.cost.amount:,}", told)
    console.print(table)
    for note in plan.notes:
        console.print(escape(inert(note)), soft_wrap=True, highlight=False)
    cells, cost = sum(len(work.cells) for work in passes), sum(work.cost.amount for work in passes)
    text = f"[bold]{plan.suite}[/]: {plural(cells, 'cell')} in {plural(len(passes), 'pass')}, {cost:,} {unit}"
    if cells == len(plan.cells) and plan.naive_cost.amount > plan.cost.amount:
        saved = 1 - plan.cost.amount / plan.naive_cost.amount
        text += f"; cell by cell it would be {plan.naive_cost.amount:,} {unit}: sharing saves {saved:.0%}"
    console.print(text, soft_wrap=True, highlight=False)
