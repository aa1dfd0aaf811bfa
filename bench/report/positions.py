"""Where along its series a cell is good or bad: one column per hue, one row per doubling of position."""

from __future__ import annotations

from typing import Any

import numpy as np

from bench.report.buckets import bucket_means, exp, octave_edges
from bench.report.frames import RunData, Series
from bench.report.names import names_of
from bench.report.select import facets, longest, matching, split, token
from bench.report.tables import Column, Entry, Table
from bench.text import number, shortened
from bench.workload import View


def position_buckets(data: RunData, view: View) -> Table | None:
    """Mean of a series per bucket of positions (doubling in width), one column per hue and panel."""
    frame = matching(data.ok, dict(view.where))
    if view.series is None or view.hue not in frame:
        return None
    rows = longest(data, frame)
    kept: list[tuple[dict[str, Any], Series]] = []
    for setting, cells in split(rows, [view.hue, *facets(data, rows, view)]):
        alike = [s for i in cells.index if (s := data.series(int(i), view.series)) is not None and len(s)]
        if alike:
            kept.append((setting, _mean(alike)))
    if not kept:
        return None
    titles = _titles([setting for setting, _ in kept])
    found = list(zip(titles, (series for _, series in kept), strict=True))
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


def _titles(settings: list[dict[str, Any]]) -> list[str]:
    """The hue and what else tells a column from the others; no two are the same."""
    names = [names_of(setting[column] for setting in settings) for column in settings[0]]
    whole = [", ".join(n[token(v)] for n, v in zip(names, s.values(), strict=True)) for s in settings]
    return shortened(whole, 300)


def _mean(found: list[Series]) -> Series:
    """Seeds and repeats of one setting as one series: the mean where all are scored."""
    return np.mean([series[: min(map(len, found))] for series in found], axis=0)


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
