"""The picture of a history: one panel per metric, every cell relative to its first run, steps marked."""

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
from bench.text import clean

MOST_PANELS, MOST_LINES = 6, 7


def draw(tracks: Sequence[Track], base: Path, *, chosen: bool = False) -> list[Path]:
    """Write ``base``.png and .svg: the chosen metrics, else those that stepped and the headline ones."""
    wanted = [t for t in tracks if chosen or t.steps or t.metric.headline]
    named = {track.metric.name: track.metric for track in wanted or tracks}
    order = sorted(named, key=lambda name: not any(t.steps for t in tracks if t.metric.name == name))
    shown = order[:MOST_PANELS]
    lines = {name: _lines(tracks, name) for name in shown}
    cells = list(dict.fromkeys(track.cell for name in shown for track in lines[name]))
    runs = sorted({(point.started, point.run) for track in tracks for point in track.points})
    place = {run: i + 1 for i, run in enumerate(runs)}
    with style():
        figure, axes = _panels(len(shown))
        pen = pens([clean(cell, 40) for cell in cells], None)
        for i, (name, axis) in enumerate(zip(shown, axes, strict=True)):
            metric = named[name]
            for track in lines[name]:
                x = [place[point.started, point.run] for point in track.points]
                y = [_relative(point.value, track.points[0].value) for point in track.points]
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
            if i % grid_columns(len(shown)) == 0:
                axis.set_ylabel("change since the first run (%)")
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


def _relative(value: float, first: float) -> float:
    """Per cent of the first value; of a first value of zero, the plain difference."""
    return (value / first - 1) * 100 if first else value - first
