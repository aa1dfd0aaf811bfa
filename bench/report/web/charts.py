"""A declared view as data for the page: the points a reader can point at, hide and zoom into.

The same content as the drawn picture (``bench.report.panels``), as plain lists; the browser only draws.
Published values travel beside it, as lines that a reader may lay over ours and that say where they are from.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from bench.record import Status
from bench.report.frames import RunData
from bench.report.panels import (
    Line,
    NothingToDraw,
    Panels,
    curve_panels,
    hue_label,
    line_panels,
    numeric,
    view_rows,
)
from bench.report.select import extent, longest, split, token
from bench.report.text import clean, number, scale_for, with_unit
from bench.report.web.grids import grid
from bench.workload import View

REFERENCE = -1  # the pen of the reference: ink rather than a colour
_MOST_POINTS, _MOST_PATHS = 1000, 24
_ABOUT = ("metric", "value", "unit", "source", "note")  # keys of a published row that select no cell


def chart(view: View, data: RunData) -> dict[str, Any]:
    """A view as JSON data; ``why`` instead of panels where there is nothing to draw."""
    shown: dict[str, Any] = {
        "name": view.name,
        "kind": view.kind,
        "title": view.title,
        "x": view.x,
        "xLabel": view.x_label,
        "yLabel": view.y_label,
        "logX": view.log_x,
        "logY": view.log_y,
    }
    try:
        if view.kind in ("heatmap", "matrix"):
            return shown | grid(view, data)
        if view.kind == "scatter":
            return shown | _scatter(view, data)
        if view.kind == "trace":
            return shown | _trace(view, data)
        content = curve_panels(data, view) if view.kind == "curve" else line_panels(data, view)
        return shown | _lines(view, data, content)
    except NothingToDraw as reason:
        return shown | {"why": clean(reason)}


def _lines(view: View, data: RunData, content: Panels) -> dict[str, Any]:
    pens = _pens(view, data)
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
    found = {"name": name, "pen": pen, "x": floats(line.x), "y": floats(line.y)}
    if np.isfinite(line.low).any():
        found |= {"low": floats(line.low), "high": floats(line.high)}
    return found


def _pens(view: View, data: RunData) -> dict[str, int]:
    """A number per value of the hue, the same in every chart of a run."""
    if view.hue not in data.frame:
        return {}
    compare = data.compare()
    reference = hue_label(view, compare[1]) if compare and compare[0] == view.hue else None
    values = sorted({token(v): v for v in data.frame[view.hue]}.values(), key=lambda v: v is None)
    names = list(dict.fromkeys(hue_label(view, value) for value in values))
    others = [name for name in names if name != reference]
    return {name: REFERENCE if name == reference else others.index(name) for name in names}


def _scatter(view: View, data: RunData) -> dict[str, Any]:
    """Two metrics against each other: one path per hue, along the prefix axis."""
    frame = view_rows(data, view)
    for column in (view.x, view.y):
        if column not in frame:
            raise NothingToDraw(f"no cell has {column}")
    rows = frame[[numeric(x) and numeric(y) for x, y in zip(frame[view.x], frame[view.y], strict=True)]]
    if not len(rows):
        raise NothingToDraw(f"no cell has both {view.x} and {view.y}")
    scale = scale_for(data.words.metric(view.y).unit, rows[view.y])
    pens, axis, lines = _pens(view, data), data.words.prefix_axis, []
    others = [c for c in data.parameters if c not in (view.hue, axis, view.x, view.y)]
    for key, cells in split(rows, [view.hue, *others])[:_MOST_PATHS]:
        name = hue_label(view, key[view.hue])
        cells = cells.loc[extent(data, cells).sort_values(kind="stable").index]
        tags = [f"{axis} {number(v)}" for v in cells[axis]] if axis in cells else list(cells["label"])
        lines.append(
            {"name": name, "pen": pens.get(name, 0), "tags": [clean(tag, 80) for tag in tags]}
            | {"x": floats(cells[view.x]), "y": floats(float(v) / scale.divisor for v in cells[view.y])}
        )
    return _single(
        with_unit(view.y_label, scale.unit), lines, ["Each path follows one setting; hover for its points."]
    )


def _trace(view: View, data: RunData) -> dict[str, Any]:
    """Arrays that a pass recorded while it ran, one line per furthest measured cell."""
    frame = view_rows(data, view)
    rows = longest(data, frame[frame["status"] == Status.OK])
    pens, lines = _pens(view, data), []
    for index in rows.index:
        arrays = _archive(data, int(index), view)
        if arrays is None:
            continue
        x, y = arrays
        thin = max(1, math.ceil(len(x) / _MOST_POINTS))
        name = hue_label(view, rows.at[index, view.hue])
        lines.append({"name": name, "pen": pens.get(name, 0), "x": floats(x[::thin]), "y": floats(y[::thin])})
    if not lines:
        raise NothingToDraw(f"no measured cell has the arrays {view.x} and {view.y} of {view.series}")
    notes = [f"The first {_MOST_PATHS} of {len(lines)} lines."] if len(lines) > _MOST_PATHS else []
    return _single(view.y_label, lines[:_MOST_PATHS], notes)


def _archive(data: RunData, index: int, view: View) -> tuple[np.ndarray, np.ndarray] | None:
    for artifact in data.records[index].artifacts:
        if not artifact.path.endswith(".npz") or not Path(artifact.path).name.startswith(f"{view.series}-"):
            continue
        try:
            with np.load(inside(data.folder, artifact.path), allow_pickle=False) as archive:
                if view.x not in archive.files or view.y not in archive.files:
                    continue
                x, y = archive[view.x], archive[view.y]
        except (OSError, ValueError, KeyError, EOFError) as error:
            data.note(f"{artifact.path} cannot be read ({error}); its trace is missing")
            continue
        if x.ndim == y.ndim == 1 and len(x) == len(y) and x.dtype.kind in "fiu" and y.dtype.kind in "fiu":
            return x, y
    return None


def _single(y_label: str, lines: list[dict[str, Any]], notes: list[str]) -> dict[str, Any]:
    panel = {"title": "", "lines": lines, "marks": {}}
    return {"yLabel": y_label, "unit": "", "subtitle": "", "notes": notes, "categories": None} | {
        "panels": [panel],
        "published": [],
    }


def published_lines(view: View, data: RunData, divisor: float = 1) -> list[dict[str, Any]]:
    """Published values of this view's metric, as lines over the prefix axis or the view's own x."""
    axis = data.words.prefix_axis if view.kind == "curve" else view.x
    if axis is None or (view.kind == "line" and axis != data.words.prefix_axis and axis == "position"):
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


def inside(folder: Path, relative: str) -> Path:
    """A path of a record, which must not lead out of its run folder."""
    path = (folder / relative).resolve()
    if not path.is_relative_to(folder.resolve()):
        raise ValueError("the path leads out of the run folder")
    return path
