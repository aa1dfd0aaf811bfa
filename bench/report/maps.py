"""Maps that cells have kept: rows, columns and values as arrays of an artifact, one panel a cell."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from bench.report import figure as paper
from bench.report import layout
from bench.report.frames import RunData
from bench.report.names import text
from bench.report.panels import Array, NothingToDraw
from bench.report.select import keep, longest, matching
from bench.results.record import Status
from bench.text import number, plural
from bench.workload import View

_MOST_PANELS = 9
# Of seaborn's, from near white, so that nothing looks like nothing; steps for which a PNG's palette has room.
_COLOURS, _STEPS = "mako_r", 24
_ROW, _LEAST, _MOST = 0.1, 1.6, 6.0  # inches of a row, and of a panel's height
_TICKS = 10  # named rows or columns of a panel
_WIDE = 16  # columns from which lines between fields would be most of what is seen


@dataclass(frozen=True)
class Map:
    """One cell's map: ``values`` (rows, columns), NaN where nothing was kept."""

    title: str
    rows: list[int]
    columns: list[int]
    values: Array


def maps(view: View, data: RunData) -> tuple[list[Map], list[str]]:
    """The maps of the measured cells, of each pass the furthest, and notes; raises NothingToDraw."""
    frame = matching(data.frame, dict(view.where))
    rows = longest(data, keep(frame, (status == Status.OK for status in frame["status"])))
    found: dict[str, Map] = {}  # by label: a cell that was measured again shows its first map
    for index in rows.index:
        label = data.records[int(index)].label
        made = None if label in found else _map(view, data, int(index), label)
        if made is not None:
            found[label] = made
    if not found:
        raise NothingToDraw(f"no measured cell has kept {view.series}")
    notes = [f"Not all cells: {data.chosen}."] if data.chosen else []
    if len(found) > _MOST_PANELS:
        notes.append(f"The first {_MOST_PANELS} of {plural(len(found), 'map')} are drawn.")
    return list(found.values())[:_MOST_PANELS], notes


def _map(view: View, data: RunData, index: int, label: str) -> Map | None:
    arrays = [data.array(index, str(view.series), name) for name in (view.hue, view.x, view.y)]
    row, column, value = arrays
    if row is None or column is None or value is None or not len(row) == len(column) == len(value):
        return None
    rows, at = np.unique(row.astype(int), return_inverse=True)
    columns, beside = np.unique(column.astype(int), return_inverse=True)
    values = np.full((len(rows), len(columns)), np.nan)
    values[at, beside] = value
    return Map(label, rows.tolist(), columns.tolist(), values)


def draw_map(view: View, data: RunData) -> Figure:
    """A figure with one panel per cell, all in one scale of colours; raises NothingToDraw."""
    found, notes = maps(view, data)
    shown = np.concatenate([one.values[np.isfinite(one.values)] for one in found])
    if not len(shown):
        raise NothingToDraw(f"no cell has a value of {view.y}")
    low, high = min(0.0, float(shown.min())), float(shown.max())
    norm = Normalize(low, high if high > low else low + 1)
    lines = math.ceil(len(found) / paper.grid_columns(len(found)))
    inches = min(max(_ROW * max(len(one.rows) for one in found), _LEAST), _MOST)
    figure, grid = paper.sheet(len(found), 1.75 + inches, shared=False)
    if lines > 1:
        figure.set_size_inches(paper.WIDTH, 1.4 + (inches + 0.5) * lines)
    for axes, one in zip(grid, found, strict=True):
        _paint(axes, one, norm)
    ends = f"from {number(low)} (light) to {number(high)} (dark)"
    notes.insert(0, f"Colour: {view.y_label}, {ends}. Rows: {view.hue}, from the first (top).")
    titles = [one.title for one in found]
    layout.finish(figure, grid, layout.Words(view.title, "", view.x_label, text(view.hue), notes, titles))
    return figure


def _paint(axes: Axes, one: Map, norm: Normalize) -> None:
    axes.grid(visible=False)
    sns.despine(ax=axes, left=True, bottom=True)
    line = {"linewidths": 0.6, "linecolor": "white"} if len(one.columns) <= _WIDE else {}
    plain = {"cbar": False, "xticklabels": False, "yticklabels": False}
    sns.heatmap(
        one.values,
        ax=axes,
        cmap=sns.color_palette(_COLOURS, as_cmap=True).resampled(_STEPS),
        norm=norm,
        vmin=norm.vmin,
        vmax=norm.vmax,
        **plain,
        **line,
    )
    for axis, names in ((axes.xaxis, one.columns), (axes.yaxis, one.rows)):
        places = range(0, len(names), math.ceil(len(names) / _TICKS))
        paper.name_ticks(axis, [i + 0.5 for i in places], [str(names[i]) for i in places])
    axes.tick_params(length=0)
    axes.tick_params(axis="y", labelrotation=0)
