"""What a picture shows, before it is drawn: panels of lines as plain arrays.

Curves take their points from series, lines from metrics; both end as the same few arrays, so that
drawing them is one function and testing them needs no pixels.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from bench.record import Status
from bench.report.buckets import bucket_means, exp, fine_edges
from bench.report.frames import RunData
from bench.report.select import at_common_prefix, common, facets, keep, longest, matching, split, token
from bench.report.spread import RANGE, spread_over
from bench.report.text import clean, number, plural, scale_for
from bench.workload import View

Array = NDArray[np.float64]
_MOST_PANELS, _MOST_LINES = 9, 12
_NOT_REACHED = "not reached: "


@dataclass(frozen=True)
class Line:
    """Points of one hue; ``low`` and ``high`` are NaN where nothing is known about the spread."""

    x: Array
    y: Array
    low: Array
    high: Array

    def up_to(self, limit: float) -> Line:
        """The line with everything above ``limit`` put there: infinity cannot be drawn."""
        return Line(self.x, *(np.minimum(a, limit) for a in (self.y, self.low, self.high)))


@dataclass
class Panel:
    """One set of axes: lines by hue, and marked positions by name."""

    title: str
    lines: dict[str, Line]
    marks: dict[str, list[float]] = field(default_factory=dict)


@dataclass
class Panels:
    """A picture's contents. ``categories`` name the x positions 0, 1, 2 … where x has no scale."""

    panels: list[Panel]
    unit: str
    subtitle: str
    notes: list[str]
    categories: list[str] | None = None

    @property
    def hues(self) -> list[str]:
        """Every hue that is drawn, in order of first appearance."""
        return list(dict.fromkeys(name for panel in self.panels for name in panel.lines))


class NothingToDraw(Exception):  # noqa: N818  (an outcome, like StopIteration, not an error)
    """Why a view has no picture in this run."""


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
    for values, part in panel_rows(data, rows, view, notes):
        lines = {}
        for hue, cells in split(part, [view.hue]):
            replicated |= len(cells) > 1
            name = hue_label(view, hue[view.hue])
            lines[name], last = _curve(data, view, cells)
            if last:
                notes.append(f"{name}: no values after position {last:,}.")
        panels.append(Panel(panel_title(values), lines, _marks(data, part, view)))
    if replicated:
        notes[0] = notes[0].replace("95 % block-bootstrap interval of that mean", RANGE)
    unit = "" if view.transform else data.words.metric(str(view.series)).unit
    return Panels(panels, unit, subtitle(data, rows, view), notes + _stops(data, frame, view))


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


def line_panels(data: RunData, view: View) -> Panels:
    """A metric against a column for each hue; the mean where several seeds or repeats were measured."""
    frame = view_rows(data, view)
    if view.y not in frame or view.x not in frame:
        raise NothingToDraw(f"no cell has {view.y if view.y not in frame else view.x}")
    frame, at = at_common_prefix(data, frame, view)
    rows = keep(
        frame, (numeric(y) and x is not None for x, y in zip(frame[view.x], frame[view.y], strict=True))
    )
    if not len(rows):
        reasons = dict.fromkeys(clean(data.reason(int(i), view.y), 120) for i in frame.index)
        raise NothingToDraw("no cell has a value: " + "; ".join(list(reasons)[:3]))
    places, categories = _places(rows[view.x], view.log_x)
    scale = scale_for(data.words.metric(view.y).unit, rows[view.y])
    notes: list[str] = []
    spreads: set[str] = set()
    panels = []
    for values, part in panel_rows(data, rows, view, notes):
        lines = {}
        for hue, cells in split(part, [view.hue]):
            line, spread = _line(data, view, cells, places, scale.divisor)
            lines[hue_label(view, hue[view.hue])] = line
            spreads |= spread
        panels.append(Panel(panel_title(values), lines, _marks(data, part, view)))
    notes += _whose(data, rows, view)
    if spreads:
        notes.append("Bars: " + ", ".join(sorted(spreads)) + ".")
    below = subtitle(data, rows, view)
    if at is not None:
        below = " · ".join(filter(None, [f"{data.words.prefix_axis} {number(at)}", below]))
    return Panels(panels, scale.unit, below, notes + _stops(data, frame, view), categories)


def _line(
    data: RunData, view: View, cells: pd.DataFrame, places: dict[Any, float], divisor: float
) -> tuple[Line, set[str]]:
    points, spreads = [], set[str]()
    for x, same in split(cells, [view.x]):
        mean, low, high = float(np.mean([float(v) for v in same[view.y]])), np.nan, np.nan
        if found := spread_over(data, same, view.y):
            low, high = found.low, found.high
            spreads.add(found.what)
        points.append((places[token(x[view.x])], mean, low, high))
    array = np.array(sorted(points), np.float64).T
    shown = [exp(a) if view.transform == "exp" else a / divisor for a in array[1:]]
    return Line(array[0], *shown), spreads


