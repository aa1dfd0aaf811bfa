"""What a picture shows, before it is drawn: panels of lines as plain arrays.

Lines take their points from metrics, curves from series, paths from what a cell has kept; all end as the same
few arrays, so that drawing them is one function and testing them needs no pixels.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from bench.report.buckets import exp
from bench.report.frames import RunData
from bench.report.names import hue_label, names_of, numeric, panel_titles, text
from bench.report.select import (
    at_common_prefix,
    common,
    facets,
    keep,
    leading,
    longest,
    matching,
    replicates,
    seed_counts,
    split,
    token,
)
from bench.report.spread import spread_over
from bench.results.record import Status
from bench.text import clean, number, plural, scale_for
from bench.workload import View

Array = NDArray[np.float64]
MOST_PANELS, _MOST_LINES, _MOST_POINTS = 9, 12, 18
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
    for title, part in panel_rows(data, rows, view, notes):
        lines = {}
        for hue, cells in split(part, [view.hue]):
            line, spread = _line(data, view, cells, places, scale.divisor)
            lines[hue_label(data, view, hue[view.hue])] = line
            spreads |= spread
        panels.append(Panel(title, lines, marks_in(data, part, view)))
    notes += [*replicate_notes(data, rows), *_whose(data, rows, view)]
    if spreads:
        notes.append("Bars: " + ", ".join(sorted(spreads)) + ".")
    below = subtitle(data, rows, view)
    if at is not None:
        below = " · ".join(filter(None, [f"{data.words.prefix_axis} {number(at)}", below]))
    return Panels(panels, scale.unit, below, notes + failure_note(data, frame, view), categories)


def _line(
    data: RunData, view: View, cells: pd.DataFrame, places: dict[Any, float], divisor: float
) -> tuple[Line, set[str]]:
    points, spreads = [], set[str]()
    for same in _replicated(data, view, cells, places):
        mean, low, high = float(np.mean([float(v) for v in same[view.y]])), np.nan, np.nan
        if found := spread_over(data, same, view.y):
            low, high = found.low, found.high
            spreads.add(found.what)
        points.append((float(np.mean([places[token(x)] for x in same[view.x]])), mean, low, high))
    array = np.array(sorted(points), np.float64).T
    shown = [exp(a) if view.transform == "exp" else a / divisor for a in array[1:]]
    return Line(array[0], *shown), spreads


def _replicated(
    data: RunData, view: View, cells: pd.DataFrame, places: dict[Any, float]
) -> list[pd.DataFrame]:
    """The cells of each point of a line. They differ in seed and repeat at most.

    An x that was measured (seconds) is another for every seed: cells then belong together by the prefix
    axis, and the point stands at their mean, or the line would run from one training to another and back.
    """
    # Above a front x is told by the settings: cells of one x are one setting, or in panels of their own.
    asked = view.x in data.parameters or view.x in data.words.follows or view.front
    if asked or not all(numeric(x) and places[token(x)] == x for x in cells[view.x]):
        return [same for _, same in split(cells, [view.x])]
    return [same for _, same in replicates(data, cells)]


def _places(values: pd.Series, log: bool) -> tuple[dict[Any, float], list[str] | None]:
    """Where each x stands: at its value, or evenly spaced if it is no number or log cannot show it."""
    distinct = list({token(v): v for v in values}.values())
    if all(numeric(v) for v in distinct):
        distinct.sort()
        if not log or distinct[0] > 0:
            return {token(v): float(v) for v in distinct}, None
    return {token(v): float(i) for i, v in enumerate(distinct)}, list(names_of(distinct).values())


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
) -> list[tuple[str, pd.DataFrame]]:
    """Titles and rows of the panels; what is beyond a page, panels or lines, is left out and said so."""
    notes.extend([f"Not all cells: {data.chosen}."] if data.chosen else [])
    hues = list(dict.fromkeys(token(v) for v in rows[view.hue]))
    most = _MOST_POINTS if view.front else _MOST_LINES
    if len(hues) > most:
        kept = set(hues[:most])
        rows = keep(rows, (token(v) in kept for v in rows[view.hue]))
        notes.append(f"The first {most} of {len(hues)} values of {view.hue} are drawn.")
    apart = leading(rows, facets(data, rows, view))
    notes += [f"With {name} goes {', '.join(along)}." for name, along in apart.items() if along]
    groups = split(rows, [*apart])
    if len(groups) > MOST_PANELS:
        notes.append(f"The first {MOST_PANELS} of {plural(len(groups), 'panel')} are drawn.")
    titles = panel_titles([values for values, _ in groups])
    return [(title, part) for title, (_, part) in zip(titles, groups, strict=True)][:MOST_PANELS]


def marks_in(data: RunData, rows: pd.DataFrame, view: View) -> dict[str, list[float]]:
    """Where the furthest cells of each pass are marked: what earlier ones took for a mark may be none."""
    rows, names = longest(data, rows), [name for name in view.marks if name in rows]
    return {name: sorted({float(v) for v in rows[name] if numeric(v)}) for name in names}


def replicate_notes(data: RunData, rows: pd.DataFrame) -> list[str]:
    """How many repetitions (trainings) stand behind each line, where sentences are about these."""
    counts = seed_counts(data, rows)
    if not data.words.replicated or not counts:
        return []
    if max(counts) == 1:
        return [f"Each line is one {data.words.replicate}: another seed may say otherwise."]
    many = " to ".join(map(str, sorted({min(counts), max(counts)})))
    return [f"Each line is the mean of {many} {data.words.replicate}s (seeds)."]


def _marked(data: RunData, cells: pd.DataFrame, name: str) -> list[tuple[float, str]]:
    """Where the furthest cells of one hue are marked, and for how many of its seeds, if it has several."""
    cells = longest(data, cells)
    seeds: dict[float, set[Any]] = {}
    for value, seed in zip(cells[name], cells["seed"], strict=True):
        if numeric(value):
            seeds.setdefault(float(value), set()).add(seed)
    all_seeds = len(set(cells["seed"]))
    words = f"{data.words.replicate}s"
    alone = f" (this {data.words.replicate})" if data.words.replicated else ""
    return [
        (value, f" ({len(own)} of {all_seeds} {words})" if all_seeds > 1 else alone)
        for value, own in sorted(seeds.items())
    ]


def _whose(data: RunData, rows: pd.DataFrame, view: View) -> list[str]:
    """Which lines a mark belongs to, where it is not all of them, and to how many of their trainings."""
    notes = []
    for name in (name for name in view.marks if name in rows):
        found = {
            hue_label(data, view, hue[view.hue]): _marked(data, cells, name)
            for hue, cells in split(rows, [view.hue])
        }
        apart = len({tuple(values) for values in found.values()}) > 1
        if apart or (data.words.replicated and any(found.values())):
            each = [
                f"{hue} at {value:,.10g}{count}" for hue, values in found.items() for value, count in values
            ]
            words = name.replace("_", " ").removesuffix(" at").capitalize()
            notes.append(f"{words}: {', '.join(each)}.")
    return notes


def failure_note(data: RunData, frame: pd.DataFrame, view: View) -> list[str]:
    """A sentence on the cells of this picture that failed."""
    axis = data.words.prefix_axis
    failed = frame[frame["status"] != Status.OK]
    failed = keep(failed, (not str(r).startswith(_NOT_REACHED) for r in failed["reason"]))
    texts: list[str] = []
    for _, row in failed.iterrows():
        where = f" at {axis} {number(row[axis])}" if axis and axis in failed and axis != view.hue else ""
        texts.append(f"{hue_label(data, view, row[view.hue])}: {row['status']}{where}")
    texts = list(dict.fromkeys(texts))
    more = f" and {len(texts) - 4} more" if len(texts) > 4 else ""
    return ["Not measured: " + ", ".join(texts[:4]) + more + "."] if texts else []


def subtitle(data: RunData, rows: pd.DataFrame, view: View) -> str:
    """What all drawn cells share, in a few words."""
    same = {
        k: v for k, v in common(data, rows).items() if k not in (view.x, view.hue, data.words.prefix_axis)
    }
    return " · ".join(f"{k} {text(v)}" for k, v in list(same.items())[:4])
