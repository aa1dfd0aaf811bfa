"""What a workload declares of its answers: the metrics and how they are judged, the pictures to be drawn.

All of it is for the parent, which draws, compares and gates; a child takes no more than names and units of
metrics from it. That is why the version of a workload leaves this module out (`bench.version`): no number
changes with it. It is imported as part of `bench.workload`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Scalar = str | int | float | bool | None
Direction = Literal["lower", "higher", "none"]
MetricClass = Literal["exact", "near", "noisy"]
ViewKind = Literal["curve", "line", "heatmap", "map", "matrix", "scatter", "trace", "pictures", "texts"]


@dataclass(frozen=True)
class Metric:
    """One measured quantity. Declared once; drives table arrows, plot axes and the gate.

    ``tolerance``: for ``exact`` and ``near`` the largest absolute difference that still counts as
    equal; for ``noisy`` the smallest relative effect worth reporting.
    """

    name: str
    label: str
    unit: str
    direction: Direction = "lower"
    klass: MetricClass = "near"
    tolerance: float = 0.0
    help: str = ""
    headline: bool = False  # shown in the first table


@dataclass(frozen=True)
class Control:
    """What a cell has to beat: the cell whose ``column`` has this ``value``, ``alike`` in these columns.

    ``metrics`` with samples that pair are compared in the report.
    """

    column: str
    value: Scalar
    alike: tuple[str, ...]
    metrics: tuple[str, ...]


@dataclass(frozen=True)
class View:
    """One picture, described rather than drawn.

    kind ``curve``   x = index into the series artifact ``series`` (bucketed means of it are drawn)
    kind ``line``    x = a column (parameter or fact), y = a metric, one line per ``hue``
    kind ``heatmap`` rows = ``hue``, columns = ``x``, colour = ``y``
    kind ``map``     ``series`` names an artifact of equally long arrays, one entry a field: rows = the array
                     ``hue``, columns = ``x`` (both whole numbers), colour = ``y``; one panel a cell
    kind ``matrix``  rows = ``hue``, columns = the metrics whose names start with ``y``, at the largest ``x``
    kind ``scatter`` x and y are metrics (or columns), one path per ``hue``
    kind ``trace``   ``series`` names an artifact of equally long named arrays; x and y are two of them. Where
                     y ends in ``*`` it is all whose names begin so: a line each, and a panel for each hue
    kind ``pictures`` picture artifacts named ``series``; cells that differ only in ``x`` share a slider
    kind ``texts``   text artifacts named ``series``, that of the furthest cell of each ``hue`` (and whatever
                     else differs) beside the others; lines that begin with ``───`` are headings, and those
                     with ``━━━`` say what is wrong

    ``transform="exp"`` turns a mean NLL into a perplexity. ``marks`` names facts drawn as vertical lines
    (e.g. ``train_length``). ``where`` keeps the records whose column equals the value, or one of a tuple
    of values. ``control`` = (column, value) shows a matrix or lines as paired differences, sample by
    sample, to the cell that has this value there and is otherwise equal; ``against`` names the control's
    metric where that is not ``y``, with columns of the cell in braces (``effect_{reward}``: what the
    control does to what the cell was trained on). ``compares`` draws lines only where the hue has more
    than one value. ``front`` draws in a line view the front of the points: those that no other beats or
    equals on both axes (less of x, and the better y). ``paired`` says that entry t of a series is about
    the same thing in every cell (a token of one text), so that cells may be compared entry by entry.
    """

    name: str
    kind: ViewKind
    title: str
    x: str
    y: str
    x_label: str
    y_label: str
    hue: str = "policy"
    series: str | None = None
    transform: Literal["exp"] | None = None
    log_x: bool = False
    log_y: bool = False
    marks: tuple[str, ...] = ()
    where: Mapping[str, Scalar | tuple[Scalar, ...]] = field(default_factory=dict)
    headline: bool = False  # the picture shown first
    control: tuple[str, Scalar] | None = None
    against: str = ""
    compares: bool = False
    front: bool = False
    paired: bool = True
