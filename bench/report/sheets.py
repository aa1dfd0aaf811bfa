"""Pictures that cells have kept, side by side: what they look like, not what they score."""

from __future__ import annotations

from collections.abc import Sequence
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
from bench.report.select import extent, first_seed, leading, split, token, varying
from bench.results.record import Status, canonical
from bench.workload import View

_MOST = 9  # strips on one sheet: two rewards by four algorithms, and what they began with
_LABEL = 1.35  # inches left of the strips


def draw_pictures(view: View, data: RunData) -> Figure:
    """Strips below one another: of one setting every ``x``, of several the first and the last of each."""
    rows, whose = first_seed(_rows(data, view))
    settings = _settings(view, data, rows)
    strips = _progress(view, data, rows) if len(settings) == 1 else _overview(view, data, rows, settings)
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


def _settings(view: View, data: RunData, rows: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    """Rows that differ in ``x`` alone, hue by hue; and what tells them from the others of their hue."""
    apart = _apart(view, data, rows, data.parameters)
    hues = [cells for _, cells in split(rows, [view.hue])]
    return [(canonical(setting), cells) for of_hue in hues for setting, cells in split(of_hue, apart)]


def _apart(view: View, data: RunData, rows: pd.DataFrame, columns: Sequence[str]) -> list[str]:
    """Those of ``columns`` that tell ``rows`` apart, but for what a strip is of anyway."""
    skip = (view.x, view.hue, data.words.prefix_axis)
    return [*leading(rows, [c for c in varying(rows, columns) if c not in skip])]


def _overview(
    view: View, data: RunData, rows: pd.DataFrame, settings: list[tuple[str, pd.DataFrame]]
) -> list[tuple[str, Path]]:
    place = extent(data, rows)
    begin = place.min()
    found: list[tuple[str, Path]] = []
    bases, before = list[int](), set[str | bytes]()
    for setting, cells in settings:
        reach = place.loc[cells.index]
        first, last = int(reach.idxmin()), int(reach.idxmax())  # type: ignore[call-overload]
        base = _path(data, view, first)
        if reach.min() == begin:
            # Settings may begin alike, on one machine bit by bit.
            alike: set[str | bytes] = {setting, base.read_bytes()}
            if not alike & before:
                bases.append(len(found))
                found.append((_name(view, data, first, rows), base))
            before |= alike
        if reach.max() > begin:
            name = hue_label(data, view, rows[view.hue][last]).replace("_", " ")
            found.append((_folded(name, _name(view, data, last, rows)), _path(data, view, last)))
    if len(bases) == 1:  # that of all
        label, path = found[bases[0]]
        found[bases[0]] = (label.split("\n")[0], path)
    return found


def _name(view: View, data: RunData, index: int, rows: pd.DataFrame) -> str:
    """The strip's x, and whatever else tells it from the others of its hue."""
    own = rows[[token(v) == token(rows[view.hue][index]) for v in rows[view.hue]]]
    names = [view.x, *_apart(view, data, own, [*data.parameters, "seed", "repeat"])]
    return "\n".join(f"{name.replace('_', ' ')} {text(data.frame[name][index])}" for name in names)


def _folded(name: str, below: str) -> str:
    return "\n".join([*name.rsplit(" ", 1), below]) if len(name) > 16 else f"{name}\n{below}"


def _path(data: RunData, view: View, index: Any) -> Path:
    found = data.picture(int(index), str(view.series))
    assert found is not None
    return found
