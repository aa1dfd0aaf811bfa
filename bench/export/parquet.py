"""Records as one flat parquet file, a row per cell, for whoever wants to analyse a run elsewhere.

Columns keep their plain names, metrics are ``metric.NAME`` with the unit in the field's metadata and
``metric.NAME.reason`` where a value is missing; nested data (params, conformance) is JSON text.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.errors import UserError
from bench.results.record import Record

_BATCH = 10_000  # rows that are held at a time
_INTEGERS = range(-(2**63), 2**63)  # that the file can hold
_OWN = (
    "suite",
    "workload",
    "run",
    "cell",
    "pass_id",
    "label",
    "seed",
    "repeat",
    "status",
    "reason",
    "env",
    "started",
    "finished",
    "duration_s",
)


def flat(record: Record) -> dict[str, Any]:
    """One record as a row of scalars."""
    row: dict[str, Any] = {name: getattr(record, name) for name in _OWN} | {"status": str(record.status)}
    row |= {name: value for name, value in record.columns.items() if name not in _OWN}
    for name, metric in record.metrics.items():
        row[f"metric.{name}"] = metric.value
        if metric.reason is not None:
            row[f"metric.{name}.reason"] = metric.reason
    row["params"] = json.dumps(record.params, sort_keys=True)
    row["conformance"] = json.dumps(record.conformance, sort_keys=True)
    return row


def write_parquet(records: Collection[Record], path: Path) -> None:
    """Write ``path`` anew, a little at a time: of many records a first reading tells the columns.

    Raises UserError if it cannot be written.
    """
    import pyarrow.parquet as pq

    whole = [flat(record) for record in records] if len(records) <= _BATCH else None
    columns = _columns(zip(records, whole or map(flat, records), strict=True))
    schema = _schema(columns)
    temporary = path.with_name(f".{path.name}")
    try:
        with pq.ParquetWriter(temporary, schema) as writer:
            for rows in [whole] if whole is not None else _batches(map(flat, records)):
                writer.write_table(_table(rows, columns, schema))
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise UserError(
            f"cannot write {path}: {error.strerror or error}",
            hint="free some space, then run the same command again: the records are kept",
        ) from error
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@dataclass
class _Column:
    """What all rows have of a column."""

    kinds: set[type] = field(default_factory=set)  # of its values; a large integer is taken for a float
    unit: str | None = None

    @property
    def kind(self) -> type:
        """Numbers stay numbers (an int among floats is a float); what is mixed otherwise becomes text.

        Integers of which one is too large are floats.
        """
        if len(self.kinds) == 1:
            return next(iter(self.kinds))
        return float if self.kinds == {int, float} else str if self.kinds else type(None)

    def value(self, value: Any) -> Any:
        """A value as one of this kind."""
        if value is None or type(value) is self.kind:
            return value
        try:
            return self.kind(value)
        except OverflowError:  # no float is so large
            return math.inf if value > 0 else -math.inf


def _columns(found: Iterable[tuple[Record, dict[str, Any]]]) -> dict[str, _Column]:
    """The columns of all records, each with its row, in order of appearance."""
    columns: dict[str, _Column] = {}
    for record, row in found:
        for name, value in row.items():
            column = columns.get(name) or columns.setdefault(name, _Column())
            if value is not None:
                column.kinds.add(_kind(value))
        for name, unit in record.units.items():
            columns[f"metric.{name}"].unit = unit
    return columns


def _kind(value: Any) -> type:
    return float if type(value) is int and value not in _INTEGERS else type(value)


def _schema(columns: Mapping[str, _Column]) -> Any:
    import pyarrow as pa

    kinds = {int: pa.int64(), float: pa.float64(), bool: pa.bool_(), str: pa.string(), type(None): pa.null()}
    return pa.schema(
        pa.field(name, kinds[c.kind], metadata=None if c.unit is None else {"unit": c.unit})
        for name, c in columns.items()
    )


def _table(rows: Sequence[dict[str, Any]], columns: Mapping[str, _Column], schema: Any) -> Any:
    import pyarrow as pa

    arrays = [
        pa.array([column.value(row.get(name)) for row in rows], schema.field(name).type)
        for name, column in columns.items()
    ]
    return pa.Table.from_arrays(arrays, schema=schema)


def _batches(rows: Iterable[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    rows = iter(rows)
    while batch := list(itertools.islice(rows, _BATCH)):
        yield batch
