"""Records as a table in which no two settings look alike: whatever differs between two cells is a column."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import pandas as pd

from bench.results.record import Record
from bench.suite.labels import alike, spelt
from bench.workload import Metric, Scalar

OWN = ("cell", "pass_id", "label", "seed", "repeat", "status", "reason")  # every record's own fields


def column_of(parameter: str, metrics: Collection[str]) -> str:
    """The column of a parameter: its name, unless that is the name of a record's own field or of a metric."""
    return f"{parameter} (parameter)" if parameter in OWN or parameter in metrics else parameter


def parameter_columns(records: Sequence[Record], metrics: Collection[str]) -> set[str]:
    """Columns that are parameters of a cell, where a table has them."""
    return {column_of(name, metrics) for name in {key for record in records for key in record.params}}


def settings(records: Sequence[Record], metrics: Collection[str] = ()) -> list[dict[str, Scalar]]:
    """For every record the parameters that its columns do not tell, where records differ in them.

    What differs between two cells must be a column, or a picture would take them for one. A parameter
    without a column of its name gets one; where a column shows two of its parameter's values alike (the last
    part of two paths), the parameter's own value is taken.
    """
    names = dict.fromkeys(name for record in records for name in record.params)
    found: list[dict[str, Scalar]] = [{} for _ in records]
    for name in names:
        given = [record.params.get(name) for record in records]
        if alike(given):
            continue
        values, column = [spelt(one) for one in given], column_of(name, metrics)
        told = [record.columns.get(name) for record in records]
        shown = column == name and all(name in record.columns for record in records)
        if shown and _one_to_one(told, values):
            continue
        for row, own, value in zip(found, given, values, strict=True):
            row[column] = own if isinstance(own, (str, int, float, bool)) or own is None else value
    return found


def _one_to_one(shown: Sequence[Any], values: Sequence[str]) -> bool:
    """Whether values that differ are shown differently."""
    meant: dict[str, str] = {}
    return all(meant.setdefault(spelt(one), value) == value for one, value in zip(shown, values, strict=True))


def to_frame(records: Sequence[Record], metrics: Mapping[str, Metric]) -> pd.DataFrame:
    """One row per record: its own fields, then columns, then metrics (a metric wins over a column)."""
    rows: list[dict[str, Any]] = []
    own_settings = settings(records, metrics)
    for record, more in zip(records, own_settings, strict=True):
        row: dict[str, Any] = {key: value for key, value in record.columns.items() if key not in OWN}
        row |= more
        row |= {name: record.metrics[name].value for name in metrics if name in record.metrics}
        own = {key: getattr(record, key) for key in OWN}
        rows.append(own | row | {"status": str(record.status)})
    frame = pd.DataFrame(rows, dtype=object)
    keys = [key for r, more in zip(records, own_settings, strict=True) for key in (*r.columns, *more)]
    names = [*OWN, *dict.fromkeys(key for key in keys if key not in OWN and key not in metrics)]
    frame = frame.reindex(columns=[*names, *metrics])
    return frame.astype(object).where(frame.notna(), None)
