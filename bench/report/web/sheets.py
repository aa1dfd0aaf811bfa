"""Picture sheets that differ only along one column: one row of frames, which a slider walks through."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

from PIL import Image

from bench.report.frames import RunData
from bench.report.names import hue_label, numeric
from bench.report.panels import NothingToDraw, view_rows
from bench.report.select import first_seed, split, varying
from bench.text import clean, number, plural
from bench.workload import View

BUDGET = 24 * 2**20  # bytes of pictures inside one page; what comes later is named, not shown
QUALITY = 85  # of WebP: no difference is seen at the size of a page
_PNG = b"\x89PNG\r\n\x1a\n"


def sheets(view: View, data: RunData, budget: int = BUDGET) -> dict[str, Any]:
    """Frames per setting, in the order of ``view.x``; ``why`` instead where there is none."""
    shown: dict[str, Any] = {
        "name": view.name,
        "kind": "pictures",
        "title": view.title,
        "xLabel": view.x_label,
    }
    try:
        rows, left_out, whose = _rows(view, data, budget)
    except NothingToDraw as reason:
        return shown | {"why": clean(reason)}
    notes = [f"{plural(left_out, 'picture')} left out: the page would grow too large"] if left_out else []
    return shown | {"rows": rows, "notes": [*notes, *([whose] if whose else [])]}


def _rows(view: View, data: RunData, budget: int) -> tuple[list[dict[str, Any]], int, str | None]:
    frame, whose = first_seed(view_rows(data, view))
    if view.x not in frame:
        raise NothingToDraw(f"no cell has a column {view.x}")
    found: dict[int, Path] = {}
    for index in frame.index:
        path = data.picture(int(index), str(view.series))
        if path and numeric(frame.at[index, view.x]):
            found[int(index)] = path
    if not found:
        raise NothingToDraw(f"no cell has a picture named {view.series}")
    others = [c for c in data.parameters if c not in (view.x, view.hue)] + ["seed", "repeat"]
    named = varying(frame.loc[list(found)], others)
    rows, left_out = [], 0
    for key, cells in split(frame.loc[list(found)], [view.hue, *others]):
        frames = []
        for index in sorted(cells.index, key=lambda i: float(str(frame.at[i, view.x]))):
            source = _inline(data, found[int(index)], budget)
            if source is None:
                left_out += 1
                continue
            budget -= len(source)
            frames.append(
                {"x": frame.at[index, view.x], "src": source, "cell": data.records[int(index)].cell}
            )
        if frames:
            name = [hue_label(data, view, key[view.hue]), *(f"{c} {number(key[c])}" for c in named)]
            rows.append({"name": clean(" · ".join(name), 200), "frames": frames})
    if not rows:
        raise NothingToDraw("the pictures cannot be read or are too large for a page")
    return rows, left_out, whose


def _inline(data: RunData, path: Path, budget: int) -> str | None:
    """A PNG as a data URI, in a format a fifth as large; None (with a note) if it is none, or too large."""
    raw, small = path.read_bytes(), io.BytesIO()
    try:
        if not raw.startswith(_PNG):
            raise ValueError("no PNG")
        with Image.open(io.BytesIO(raw), formats=["PNG"]) as picture:
            picture.convert("RGB").save(small, "WEBP", quality=QUALITY, method=4)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        data.note(f"{path.name} is no PNG that can be shown ({clean(error, 100)}); the picture is missing")
        return None
    source = "data:image/webp;base64," + base64.b64encode(small.getvalue()).decode("ascii")
    return source if len(source) <= budget else None


def png_uri(raw: bytes) -> str:
    """Bytes of a PNG as the address of an image that needs no file."""
    return "data:image/png;base64," + base64.b64encode(raw).decode("ascii")
