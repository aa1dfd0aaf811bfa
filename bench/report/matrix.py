"""Many metrics of one family at once: hues down, metrics across, change as colour and number."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from bench.report import figure as paper
from bench.report import layout
from bench.report.control import over_control
from bench.report.frames import RunData
from bench.report.panels import (
    Array,
    NothingToDraw,
    hue_label,
    panel_rows,
    panel_title,
    subtitle,
    view_rows,
)
from bench.report.select import identifying, longest, split
from bench.report.spread import spread_of
from bench.report.tables import Column, Entry, Table, name_columns, name_entries
from bench.report.text import interval, with_unit
from bench.workload import View

_ROW = 0.46  # inches


def draw_matrix(view: View, data: RunData) -> Figure:
    """A figure at the largest ``view.x`` of each hue; raises NothingToDraw."""
    data = over_control(view, data)
    names = members(data, view)
    frame = longest(data, view_rows(data, view))
    notes: list[str] = []
    groups = panel_rows(data, frame, view, notes)
    sheets = [_values(data, view, part, names) for _, part in groups]
    shown = np.concatenate([values[np.isfinite(values)] for values, _, _ in sheets])
    if not len(shown):
        raise NothingToDraw(f"no cell has a value of {view.y}…")
    most = max((len(hues) for _, _, hues in sheets), default=1)
    figure, grid = paper.sheet(len(groups), 2.1 + _ROW * most)
    limit = float(np.quantile(np.abs(shown), 0.95)) or 1.0
    for axes, (values, certain, hues) in zip(grid, sheets, strict=True):
        _paint(axes, values, certain, Normalize(-limit, limit))
        labels = [_words(view, name) for name in names]
        paper.name_ticks(axes.xaxis, [i + 0.5 for i in range(len(names))], labels)
        paper.name_ticks(axes.yaxis, [i + 0.5 for i in range(len(hues))], hues)
        axes.tick_params(length=0)
        axes.tick_params(axis="x", labelsize=8)
        axes.tick_params(axis="y", labelrotation=0)
    unit = data.words.metric(names[0]).unit
    notes.insert(0, f"Colour and number: {with_unit(view.y_label, unit, unit)}.")
    if any(certain.any() for _, certain, _ in sheets):
        notes.append("Bold: the 95 % interval over samples excludes zero.")
    titles = [panel_title(values) for values, _ in groups]
    words = layout.Words(view.title, subtitle(data, frame, view), view.x_label, "", notes, titles)
    layout.finish(figure, grid, words)
    return figure


def matrix_table(data: RunData, view: View) -> Table | None:
    """Every cell of a view with the whole family of metrics and their intervals."""
    try:
        data = over_control(view, data)
        frame, names = view_rows(data, view), members(data, view)
    except NothingToDraw:
        return None
    rows = frame[frame["status"] == "ok"]
    if not len(rows):
        return None
    keys = identifying(data, rows)
    columns = [*name_columns(data, keys)]
    for name in names:
        metric = data.words.metric(name)
        columns += [
            Column(name, with_unit(_words(view, name), metric.unit, metric.unit)),
            Column(f"{name}.low", f"{name}.low", csv_only=True),
            Column(f"{name}.high", f"{name}.high", csv_only=True),
        ]
    table = Table(f"matrix-{view.name}", view.title, columns)
    for index in rows.index:
        entries = name_entries(rows.loc[index], keys)
        for name in names:
            entries |= _entries(data, int(index), name)
        table.rows.append(entries)
    table.notes.append("With 95 % intervals over samples, where a cell has kept them.")
    return table


def members(data: RunData, view: View) -> list[str]:
    """Metrics of the family that some cell has a value of, in the order of declaration."""
    known = [name for name in data.words.metrics if name.startswith(view.y) and name in data.frame]
    found = [name for name in known if data.frame[name].notna().any()]
    if not found:
        raise NothingToDraw(f"no cell has a metric {view.y}…")
    return found


def _entries(data: RunData, index: int, name: str) -> dict[str, Entry]:
    value = data.records[index].metrics.get(name)
    if value is None or value.value is None:
        return {name: Entry(None, note=data.reason(index, name))}
    found = spread_of(value)
    if found is None:
        return {name: Entry(value.value)}
    text = interval(found.estimate, found.low, found.high)
    return {
        name: Entry(value.value, text),
        f"{name}.low": Entry(found.low),
        f"{name}.high": Entry(found.high),
    }


def _words(view: View, name: str) -> str:
    return name.removeprefix(view.y).replace("_", " ")


def _values(
    data: RunData, view: View, frame: pd.DataFrame, names: list[str]
) -> tuple[Array, np.ndarray, list[str]]:
    """Means over the cells of a hue, whether they are certain, and the names of the hues."""
    groups = split(frame, [view.hue])
    values = np.full((len(groups), len(names)), np.nan)
    certain = np.zeros(values.shape, bool)
    for i, (_, cells) in enumerate(groups):
        for j, name in enumerate(names):
            found = [data.records[int(k)].metrics.get(name) for k in cells.index]
            measured = [v for v in found if v is not None and v.value is not None]
            if not measured:
                continue
            values[i, j] = np.mean([float(v.value) for v in measured if v.value is not None])
            limits = [spread_of(v) for v in measured]
            certain[i, j] = all(limit is not None and limit.excludes_zero for limit in limits)
    return values, certain, [hue_label(view, hue[view.hue]) for hue, _ in groups]


def _paint(axes: Axes, values: Array, certain: np.ndarray, norm: Normalize) -> None:
    axes.grid(visible=False)
    sns.despine(ax=axes, left=True, bottom=True)
    text: Any = np.vectorize(_signed, otypes=[object])(values)
    sns.heatmap(
        values, ax=axes, cmap="vlag_r", norm=norm, cbar=False, annot=text, fmt="",
        annot_kws={"fontsize": 9}, linewidths=1.5, linecolor="white",
    )  # fmt: skip
    # seaborn writes numbers for finite values only, in row order
    places = zip(*np.nonzero(np.isfinite(values)), strict=True)
    for label, (i, j) in zip(axes.texts, places, strict=True):
        label.set_fontweight("bold" if certain[i, j] else "normal")


def _signed(value: float) -> str:
    return f"{value:+.2g}".replace("-", "−") if np.isfinite(value) else ""
