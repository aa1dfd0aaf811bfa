"""Labels that tell the cells of a plan apart.

A workload names a cell by what usually matters. A grid over anything else gives several cells the
same label, and nobody could ask for one of them; what those cells differ in is then appended.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from bench.errors import parse_json
from bench.workload import Cell


def tell_apart(cells: Iterable[Cell]) -> dict[str, Cell]:
    """Cells by id; labels shared by cells of different parameters get ``(name=value, …)`` appended.

    Cells that differ in their seed alone get ``· seed N``. Those that differ in repeat alone keep one label:
    it is the same question asked again.
    """
    found = {cell.id: cell for cell in cells}
    groups: dict[str, list[Cell]] = {}
    for cell in found.values():
        groups.setdefault(cell.label, []).append(cell)
    for label, group in groups.items():
        names = varying([cell.params for cell in group])
        for cell in group if names else ():
            own = ", ".join(f"{name}={spelt(cell.params[name])}" for name in names)
            found[cell.id] = replace(cell, label=f"{label} ({own})")
    seeds: dict[str, set[int]] = {}
    for cell in found.values():
        seeds.setdefault(cell.label, set()).add(cell.seed)
    return {
        name: replace(cell, label=f"{cell.label} · seed {cell.seed}") if len(seeds[cell.label]) > 1 else cell
        for name, cell in found.items()
    }


def varying(params: Sequence[Mapping[str, Any]]) -> list[str]:
    """Names whose values are not the same in all ``params``, in order of appearance; one may lack a name."""
    names = dict.fromkeys(name for one in params for name in one)
    return [name for name in names if not alike([one.get(name) for one in params])]


def alike(values: Sequence[Any]) -> bool:
    """Whether all are spelt alike: True and 1 are not, nor 0.0 and -0.0. Spelt only where it takes that."""
    first = values[0]
    if isinstance(first, (str, int)) or first is None:
        return all(type(one) is type(first) and one == first for one in values)
    return len({spelt(one) for one in values}) == 1


def spelt(value: Any) -> str:
    """JSON without the quotes of a text that nothing else is written like: no two values are spelt alike."""
    text = json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    if not isinstance(value, str) or not value.isprintable():
        return text
    try:
        parse_json(value)
    except ValueError:
        return value
    return text