def _places(values: pd.Series, log: bool) -> tuple[dict[Any, float], list[str] | None]:
    """Where each x stands: at its value, or evenly spaced if it is no number or log cannot show it."""
    distinct = list({token(v): v for v in values}.values())
    if all(numeric(v) for v in distinct):
        distinct.sort()
        if not log or distinct[0] > 0:
            return {token(v): float(v) for v in distinct}, None
    return {token(v): float(i) for i, v in enumerate(distinct)}, [text(v) for v in distinct]


def view_rows(data: RunData, view: View) -> pd.DataFrame:
    """The cells of a view, measured or not."""
    frame = matching(data.frame, dict(view.where))
    if not len(frame):
        wanted = ", ".join(f"{k} = {v}" for k, v in view.where.items())
        raise NothingToDraw(f"no cell has {wanted}" if wanted else "no cell has been answered")
    if view.hue not in frame:
        raise NothingToDraw(f"no cell has a column {view.hue}")
    return frame


def panel_rows(
    data: RunData, rows: pd.DataFrame, view: View, notes: list[str]
) -> list[tuple[dict[str, Any], pd.DataFrame]]:
    """Rows per panel, with panels and lines beyond what a page can hold left out and said so."""
    hues = list(dict.fromkeys(token(v) for v in rows[view.hue]))
    if len(hues) > _MOST_LINES:
        kept = set(hues[:_MOST_LINES])
        rows = keep(rows, (token(v) in kept for v in rows[view.hue]))
        notes.append(f"The first {_MOST_LINES} of {len(hues)} values of {view.hue} are drawn.")
    groups = split(rows, facets(data, rows, view))
    if len(groups) > _MOST_PANELS:
        notes.append(f"The first {_MOST_PANELS} of {plural(len(groups), 'panel')} are drawn.")
    return groups[:_MOST_PANELS]


def _marks(data: RunData, rows: pd.DataFrame, view: View) -> dict[str, list[float]]:
    """Where the furthest cells of each pass are marked: what earlier ones took for a mark may be none."""
    rows, names = longest(data, rows), [name for name in view.marks if name in rows]
    return {name: sorted({float(v) for v in rows[name] if numeric(v)}) for name in names}


def _marked(data: RunData, cells: pd.DataFrame, name: str) -> list[tuple[float, str]]:
    """Where the furthest cells of one hue are marked, and for how many of its seeds, if it has several."""
    cells = longest(data, cells)
    seeds: dict[float, set[Any]] = {}
    for value, seed in zip(cells[name], cells["seed"], strict=True):
        if numeric(value):
            seeds.setdefault(float(value), set()).add(seed)
    all_seeds = len(set(cells["seed"]))
    words = f"{data.words.replicate}s"
    return [
        (value, f" ({len(own)} of {all_seeds} {words})" if all_seeds > 1 else "")
        for value, own in sorted(seeds.items())
    ]


def _whose(data: RunData, rows: pd.DataFrame, view: View) -> list[str]:
    """Which lines a mark belongs to, where it is not all of them."""
    notes = []
    for name in (name for name in view.marks if name in rows):
        found = {
            hue_label(view, hue[view.hue]): _marked(data, cells, name)
            for hue, cells in split(rows, [view.hue])
        }
        if len({tuple(values) for values in found.values()}) > 1:
            each = [
                f"{hue} at {value:,.10g}{count}" for hue, values in found.items() for value, count in values
            ]
            words = name.replace("_", " ").removesuffix(" at").capitalize()
            notes.append(f"{words}: {', '.join(each)}.")
    return notes


def _stops(data: RunData, frame: pd.DataFrame, view: View) -> list[str]:
    """A sentence on the cells of this picture that failed."""
    axis = data.words.prefix_axis
    failed = frame[frame["status"] != Status.OK]
    failed = keep(failed, (not str(r).startswith(_NOT_REACHED) for r in failed["reason"]))
    texts: list[str] = []
    for _, row in failed.iterrows():
        where = f" at {axis} {number(row[axis])}" if axis and axis in failed and axis != view.hue else ""
        texts.append(f"{hue_label(view, row[view.hue])}: {row['status']}{where}")
    texts = list(dict.fromkeys(texts))
    more = f" and {len(texts) - 4} more" if len(texts) > 4 else ""
    return ["Not measured: " + ", ".join(texts[:4]) + more + "."] if texts else []


def subtitle(data: RunData, rows: pd.DataFrame, view: View) -> str:
    """What all drawn cells share, in a few words."""
    same = {
        k: v for k, v in common(data, rows).items() if k not in (view.x, view.hue, data.words.prefix_axis)
    }
    return " · ".join(f"{k} {text(v)}" for k, v in list(same.items())[:4])


def panel_title(values: dict[str, Any]) -> str:
    """What tells a panel from the others."""
    return clean(", ".join(v if isinstance(v, str) else f"{k} {text(v)}" for k, v in values.items()), 80)


def hue_label(view: View, value: Any) -> str:
    """The name of a line; a number alone would not say what it counts."""
    return f"{view.hue.replace('_', ' ')} {text(value)}" if numeric(value) else text(value)


def text(value: Any) -> str:
    """A value as a label."""
    return clean(number(value), 40)


def numeric(value: Any) -> bool:
    """Whether a value is a number (True is not)."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)
