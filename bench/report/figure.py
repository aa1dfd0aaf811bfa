"""How every picture looks: one sheet of paper, one hand.

Fixed size, colour-blind safe colours told apart by marker and dash as well, titles and notes placed
by measuring text rather than by hope, numbers written out (8,192, not 10³·⁹¹), and files that are
byte for byte the same when drawn again. No pyplot: figures are values and leave no state behind.
"""

from __future__ import annotations

import logging
import math
import textwrap
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from bench.report.text import clean, is_bytes

WIDTH, HEIGHT, DPI = 8.0, 4.7, 160
INK, GREY, PALE = "#222222", "#666666", "#dddddd"
_RC: dict[str, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "bench",
    "text.parse_math": False,  # a dollar sign in a name is a dollar sign
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans", "Verdana", "Arial"],
    "font.size": 10,
    "axes.labelsize": 10,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "legend.fontsize": 9.5,
    "axes.edgecolor": GREY,
    "axes.labelcolor": INK,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "text.color": INK,
    "grid.color": "#e8e8e8",
    "grid.linewidth": 0.8,
    "figure.dpi": DPI,
}
_COLOURS = [0, 3, 2, 4, 9, 1, 5]  # of seaborn's "colorblind": those dark enough for a line on white
_MARKERS = "oDs^vPX"
_DASHES: list[Any] = ["-", (0, (5, 1.5)), (0, (1.5, 1.2)), (0, (6, 1.5, 1.5, 1.5))]


class Pen(NamedTuple):
    """How one hue is drawn, in every picture of a run."""

    colour: Any
    marker: str
    dash: Any
    width: float = 1.8

    @property
    def line(self) -> dict[str, Any]:
        """Keyword arguments for ``Axes.plot``."""
        look = {"color": self.colour, "linestyle": self.dash, "linewidth": self.width, "marker": self.marker}
        return look | {"markersize": 5.5, "markeredgecolor": "white", "markeredgewidth": 0.7}


@contextmanager
def style() -> Iterator[None]:
    """The look, for the time of drawing or saving, whatever the user's own settings are."""
    with mpl.rc_context(), warnings.catch_warnings():
        mpl.rcdefaults()
        mpl.rcParams.update(sns.axes_style("whitegrid") | _RC)
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # a name in another script
        quiet = logging.getLogger("matplotlib.font_manager")
        level = quiet.level
        quiet.setLevel(logging.ERROR)
        try:
            yield
        finally:
            quiet.setLevel(level)


def pens(values: Sequence[str], reference: str | None) -> dict[str, Pen]:
    """A pen for each value: the reference in near black, the others each with colour, marker and dash."""
    palette = sns.color_palette("colorblind")
    look: dict[str, Pen] = {}
    count = 0
    for value in dict.fromkeys(values):
        if value == reference:
            look[value] = Pen(INK, "*", "-", 2.0)
            continue
        turn, place = divmod(count, len(_COLOURS))
        dash = _DASHES[(count + turn) % len(_DASHES)]
        look[value] = Pen(palette[_COLOURS[place]], _MARKERS[place], dash)
        count += 1
    return look


def sheet(panels: int, height: float = HEIGHT, *, share: bool = True) -> tuple[Figure, list[Axes]]:
    """A figure with so many panels, at most three side by side."""
    columns = panels if panels < 3 else 2 if panels == 4 else 3
    rows = math.ceil(panels / columns)
    figure = Figure((WIDTH, height if rows == 1 else 1.4 + 2.5 * rows))
    FigureCanvasAgg(figure)
    grid = figure.subplots(rows, columns, squeeze=False, sharex=share, sharey=share).ravel().tolist()
    for empty in grid[panels:]:
        empty.remove()
        grid[grid.index(empty) - columns].xaxis.set_tick_params(labelbottom=True)
    return figure, grid[:panels]


