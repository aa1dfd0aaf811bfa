"""A ``plan.json`` of very many cells, one pass at a time: as Python objects it would take gigabytes."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench.errors import no_constant

_SPACE = re.compile(r"[ \t\r\n]*")
_DECODER = json.JSONDecoder(parse_constant=no_constant)
_LISTS = ("passes", "cells")


def walk(path: Path, rest: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The cells of a plan in order, as `bench.report.frames.planned_cells` finds them.

    All else that the plan holds is put into ``rest``. Raises ValueError for what is no JSON object, and
    OSError.
    """
    text = path.read_text(encoding="utf-8")
    grouped = False
    for key, value in _members(text, rest):
        grouped |= key == "passes"
        if key == "cells" and grouped:  # a list of passes goes before one of cells
            continue
        cells = (value.get("cells") or []) if key == "passes" and isinstance(value, dict) else [value]
        yield from (cell for cell in cells if isinstance(cell, dict) and "id" in cell)


def _members(text: str, rest: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """The elements of the lists ``passes`` and ``cells``, each with the list's name; first None."""
    place = _expect(text, 0, "{")
    while text[place : place + 1] != "}":
        key, place = _value(text, place)
        place = _expect(text, place, ":")
        if key in _LISTS and text[place : place + 1] == "[":
            yield str(key), None  # an empty list is one, too
            place = _skip(text, place + 1)
            while text[place : place + 1] != "]":
                element, place = _value(text, place)
                yield str(key), element
                place = _next(text, place, "]")
            place = _skip(text, place + 1)
        else:
            rest[str(key)], place = _value(text, place)
        place = _next(text, place, "}")


def _value(text: str, place: int) -> tuple[Any, int]:
    try:
        value, place = _DECODER.raw_decode(text, place)
    except RecursionError:
        raise ValueError("nested too deep") from None
    return value, _skip(text, place)


def _skip(text: str, place: int) -> int:
    found = _SPACE.match(text, place)
    return found.end() if found else place


def _expect(text: str, place: int, sign: str) -> int:
    place = _skip(text, place)
    if text[place : place + 1] != sign:
        raise ValueError(f"expected {sign} at character {place:,}")
    return _skip(text, place + 1)


def _next(text: str, place: int, end: str) -> int:
    """Past a comma, or at the end of what is being listed."""
    return place if text[place : place + 1] == end else _expect(text, place, ",")
