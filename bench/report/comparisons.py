"""What differs from the reference, and by how much more than chance.

Cells that share everything but the suite's comparison axis were fed the same inputs: their series are
compared entry by entry, which removes what both found easy or hard. Scalars are compared as ratios.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd

from bench.record import Status
from bench.report.buckets import bucket_means, exp, octave_edges
from bench.report.frames import SERIES_START, RunData, Series
from bench.report.select import Pair, extent, facets, identifying, longest, matching, pairs, split
from bench.report.tables import ARROWS, Column, Entry, Table, name_columns, name_entries, reported
from bench.report.text import clean, interval, number, plural
from bench.stats import Interval, paired_block_bootstrap, paired_log_ratio
from bench.workload import View

_MOST_INTERVALS = 300  # bootstraps in one report: beyond, only differences without interval
_IDENTICAL = "the same values, entry by entry"


def series_views(data: RunData) -> dict[str, View]:
    """One view per declared series: the first that draws it, preferably as a curve."""
    views = sorted(data.words.views, key=lambda view: view.kind != "curve")
    found: dict[str, View] = {}
    for view in views:
        if view.series:
            found.setdefault(view.series, view)
    return found


def differences(data: RunData, series: str, *, furthest: bool = False) -> Table | None:
    """Mean paired difference of a series against the reference, one row per cell.

    ``furthest`` keeps the cells that reach furthest along the prefix axis (for the page).
    """
    compare = data.compare()
    if compare is None:
        return None
    axis, reference = compare
    found = pairs(data, axis, reference, data.ok)
    if furthest:
        found = _furthest(data, found)
    if not found:
        return None
    view, metric = series_views(data)[series], data.words.metric(series)
    unit = f" ({metric.unit})" if metric.unit else ""
    names = _names(data, found, axis)
    shown = clean(reference, 40)
    label = metric.label if series in data.words.metrics else series
    columns = [
        *name_columns(data, names),
        Column("entries", "entries"),
        Column("mean", f"mean {label}{unit}{ARROWS[metric.direction]}"),
        Column("reference_mean", f"of {shown}{unit}"),
        Column("difference", f"difference{unit} [95 % interval]"),
        *([Column("ratio", f"ratio of {view.y_label}")] if view.transform == "exp" else []),
        *(Column(c, c, csv_only=True) for c in ("low", "high", "block")),
    ]
    late = any(_start(data, pair) for pair in found)
    if late:
        columns += [
            Column("from", "from position"),
            Column("late_difference", f"difference from there on{unit} [95 % interval]"),
            *(Column(c, c, csv_only=True) for c in ("late_low", "late_high")),
        ]
    table = Table(f"differences-{series}", f"{label} against {shown}", columns)
    for count, pair in enumerate(found):
        entries = _difference(data, pair, series, bounded=count < _MOST_INTERVALS)
        if entries is not None:
            table.rows.append(name_entries(data.frame.loc[pair.cell], names) | entries)
    if not table.rows:
        return None
    table.notes.append(
        "Paired by entry; 95 % intervals from a circular block bootstrap, block length chosen from the data. "
        "Negative means lower than the reference."
    )
    return table


def _difference(data: RunData, pair: Pair, series: str, *, bounded: bool) -> dict[str, Entry] | None:
    """Entries of one pair, or None if either cell has no such series."""
    a, b = data.series(pair.cell, series), data.series(pair.reference, series)
    if a is None or b is None:
        return None
    size = min(len(a), len(b))
    a, b = a[:size], b[:size]
    with np.errstate(invalid="ignore"):
        both = np.isfinite(a - b)
    entries = {"entries": Entry(int(both.sum()))}
    if not both.any():
        why = Entry(None, note="the two series have no scored entry in common")
        return entries | dict.fromkeys(("mean", "reference_mean", "difference", "ratio"), why)
    difference = float((a[both] - b[both]).mean())
    found, entry = _bounded(a, b, bounded)
    entries |= {
        "mean": Entry(float(a[both].mean())),
        "reference_mean": Entry(float(b[both].mean())),
        "difference": entry,
        "ratio": Entry(float(exp(np.float64(difference)))),
    }
    if found:
        entries |= {"low": Entry(found.low), "high": Entry(found.high), "block": Entry(found.block)}
    start = _start(data, pair)
    if not 0 < start < size:
        return entries
    found, entry = _bounded(a[start:], b[start:], bounded)
    entries |= {"from": Entry(start + 1), "late_difference": entry}
    return entries | ({"late_low": Entry(found.low), "late_high": Entry(found.high)} if found else {})


def _bounded(a: Series, b: Series, bounded: bool) -> tuple[Interval | None, Entry]:
    """A paired difference with its interval where there is one."""
    with np.errstate(invalid="ignore"):
        gaps = (a - b)[np.isfinite(a - b)]
    if not len(gaps):
        return None, Entry(None, note="no scored entry in common from there on")
    mean = float(gaps.mean())
    if not gaps.any():
        return Interval(0.0, 0.0, 0.0, len(gaps)), Entry(0.0, "0", note=_IDENTICAL)
    if len(gaps) < 2 or not bounded:
        why = "one entry only" if len(gaps) < 2 else f"intervals are computed for the first {_MOST_INTERVALS} rows"
        return None, Entry(mean, number(mean), note=why)
    found = paired_block_bootstrap(a, b)
    return found, Entry(mean, interval(found.estimate, found.low, found.high))


def _start(data: RunData, pair: Pair) -> int:
    """Entry at which the two cells can begin to differ, as declared by the later of no declaration."""
    starts = [data.records[i].columns.get(SERIES_START) for i in pair]
    return min((s for s in starts if isinstance(s, int)), default=0)


def _furthest(data: RunData, found: list[Pair]) -> list[Pair]:
    cells = data.frame.loc[[pair.cell for pair in found]]
    kept = set(longest(data, cells).index)
    return [pair for pair in found if pair.cell in kept]


def _names(data: RunData, found: Sequence[Pair], axis: str) -> list[str]:
    """Columns that tell the compared cells apart, the comparison axis first."""
    names = identifying(data, data.frame.loc[[pair.cell for pair in found]])
    return [axis, *(n for n in names if n != axis)] if axis in data.frame else names


def relative(data: RunData) -> Table | None:
    """Headline metrics as ratios to the reference; repeats and seeds become an interval."""
    compare = data.compare()
    metrics = [m for m in reported(data, headline=True) if m.direction != "none"]
    if compare is None or not metrics:
        return None
    found = _furthest(data, pairs(data, *compare, data.ok))
    if not found:
        return None
    by_cell = dict(found)
    names = [n for n in _names(data, found, compare[0]) if n not in ("seed", "repeat")]
    shown = clean(compare[1], 40)
    columns = [*name_columns(data, names), *(Column(m.name, m.label + ARROWS[m.direction]) for m in metrics)]
    table = Table("relative", f"Relative to {shown}", columns)
    for _, rows in split(data.frame.loc[list(by_cell)], names):
        entries = name_entries(rows.iloc[0], names)
        for metric in metrics:
            values = [_both(data, Pair(int(i), by_cell[int(i)]), metric.name) for i in rows.index]
            kept = [v for v in values if v is not None]
            why = f"{metric.label}: no positive value in both cells"
            entries[metric.name] = _ratio(kept) if kept else Entry(None, note=why)
        table.rows.append(entries)
    table.notes.append(
        f"Each value divided by that of {shown} in the cell that is otherwise equal; with several "
        "seeds or repeats their geometric mean and its 95 % interval."
    )
    return table


def _both(data: RunData, pair: Pair, metric: str) -> tuple[float, float] | None:
    values = [data.records[i].metrics.get(metric) for i in pair]
    a, b = (v.value if v is not None else None for v in values)
    return (float(a), float(b)) if a is not None and b is not None and a > 0 and b > 0 else None


def _ratio(values: list[tuple[float, float]]) -> Entry:
    if len(values) == 1:
        ratio = values[0][0] / values[0][1]
        return Entry(ratio, f"× {number(ratio)}")
    found = paired_log_ratio(*zip(*values, strict=True))
    return Entry(found.estimate, f"× {number(found.estimate)} [{number(found.low)}, {number(found.high)}]")


def position_buckets(data: RunData, view: View) -> Table | None:
    """Mean of a series per bucket of positions (doubling in width), one column per hue and panel."""
    frame = matching(data.ok, dict(view.where))
    if view.series is None or view.hue not in frame:
        return None
    rows = longest(data, frame)
    found: list[tuple[str, Series]] = []
    panels = facets(data, rows, view)
    for index in rows.loc[extent(data, rows).sort_index().index].index:
        series = data.series(index, view.series)
        if series is not None and len(series):
            title = ", ".join(str(number(rows.at[index, c])) for c in (view.hue, *panels))
            found.append((title, series))
    found = _average(found)
    if not found:
        return None
    ends = octave_edges(max(len(s) for _, s in found))
    unit = data.words.metric(view.series).unit
    columns = [Column("first", "from"), Column("last", "to")]
    columns += [Column(title, title) for title, _ in found]
    table = Table(f"positions-{view.name}", f"{view.y_label} by position", columns)
    table.rows = [{} for _ in ends]
    for title, series in found:
        _fill(table, title, series, ends, view.transform == "exp")
    means = f"mean {view.series}" + (f" ({unit})" if unit else "")
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
            whole = f"{number(mean)} ({number(float(exp(np.float64(mean))))})" if transform else number(mean)
            partly = buckets.last[i] < ends[i]
            row[title] = Entry(mean, whole, note="the series ends inside" if partly else None)


def unpaired(data: RunData) -> str | None:
    """A sentence if the reference is not there, or lacks partners for some measured cells."""
    compare = data.compare()
    if compare is None or not len(data.ok):
        return None
    axis, reference = compare
    partners = pairs(data, axis, reference, data.ok)
    values = pd.concat([data.ok[axis]]) if axis in data.ok else pd.Series(dtype=object)
    if not any(str(v) == str(reference) for v in values):
        return f"no measured cell has {axis} = {reference}, so nothing is compared with it"
    own = sum(str(v) == str(reference) for v in values)
    alone = len(data.ok) - own - len(partners)
    if alone:
        return f"{plural(alone, 'cell')} without a measured partner at {axis} = {reference} (in no difference)"
    return None


def is_finite(value: float) -> bool:
    """Whether a number can be drawn."""
    return math.isfinite(value)


def measured(data: RunData) -> int:
    """How many cells were measured."""
    return int((data.frame["status"] == Status.OK).sum()) if len(data.frame) else 0
