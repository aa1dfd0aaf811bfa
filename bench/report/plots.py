"""Views drawn: a declared View and the records become one figure, or a reason why there is none.

Colours belong to the values of a hue for the whole run, so that a policy looks the same everywhere.
What a picture leaves out (failed cells, values off the scale) it says below.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bench.report import figure as paper
from bench.report import layout
from bench.report.contents import contents
from bench.report.figure import Pen
from bench.report.frames import RunData
from bench.report.heatmap import draw_heatmap
from bench.report.maps import draw_map
from bench.report.matrix import draw_matrix
from bench.report.names import hue_label
from bench.report.panels import (
    Array,
    Line,
    NothingToDraw,
    Panel,
    Panels,
)
from bench.report.paths import is_family
from bench.report.select import token
from bench.report.sheets import draw_pictures
from bench.text import number, with_unit
from bench.workload import View

_WHOLE = {"heatmap": draw_heatmap, "map": draw_map, "matrix": draw_matrix, "pictures": draw_pictures}
FRONT_PEN = Pen("#9a9a9a", "", (0, (1, 1)), 1.4)
_OFF = "_off scale"  # labels that begin with an underscore mark artists that are no data
_MOST_MARKERS = 24  # on one line
_LOG_SPAN, _LINEAR_SPAN = 1e4, 20.0  # a scale ends so far above its smallest or its middle value


@dataclass(frozen=True)
class DrawnView:
    """A view's figure, or why there is none; ``alt`` describes it to those who cannot see it."""

    view: View
    figure: Figure | None
    why: str | None
    alt: str


def draw(view: View, data: RunData) -> DrawnView:
    """Draw one view. Nothing is written; a view without data is no error."""
    alt = f"{view.title}: {view.y_label} against {view.x_label} for each {view.hue.replace('_', ' ')}"
    try:
        with paper.style():
            if view.kind in _WHOLE:
                return DrawnView(view, _WHOLE[view.kind](view, data), None, alt)
            content = contents(view, data)
            return DrawnView(view, _lines(view, data, content), None, f"{alt}: {', '.join(content.hues)}")
    except NothingToDraw as reason:
        return DrawnView(view, None, str(reason), alt)


def _pens(view: View, data: RunData, names: list[str]) -> dict[str, Pen]:
    if is_family(view):  # its lines are no values of the hue
        return paper.pens(names, None)
    compare = data.compare()
    reference = hue_label(data, view, compare[1]) if compare and compare[0] == view.hue else None
    values = sorted({token(v): v for v in data.frame[view.hue]}.values(), key=lambda v: v is None)
    return paper.pens([hue_label(data, view, value) for value in values], reference)


def _lines(view: View, data: RunData, content: Panels) -> Figure:
    """Curves and lines alike."""
    figure, grid = paper.sheet(len(content.panels))
    look = _pens(view, data, content.hues) if len(content.hues) > 1 else paper.pens(content.hues, None)
    pens = {name: look.get(name, FRONT_PEN) for name in content.hues}
    low, high = _y_limits(_heights(view, content), view.log_y)
    notes = list(content.notes)
    for axes in grid:
        axes.set_axisbelow(True)
        axes.grid(axis="x", visible=False)
        if view.log_y:
            axes.set_yscale("log")
        axes.set_ylim(low, high)
        _x_axis(axes, view, content)
    paper.write_ticks(grid[0].yaxis, paper.log_ticks(low, high, base=10, most=8) if view.log_y else None)
    for axes, panel in zip(grid, content.panels, strict=True):
        for i, (name, line) in enumerate(panel.lines.items()):
            before = list(panel.lines.values())[:i]
            shaded = _own_stretch(line, before) if view.kind == "curve" else None
            _draw_line(axes, name, pens[name], line.up_to(high + 10 * (high - low)), shaded)
            if len(off := np.flatnonzero(line.y > high)):
                worst = number(float(line.y[off].max()))
                notes.append(f"Off the scale: {name}, up to {worst}.")
                _off_scale(axes, pens[name], float(line.x[off[0]]), worst)
    words = layout.Words(
        title=view.title,
        subtitle=content.subtitle,
        x_label=view.x_label,
        y_label=with_unit(view.y_label, content.unit, data.words.metric(view.y).unit),
        notes=list(dict.fromkeys(notes)),
        panels=[panel.title for panel in content.panels],
        labels=pens if len(pens) > 1 else {},
    )
    direct = len(grid) == 1 and len(pens) <= 10 and _end_together(content.panels[0])
    marked = layout.mark_lines(grid, [panel.marks for panel in content.panels])
    layout.finish(figure, grid, words, direct=direct, marked=marked)
    return figure