def log_ticks(low: float, high: float, *, base: int) -> list[float]:
    """Readable ticks of a logarithmic axis: powers of two, or 1-2-5 steps where decades are too few."""
    if base == 2:
        powers = range(math.ceil(math.log2(low) - 1e-9), math.floor(math.log2(high) + 1e-9) + 1)
        step = max(1, math.ceil(len(powers) / 9))
        return [float(2**p) for p in powers if (powers[-1] - p) % step == 0]
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for steps in ((1, 1.5, 2, 3, 4, 5, 7), (1, 2, 5), (1, 3), (1,)):
        ticks = [s * 10.0**d for d in decades for s in steps if low <= s * 10.0**d <= high]
        if len(ticks) <= 8:
            return ticks
    return ticks[:: math.ceil(len(ticks) / 8)]


def write_ticks(axis: Any, ticks: Sequence[float] | None = None, labels: Sequence[str] | None = None) -> None:
    """Set an axis's ticks and write them out in full, without offsets or powers."""
    if labels is not None and ticks is not None:
        axis.set_ticks(list(ticks), [clean(label, 24) for label in labels])
        axis.set_minor_locator(NullLocator())
        return
    axis.set_major_locator(
        MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]) if ticks is None else FixedLocator(list(ticks))
    )
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}".replace("-", "−")))


def mark_lines(axes: Axes, marks: Mapping[str, Sequence[float]]) -> None:
    """Labelled vertical lines; labels stand above the frame, where no curve can cross them."""
    low, high = axes.get_xlim()
    for name, values in marks.items():
        for value in values:
            if not low < value <= high:
                continue
            axes.axvline(value, color=GREY, linewidth=1.1, linestyle=(0, (2, 2)), zorder=1.5, label="_mark")
            axes.annotate(
                f"{clean(name, 30).replace('_', ' ')} {value:,.10g}",
                (value, 1),
                xycoords=axes.get_xaxis_transform(),
                xytext=(0, 3),
                textcoords="offset points",
                ha="right"
                if axes.transAxes.inverted().transform(axes.transData.transform((value, 1)))[0] > 0.85
                else "center",
                fontsize=8.5,
                color=GREY,
            )


def finish(
    figure: Figure,
    title: str,
    subtitle: str,
    notes: Sequence[str],
    labels: Mapping[str, Pen],
    *,
    direct: bool,
) -> None:
    """Set title, legend and notes and give the panels the room that is left.

    ``direct`` writes each label beside the end of its line (one panel, lines that end together),
    otherwise the labels become a legend right of the panels.
    """
    wrapped = [line for note in notes for line in textwrap.wrap(note, 118)]
    width, height = figure.get_size_inches()
    top = height - (0.72 if subtitle else 0.5) - (0.22 if _above(figure) else 0)
    figure.text(0.12 / width, 1 - 0.14 / height, clean(title, 90), weight="bold", fontsize=12.5, va="top")
    figure.text(0.12 / width, 1 - 0.42 / height, clean(subtitle, 120), fontsize=9, color=GREY, va="top")
    for i, line in enumerate(reversed(wrapped)):
        figure.text(0.12 / width, (0.1 + 0.17 * i) / height, line, fontsize=8, color=GREY, va="bottom")
    bottom = 0.62 + 0.17 * len(wrapped)
    for axes in figure.axes:
        axes.set_axisbelow(True)
    sns.despine(figure)
    names = [clean(label, 34) for label in labels]
    key_width = max((_text_width(figure, name, 9.5) for name in names), default=0.0)
    right = key_width + (0.3 if direct else 0.75) if names else 0.2
    left = 0.12 + _axis_width(figure)
    figure.subplots_adjust(left / width, bottom / height, 1 - right / width, top / height, 0.12, 0.42)
    if not names:
        return
    if direct:
        _direct_labels(figure.axes[0], dict(zip(names, labels.values(), strict=True)))
    else:
        handles = [mpl.lines.Line2D([], [], **pen.line) for pen in labels.values()]
        safe = [" " + name if name.startswith("_") else name for name in names]
        where = (1 - (right - 0.12) / width, top / height)
        figure.legend(handles, safe, loc="upper left", bbox_to_anchor=where, frameon=False, handlelength=2.6,
                      borderaxespad=0, borderpad=0, labelspacing=0.6)  # fmt: skip


