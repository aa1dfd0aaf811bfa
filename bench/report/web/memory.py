"""Memory figures that must add up, side by side: predicted, held, allocated, seen by the driver.

Which figures there are is the workload's business. All metrics in bytes whose names end in ``_bytes`` or
``_bytes_…`` stand in one table, each with its value or the reason why there is none; a metric
``NAME_analytic`` is a prediction of ``NAME``, and their ratio stands beside them.
"""

from __future__ import annotations

from bench.report.frames import RunData
from bench.report.select import identifying, longest
from bench.report.tables import (
    Column,
    Entry,
    Table,
    header,
    metric_entry,
    name_columns,
    name_entries,
    reported_metrics,
)
from bench.text import is_bytes, number, scale_for
from bench.workload import Metric

PREDICTED = "_analytic"


def reconciliation(data: RunData) -> Table | None:
    """One row per pass at its furthest measured cell; None if nothing is measured in bytes."""
    metrics = [m for m in reported_metrics(data) if is_bytes(m.unit) and "_bytes" in m.name]
    if not metrics or not len(data.ok):
        return None
    frame = longest(data, data.ok)
    names = identifying(data, frame)
    absent = [m for m in metrics if all(v is None for v in frame[m.name])]
    shown = [m for m in metrics if m not in absent]
    pairs = [(m, p) for m in shown for p in shown if p.name == m.name + PREDICTED]
    values = (v for m in shown for v in frame[m.name] if isinstance(v, (int, float)))
    scale = scale_for("B", values)
    table = Table(
        "memory",
        "Memory that must add up",
        [
            *name_columns(data, names),
            *(Column(m.name, header(m, scale.unit)) for m in shown),
            *(Column(f"{m.name}/ratio", f"{m.label}, measured / predicted") for m, _ in pairs),
        ],
    )
    for index in frame.index:
        entries = name_entries(frame.loc[index], names)
        entries |= {m.name: metric_entry(data, int(index), m.name, scale.divisor) for m in shown}
        entries |= {f"{m.name}/ratio": _ratio(data, int(index), m, p) for m, p in pairs}
        table.rows.append(entries)
    for metric in absent:
        reasons = dict.fromkeys(data.reason(int(i), metric.name) for i in frame.index)
        table.notes.append(f"{metric.label}: nowhere measured ({'; '.join(list(reasons)[:3])}).")
    if pairs:
        table.notes.append(
            "A prediction follows from the configuration alone; 1 means that all of it was found."
        )
    return table


def _ratio(data: RunData, index: int, metric: Metric, predicted: Metric) -> Entry:
    found = [data.records[index].metrics.get(m.name) for m in (metric, predicted)]
    a, b = (value.value if value else None for value in found)
    if a is None or not b:
        return Entry(None, note="one of the two is not known")
    return Entry(a / b, number(a / b))
