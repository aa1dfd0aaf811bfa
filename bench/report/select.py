"""Which cells belong together: what tells them apart, which stand for a pass, which pair with which.

All of it follows from parameters, the workload's prefix axis and the suite's comparison axis.
"""

from __future__ import annotations

import json
from collections.abc import Hashable, Iterable, Sequence
from typing import Any, NamedTuple

import pandas as pd

from bench.report.frames import SERIES_END, RunData, planned_cells
from bench.results.record import canonical
from bench.suite.conditions import same
from bench.workload import Scalar, View


class CellPair(NamedTuple):
    """Two cells that differ only along the comparison axis (indices into the records)."""

    cell: int
    reference: int


def varying(frame: pd.DataFrame, columns: Sequence[str]) -> list[str]:
    """Those columns in which the rows differ."""
    return [c for c in columns if len({token(v) for v in frame[c]}) > 1]


def leading(frame: pd.DataFrame, columns: Sequence[str]) -> dict[str, list[str]]:
    """Those ``columns`` that tell rows apart as well as all do, each with those that go with it.

    One goes with an earlier one where rows that agree in that agree in it, as in a suite's ``zip``.
    """
    found: dict[str, list[str]] = {}
    for column in columns:
        first = next((c for c in found if not _differs(frame, column, c)), None)
        if first is None:
            found[column] = []
        else:
            found[first].append(column)
    return found


def identifying(data: RunData, frame: pd.DataFrame | None = None) -> list[str]:
    """Columns that tell the rows apart: varying parameters, then seed and repeat, else the label."""
    frame = data.frame if frame is None else frame
    names = varying(frame, data.parameters) + varying(frame, ["seed", "repeat"])
    if names and not frame[names].map(token).duplicated().any():
        return names
    return ["label", *names]


def common(data: RunData, frame: pd.DataFrame) -> dict[str, Scalar]:
    """Parameters that all rows share, in column order; without those that are not set."""
    shared = {c: {token(v): v for v in frame[c]} for c in data.parameters}
    return {c: v for c, found in shared.items() if len(found) == 1 for v in found.values() if v is not None}


def keep(frame: pd.DataFrame, mask: Iterable[bool]) -> pd.DataFrame:
    """The rows for which ``mask`` is true; unlike plain indexing also right for a frame without rows."""
    return frame[pd.Series(list(mask), index=frame.index, dtype=bool)]


def matching(frame: pd.DataFrame, where: dict[str, Any]) -> pd.DataFrame:
    """Rows whose columns equal the given values; a column that does not exist matches nothing."""
    for column, wanted in where.items():
        frame = keep(frame, (column in frame and equal(v, wanted) for v in frame.get(column, frame["cell"])))
    return frame


def equal(value: Any, wanted: Any) -> bool:
    """Whether two scalars are one value: 4096 and 4096.0 are, True and 1 are not; a tuple means any of it."""
    if isinstance(wanted, (tuple, list)):
        return any(equal(value, one) for one in wanted)
    if isinstance(value, bool) or isinstance(wanted, bool):
        return value is wanted
    return bool(value == wanted)


def extent(data: RunData, frame: pd.DataFrame) -> pd.Series:
    """How far along the prefix axis each row reaches (its own order if there is no such axis)."""
    for column in (data.words.prefix_axis, SERIES_END):
        if column and column in frame:
            return pd.to_numeric(frame[column], errors="coerce").fillna(-1)
    return pd.Series(range(len(frame)), index=frame.index)


def longest(data: RunData, frame: pd.DataFrame) -> pd.DataFrame:
    """One row per pass: the cell that reaches furthest along the prefix axis."""
    if not len(frame) or data.words.prefix_axis is None:
        return frame
    last = extent(data, frame).groupby(frame["pass_id"], sort=False).idxmax()
    return frame.loc[list(last)]


def at_common_prefix(data: RunData, frame: pd.DataFrame, view: View) -> tuple[pd.DataFrame, Any]:
    """Rows at one value of the prefix axis, for a view in which that axis has no place.

    Cells of unequal length must not be compared: the value shared by most (hue, x) groups is taken,
    among those the largest. Returns the rows and the value (None if nothing had to be chosen).
    """
    axis = data.words.prefix_axis
    if axis is None or axis not in frame or axis in (view.x, view.hue) or not len(varying(frame, [axis])):
        return frame, None
    if any(len(varying(cells, [view.x])) for _, cells in split(frame, ["pass_id"])):
        return frame, None  # x grows along with the axis
    shared: dict[Any, set[Hashable]] = {}
    for value, hue, x in zip(frame[axis], frame[view.hue], frame[view.x], strict=True):
        shared.setdefault(value, set()).add((token(hue), token(x)))
    best = max(shared, key=lambda value: (len(shared[value]), value))
    return matching(frame, {axis: best}), best


