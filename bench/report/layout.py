"""Where words go on a picture: placed by measuring text, so that none covers another or a curve.

Titles stand above, notes below, names of lines to the right: at the ends of their lines if these end
together, else as a legend. The panels get the room that is left.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bench.report.figure import GREY, INK, WIDTH, Pen, grid_columns
from bench.text import clean, shortened

_NOTE, _MARK, _NAME = 8.0, 8.5, 9.5  # font sizes in points
_LINE = 0.17  # inches from one small line to the next
_LEAST = 0.4  # inches of height that a panel keeps


def mark_lines(grid: Sequence[Axes], marks: Sequence[Mapping[str, Sequence[float]]]) -> int:
    """Labelled vertical lines, per panel. Returns how many lines of text the labels need above a panel.

    Labels stand above the frame, where no curve can cross them; neighbours that would overlap are
    stacked.
    """
    width = (WIDTH - 2.4) / grid_columns(len(grid))
    most = 0
    for axes, wanted in zip(grid, marks, strict=True):
        low, high = axes.get_xlim()
        ends: list[float] = []  # where the last label of each stacked line ends, in inches
        inside = [(v, name) for name, values in wanted.items() for v in values if low < v <= high]
        for value, name in sorted(inside):
            text = f"{clean(name, 30).replace('_', ' ')} {value:,.10g}"
            size = len(text) * _MARK * 0.0088
            place = fraction(axes, value, 1)[0] * width
            right = place + size / 2 > width
            begin = place - size if right else place - size / 2
            row = next((i for i, end in enumerate(ends) if end < begin), len(ends))
            ends[row : row + 1] = [begin + size + 0.1]
            axes.axvline(value, color=GREY, linewidth=1.1, linestyle=(0, (2, 2)), zorder=1.5, label="_mark")
            axes.annotate(text, (value, 1), xycoords=axes.get_xaxis_transform(), textcoords="offset points",
                          xytext=(0, 3 + 72 * _LINE * row), ha="right" if right else "center",
                          fontsize=_MARK, color=GREY)  # fmt: skip
        most = max(most, len(ends))
    return most


@dataclass(frozen=True)
class Words:
    """All that is written around the panels; ``labels`` are lines in drawing order, if they need names."""

    title: str
    subtitle: str
    x_label: str
    y_label: str
    notes: Sequence[str]
    panels: Sequence[str]
    labels: Mapping[str, Pen] = field(default_factory=dict)


def finish(
    figure: Figure, grid: Sequence[Axes], words: Words, *, direct: bool = False, marked: int = 0
) -> None:
    """Write the words and give the panels the room that is left; the figure grows if there is none.

    ``direct`` writes the names of lines at their ends; ``marked`` is what ``mark_lines`` returned.
    """
    width, height = figure.get_size_inches()
    names = shortened(list(words.labels), 34)
    if len(grid) == 1:
        grid[0].set_xlabel(words.x_label)
        grid[0].set_ylabel(words.y_label)
    room = max((text_width(figure, name, fontsize=_NAME) for name in names), default=-0.2)
    right = room + (0.78 if names and not direct else 0.38)
    left = 0.12 + _axis_width(figure, grid) + (0.27 if len(grid) > 1 and words.y_label else 0)
    over = _LINE * (marked + any(words.panels))  # text above each panel
    columns, rows = grid_columns(len(grid)), math.ceil(len(grid) / grid_columns(len(grid)))
    titles, named = _titles(figure, words.panels, (width - left - right - 0.5 * (columns - 1)) / columns)
    wrapped = [line for note in [*words.notes, *named] for line in textwrap.wrap(clean(note, 500), 118)]
    above = 0.46 + (0.22 if words.subtitle else 0) + over
    below = (0.62 if len(grid) == 1 else 0.68) + _LINE * len(wrapped)
    least = above + below + rows * _LEAST + (rows - 1) * (0.3 + over)
    height = max(height + _LINE * len(named), least)  # words may take more than there is
    figure.set_size_inches(width, height)
    figure.subplots_adjust(
        left / width,
        below / height,
        1 - right / width,
        1 - above / height,
        wspace=_share(width - left - right, columns, 0.5),
        hspace=_share(height - above - below, rows, 0.3 + over),
    )
    _head(figure, words.title, 0.14, fontsize=12.5, weight="bold")
    _head(figure, words.subtitle, 0.42, fontsize=9, color=GREY)
    for axes, title in zip(grid, titles, strict=True):
        axes.set_title(title, loc="left", fontsize=_NAME, color=INK, pad=5 + 72 * _LINE * marked)
    if len(grid) > 1:
        middle = ((left + width - right) / 2 / width, (below + height - above) / 2 / height)
        figure.text(middle[0], (below - 0.4) / height, words.x_label, ha="center", va="center")
        figure.text(0.24 / width, middle[1], words.y_label, rotation=90, ha="center", va="center")
    for i, line in enumerate(reversed(wrapped)):
        figure.text(0.12 / width, (0.1 + _LINE * i) / height, line, fontsize=_NOTE, color=GREY, va="bottom")
    pens = dict(zip(names, words.labels.values(), strict=True))
    if direct and names:
        _direct_labels(grid[0], pens)
    elif names:
        _legend(figure, pens, (1 - (right - 0.12) / width, 1 - above / height))


def _titles(figure: Figure, panels: Sequence[str], inches: float) -> tuple[list[str], list[str]]:
    """Titles that fit above a panel, and as notes the full ones where what fits would be the same for two."""
    fitting = [_fit(figure, title, inches, fontsize=_NAME) for title in panels]
    if len(set(fitting)) == len(set(panels)):
        return fitting, []
    numbered = [f"{i}: {title}" for i, title in enumerate(panels, start=1)]
    notes = [f"Panel {title}." for title in numbered]
    return [_fit(figure, title, inches, fontsize=_NAME) for title in numbered], notes


def caption(figure: Figure, title: str, subtitle: str, notes: Sequence[str]) -> None:
    """Title and subtitle above, notes below; for a figure that places its own contents."""
    _head(figure, title, 0.14, fontsize=12.5, weight="bold")
    _head(figure, subtitle, 0.42, fontsize=9, color=GREY)
    width, height = figure.get_size_inches()
    for i, line in enumerate(reversed(notes)):
        figure.text(0.12 / width, (0.1 + _LINE * i) / height, line, fontsize=_NOTE, color=GREY, va="bottom")


def _share(inches: float, panels: int, gap: float) -> float:
    """A gap between panels in inches as matplotlib wants it: as a fraction of one panel."""
    return gap * panels / (inches - gap * (panels - 1))


def _legend(figure: Figure, pens: Mapping[str, Pen], corner: tuple[float, float]) -> None:
    handles = [mpl.lines.Line2D([], [], **pen.line) for pen in pens.values()]
    visible = [" " + name if name.startswith("_") else name for name in pens]
    figure.legend(handles, visible, loc="upper left", bbox_to_anchor=corner, frameon=False, borderpad=0,
                  handlelength=2.6, borderaxespad=0, labelspacing=0.6)  # fmt: skip


def _direct_labels(axes: Axes, pens: Mapping[str, Pen]) -> None:
    """Write each name right of the end of its line, pushed apart where they would overlap."""
    low, high = axes.get_ylim()
    lines = [line for line in axes.lines if not str(line.get_label()).startswith("_")]
    ends = []
    for line, (name, pen) in zip(lines, pens.items(), strict=True):
        drawn: Any = line.get_xydata()
        last = drawn[-1]
        x, y = fraction(axes, last[0], min(max(last[1], low), high))
        ends.append((y, x, name, pen))
    ends.sort(key=lambda end: end[0])
    height = axes.get_window_extent().height / axes.figure.dpi
    places = spread([y for y, *_ in ends], 0.175 / height, 0.02, 0.98)
    for (y, x, name, pen), place in zip(ends, places, strict=True):
        axes.plot([x + 0.008, 1.02, 1.03], [y, place, place], transform=axes.transAxes, color=pen.colour,
                  linewidth=0.8, clip_on=False, label="_leader")  # fmt: skip
        axes.text(1.037, place, name, transform=axes.transAxes, color=pen.ink, fontsize=_NAME, va="center")


def spread(
    wanted: Sequence[float], gap: float, low: float = -math.inf, high: float = math.inf
) -> list[float]:
    """Ascending places at least ``gap`` apart, as near to the (ascending) wanted ones as can be.

    Places that would overlap form a cluster, evenly spaced around the mean of what they wanted and
    kept between ``low`` and ``high`` as long as there is room.
    """

    def begin(cluster: list[float]) -> float:
        size = gap * (len(cluster) - 1)
        return max(low, min(sum(cluster) / len(cluster) - size / 2, high - size))

    clusters: list[list[float]] = []
    for place in wanted:
        clusters.append([place])
        while len(clusters) > 1 and begin(clusters[-1]) < begin(clusters[-2]) + gap * len(clusters[-2]):
            clusters[-2:] = [clusters[-2] + clusters[-1]]
    return [begin(cluster) + i * gap for cluster in clusters for i in range(len(cluster))]


def fraction(axes: Axes, x: float, y: float) -> tuple[float, float]:
    """A point of the data in fractions of the axes' width and height."""
    place: Any = axes.transAxes.inverted().transform(axes.transData.transform((x, y)))
    return float(place[0]), float(place[1])


