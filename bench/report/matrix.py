"""Many metrics of one family at once: hues down, metrics across, change as colour and number."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from bench.report import figure as paper
from bench.report import layout
from bench.report.control import control_note, over_control
from bench.report.frames import RunData
from bench.report.heatmap import EM, field_width
from bench.report.names import hue_label, text
from bench.report.panels import (
    Array,
    NothingToDraw,
    panel_rows,
    subtitle,
    view_rows,
)
from bench.report.select import identifying, longest, replicates, seed_counts, split
from bench.report.spread import spread_over
from bench.report.tables import Column, Entry, Table, name_columns, name_entries
from bench.text import interval, plural, shortened, with_unit
from bench.workload import View

_ROW = 0.46  # inches
_LABEL = 8  # font size of columns' names in points


def draw_matrix(view: View, data: RunData) -> Figure:
    """A figure at the largest ``view.x`` of each hue; raises NothingToDraw."""
    data = over_control(view, data)
    names = members(data, view)
    frame = longest(data, view_rows(data, view))
    notes: list[str] = []
    groups = panel_rows(data, frame, view, notes)
    cells = [dict(matrix_rows(data, view, part)) for _, part in groups]
    rows = list(dict.fromkeys(row for own in cells for row in own))  # of all panels: they share their axes
    sheets = [_values(data, own, rows, names) for own in cells]
    shown = np.concatenate([values[np.isfinite(values)] for values, _ in sheets])
    if not len(shown):
        raise NothingToDraw(f"no cell has a value of {view.y}…")
    figure, grid = paper.sheet(len(groups), 2.1 + _ROW * len(rows))
    limit = float(np.quantile(np.abs(shown), 0.95)) or 1.0
    whole = [_words(view, name) for name in names]
    labels = _fitting(figure, whole, field_width(len(names), len(groups)))
    for axes, (values, certain) in zip(grid, sheets, strict=True):
        _paint(axes, values, certain, Normalize(-limit, limit))
        paper.name_ticks(axes.xaxis, [i + 0.5 for i in range(len(names))], labels)
        paper.name_ticks(axes.yaxis, [i + 0.5 for i in range(len(rows))], rows)
        axes.tick_params(length=0)
        axes.tick_params(axis="x", labelsize=_LABEL)
        axes.tick_params(axis="y", labelrotation=0)
    unit = data.words.metric(names[0]).unit
    notes.insert(0, f"Colour and number: {with_unit(view.y_label, unit, unit)}.")
    notes += [f"Columns: {', '.join(whole)}."] if labels != whole else []
    notes += ["Blank: not measured."] if any(np.isnan(values).any() for values, _ in sheets) else []
    notes += control_note(view, data)
    notes += claims(data, frame, bold=any(certain.any() for _, certain in sheets))
    titles = [title for title, _ in groups]
    words = layout.Words(view.title, subtitle(data, frame, view), view.x_label, "", notes, titles)
    layout.finish(figure, grid, words)
    return figure


def _fitting(figure: Figure, names: list[str], inches: float) -> list[str]:
    """Names of columns, cut if they would touch each other."""
    if max(layout.text_width(figure, name, fontsize=_LABEL) for name in names) < 1.1 * inches:
        return names
    return shortened(names, max(5, int(inches / (_LABEL * EM))))


def claims(data: RunData, frame: pd.DataFrame, *, bold: bool) -> list[str]:
    """What the numbers are about, and what bold ones say."""
    words, counts = data.words, seed_counts(data, frame)
    if not words.replicated:
        return ["Bold: the 95 % interval over samples excludes zero."] if bold else []
    if counts == {1}:
        return [
            f"Each row is one {words.replicate}, and what it says is about this {words.replicate}: another "
            "seed may say otherwise, so nothing is claimed and no number is bold."
        ]
    many = " to ".join(map(str, sorted({min(counts), max(counts)})))
    over = f"over {words.replicate}s and {words.sample}s"
    notes = [f"Means of {many} {words.replicate}s (seeds)."]
    return [*notes, f"Bold: the 95 % interval {over} excludes zero."] if bold else notes


def _settings(data: RunData, frame: pd.DataFrame) -> list[str]:
    """Columns that tell cells apart but for seed and repeat."""
    return [name for name in identifying(data, frame) if name not in ("seed", "repeat", "label")]


def matrix_rows(data: RunData, view: View, frame: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    """Names of rows, and their cells, which differ in seed and repeat at most.

    A hue has one row, or one for each value of the prefix axis at which its cells ended. Where rows have
    unequally many seeds, each says how many.
    """
    rows = [
        (hue_label(data, view, hue[view.hue]), ends, cells)
        for hue, part in split(frame, [view.hue])
        for ends, cells in replicates(data, part)
    ]
    count = Counter(name for name, _, _ in rows)
    unequal = data.words.replicated and len({len(set(cells["seed"])) for _, _, cells in rows}) > 1
    named = []
    for name, ends, cells in rows:
        more = [text(ends)] if count[name] > 1 else []
        more += [plural(len(set(cells["seed"])), data.words.replicate)] if unequal else []
        named.append((" · ".join([name, *more]), cells))
    return named


def matrix_table(data: RunData, view: View) -> Table | None:
    """Every setting of a view with the whole family of metrics and their intervals; seeds are one row."""
    try:
        data = over_control(view, data)
        frame, names = view_rows(data, view), members(data, view)
    except NothingToDraw:
        return None
    rows = frame[frame["status"] == "ok"]
    if not len(rows):
        return None
    keys = _settings(data, rows) or ["label"]
    columns = [*name_columns(data, keys), Column("seeds", f"{data.words.replicate}s")]
    for name in names:
        metric = data.words.metric(name)
        columns += [
            Column(name, with_unit(_words(view, name), metric.unit, metric.unit)),
            Column(f"{name}.low", f"{name}.low", csv_only=True),
            Column(f"{name}.high", f"{name}.high", csv_only=True),
        ]
    table = Table(f"matrix-{view.name}", view.title, columns)
    kinds: set[str] = set()
    for _, cells in split(rows, keys):
        entries = name_entries(cells.iloc[0], keys) | {"seeds": Entry(len(set(cells["seed"])))}
        for name in names:
            entries |= _entries(data, cells, name, kinds)
        table.rows.append(entries)
    table.notes += control_note(view, data)
    table.notes.append(f"Limits: {', '.join(sorted(kinds))}." if kinds else "No cell has kept samples.")
    return table


def members(data: RunData, view: View) -> list[str]:
    """Metrics of the family that some cell has a value of, in the order of declaration."""
    known = [name for name in data.words.metrics if name.startswith(view.y) and name in data.frame]
    found = [name for name in known if data.frame[name].notna().any()]
    if not found:
        raise NothingToDraw(f"no cell has a metric {view.y}…")
    return found


def _entries(data: RunData, cells: pd.DataFrame, name: str, kinds: set[str]) -> dict[str, Entry]:
    """The mean of a metric over cells that differ in seed at most, with its limits, whose kind is added."""
    values = _numbers(data, cells, name)
    if not values:
        return {name: Entry(None, note=data.reason(int(cells.index[0]), name))}
    lost = len(cells) - len(values)
    note = f"{len(values)} of {len(cells)} cells have a value" if lost else None
    mean, found = float(np.mean(values)), spread_over(data, cells, name)
    if found is None:
        return {name: Entry(mean, note=note)}
    kinds.add(found.what)
    return {
        name: Entry(mean, interval(mean, found.low, found.high), note),
        f"{name}.low": Entry(found.low),
        f"{name}.high": Entry(found.high),
    }


def _numbers(data: RunData, cells: pd.DataFrame, name: str) -> list[float]:
    found = [data.records[int(k)].metrics.get(name) for k in cells.index]
    return [float(v.value) for v in found if v is not None and v.value is not None]


def _words(view: View, name: str) -> str:
    return name.removeprefix(view.y).replace("_", " ")


def _values(
    data: RunData, own: dict[str, pd.DataFrame], rows: list[str], names: list[str]
) -> tuple[Array, np.ndarray]:
    """Means over the seeds of each row, NaN where it has none, and whether they are certain."""
    values = np.full((len(rows), len(names)), np.nan)
    certain = np.zeros(values.shape, bool)
    for i, row in enumerate(rows):
        for j, name in enumerate(names if row in own else ()):
            cells = own[row]
            if numbers := _numbers(data, cells, name):
                values[i, j] = np.mean(numbers)
                found = spread_over(data, cells, name)
                certain[i, j] = found is not None and found.supports(data.words)
    return values, certain


def _paint(axes: Axes, values: Array, certain: np.ndarray, norm: Normalize) -> None:
    axes.grid(visible=False)
    sns.despine(ax=axes, left=True, bottom=True)
    written: Any = np.vectorize(_signed, otypes=[object])(values)
    sns.heatmap(
        values, ax=axes, cmap="vlag_r", norm=norm, vmin=norm.vmin, vmax=norm.vmax, cbar=False, annot=written,
        fmt="", annot_kws={"fontsize": 9}, linewidths=1.5, linecolor="white",
    )  # fmt: skip
    # seaborn writes numbers for finite values only, in row order
    places = zip(*np.nonzero(np.isfinite(values)), strict=True)
    for label, (i, j) in zip(axes.texts, places, strict=True):
        label.set_fontweight("bold" if certain[i, j] else "normal")


def _signed(value: float) -> str:
    return f"{value:+.2g}".replace("-", "−") if np.isfinite(value) else ""
