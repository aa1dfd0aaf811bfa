"""Published values beside ours, only where they speak of the same thing.

A published row names columns and values (model, policy, length …), a metric, a value and a source. It
stands beside a cell only if the cell has every one of these columns with an equal value.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence

from bench.report.frames import RunData
from bench.report.select import identifying, longest, token
from bench.report.tables import Column, Entry, Table, metric_entry, name_columns, name_entries
from bench.results.record import Status
from bench.text import number, plural
from bench.workload import Scalar

_ABOUT = ("metric", "value", "unit", "source", "note")  # keys that do not select cells


def matches(rows: Sequence[Mapping[str, Scalar]], data: RunData) -> list[list[int]]:
    """For each published row the cells (the furthest of each pass) of which it speaks."""
    index: dict[str, dict[Hashable, set[int]]] = {}
    for column in {key for row in rows for key in row if key not in _ABOUT} & set(data.frame.columns):
        values = index.setdefault(column, {})
        for i, value in data.frame[column].items():
            values.setdefault(token(value), set()).add(int(str(i)))
    found = []
    for row in rows:
        about = [index.get(k, {}).get(token(v), set()) for k, v in row.items() if k not in _ABOUT]
        cells = sorted(set.intersection(*about)) if about else []
        measured = [i for i in cells if data.records[i].status is Status.OK]
        found.append([int(i) for i in longest(data, data.frame.loc[measured or cells]).index])
    return found


def beside(data: RunData) -> Table | None:
    """Published beside measured, one row per published value and cell; None if none applies."""
    rows = data.words.published
    found = [(row, index) for row, cells in zip(rows, matches(rows, data), strict=True) for index in cells]
    if not found:
        return None
    names = identifying(data)
    columns = [
        *name_columns(data, names),
        Column("metric", "metric", numeric=False),
        Column("published", "published"),
        Column("measured", "measured"),
        Column("ratio", "measured / published"),
        Column("source", "source", numeric=False),
    ]
    table = Table("published", "Published beside measured", columns)
    for row, index in found:
        name, value = str(row["metric"]), row["value"]
        measured = metric_entry(data, index, name)
        comparable = measured.value is not None and isinstance(value, (int, float)) and value != 0
        ratio = measured.value / value if comparable else None
        metric = data.words.metric(name)
        table.rows.append(
            name_entries(data.frame.loc[index], names)
            | {"metric": Entry(metric.label + (f" ({metric.unit})" if metric.unit else ""))}
            | {"published": Entry(value, note=str(row["note"]) if row.get("note") else None)}
            | {"measured": measured, "source": Entry(row.get("source"))}
            | {"ratio": Entry(ratio, number(ratio), note=None if comparable else measured.note)}
        )
    unmatched = len(rows) - len({id(row) for row, _ in found})
    if unmatched:
        table.notes.append(
            f"{plural(unmatched, 'published value')} of other models or settings are not shown."
        )
    return table
