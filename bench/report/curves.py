"""Panels of curves: bucketed means of a series along its positions."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from bench.report.buckets import bucket_means, exp, fine_edges
from bench.report.frames import RunData
from bench.report.names import hue_label
from bench.report.panels import (
    Array,
    Line,
    NothingToDraw,
    Panel,
    Panels,
    failure_note,
    marks_in,
    panel_rows,
    subtitle,
    view_rows,
)
from bench.report.select import keep, longest, split
from bench.report.spread import RANGE
from bench.results.record import Status
from bench.workload import View


def curve_panels(data: RunData, view: View) -> Panels:
    """Bucketed means of a series for each hue, from the furthest measured cell of each pass."""
    frame = view_rows(data, view)
    rows = longest(data, frame[frame["status"] == Status.OK])
    rows = keep(rows, (_series(data, i, view) is not None for i in rows.index))
    if not len(rows):
        raise NothingToDraw(f"no measured cell has the series {view.series}")
    notes = [_curve_note(data, view)]
    panels = []
    replicated = False
    for title, part in panel_rows(data, rows, view, notes):
        lines = {}
        for hue, cells in split(part, [view.hue]):
            replicated |= len(cells) > 1
            name = hue_label(data, view, hue[view.hue])
            lines[name], last = _curve(data, view, cells)
            if last:
                notes.append(f"{name}: no values after position {last:,}.")
        panels.append(Panel(title, lines, marks_in(data, part, view)))
    if replicated:
        notes[0] = notes[0].replace("95 % block-bootstrap interval of that mean", RANGE)
    unit = "" if view.transform else data.words.metric(str(view.series)).unit
    return Panels(panels, unit, subtitle(data, rows, view), notes + failure_note(data, frame, view))


def _series(data: RunData, index: Any, view: View) -> Array | None:
    """A cell's series, if any entry of it was scored."""
    series = data.series(int(index), str(view.series))
    return None if series is None or np.isnan(series).all() else series


def _curve(data: RunData, view: View, cells: pd.DataFrame) -> tuple[Line, int | None]:
    """The curve of one hue, and the last position with a value if the series goes on without any."""
    found = [s for i in cells.index if (s := _series(data, i, view)) is not None]
    size = min(len(s) for s in found)
    means = [bucket_means(s[:size], fine_edges(size), intervals=len(found) == 1) for s in found]
    y = np.array([m.mean for m in means])
    scored = ~np.isnan(y).any(axis=0)
    bands = (means[0].low, means[0].high) if len(found) == 1 else (y.min(axis=0), y.max(axis=0))
    arrays = [a[scored] for a in (means[0].centre, y.mean(axis=0), *bands)]
    last = None if scored[-1] else int(means[0].last[scored][-1])
    return Line(arrays[0], *(exp(a) if view.transform == "exp" else a for a in arrays[1:])), last


def _curve_note(data: RunData, view: View) -> str:
    label = data.words.metric(str(view.series)).label
    mean = f"exp of the mean {label}" if view.transform == "exp" else f"the mean {label}"
    points = f"Points: {mean} over four buckets per doubling."
    return f"{points} Bands: 95 % block-bootstrap interval of that mean."
