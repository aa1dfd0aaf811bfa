"""What a cell shows beyond its control: sample by sample, the difference to the cell that differs only there.

A change measured before and after is not yet the work of what one meant to change. A view that names a
control shows what is left of it when the control's change is taken away.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from bench.report.frames import RunData
from bench.report.panels import NothingToDraw, view_rows
from bench.report.select import pairs
from bench.results.record import Value
from bench.workload import View


def over_control(view: View, data: RunData) -> RunData:
    """``data`` itself, or with the view's family of metrics as paired differences to its control.

    Only cells with a measured partner are kept. Raises NothingToDraw if there are none.
    """
    if view.control is None:
        return data
    axis, reference = view.control
    rows = view_rows(data, view)
    found = pairs(data, axis, reference, rows[rows["status"] == "ok"])
    if not found:
        raise NothingToDraw(f"no measured cell has a partner with {axis} = {reference}")
    names = [name for name in data.words.metrics if name.startswith(view.y) and name in data.frame]
    records, frame = list(data.records), data.frame.loc[[pair.cell for pair in found]].copy()
    for cell, control in found:
        metrics, others = records[cell].metrics, data.records[control].metrics
        facts = dict(records[cell].columns)
        new = {
            name: difference(metrics[name], others.get(controls_metric(view, name, facts)))
            for name in names
            if name in metrics
        }
        records[cell] = records[cell].model_copy(update={"metrics": metrics | new})
        for name, value in new.items():
            frame.at[cell, name] = value.value
    return replace(data, records=records, frame=frame)


def controls_metric(view: View, name: str, columns: Mapping[str, Any]) -> str:
    """The control's metric that is taken from metric ``name`` of a cell with these ``columns``."""
    return view.against.format_map(columns) if view.against and name == view.y else name


def control_note(view: View, data: RunData) -> list[str]:
    """What a number is where a control was taken away; nothing for a view without one."""
    if view.control is None:
        return []
    axis, reference = view.control
    of = f"the {data.words.replicate} with {axis} = {reference} and the same seed"
    return [f"Each number is the difference to {of}, {data.words.sample} by {data.words.sample}."]


def difference(value: Value, control: Value | None) -> Value:
    """Mean paired difference with its samples, or null with the reason."""
    if value.value is None:
        return value
    if control is None or control.value is None:
        return Value(value=None, unit=value.unit, reason="the control has no value")
    a, b = value.samples or [], control.samples or []
    if not a or len(a) != len(b):
        return Value(value=None, unit=value.unit, reason="cell and control have no samples to pair")
    gaps = np.subtract(a, b)
    return Value(value=float(gaps.mean()), unit=value.unit, samples=gaps.tolist())
