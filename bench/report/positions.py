"""Where along its series a cell is good or bad: one column per hue, one row per doubling of position."""

from __future__ import annotations

import numpy as np

from bench.report.buckets import bucket_means, exp, octave_edges
from bench.report.frames import RunData, Series
from bench.report.select import facets, longest, matching
from bench.report.tables import Column, Entry, Table
from bench.report.text import number
from bench.workload import View


def position_buckets(data: RunData, view: View) -> Table | None:
    """Mean of a series per bucket of positions (doubling in width), one column per hue and panel."""
    frame = matching(data.ok, dict(view.where))
    if view.series is None or view.hue not in frame:
        return None
    rows = longest(data, frame)
    found: list[tuple[str, Series]] = []
    panels = facets(data, rows, view)
    for index in rows.index:
        series = data.series(int(index), view.series)
        if series is not None and len(series):
            title = ", ".join(str(number(rows.at[index, c])) for c in (view.hue, *panels))
            found.append((title, series))
    found = _average(found)
    if not found:
        return None
    ends = octave_edges(max(len(s) for _, s in found))
    metric = data.words.metric(view.series)
    columns = [Column("first", "from"), Column("last", "to")]
    columns += [Column(title, title) for title, _ in found]
    table = Table(
        f"positions-{view.name}", f"{view.y_label[:1].upper()}{view.y_label[1:]} by position", columns
    )
    table.rows = [{} for _ in ends]
    for title, series in found:
        _fill(table, title, series, ends, view.transform == "exp")
    means = f"mean {metric.label}" + (f" ({metric.unit})" if metric.unit else "")
    both = f"{means}, and its exponential ({view.y_label}) in brackets" if view.transform == "exp" else means
    table.notes.append(f"Each field: {both}, over the scored entries at these positions.")
    return table


def _average(found: list[tuple[str, Series]]) -> list[tuple[str, Series]]:
    """Series of the same name (seeds, repeats) become one: the mean where all are scored."""
    groups: dict[str, list[Series]] = {}
    for title, series in found:
        groups.setdefault(title, []).append(series)
    return [(t, np.mean([s[: min(map(len, g))] for s in g], axis=0)) for t, g in groups.items()]


def _fill(table: Table, title: str, series: Series, ends: list[int], transform: bool) -> None:
    buckets = bucket_means(series, ends)
    for i, row in enumerate(table.rows):
        first = ends[i - 1] + 1 if i else 1
        row |= {"first": Entry(first), "last": Entry(ends[i])}
        if i >= len(buckets.mean):
            row[title] = Entry(None, note="the series ends before")
        elif not buckets.count[i]:
            row[title] = Entry(None, note="not scored at these positions")
        else:
            mean = float(buckets.mean[i])
            whole = f"{number(mean)} ({number(float(exp(mean)))})" if transform else number(mean)
            partly = buckets.last[i] < ends[i]
            row[title] = Entry(mean, whole, note="the series ends inside" if partly else None)
