"""A table as colour: hues down, x across, the metric as shade and as number."""

from __future__ import annotations

import math
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from bench.report import figure as paper
from bench.report import layout
from bench.report.buckets import exp
from bench.report.frames import RunData
from bench.report.names import hue_label, names_of, numeric
from bench.report.panels import (
    Array,
    NothingToDraw,
    panel_rows,
    subtitle,
    view_rows,
)
from bench.report.select import at_common_prefix, split, token
from bench.results.record import Status
from bench.text import number, scale_for, with_unit
from bench.workload import View

_LOG_FROM = 30.0  # colours follow the logarithm once values differ by such a factor
_ROW = 0.42  # inches
_MOST_COLUMNS = 64
_WIDE = 16  # columns from which lines between fields would be most of what is seen
_COLOURS = "crest"  # of seaborn's
_LUMINANCE = np.array([0.299, 0.587, 0.114])
_SMALLEST, _LARGEST = 5.5, 9.0  # points
EM = 0.0088  # width of a character in inches per point


def draw_heatmap(view: View, data: RunData) -> Figure:
    """A figure with one panel per combination of the remaining parameters; raises NothingToDraw."""
    frame = view_rows(data, view)
    for column in (view.x, view.y):
        if column not in frame:
            raise NothingToDraw(f"no cell has {column}")
    frame, _ = at_common_prefix(data, frame, view)
    notes: list[str] = []
    groups = panel_rows(data, frame, view, notes)
    rows, columns = _order(frame[view.hue], sort=False), _order(frame[view.x], sort=True)
    check_size(view, columns)
    names, hues = list(names_of(columns).values()), [hue_label(data, view, r) for r in rows]
    sheets = [_matrix(view, part, rows, columns) for _, part in groups]
    found = np.concatenate([values[np.isfinite(values)] for values, _ in sheets])
    if not len(found):
        raise NothingToDraw(f"no cell has a value of {view.y}")
    scale = scale_for("" if view.transform else data.words.metric(view.y).unit, found)
    norm = _norm(found / scale.divisor)
    figure, grid = paper.sheet(len(groups), 1.75 + _ROW * len(rows))
    sheets = [(values / scale.divisor, missing) for values, missing in sheets]
    for axes, (values, missing) in zip(grid, sheets, strict=True):
        _paint(axes, values, missing, norm)
        places = range(0, len(columns), _every(names, len(groups)))
        paper.name_ticks(axes.xaxis, [i + 0.5 for i in places], [names[i] for i in places])
        paper.name_ticks(axes.yaxis, [i + 0.5 for i in range(len(rows))], hues)
        axes.tick_params(length=0)
        axes.tick_params(axis="y", labelrotation=0)
    metric = data.words.metric(view.y)
    name = with_unit(view.y_label, scale.unit, metric.unit)
    better = {"lower": "; lower is better", "higher": "; higher is better"}.get(metric.direction, "")
    size = _font_size(sheets, len(groups))
    if size is None:
        low, high = (number(float(end / scale.divisor)) for end in (found.min(), found.max()))
        ends = f"from {low} (light) to {high} (dark)"
        notes.insert(0, f"Colour: {name}, {ends}{better}. The numbers are in the tables.")
    else:
        notes.insert(0, f"Colour and number: {name}{better}.")
        for axes, (values, missing) in zip(grid, sheets, strict=True):
            _write_numbers(axes, values, missing, norm, size)
    if any(len(cells) > 1 for _, part in groups for _, cells in split(part, [view.hue, view.x])):
        notes.append("Means over seeds and repeats.")
    if any((np.isnan(values) & (missing == "")).any() for values, missing in sheets):
        notes.append("Blank: not part of the suite.")
    titles = [title for title, _ in groups]
    words = layout.Words(view.title, subtitle(data, frame, view), view.x_label, "", notes, titles)
    layout.finish(figure, grid, words)
    return figure


def check_size(view: View, columns: list[Any]) -> None:
    """Raise NothingToDraw for more columns than anybody could read."""
    if len(columns) > _MOST_COLUMNS:
        raise NothingToDraw(f"{len(columns):,} values of {view.x} are too many for a heat map")


