"""Which cells of very many are drawn: whole settings, as if the suite had asked for fewer values.

Each parameter keeps some of its values, evenly spaced, the first and the last among them (of one, the last;
where more has to stay than there is room for, only that); a cell is drawn if all its values are kept. So the
cells drawn are a smaller grid of the same shape: lines stay lines, a setting keeps all its seeds, and what
others are held against stays among them. Nothing is drawn by lot.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.report.large.codes import Codes
from bench.text import number, plural

Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Choice:
    """Places of the cells that are drawn, ascending, and by which rule they were chosen."""

    places: NDArray[np.int64]
    rule: str


def choose(
    parameters: Mapping[str, Codes], count: int, most: int, kept: Mapping[str, Collection[int]]
) -> Choice:
    """At most ``most`` of ``count`` cells; ``kept`` are codes of values that stay, by parameter.

    The parameter with most values gives way first, down to the next one's number; what varies together
    (a zip) gives way together. Only where one setting has more cells than that, its first ones are taken.
    """
    codes = {name: one.array for name, one in parameters.items() if len(one) > 1}
    anchors = {name: np.array(sorted(kept.get(name, ())), np.int64) for name in codes}
    orders = {name: _order(parameters[name].values) for name in codes}
    mask = np.ones(count, bool)
    while (found := int(mask.sum())) > most:
        present = {name: np.unique(own[mask]) for name, own in codes.items()}
        sizes = {name: len(np.setdiff1d(values, anchors[name])) for name, values in present.items()}
        name = max(sizes, key=lambda one: sizes[one], default=None)
        if name is None or len(present[name]) < 2 or not sizes[name]:
            break
        others = [size for other, size in sizes.items() if other != name]
        wanted = max(len(present[name]) * most // found, min(max(others, default=0), sizes[name] // 2), 1)
        wanted = min(wanted, len(present[name]) - 1)
        values = present[name][np.argsort(orders[name][present[name]])]
        picked = np.union1d(values[_spaced(len(values), wanted)], np.intersect1d(anchors[name], values))
        if len(picked) == len(values):  # only what has to stay is left of it
            picked = np.intersect1d(anchors[name], values)
        allowed = np.zeros(len(parameters[name]), bool)
        allowed[picked] = True
        mask &= allowed[codes[name]]
    places = np.flatnonzero(mask)
    return Choice(places[:most], _rule(parameters, codes, mask, len(places) - most))


def _spaced(count: int, wanted: int) -> NDArray[np.int64]:
    """Places of ``wanted`` of ``count`` values, evenly spaced from the last to the first."""
    return np.unique(np.linspace(count - 1, 0, wanted).round().astype(np.int64))


def _order(values: Sequence[Any]) -> NDArray[np.int64]:
    """The place of each value: by size where all are numbers, else by appearance."""
    numbers = all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in values)
    if not numbers:
        return np.arange(len(values))
    order = np.empty(len(values), np.int64)
    order[sorted(range(len(values)), key=lambda place: values[place])] = np.arange(len(values))
    return order


def _rule(
    parameters: Mapping[str, Codes], codes: Mapping[str, NDArray[np.int32]], mask: Mask, beyond: int
) -> str:
    """In words what was kept of which parameter."""
    parts = []
    for name, own in codes.items():
        left, of = len(np.unique(own[mask])), len(parameters[name])
        if left < of:
            parts.append(f"{left:,} of {of:,} values of {name}")
    said = ", ".join(parts) + (", evenly spaced" if parts else "")
    first = f"the first {plural(int(mask.sum()) - beyond, 'cell')} of {number(int(mask.sum()))} that are left"
    return "; ".join(filter(None, [said, first if beyond > 0 else ""]))
