"""A declared view as data for the page: the points a reader can point at, hide and zoom into.

The same content as the drawn picture (``bench.report.panels``), as plain lists; the browser only draws.
Published values travel beside it, as lines that a reader may lay over ours and that say where they are from.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from bench.report.contents import contents
from bench.report.frames import RunData
from bench.report.front import FRONT
from bench.report.names import hue_label, numeric
from bench.report.panels import Line, NothingToDraw, Panels
from bench.report.paths import is_family
from bench.report.select import token
from bench.report.web.grids import GRIDS, grid
from bench.text import clean, scale_for, with_unit
from bench.workload import View

REFERENCE = -1  # the pen of the reference: ink rather than a colour
_MOST_POINTS = 1000  # of one line; beyond, every second, third … is left out
_ABOUT = ("metric", "value", "unit", "source", "note")  # keys of a published row that select no cell


def chart(view: View, data: RunData) -> dict[str, Any]:
    """A view as JSON data; ``why`` instead of panels where there is nothing to draw."""
    shown: dict[str, Any] = {
        "name": view.name,
        "kind": view.kind,
        "title": view.title,
        "rowLabel": view.hue.replace("_", " "),
        "xLabel": view.x_label,
        "yLabel": view.y_label,
        "logX": view.log_x,
        "logY": view.log_y,
        "wide": view.headline,
    }
    try:
        if view.kind in GRIDS:
            return shown | grid(view, data)
        return shown | _lines(view, data, contents(view, data))
    except NothingToDraw as reason:
        return shown | {"why": clean(reason)}


def _lines(view: View, data: RunData, content: Panels) -> dict[str, Any]:
    pens = {name: pen for pen, name in enumerate(content.hues)} if is_family(view) else _pens(view, data)
    pens |= {FRONT: REFERENCE}
    declared = data.words.metric(view.y)
    divisor = scale_for(declared.unit, data.frame[view.y].dropna()) if view.y in data.frame else None
    known = divisor if divisor and content.unit == divisor.unit else None
    return {
        "unit": content.unit,
        "yLabel": with_unit(view.y_label, content.unit, declared.unit),
        "subtitle": content.subtitle,
        "notes": list(dict.fromkeys(content.notes)),
        "categories": content.categories,
        "panels": [
            {
                "title": panel.title,
                "lines": [_line(name, pens.get(name, 0), line) for name, line in panel.lines.items()],
                "marks": panel.marks,
            }
            for panel in content.panels
        ],
        "published": [] if content.categories else published_lines(view, data, known.divisor if known else 1),
    }


def _line(name: str, pen: int, line: Line) -> dict[str, Any]:
    thin = max(1, math.ceil(len(line.x) / _MOST_POINTS))
    x, y, low, high = (floats(values[::thin]) for values in (line.x, line.y, line.low, line.high))
    spread = {"low": low, "high": high} if np.isfinite(line.low).any() else {}
    return {"name": name, "pen": pen, "x": x, "y": y} | spread


def _pens(view: View, data: RunData) -> dict[str, int]:
    """A number per value of the hue, the same in every chart of a run."""
    if view.hue not in data.frame:
        return {}
    compare = data.compare()
    reference = hue_label(data, view, compare[1]) if compare and compare[0] == view.hue else None
    values = sorted({token(v): v for v in data.frame[view.hue]}.values(), key=lambda v: v is None)
    names = list(dict.fromkeys(hue_label(data, view, value) for value in values))
    others = [name for name in names if name != reference]
    return {name: REFERENCE if name == reference else others.index(name) for name in names}


def published_lines(view: View, data: RunData, divisor: float = 1) -> list[dict[str, Any]]:
    """Published values of this view's metric, as lines over the prefix axis or the view's own x."""
    axis = data.words.prefix_axis if view.kind == "curve" else view.x
    if axis is None or view.kind not in ("curve", "line"):
        return []
    groups: dict[str, dict[str, Any]] = {}
    for row in data.words.published:
        x, y = row.get(axis), row.get("value")
        if row.get("metric") != view.y or not numeric(x) or not numeric(y):
            continue
        about = [clean(v, 60) for k, v in row.items() if k not in (*_ABOUT, axis)]
        source = clean(row.get("source") or "source not named", 200)
        found = groups.setdefault(
            " · ".join([*about, source]),
            {"name": " · ".join(about), "source": source, "note": clean(row.get("note") or "", 200)}
            | {"matches": _matches(row, data, axis), "points": []},
        )
        found["points"].append((float(x), float(y) / divisor))  # type: ignore[arg-type]
    lines = []
    for found in groups.values():
        points = sorted(found.pop("points"))
        lines.append(found | {"x": [p[0] for p in points], "y": floats(p[1] for p in points)})
    return lines


def _matches(row: Mapping[str, Any], data: RunData, axis: str) -> bool:
    """Whether a cell of this run has the same setting, whatever its place on the axis."""
    mask = np.ones(len(data.frame), bool)
    for key, value in row.items():
        if key not in (*_ABOUT, axis):
            mask &= np.array(
                [token(v) == token(value) for v in data.frame.get(key, [None] * len(mask))], bool
            )
    return bool(mask.any())


def floats(values: Iterable[Any]) -> list[float | None]:
    """JSON numbers with six significant digits; what is not finite becomes null."""
    return [float(f"{v:.6g}") if math.isfinite(v) else None for v in map(float, values)]
