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
from bench.report.figure import Pen
from bench.report.frames import RunData
from bench.report.heatmap import draw_heatmap
from bench.report.panels import Array, NothingToDraw, Panel, Panels, curve_panels, line_panels
from bench.report.select import token
from bench.report.text import clean, number
from bench.workload import View

_LOG_SPAN, _LINEAR_SPAN = 1e4, 20.0  # a scale ends so far above its smallest or its middle value


@dataclass(frozen=True)
class Picture:
    """A view's figure, or why there is none; ``alt`` describes it to those who cannot see it."""

    view: View
    figure: Figure | None
    why: str | None
    alt: str


def draw(view: View, data: RunData) -> Picture:
    """Draw one view. Nothing is written; a view without data is no error."""
    alt = f"{view.title}: {view.y_label} against {view.x_label} for each {view.hue.replace('_', ' ')}"
    try:
        with paper.style():
            if view.kind == "heatmap":
                return Picture(view, draw_heatmap(view, data), None, alt)
            content = curve_panels(data, view) if view.kind == "curve" else line_panels(data, view)
            return Picture(view, _lines(view, data, content), None, f"{alt}: {', '.join(content.hues)}")
    except NothingToDraw as reason:
        return Picture(view, None, str(reason), alt)


def _pens(view: View, data: RunData) -> dict[str, Pen]:
    compare = data.compare()
    reference = clean(number(compare[1]), 40) if compare and compare[0] == view.hue else None
    values = [clean(number(v), 40) for v in {token(v): v for v in data.frame[view.hue]}.values()]
    return paper.pens(values, reference)


def _lines(view: View, data: RunData, content: Panels) -> Figure:
    """Curves and lines alike."""
    figure, grid = paper.sheet(len(content.panels))
    look = _pens(view, data)
    pens = {name: look[name] for name in content.hues}
    low, high = _y_limits([line.y for panel in content.panels for line in panel.lines.values()], view.log_y)
    notes = list(content.notes)
    for axes, panel in zip(grid, content.panels, strict=True):
        for name, line in panel.lines.items():
            _draw_line(
                axes, name, pens[name], line.x, line.y, line.low, line.high, banded=view.kind == "curve"
            )
            if np.nanmax(line.y, initial=-np.inf) > high:
                notes.append(f"{name} leaves the scale: up to {number(float(np.nanmax(line.y)))}.")
        axes.set_title(panel.title, loc="left", fontsize=9.5, color=paper.INK)
        if view.log_y:
            axes.set_yscale("log")
        axes.set_ylim(low, high)
        _x_axis(axes, view, content)
    paper.write_ticks(grid[0].yaxis, paper.log_ticks(low, high, base=10) if view.log_y else None)
    for axes, panel in zip(grid, content.panels, strict=True):
        paper.mark_lines(axes, panel.marks)
        spec = axes.get_subplotspec()
        axes.set_ylabel(paper.label(view.y_label, content.unit) if spec.is_first_col() else "")
        axes.set_xlabel(view.x_label)
        axes.grid(axis="x", visible=False)
    direct = len(grid) == 1 and len(pens) <= 10 and _end_together(content.panels[0])
    paper.finish(figure, view.title, content.subtitle, notes, pens if len(pens) > 1 else {}, direct=direct)
    return figure


def _draw_line(
    axes: Axes, name: str, pen: Pen, x: Array, y: Array, low: Array, high: Array, *, banded: bool
) -> None:
    hidden = " " + name if name.startswith("_") else name  # matplotlib keeps labels in _ to itself
    spread = np.isfinite(low) & np.isfinite(high)
    every = max(1, len(x) // 9)
    axes.plot(x, y, label=hidden, markevery=every if banded else None, zorder=3, **pen.line)
    if banded and spread.any():
        axes.fill_between(x, low, high, where=spread, color=pen.colour, alpha=0.13, linewidth=0, zorder=2)
    elif spread.any():
        axes.vlines(
            x[spread], low[spread], high[spread], color=pen.colour, linewidth=1.6, alpha=0.6, zorder=2
        )


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
    found = np.unique(np.concatenate([l.x for p in content.panels for l in p.lines.values()]))
    if content.categories is not None:
        axes.set_xlim(-0.4, len(content.categories) - 0.6)
        paper.write_ticks(axes.xaxis, list(range(len(content.categories))), content.categories)
        return
    low, high = float(found[0]), float(found[-1])
    if view.log_x and low > 0:
        axes.set_xscale("log", base=2)
        room = max((high / low) ** 0.03, 1.03)
        axes.set_xlim(low / room, high * room)
        few = (
            view.kind == "line"
            and len(found) <= 9
            and np.all(np.diff(np.log(found)) > np.log(high / low) / 12)
        )
        paper.write_ticks(
            axes.xaxis, list(found) if few else paper.log_ticks(low / room, high * room, base=2)
        )
        return
    room = 0.03 * (high - low) or 0.5
    axes.set_xlim(low - room, high + room)
    few = view.kind == "line" and len(found) <= 9 and np.all(np.diff(found) > (high - low) / 12)
    paper.write_ticks(axes.xaxis, list(found) if few else None)


def _end_together(panel: Panel) -> bool:
    ends = [float(line.x[-1]) for line in panel.lines.values()]
    return max(ends) - min(ends) <= 0.03 * abs(max(ends))