def _matrix(view: View, frame: pd.DataFrame, rows: list[Any], columns: list[Any]) -> tuple[Array, np.ndarray]:
    """Values (NaN where missing) and, for those that were planned, a word on why."""
    values = np.full((len(rows), len(columns)), np.nan)
    missing = np.full(values.shape, "", object)
    places = ({token(v): i for i, v in enumerate(rows)}, {token(v): j for j, v in enumerate(columns)})
    for key, cells in split(frame, [view.hue, view.x]):
        i, j = places[0].get(token(key[view.hue])), places[1].get(token(key[view.x]))
        if i is None or j is None:
            continue
        measured = [float(v) for v in cells[view.y] if numeric(v)]
        if measured:
            values[i, j] = np.mean(measured)
        else:
            status = str(cells["status"].iloc[0])
            missing[i, j] = status if status != Status.OK else "no value"
    return (exp(values) if view.transform == "exp" else values), missing


def _paint(axes: Axes, values: Array, missing: np.ndarray, norm: Normalize) -> None:
    """The colours. Numbers come last: seaborn draws the whole sheet for every heat map on it."""
    axes.grid(visible=False)
    sns.despine(ax=axes, left=True, bottom=True)
    shown = np.where(np.isfinite(values), values, np.nan)
    line = {"linewidths": 1.5, "linecolor": "white"} if values.shape[1] <= _WIDE else {}
    plain = {"cbar": False, "xticklabels": False, "yticklabels": False}
    limits = {"vmin": norm.vmin, "vmax": norm.vmax}  # seaborn would look for those of nothing, and warn
    sns.heatmap(shown, ax=axes, cmap=_COLOURS, norm=norm, **limits, **plain, **line)
    for i, j in zip(*np.nonzero(missing != ""), strict=True):
        axes.add_patch(Rectangle((j, i), 1, 1, facecolor="#f2f2f2", edgecolor="white", linewidth=1.5))


def _write_numbers(axes: Axes, values: Array, missing: np.ndarray, norm: Normalize, size: float) -> None:
    """Each number on its colour, light on dark; words where there is none."""
    shades = mpl.colormaps[_COLOURS](norm(np.nan_to_num(values)))
    for (i, j), value in np.ndenumerate(values):
        word: dict[str, Any] = {"ha": "center", "va": "center", "fontsize": size}
        if np.isfinite(value):
            dark = shades[i, j, :3] @ _LUMINANCE < 0.5
            axes.text(j + 0.5, i + 0.5, number(float(value)), color="white" if dark else paper.INK, **word)
        elif missing[i, j]:
            axes.text(j + 0.5, i + 0.5, str(missing[i, j]), color=paper.GREY, **word)


def _font_size(sheets: list[tuple[Array, np.ndarray]], panels: int) -> float | None:
    """The size in points at which every number fits its field; None if it could not be read."""
    texts = [number(float(v)) for values, _ in sheets for v in values[np.isfinite(values)]]
    texts += [str(word) for _, missing in sheets for word in missing[missing != ""]]
    size = field_width(sheets[0][0].shape[1], panels) / (max(map(len, texts)) * EM) if texts else _LARGEST
    return None if size < _SMALLEST else min(size, _LARGEST)


def _every(names: list[str], panels: int) -> int:
    """Every how many columns there is room for a name below."""
    wanted = max(map(len, names)) * _LARGEST * EM + 0.1
    return math.ceil(wanted / field_width(len(names), panels)) if len(names) > _WIDE else 1


def field_width(columns: int, panels: int) -> float:
    """Inches that a column has, of so many in a panel."""
    return (paper.WIDTH - 2.2) / paper.grid_columns(panels) / columns


def _norm(values: Array) -> Normalize:
    low, high = float(values.min()), float(values.max())
    if low > 0 and high > _LOG_FROM * low:
        return LogNorm(low, high)
    return Normalize(low, high if high > low else low + 1)


def _order(values: pd.Series, *, sort: bool) -> list[Any]:
    distinct = list({token(v): v for v in values if v is not None}.values())
    return sorted(distinct) if sort and all(numeric(v) for v in distinct) else distinct