def facets(data: RunData, frame: pd.DataFrame, view: View) -> list[str]:
    """Parameters that still differ between cells of one hue: each combination gets its own panel.

    So that no point stands for two settings, and no line joins cells that differ in more than its x.
    """
    skip = {view.x, view.hue, data.words.prefix_axis}
    names = [c for c in varying(frame, data.parameters) if c not in skip]
    # Along an x that follows from a parameter (a window's size, from the policy) that one changes with it.
    along = data.words.follows.get(view.x, frozenset()) if view.kind != "curve" else frozenset()
    if view.front and data.words.metric(view.x).klass == "exact":  # so does one that is told by the settings
        along = frozenset(names)
    hues = [rows for _, rows in split(frame, [view.hue])]
    return [c for c in names if any(_differs(rows, c, view.x if c in along else None) for rows in hues)]


def _differs(group: pd.DataFrame, column: str, x: str | None) -> bool:
    """Whether a column differs between rows, or if ``x`` is given between rows that agree in it."""
    if x is None or x not in group:
        return bool(varying(group, [column]))
    return any(varying(rows, [column]) for _, rows in split(group, [x]))


def first_seed(rows: pd.DataFrame) -> tuple[pd.DataFrame, str | None]:
    """Rows of the first seed and repeat, and a sentence if there are others: pictures cannot be averaged."""
    others = len(set(rows["seed"]))
    if others < 2 and len(set(rows["repeat"])) < 2:
        return rows, None
    seed, repeat = rows["seed"].iloc[0], rows["repeat"].iloc[0]
    kept = rows[(rows["seed"] == seed) & (rows["repeat"] == repeat)]
    return (
        kept,
        f"Pictures of seed {seed}, one of {others}." if others > 1 else "Pictures of the first repeat.",
    )


def replicates(data: RunData, rows: pd.DataFrame) -> list[tuple[Scalar, pd.DataFrame]]:
    """Rows that differ in seed and repeat at most, by their value on the prefix axis (None without one)."""
    axis = data.words.prefix_axis
    if axis is None or axis not in rows:
        return [(None, rows)]
    return [(key[axis], same) for key, same in split(rows, [axis])]


def seed_counts(data: RunData, rows: pd.DataFrame) -> set[int]:
    """How many seeds the settings among these rows have."""
    names = [name for name in varying(rows, data.parameters) if name not in ("seed", "repeat")]
    return {len(set(cells["seed"])) for _, cells in split(rows, names)} if len(rows) else set()


def requested_seeds(data: RunData) -> dict[str, set[tuple[int, int]]]:
    """Seeds and repeats asked for, by parameters as canonical JSON: measured, failed or still open."""
    cells = [(record.params, record.seed, record.repeat) for record in data.records]
    planned = [c for c in planned_cells(data.plan) if {"params", "seed", "repeat"} <= c.keys()]
    cells += [(c["params"], c["seed"], c["repeat"]) for c in planned]
    found: dict[str, set[tuple[int, int]]] = {}
    for params, seed, repeat in cells:
        found.setdefault(canonical(params), set()).add((seed, repeat))
    return found


def split(frame: pd.DataFrame, columns: Sequence[str]) -> list[tuple[dict[str, Scalar], pd.DataFrame]]:
    """Rows grouped by the values of some columns, in order of appearance."""
    if not columns:
        return [({}, frame)]
    groups: dict[Hashable, tuple[dict[str, Scalar], list[int]]] = {}
    for place, values in enumerate(zip(*(frame[c] for c in columns), strict=True)):
        first = dict(zip(columns, values, strict=True))
        groups.setdefault(tuple(token(v) for v in values), (first, []))[1].append(place)
    return [(first, frame.take(places)) for first, places in groups.values()]


def pairs(data: RunData, axis: str, reference: Any, frame: pd.DataFrame) -> list[CellPair]:
    """Cells beside the reference cell with which they share everything but the comparison axis."""
    references: dict[str, int] = {}
    for index in frame.index:
        if is_reference(data, index, axis, reference):
            references.setdefault(_partner(data, index, axis), index)
    found = []
    for index in frame.index:
        partner = references.get(_partner(data, index, axis))
        if partner is not None and partner != index and not is_reference(data, index, axis, reference):
            found.append(CellPair(index, partner))
    return found


def is_reference(data: RunData, index: int, axis: str, reference: Any) -> bool:
    """Whether a cell has the reference value on the comparison axis (as column or as parameter)."""
    record = data.records[index]
    return any(axis in own and same(own[axis], reference) for own in (record.columns, record.params))


def _partner(data: RunData, index: int, axis: str) -> str:
    record = data.records[index]
    rest = {key: value for key, value in record.params.items() if key != axis}
    return json.dumps([rest, record.seed, record.repeat], sort_keys=True, default=str)


def token(value: Any) -> Hashable:
    """A hashable stand-in that keeps True apart from 1 and counts all absent values as one."""
    if value is None or value != value:
        return None
    return ("bool", value) if isinstance(value, bool) else value