def _heights(view: View, content: Panels) -> list[Array]:
    """All that a y axis has to show; the bands of a curve may leave it, the bars of a line may not."""
    lines = [line for panel in content.panels for line in panel.lines.values()]
    bars = [] if view.kind == "curve" else [end for line in lines for end in (line.low, line.high)]
    return [line.y for line in lines] + bars


def _draw_line(axes: Axes, name: str, pen: Pen, line: Line, shaded: Array | None) -> None:
    """One hue; ``shaded`` says where its spread is drawn as a band, None draws bars at its points."""
    hidden = " " + name if name.startswith("_") else name  # matplotlib keeps labels in _ to itself
    spread = np.isfinite(line.low) & np.isfinite(line.high)
    every = max(1, len(line.x) // 9) if shaded is not None or len(line.x) > _MOST_MARKERS else None
    axes.plot(line.x, line.y, label=hidden, markevery=every, zorder=3, **pen.line)
    if shaded is not None:
        band = {"color": pen.colour, "alpha": 0.14, "linewidth": 0, "zorder": 2}
        axes.fill_between(line.x, line.low, line.high, where=spread & (shaded > 0), **band)
    elif spread.any():
        bars = (line.x[spread], line.low[spread], line.high[spread])
        axes.vlines(*bars, color=pen.colour, linewidth=1.6, alpha=0.6, zorder=2)


def _own_stretch(line: Line, others: list[Line]) -> Array:
    """1 where a curve runs by itself, 0 where it lies on one drawn before: one band there is enough."""
    shared = np.zeros(len(line.x), bool)
    for other in others:
        found = np.interp(line.x, other.x, other.y, left=np.nan, right=np.nan)
        shared |= np.isclose(line.y, found, rtol=2e-3)
    shared[1:-1] &= shared[:-2] & shared[2:]  # keep the point where they part
    return 1.0 - shared


def _off_scale(axes: Axes, pen: Pen, x: float, worst: str) -> None:
    """An arrow head on the upper edge where a line leaves the scale, with the value that it reaches."""
    top = axes.get_xaxis_transform()
    left = layout.fraction(axes, x, 1)[0] < 0.75
    y = 0.97 - 0.06 * sum(line.get_label() == _OFF for line in axes.lines)  # below those before
    axes.plot([x], [y], marker="^", color=pen.colour, markersize=8, transform=top, label=_OFF)
    axes.annotate(worst, (x, y), xycoords=top, xytext=(7 if left else -7, 0), textcoords="offset points",
                  ha="left" if left else "right", va="center", fontsize=8.5, color=pen.ink)  # fmt: skip


def _y_limits(values: list[Array], log: bool) -> tuple[float, float]:
    """A scale on which ordinary values stay readable, however far one line runs away."""
    found = np.concatenate(values)
    found = found[np.isfinite(found) & ((found > 0) | (not log))]
    if not len(found):
        raise NothingToDraw("no finite value" + (" above zero, as a logarithmic axis needs" if log else ""))
    low, high = float(found.min()), float(found.max())
    if log:
        high = min(high, low * _LOG_SPAN)
        room = max((high / low) ** 0.06, 1.08)
        return low / room, high * room
    middle = float(np.median(found))
    if low >= 0 and high > _LINEAR_SPAN * middle > 0:
        high = _LINEAR_SPAN / 4 * middle
    if low >= 0 and low < 0.6 * high:
        return 0.0, high * 1.06 if high > 0 else 1.0
    room = 0.08 * (high - low) or 0.05 * abs(high) or 1.0
    return low - room, high + room


def _x_axis(axes: Axes, view: View, content: Panels) -> None:
    found = np.unique(np.concatenate([line.x for panel in content.panels for line in panel.lines.values()]))
    most = {1: 9, 2: 5, 4: 5}.get(len(content.panels), 3)  # tick labels for which a panel has room
    if content.categories is not None:
        axes.set_xlim(-0.4, len(content.categories) - 0.6)
        paper.name_ticks(axes.xaxis, list(range(len(content.categories))), content.categories)
        return
    low, high = float(found[0]), float(found[-1])
    log = view.log_x and low > 0
    places = np.log(found) if log else found
    apart = np.all(np.diff(places) > (places[-1] - places[0]) / (most + 3))
    own = [float(x) for x in found] if view.kind == "line" and len(found) <= most and apart else None
    if log:
        axes.set_xscale("log", base=2)
        room = max((high / low) ** 0.03, 1.03)
        axes.set_xlim(low / room, high * room)
        own = own or paper.log_ticks(low / room, high * room, base=2, most=most)
    else:
        space = 0.03 * (high - low) or 0.5
        axes.set_xlim(low - space, high + space)
    paper.write_ticks(axes.xaxis, own, most=most)


def _end_together(panel: Panel) -> bool:
    ends = [float(line.x[-1]) for line in panel.lines.values()]
    return max(ends) - min(ends) <= 0.03 * abs(max(ends))
