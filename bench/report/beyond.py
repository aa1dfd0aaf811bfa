"""What is left of a cell beside its control: a workload's own answer to "better than what?".

A control does the same without knowing anything (a policy that keeps tokens at random). Cells are paired with
the control that is equal in the columns a workload names, sample by sample; what does not beat it is named.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator, Mapping
from typing import Any

from bench.report.control import difference
from bench.report.frames import RunData
from bench.report.tables import ARROWS, Column, Entry, Table
from bench.stats import t_interval
from bench.text import clean, interval
from bench.workload import Control, Metric

_FEWEST = 3  # samples behind an interval


def beyond_control(data: RunData) -> Table | None:
    """One row per measured cell that has a control, None if there is none."""
    control = data.words.control
    if control is None or control.column not in data.ok:
        return None
    metrics = [data.words.metric(name) for name in control.metrics if name in data.ok]
    partners = _controls(data, control)
    columns = [Column("cell", "", numeric=False), *(Column(m.name, _header(m)) for m in metrics)]
    what = f"{control.column} {clean(control.value, 40)}"
    table = Table("control", f"Beyond the control ({what})", columns)
    short: dict[str, list[str]] = {metric.name: [] for metric in metrics}
    for index, row in _cells(data):
        partner = partners.get(_key(row, control))
        if partner is None or row[control.column] == control.value:
            continue
        entries = {"cell": Entry(name := clean(data.records[index].label, 200), name)}
        for metric in metrics:
            entries[metric.name], beaten = _difference(data, index, partner, metric)
            if beaten is False:
                short[metric.name].append(name)
        table.rows.append(entries)
    if not table.rows:
        return None
    table.notes.append(
        f"Difference to the cell with {what} and the same {', '.join(control.alike)}; 95 % intervals "
        f"over samples."
    )
    for metric in metrics:
        if short[metric.name]:
            table.notes.append(
                f"Does not beat the control in {metric.label}: {'; '.join(short[metric.name])}."
            )
    return table


def _controls(data: RunData, control: Control) -> dict[tuple[Any, ...], int]:
    """The first measured control of every setting."""
    found: dict[tuple[Any, ...], int] = {}
    for index, row in _cells(data):
        if row[control.column] == control.value:
            found.setdefault(_key(row, control), index)
    return found


def _cells(data: RunData) -> Iterator[tuple[int, Mapping[Hashable, Any]]]:
    """Index and columns of the measured cells."""
    yield from zip(map(int, data.ok.index), data.ok.to_dict("records"), strict=True)


def _key(row: Mapping[Hashable, Any], control: Control) -> tuple[Any, ...]:
    """The columns in which a cell and its control are equal."""
    values = (row.get(name) for name in control.alike)
    return tuple(None if isinstance(v, float) and math.isnan(v) else v for v in values)


def _difference(data: RunData, cell: int, partner: int, metric: Metric) -> tuple[Entry, bool | None]:
    """The difference and its interval, and whether the cell is better beyond doubt; None if unknown."""
    value = data.records[cell].metrics.get(metric.name)
    if value is None:
        return Entry(None, None, "not measured"), None
    found = difference(value, data.records[partner].metrics.get(metric.name))
    if found.value is None:
        return Entry(None, None, found.reason), None
    if not found.samples or len(found.samples) < _FEWEST:
        return Entry(found.value, None, "too few samples for an interval"), None
    known = t_interval(found.samples)
    better = known.high < 0 if metric.direction == "lower" else known.low > 0
    return Entry(found.value, interval(known.estimate, known.low, known.high)), better


def _header(metric: Metric) -> str:
    unit = f" ({metric.unit})" if metric.unit else ""
    return f"Δ {metric.label}{unit}{ARROWS[metric.direction]}"
