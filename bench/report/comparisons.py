"""What differs from the reference, and by how much more than chance.

Cells that share everything but the suite's comparison axis were fed the same inputs: their series are
compared entry by entry, which removes what both found easy or hard. Of scalars see ``bench.report.relative``.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from bench.report.buckets import exp
from bench.report.frames import SERIES_START, RunData, Series
from bench.report.select import CellPair, identifying, is_reference, longest, pairs
from bench.report.tables import ARROWS, Column, Entry, Table, name_columns, name_entries
from bench.stats import Interval, paired_block_bootstrap
from bench.text import clean, interval, number, plural
from bench.workload import View

_MOST_INTERVALS = 300  # bootstraps in one report: beyond, only differences without interval
_IDENTICAL = "the same values, entry by entry"


def series_views(data: RunData) -> dict[str, View]:
    """One view per declared series whose entries pair: the first that draws it, preferably as a curve."""
    views = sorted(data.words.views, key=lambda view: view.kind != "curve")
    found: dict[str, View] = {}
    for view in views:
        if view.series and view.paired:
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
        found = furthest_pairs(data, found)
    if not found:
        return None
    names = compared_names(data, found, axis)
    label = data.words.metric(series).label if series in data.words.metrics else series
    title = f"{label} against {clean(reference, 40)}"
    late = any(_start(data, pair) for pair in found)
    columns = name_columns(data, names) + _columns(data, series, label, clean(reference, 40), late)
    table = Table(f"differences-{series}", title, columns)
    for pair in found:
        if (pair, series) not in data.known:
            bounded = len(data.known) < _MOST_INTERVALS
            data.known[pair, series] = _difference(data, pair, series, bounded=bounded)
        entries = data.known[pair, series]
        if entries is not None:
            table.rows.append(name_entries(data.frame.loc[pair.cell], names) | entries)
    if not table.rows:
        return None
    table.notes.append(
        "Paired by entry; 95 % intervals from a circular block bootstrap, block length chosen from the data. "
        "Negative means lower than the reference."
    )
    return table


def _columns(data: RunData, series: str, label: str, reference: str, late: bool) -> list[Column]:
    """Columns of a table of differences; ``late``: some cells declare where they begin to differ."""
    metric, transform = data.words.metric(series), series_views(data)[series].transform
    unit = f" ({metric.unit})" if metric.unit else ""
    columns = [
        Column("entries", "entries"),
        Column("mean", f"mean {label}{unit}{ARROWS[metric.direction]}"),
        Column("reference_mean", f"mean of {reference}{unit}"),
        Column("difference", f"difference{unit}, 95 % interval"),
        *([Column("ratio", "ratio (exp of the difference)")] if transform == "exp" else []),
        *(Column(name, name, csv_only=True) for name in ("low", "high", "block")),
    ]
    if late:
        columns += [
            Column("from", "from position"),
            Column("late_difference", f"difference from there on{unit}, 95 % interval"),
            *(Column(name, name, csv_only=True) for name in ("late_low", "late_high")),
        ]
    return columns


def _difference(data: RunData, pair: CellPair, series: str, *, bounded: bool) -> dict[str, Entry] | None:
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
        "ratio": Entry(float(exp(difference))),
    }
    if found:
        entries |= {"low": Entry(found.low), "high": Entry(found.high), "block": Entry(found.block)}
    start = _start(data, pair)
    if not 0 < start < size:
        why = Entry(None, note="ends before the two can differ" if start else "no start declared")
        return entries | {"from": why, "late_difference": why}
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
    if len(gaps) < 2:
        return None, Entry(mean, number(mean), note="one entry only: no interval")
    if not bounded:
        return None, Entry(mean, number(mean), note=f"only {_MOST_INTERVALS} rows get an interval")
    found = paired_block_bootstrap(a, b)
    return found, Entry(mean, interval(found.estimate, found.low, found.high))


def _start(data: RunData, pair: CellPair) -> int:
    """Entry at which the two cells can begin to differ: the smaller of the starts they declare, or 0."""
    starts = [data.records[i].columns.get(SERIES_START) for i in pair]
    return min((s for s in starts if isinstance(s, int)), default=0)


def furthest_pairs(data: RunData, found: list[CellPair]) -> list[CellPair]:
    """Those pairs whose cell reaches furthest along the prefix axis, of each pass."""
    cells = data.frame.loc[[pair.cell for pair in found]]
    kept = set(longest(data, cells).index)
    return [pair for pair in found if pair.cell in kept]


def compared_names(data: RunData, found: Sequence[CellPair], axis: str) -> list[str]:
    """Columns that tell the compared cells apart: the comparison axis first, the prefix axis always."""
    names = identifying(data, data.frame.loc[[pair.cell for pair in found]])
    prefix = data.words.prefix_axis
    if prefix in data.frame and prefix not in names:
        names = [*names, str(prefix)]
    return [axis, *(n for n in names if n != axis)] if axis in data.frame else names


def missing_reference(data: RunData) -> str | None:
    """A sentence if the reference is not there, or if measured cells have no partner with its value."""
    compare = data.compare()
    if compare is None or not len(data.ok):
        return None
    axis, reference = compare
    references = [i for i in data.ok.index if is_reference(data, int(i), axis, reference)]
    if not references:
        return f"No measured cell has {axis} = {reference}, so nothing is compared with it"
    alone = len(data.ok) - len(references) - len(pairs(data, axis, reference, data.ok))
    if not alone:
        return None
    cells = plural(alone, "measured cell")
    return f"Without a measured partner at {axis} = {reference}, and so in no comparison: {cells}"
