"""How every picture looks: one sheet of paper, one hand.

Fixed size, colour-blind safe colours told apart by marker and dash as well, numbers written out
(8,192, not 10³·⁹¹), and files that are byte for byte the same when drawn again. No pyplot: figures are
values and leave no state behind.
"""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator
from PIL import Image

from bench.text import shortened

WIDTH, HEIGHT, DPI = 8.0, 4.7, 160  # inches, inches, pixels per inch
QUALITY = 75  # of WebP
INK, GREY = "#222222", "#666666"
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
_COLOURS = [0, 3, 2, 4, 1, 9, 5]  # of seaborn's "colorblind": those dark enough for a line on white
_MARKERS = "sD^vPXp"
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

    @property
    def ink(self) -> Any:
        """The colour, darkened to be legible as text."""
        return tuple(0.8 * c for c in mpl.colors.to_rgb(self.colour))


@contextmanager
def style() -> Iterator[None]:
    """The look, for the time of drawing or saving, whatever the user's own settings are."""
    fonts = logging.getLogger("matplotlib.font_manager")
    level = fonts.level
    with mpl.rc_context(), warnings.catch_warnings():
        mpl.rcdefaults()
        mpl.rcParams.update(sns.axes_style("whitegrid") | _RC)
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # a name in another script
        fonts.setLevel(logging.ERROR)
        try:
            yield
        finally:
            fonts.setLevel(level)


def pens(values: Sequence[str], reference: str | None) -> dict[str, Pen]:
    """A pen for each value: the reference in near black, the others each with colour, marker and dash."""
    palette = sns.color_palette("colorblind")
    look = {value: Pen(INK, "o", "-", 2.0) for value in values if value == reference}
    for count, value in enumerate(v for v in dict.fromkeys(values) if v != reference):
        turn, place = divmod(count, len(_COLOURS))
        dash, marker = _DASHES[(place + turn) % len(_DASHES)], _MARKERS[(place + 2 * turn) % len(_MARKERS)]
        look[value] = Pen(palette[_COLOURS[place]], marker, dash)
    return look


def sheet(panels: int, height: float = HEIGHT, *, shared: bool = True) -> tuple[Figure, list[Axes]]:
    """A figure with so many panels, of common axes if ``shared``, at most three side by side."""
    columns = grid_columns(panels)
    rows = math.ceil(panels / columns)
    figure = Figure((WIDTH, height if rows == 1 else 1.4 + 2.5 * rows))
    FigureCanvasAgg(figure)
    grid = figure.subplots(rows, columns, squeeze=False, sharex=shared, sharey=shared).ravel().tolist()
    sns.despine(figure)
    for place in range(panels, rows * columns):
        grid[place].remove()
        grid[place - columns].xaxis.set_tick_params(labelbottom=True)
    return figure, grid[:panels]


def grid_columns(panels: int) -> int:
    """How many panels stand side by side."""
    return panels if panels < 3 else 2 if panels == 4 else 3


def log_ticks(low: float, high: float, *, base: int, most: int = 9) -> list[float]:
    """Readable ticks of a logarithmic axis: powers of two, or 1-2-5 steps where decades are too few."""
    if base == 2:
        powers = range(math.ceil(math.log2(low) - 1e-9), math.floor(math.log2(high) + 1e-9) + 1)
        step = max(1, math.ceil(len(powers) / most))
        return [float(2**p) for p in powers if (powers[-1] - p) % step == 0]
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks: list[float] = []
    for steps in ((1, 1.5, 2, 3, 4, 5, 7), (1, 2, 5), (1, 3), (1,)):
        ticks = [s * 10.0**d for d in decades for s in steps if low <= s * 10.0**d <= high]
        if len(ticks) <= most:
            return ticks
    return ticks[:: math.ceil(len(ticks) / most)]


def write_ticks(axis: Any, ticks: Sequence[float] | None, *, most: int = 6) -> None:
    """Set an axis's ticks (None: chosen, at most ``most``) and write them out without offset or power."""
    nice = MaxNLocator(most, steps=[1, 2, 2.5, 5, 10])
    axis.set_major_locator(nice if ticks is None else FixedLocator(list(ticks)))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}".replace("-", "−")))


def name_ticks(axis: Any, places: Sequence[float], names: Sequence[str]) -> None:
    """Ticks that are names."""
    axis.set_ticks(list(places), shortened(names, 24))
    axis.set_minor_locator(NullLocator())


def save(figure: Figure, base: Path, kinds: Sequence[str] = ("png", "svg")) -> list[Path]:
    """Write a picture in these formats, each whole or not at all; the same figure gives the same bytes.

    A PNG has a palette of 64 colours, which is all that lines and text need and a third of the size; what
    holds photographs is for ``webp``.
    """
    paths = [base.with_name(f"{base.name}.{kind}") for kind in kinds]
    looks: dict[str, dict[str, Any]] = {
        ".png": {"dpi": DPI, "metadata": {"Software": None}},
        ".webp": {"dpi": DPI, "pil_kwargs": {"quality": QUALITY, "method": 6}},
        ".svg": {"metadata": {"Date": None, "Creator": None}},
    }
    with style():
        for path in paths:
            look = looks[path.suffix]
            temporary = path.with_name(f".{path.name}")
            try:
                figure.savefig(temporary, format=path.suffix[1:], facecolor="white", **look)
                if path.suffix == ".png":
                    _to_palette(temporary)
                temporary.replace(path)
            finally:
                temporary.unlink(missing_ok=True)
    return paths


def _to_palette(path: Path) -> None:
    with Image.open(path) as picture:
        dpi = picture.info.get("dpi")
        small = picture.convert("RGB").quantize(64, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    small.save(path, "PNG", optimize=True, dpi=dpi)
