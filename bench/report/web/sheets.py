"""Picture sheets that differ only along one column: one row of frames, which a slider walks through."""

from __future__ import annotations

import base64
import hashlib
import io
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
from PIL import Image

from bench.report.frames import RunData
from bench.report.names import hue_label, numeric
from bench.report.panels import NothingToDraw, view_rows
from bench.report.select import first_seed, split, varying
from bench.text import clean, number, plural
from bench.workload import View

BUDGET = 200_000  # bytes of pictures inside one page; what does not fit is named, not shown
QUALITY, SCALES = 80, (1.0, 0.7, 0.5, 0.35)  # of WebP; tried in this order until all fit


def sheets(view: View, data: RunData, budget: int = BUDGET) -> dict[str, Any]:
    """Frames per setting, in the order of ``view.x``; ``why`` instead where there is none.

    A frame names its picture by number: many settings share that of the base model.
    """
    shown: dict[str, Any] = {
        "name": view.name,
        "kind": "pictures",
        "title": view.title,
        "xLabel": view.x_label,
    }
    try:
        return shown | _shown(view, data, budget)
    except NothingToDraw as reason:
        return shown | {"why": clean(reason)}


def _shown(view: View, data: RunData, budget: int) -> dict[str, Any]:
    frame, whose = first_seed(view_rows(data, view))
    found = _files(view, data, frame)
    raw = {index: path.read_bytes() for index, path in found.items()}
    sources = _inline(data, {digest: path.name for digest, path in _distinct(found, raw)}, raw, budget)
    order = {digest: i for i, digest in enumerate(sources)}
    rows, left_out = [], 0
    others = [c for c in data.parameters if c not in (view.x, view.hue)] + ["seed", "repeat"]
    named = varying(frame.loc[list(found)], others)
    for key, cells in split(frame.loc[list(found)], [view.hue, *others]):
        frames = []
        for index in sorted(cells.index, key=lambda i: float(str(frame.at[i, view.x]))):
            place = order.get(_digest(raw[int(index)]))
            if place is None:
                left_out += 1
                continue
            frames.append(
                {"x": frame.at[index, view.x], "picture": place, "cell": data.records[int(index)].cell}
            )
        if frames:
            name = [hue_label(data, view, key[view.hue]), *(f"{c} {number(key[c])}" for c in named)]
            rows.append({"name": clean(" · ".join(name), 200), "frames": frames})
    if not rows:
        raise NothingToDraw("the pictures cannot be read or are too large for a page")
    notes = [f"{plural(left_out, 'picture')} left out: the page would grow too large"] if left_out else []
    notes += [f"Not all cells: {data.chosen}."] if data.chosen else []
    return {
        "rows": rows,
        "pictures": list(sources.values()),
        "notes": [*notes, *([whose] if whose else [])],
    }


def _files(view: View, data: RunData, frame: pd.DataFrame) -> dict[int, Path]:
    if view.x not in frame:
        raise NothingToDraw(f"no cell has a column {view.x}")
    found: dict[int, Path] = {}
    for index in frame.index:
        path = data.picture(int(index), str(view.series))
        if path and numeric(frame.at[index, view.x]):
            found[int(index)] = path
    if not found:
        raise NothingToDraw(f"no cell has a picture named {view.series}")
    return found


def _distinct(found: dict[int, Path], raw: dict[int, bytes]) -> Iterator[tuple[str, Path]]:
    return ((_digest(raw[index]), path) for index, path in found.items())


def _digest(raw: bytes) -> str:
    return hashlib.sha256(raw).hexdigest()


def _inline(data: RunData, names: dict[str, str], raw: dict[int, bytes], budget: int) -> dict[str, str]:
    """Data URIs by digest, all at the largest scale at which they fit into ``budget``; at the last, some."""
    pictures = {}
    for digest, one in {_digest(one): one for one in raw.values()}.items():
        picture = _picture(data, names[digest], one)
        if picture is not None:
            pictures[digest] = picture
    found: dict[str, str] = {}
    for scale in SCALES:
        found = {digest: _uri(picture, scale) for digest, picture in pictures.items()}
        if sum(map(len, found.values())) <= budget:
            return found
    room = itertools.accumulate(map(len, found.values()))
    return {
        digest: source for (digest, source), used in zip(found.items(), room, strict=True) if used <= budget
    }


def _picture(data: RunData, name: str, raw: bytes) -> Image.Image | None:
    """The decoded picture; None, with a note, if it is no PNG or WebP, or too large."""
    try:
        with Image.open(io.BytesIO(raw), formats=["PNG", "WEBP"]) as picture:
            return picture.convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        data.note(f"{name} is no picture that can be shown ({clean(error, 100)}); it is missing")
        return None


def _uri(picture: Image.Image, scale: float) -> str:
    small, size = io.BytesIO(), (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    picture.resize(size, Image.Resampling.LANCZOS).save(small, "WEBP", quality=QUALITY, method=4)
    return "data:image/webp;base64," + base64.b64encode(small.getvalue()).decode("ascii")


def png_uri(raw: bytes) -> str:
    """Bytes of a PNG as the address of an image that needs no file."""
    return "data:image/png;base64," + base64.b64encode(raw).decode("ascii")