def _renderer(figure: Figure) -> Any:
    return figure.canvas.get_renderer()  # type: ignore[attr-defined]  # the canvas is Agg's, see sheet()


def _head(figure: Figure, text: str, down: float, **look: Any) -> None:
    """A line of text at the upper left, ``down`` inches from the edge, cut to the width of the sheet."""
    width, height = figure.get_size_inches()
    figure.text(0.12 / width, 1 - down / height, _fit(figure, text, width - 0.24, **look), va="top", **look)


def _fit(figure: Figure, text: str, inches: float, **look: Any) -> str:
    """As much of a text as fits."""
    text = clean(text, 160)
    while len(text) > 1 and text_width(figure, text, **look) > inches:
        text = text[:-2].rstrip("…") + "…"
    return text


def text_width(figure: Figure, text: str, **look: Any) -> float:
    """Inches that a text takes on a figure."""
    probe = figure.text(0, 0, text, **look)
    width = probe.get_window_extent(_renderer(figure)).width / figure.dpi
    probe.remove()
    return float(width)


def _axis_width(figure: Figure, grid: Sequence[Axes]) -> float:
    """Room in inches that the leftmost y axes need for tick labels and label."""
    rooms = [0.3]
    for axes in grid[:: grid_columns(len(grid))]:
        box: Any = axes.yaxis.get_tightbbox(_renderer(figure))
        if box is not None:
            rooms.append((axes.get_window_extent(_renderer(figure)).x0 - box.x0) / figure.dpi)
    return float(max(rooms))
