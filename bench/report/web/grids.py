"""Views that are tables with colour: a metric over two columns, or many metrics at the end of a run."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd

from bench.report.buckets import exp
from bench.report.control import control_note, over_control
from bench.report.frames import RunData
from bench.report.heatmap import check_size
from bench.report.maps import maps
from bench.report.matrix import claims, matrix_rows, members
from bench.report.names import hue_label, names_of, numeric
from bench.report.panels import (
    NothingToDraw,
    panel_rows,
    subtitle,
    view_rows,
)
from bench.report.select import at_common_prefix, longest, split, token
from bench.results.record import Status
from bench.text import scale_for, with_unit
from bench.workload import View

GRIDS = ("heatmap", "map", "matrix")  # kinds of views that are rows and columns


def grid(view: View, data: RunData) -> dict[str, Any]:
    """Panels of rows × columns. A field is a value, a word on why there is none, or null (not planned)."""
    return {"heatmap": _heatmap, "map": _map, "matrix": _matrix}[view.kind](view, data)


def _heatmap(view: View, data: RunData) -> dict[str, Any]:
    frame = view_rows(data, view)
    for column in (view.x, view.y):
        if column not in frame:
            raise NothingToDraw(f"no cell has {column}")
    frame, _ = at_common_prefix(data, frame, view)
    notes: list[str] = []
    rows, columns = _order(frame[view.hue]), _order(frame[view.x], sort=True)
    check_size(view, columns)
    metric = data.words.metric(view.y)
    values = [v for v in frame[view.y] if numeric(v)]
    if not values:
        raise NothingToDraw(f"no cell has a value of {view.y}")
    scale = scale_for("" if view.transform else metric.unit, values)
    panels = []
    for title, part in panel_rows(data, frame, view, notes):
        fields = {
            (token(at[view.hue]), token(at[view.x])): _field(cells, view.y, view, scale.divisor)
            for at, cells in split(part, [view.hue, view.x])
        }
        table = [[fields.get((token(r), token(c))) for c in columns] for r in rows]
        panels.append({"title": title, "fields": table})
    return {
        "yLabel": with_unit(view.y_label, scale.unit, metric.unit),
        "subtitle": subtitle(data, frame, view),
        "notes": notes,
        "direction": metric.direction,
        "rows": [hue_label(data, view, r) for r in rows],
        "columns": list(names_of(columns).values()),
        "panels": panels,
        "signed": False,
    }


def _map(view: View, data: RunData) -> dict[str, Any]:
    """Maps that cells have kept below each other; a row or column that one lacks is blank."""
    found, notes = maps(view, data)
    rows = sorted({row for one in found for row in one.rows})
    columns = sorted({column for one in found for column in one.columns})
    panels = []
    for one in found:
        fields = {
            (row, column): float(f"{one.values[i, j]:.6g}")
            for i, row in enumerate(one.rows)
            for j, column in enumerate(one.columns)
            if math.isfinite(one.values[i, j])
        }
        panels.append({"title": one.title, "fields": [[fields.get((r, c)) for c in columns] for r in rows]})
    return {
        "yLabel": view.y_label,
        "subtitle": "",
        "notes": notes,
        "direction": data.words.metric(view.y).direction,
        "rows": [f"{view.hue} {row}" for row in rows],
        "columns": [str(column) for column in columns],
        "panels": panels,
        "signed": False,
    }


def _matrix(view: View, data: RunData) -> dict[str, Any]:
    """One row per hue and one column per metric of a family, each cell at its furthest point."""
    data = over_control(view, data)
    frame = longest(data, view_rows(data, view))
    metrics = [data.words.metric(name) for name in members(data, view)]
    notes: list[str] = []
    groups = [
        (title, dict(matrix_rows(data, view, part))) for title, part in panel_rows(data, frame, view, notes)
    ]
    rows = list(dict.fromkeys(name for _, cells in groups for name in cells))
    panels = []
    for title, cells in groups:
        table = [[_field(cells.get(name), m.name, view) for m in metrics] for name in rows]
        panels.append({"title": title, "fields": table})
    values = [f for panel in panels for row in panel["fields"] for f in row if isinstance(f, float)]
    if not values:
        raise NothingToDraw(f"no cell has a value of {view.y}…")
    directions = {m.direction for m in metrics}
    return {
        "subtitle": subtitle(data, frame, view),
        "notes": [
            *notes,
            f"Each row at its largest {view.x.replace('_', ' ')}.",
            *control_note(view, data),
            *claims(data, frame, bold=False),
        ],
        "direction": directions.pop() if len(directions) == 1 else "none",
        "rows": rows,
        "columns": [with_unit(m.label, m.unit) for m in metrics],
        "panels": panels,
        "signed": min(values) < 0,
    }


def _field(cells: pd.DataFrame | None, column: str, view: View, divisor: float = 1.0) -> float | str | None:
    """The mean over seeds and repeats, a word on why there is none, or None if it was not planned."""
    if cells is None:
        return None
    found = [float(v) for v in cells[column] if numeric(v)]
    if found:
        mean = sum(found) / len(found)
        return float(f"{float(exp(mean)) if view.transform == 'exp' else mean / divisor:.6g}")
    status = str(cells["status"].iloc[0])
    return status if status != Status.OK else "no value"


def _order(values: pd.Series, *, sort: bool = False) -> list[Any]:
    distinct = list({token(v): v for v in values if v is not None}.values())
    return sorted(distinct) if sort and all(numeric(v) for v in distinct) else distinct
