"""Pictures that cells have kept, side by side: what they look like, not what they score."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib.image as image
import pandas as pd
from matplotlib.figure import Figure

from bench.report import figure as paper
from bench.report import layout
from bench.report.frames import RunData
from bench.report.names import hue_label, text
from bench.report.panels import NothingToDraw, subtitle, view_rows
from bench.report.select import extent, first_seed, split, token, varying
from bench.results.record import Status
from bench.workload import View

_MOST = 8  # strips on one sheet
_LABEL = 1.35  # inches left of the strips


def draw_pictures(view: View, data: RunData) -> Figure:
    """Strips below one another: of one hue every ``x``, of several the first ``x`` and the last of each."""
    rows, whose = first_seed(_rows(data, view))
    strips = _progress(view, data, rows) if len(split(rows, [view.hue])) == 1 else _overview(view, data, rows)
    notes = [f"The first {_MOST} of {len(strips)} are shown."] if len(strips) > _MOST else []
    notes += [whose] if whose else []
    notes += [f"Not all cells: {data.chosen}."] if data.chosen else []
    pictures = [(label, image.imread(path)) for label, path in strips[:_MOST]]
    width = paper.WIDTH - _LABEL - 0.2
    heights = [width * p.shape[0] / p.shape[1] for _, p in pictures]
    total = 0.75 + sum(heights) + 0.25 + 0.17 * len(notes)
    figure = Figure((paper.WIDTH, total))
    paper.FigureCanvasAgg(figure)
    top = total - 0.75
    for (label, picture), height in zip(pictures, heights, strict=True):
        place = (_LABEL / paper.WIDTH, (top - height) / total, width / paper.WIDTH, height / total)
        axes = figure.add_axes(place)
        axes.imshow(picture, interpolation="nearest", aspect="auto")
        axes.set_axis_off()
        figure.text((_LABEL - 0.12) / paper.WIDTH, (top - height / 2) / total, label,
                    ha="right", va="center", fontsize=9, color=paper.INK)  # fmt: skip
        top -= height
    layout.caption(figure, view.title, subtitle(data, rows, view), notes)
    return figure


def _rows(data: RunData, view: View) -> pd.DataFrame:
    frame = view_rows(data, view)
    rows = frame[frame["status"] == Status.OK]
    kept = [int(i) for i in rows.index if data.picture(int(i), str(view.series)) is not None]
    if not kept:
        raise NothingToDraw(f"no measured cell has kept {view.series}")
    return rows.loc[kept]


def _progress(view: View, data: RunData, rows: pd.DataFrame) -> list[tuple[str, Path]]:
    order = [int(i) for i in extent(data, rows).sort_values(kind="stable").index]
    return [(_name(view, data, i, rows), _path(data, view, i)) for i in order]


def _overview(view: View, data: RunData, rows: pd.DataFrame) -> list[tuple[str, Path]]:
    place = extent(data, rows)
    first = int(place.idxmin())  # type: ignore[call-overload]
    found = [(_name(view, data, first, rows), _path(data, view, first))]
    for hue, cells in split(rows, [view.hue]):
        last = int(place.loc[cells.index].idxmax())  # type: ignore[call-overload]
        if place[last] > place[first]:
            name = hue_label(data, view, hue[view.hue]).replace("_", " ")
            found.append((_folded(name, _name(view, data, last, rows)), _path(data, view, last)))
    return found


def _name(view: View, data: RunData, index: int, rows: pd.DataFrame) -> str:
    """The strip's x, and whatever else tells it from the others of its hue."""
    own = rows[[token(v) == token(rows[view.hue][index]) for v in rows[view.hue]]]
    more = [c for c in varying(own, [*data.parameters, "seed", "repeat"]) if c not in (view.x, view.hue)]
    names = [view.x, *(c for c in more if c != data.words.prefix_axis)]
    return "\n".join(f"{name.replace('_', ' ')} {text(data.frame[name][index])}" for name in names)


def _folded(name: str, below: str) -> str:
    return "\n".join([*name.rsplit(" ", 1), below]) if len(name) > 16 else f"{name}\n{below}"


def _path(data: RunData, view: View, index: Any) -> Path:
    found = data.picture(int(index), str(view.series))
    assert found is not None
    return found