def _above(figure: Figure) -> bool:
    return any(axes.get_title(loc="left") or axes.texts for axes in figure.axes)


def _text_width(figure: Figure, text: str, size: float) -> float:
    probe = figure.text(0, 0, text, fontsize=size)
    width = probe.get_window_extent(figure.canvas.get_renderer()).width / figure.dpi
    probe.remove()
    return float(width)


def _axis_width(figure: Figure) -> float:
    """Room in inches that the leftmost y axes need for tick labels and label."""
    renderer = figure.canvas.get_renderer()
    boxes = [
        axes.yaxis.get_tightbbox(renderer) for axes in figure.axes if axes.get_subplotspec().is_first_col()
    ]
    left = [
        axes.get_window_extent(renderer).x0 for axes in figure.axes if axes.get_subplotspec().is_first_col()
    ]
    rooms = [(x - box.x0) / figure.dpi for x, box in zip(left, boxes, strict=True) if box is not None]
    return max([0.3, *rooms])


def _direct_labels(axes: Axes, labels: Mapping[str, Pen]) -> None:
    """Write each name right of the end of its line, pushed apart where they would overlap."""
    low, high = axes.get_ylim()
    lines = [line for line in axes.lines if not str(line.get_label()).startswith("_")]
    ends = []
    for line, (name, pen) in zip(lines, labels.items(), strict=True):
        y = min(max(float(line.get_ydata()[-1]), low), high)
        x, y = axes.transAxes.inverted().transform(axes.transData.transform((line.get_xdata()[-1], y)))
        ends.append((float(y), float(x), name, pen))
    ends.sort(key=lambda end: end[0])
    room = axes.get_window_extent().height / axes.figure.dpi
    places = spread([y for y, *_ in ends], 0.175 / room)
    for (y, x, name, pen), place in zip(ends, places, strict=True):
        axes.plot([x + 0.008, 1.02, 1.03], [y, place, place], transform=axes.transAxes, color=pen.colour,
                  linewidth=0.8, clip_on=False, label="_leader")  # fmt: skip
        axes.text(
            1.037, place, name, transform=axes.transAxes, color=_dark(pen.colour), fontsize=9.5, va="center"
        )


def spread(wanted: Sequence[float], gap: float) -> list[float]:
    """Ascending places at least ``gap`` apart, as near to the wanted ones as pushing pairwise gets."""
    clusters: list[list[float]] = []
    for place in wanted:
        clusters.append([place])
        while len(clusters) > 1 and _begin(clusters[-1], gap) - _stop(clusters[-2], gap) < gap:
            clusters[-2:] = [clusters[-2] + clusters[-1]]
    return [_begin(cluster, gap) + i * gap for cluster in clusters for i in range(len(cluster))]


def _begin(cluster: list[float], gap: float) -> float:
    return sum(cluster) / len(cluster) - gap * (len(cluster) - 1) / 2


def _stop(cluster: list[float], gap: float) -> float:
    return _begin(cluster, gap) + gap * (len(cluster) - 1)


def _dark(colour: Any) -> Any:
    """The colour of a line, darkened to be legible as text."""
    return tuple(0.8 * c for c in mpl.colors.to_rgb(colour))


def label(text: str, unit: str) -> str:
    """An axis label with its unit; a label that brings a unit keeps it, but for plain bytes."""
    base, bracket, own = text.rpartition(" (")
    if bracket and own.endswith(")"):
        return f"{base} ({unit})" if is_bytes(own[:-1]) and unit else text
    return f"{text} ({unit})" if unit else text


def save(figure: Figure, base: Path) -> list[Path]:
    """Write PNG and SVG beside each other; the same figure gives the same bytes."""
    paths = [base.with_name(f"{base.name}.{kind}") for kind in ("png", "svg")]
    with style():
        figure.savefig(paths[0], dpi=DPI, facecolor="white", metadata={"Software": None})
        figure.savefig(paths[1], facecolor="white", metadata={"Date": None, "Creator": None})
    return paths
