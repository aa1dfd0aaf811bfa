"""Panels of pictures whose lines are paths: one metric against another, or arrays a cell has kept."""

from __future__ import annotations

from typing import Any

import numpy as np

from bench.report.frames import RunData
from bench.report.names import hue_label, numeric
from bench.report.panels import (
    MOST_PANELS,
    Array,
    Line,
    NothingToDraw,
    Panel,
    Panels,
    panel_rows,
    replicate_notes,
    subtitle,
    view_rows,
)
from bench.report.select import keep, longest, replicates, split
from bench.report.spread import RANGE
from bench.results.record import Status
from bench.text import scale_for
from bench.workload import View


def scatter_panels(data: RunData, view: View) -> Panels:
    """Metric ``y`` against metric ``x``; the cells of a pass joined in the order of the prefix axis."""
    frame = view_rows(data, view)
    for name in (view.x, view.y):
        if name not in frame:
            raise NothingToDraw(f"no cell has {name}")
    rows = keep(frame, (numeric(x) and numeric(y) for x, y in zip(frame[view.x], frame[view.y], strict=True)))
    if not len(rows):
        raise NothingToDraw(f"no cell has both {view.x} and {view.y}")
    scale = scale_for(data.words.metric(view.y).unit, rows[view.y])
    axis = (data.words.prefix_axis or "order").replace("_", " ")
    notes = [f"Points are joined in the order of {axis}."]
    panels, several = [], False
    for title, part in panel_rows(data, rows, view, notes):
        lines = {}
        for hue, cells in split(part, [view.hue]):
            found = sorted(replicates(data, cells), key=lambda one: _place(one[0]))
            several |= any(len(same) > 1 for _, same in found)
            x, y = (
                np.array([np.mean([float(v) for v in same[name]]) for _, same in found])
                for name in (view.x, view.y)
            )
            lines[hue_label(data, view, hue[view.hue])] = _bare(x, y / scale.divisor)
        panels.append(Panel(title, lines))
    if several:
        notes.append("Points are means over seeds and repeats.")
    notes += replicate_notes(data, rows)
    return Panels(panels, scale.unit, subtitle(data, rows, view), notes)


def _place(value: Any) -> float:
    """Where a value stands on the prefix axis."""
    return float(value) if numeric(value) else -1.0


def trace_panels(data: RunData, view: View) -> Panels:
    """Arrays kept by the furthest cell of each pass: ``y`` against ``x``, one line per hue, see `View`."""
    if is_family(view):
        return _family_panels(data, view)
    frame = view_rows(data, view)
    rows = longest(data, frame[frame["status"] == Status.OK])
    found = {int(i): arrays for i in rows.index if (arrays := _arrays(data, int(i), view)) is not None}
    rows = keep(rows, (int(i) in found for i in rows.index))
    if not found:
        raise NothingToDraw(f"no measured cell has kept {view.series}")
    notes: list[str] = []
    panels, several = [], False
    for title, part in panel_rows(data, rows, view, notes):
        lines = {}
        for hue, cells in split(part, [view.hue]):
            curves = [found[int(i)] for i in cells.index]
            several |= len(curves) > 1
            lines[hue_label(data, view, hue[view.hue])] = _mean(curves)
        panels.append(Panel(title, lines))
    if several:
        notes.append(f"Lines are means, bands the {RANGE}.")
    notes += replicate_notes(data, rows)
    return Panels(panels, "", subtitle(data, rows, view), notes)


def is_family(view: View) -> bool:
    """Whether the lines of a trace are all arrays whose names begin alike, and not the values of its hue."""
    return view.kind == "trace" and view.y.endswith("*")


def _family_panels(data: RunData, view: View) -> Panels:
    """One panel for each hue and whatever else differs, one line for each array."""
    frame = view_rows(data, view)
    rows = longest(data, frame[frame["status"] == Status.OK])
    families = {int(i): _family(data, int(i), view) for i in rows.index}
    rows = keep(rows, (bool(families[int(i)]) for i in rows.index))
    if not len(rows):
        raise NothingToDraw(f"no measured cell has kept {view.y.removesuffix('*').strip()} in {view.series}")
    notes: list[str] = []
    panels, several = [], False
    for title, part in panel_rows(data, rows, view, notes):
        for hue, cells in split(part, [view.hue]):
            of_cells = [families[int(i)] for i in cells.index]
            several |= len(of_cells) > 1
            names = [name for name in of_cells[0] if all(name in one for one in of_cells)]
            lines = {name: _mean([one[name] for one in of_cells]) for name in names}
            whose = hue_label(data, view, hue[view.hue])
            panels.append(Panel(f"{whose}, {title}" if title else whose, lines))
    if len(panels) > MOST_PANELS:
        notes.append(f"The first {MOST_PANELS} of {len(panels)} panels are drawn.")
    if several:
        notes.append(f"Lines are means, bands the {RANGE}.")
    notes += replicate_notes(data, rows)
    return Panels(panels[:MOST_PANELS], "", subtitle(data, rows, view), notes)


def _family(data: RunData, index: int, view: View) -> dict[str, tuple[Array, Array]]:
    """The arrays of one cell by name, as (x, y) where both are numbers."""
    x = data.array(index, str(view.series), view.x)
    every = data.arrays(index, str(view.series), view.y.removesuffix("*"))
    pairs = {name: _finite(x, y) for name, y in every.items()}
    return {name: pair for name, pair in pairs.items() if pair is not None}


def _arrays(data: RunData, index: int, view: View) -> tuple[Array, Array] | None:
    return _finite(*(data.array(index, str(view.series), name) for name in (view.x, view.y)))


def _finite(x: Array | None, y: Array | None) -> tuple[Array, Array] | None:
    """What of two arrays belongs together; None if nothing does."""
    if x is None or y is None or len(x) != len(y):
        return None
    kept = np.isfinite(x) & np.isfinite(y)
    return (x[kept], y[kept]) if kept.any() else None


def _mean(curves: list[tuple[Array, Array]]) -> Line:
    """One curve as it is; several as their mean with their range, over what all of them have."""
    if len(curves) == 1:
        return _bare(*curves[0])
    size = min(len(x) for x, _ in curves)
    y = np.array([y[:size] for _, y in curves])
    return Line(curves[0][0][:size], y.mean(axis=0), y.min(axis=0), y.max(axis=0))


def _bare(x: Array, y: Any) -> Line:
    nothing = np.full(len(x), np.nan)
    return Line(x, y, nothing, nothing)
