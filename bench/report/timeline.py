"""The picture of a history: one panel per metric, every cell since its first run, steps marked.

Per cent where a metric is positive in all runs, else differences: of a negative value, or of zero, a share
says nothing, and it would point the wrong way.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from bench.report.figure import GREY, INK, WIDTH, grid_columns, pens, save, style, write_ticks
from bench.report.tracks import Track
from bench.text import clean, with_unit

MOST_PANELS, MOST_LINES = 6, 7


def draw(tracks: Sequence[Track], base: Path, *, chosen: bool = False) -> list[Path]:
    """Write ``base``.png and .svg: the chosen metrics, else those that stepped and the headline ones."""
    wanted = [t for t in tracks if chosen or t.steps or t.metric.headline]
    named = {track.metric.name: track.metric for track in wanted or tracks}
    order = sorted(named, key=lambda name: not any(t.steps for t in tracks if t.metric.name == name))
    shown = order[:MOST_PANELS]
    lines = {name: _lines(tracks, name) for name in shown}
    cells = list(dict.fromkeys(track.cell for name in shown for track in lines[name]))
    points = sorted((point.started, point.run) for track in tracks for point in track.points)
    runs = dict.fromkeys(run for _, run in points)  # a run's cells begin at different times
    place = {run: i + 1 for i, run in enumerate(runs)}
    with style():
        figure, axes = _panels(len(shown))
        pen = pens([clean(cell, 40) for cell in cells], None)
        for name, axis in zip(shown, axes, strict=True):
            metric = named[name]
            share = all(point.value > 0 for track in lines[name] for point in track.points)
            for track in lines[name]:
                x = [place[point.run] for point in track.points]
                y = [_since(point.value, track.points[0].value, share=share) for point in track.points]
                look = pen[clean(track.cell, 40)]
                axis.plot(x, y, label=clean(track.cell, 40), **look.line)
                for step in track.steps:
                    colour = {True: "#b2182b", False: "#2166ac", None: INK}[step.worse]
                    axis.axvline(x[step.at] - 0.5, color=colour, linewidth=1.2, linestyle=(0, (3, 2)))
            axis.axhline(0, color=GREY, linewidth=0.8)
            arrow = {"lower": " ↓", "higher": " ↑", "none": ""}[metric.direction]
            axis.set_title(clean(metric.label, 40) + arrow, fontsize=10, loc="left")
            axis.set_xlim(0.5, len(runs) + 0.5)
            write_ticks(axis.xaxis, None)
            axis.set_xlabel("run, oldest first")
            axis.set_ylabel(with_unit("change since the first run", "%" if share else metric.unit))
        handles = {str(h.get_label()): h for axis in axes for h in axis.get_legend_handles_labels()[0]}
        figure.legend(
            list(handles.values()), list(handles), loc="lower center", ncols=3, frameon=False,
            title="dashed: a step up or down (red: worse)", bbox_to_anchor=(0.5, -0.02),
        )  # fmt: skip
        figure.tight_layout(rect=(0, 0.06 + 0.05 * (1 + (len(handles) - 1) // 3), 1, 1))
    return save(figure, base)


def _panels(count: int) -> tuple[Figure, list[Axes]]:
    """Panels, each with a scale of its own: some metrics change by a thousandth, some double."""
    columns = grid_columns(count)
    rows = math.ceil(count / columns)
    figure = Figure((WIDTH, 1.6 + 2.6 * rows))
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, squeeze=False).ravel().tolist()
    sns.despine(figure)
    for unused in axes[count:]:
        unused.remove()
    return figure, axes[:count]


def _lines(tracks: Sequence[Track], name: str) -> list[Track]:
    """The tracks of one metric that are drawn: those with steps first."""
    own = [track for track in tracks if track.metric.name == name]
    return sorted(own, key=lambda track: not track.steps)[:MOST_LINES]


def _since(value: float, first: float, *, share: bool) -> float:
    """How far a value is from the first one: in per cent of it, or as a plain difference."""
    return (value / first - 1) * 100 if share else value - first
