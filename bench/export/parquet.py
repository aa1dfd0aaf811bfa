"""Records as one flat parquet file, a row per cell, for whoever wants to analyse a run elsewhere.

Columns keep their plain names, metrics are ``metric.NAME`` with the unit in the field's metadata and
``metric.NAME.reason`` where a value is missing; nested data (params, conformance) is JSON text.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from bench.errors import UserError
from bench.results.record import Record

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


def write_parquet(records: Iterable[Record], path: Path) -> None:
    """Write ``path`` anew. Raises UserError if it cannot be written."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows: list[dict[str, Any]] = []
    units: dict[str, str] = {}
    for record in records:  # once: a record may have to be read from its file
        rows.append(flat(record))
        units |= {f"metric.{name}": unit for name, unit in record.units.items()}
    names = list(dict.fromkeys(name for row in rows for name in row))
    arrays = [pa.array(_of_one_type([row.get(name) for row in rows])) for name in names]
    fields = [
        pa.field(name, array.type, metadata={"unit": units[name]} if name in units else None)
        for name, array in zip(names, arrays, strict=True)
    ]
    temporary = path.with_name(f".{path.name}")
    try:
        pq.write_table(pa.Table.from_arrays(arrays, schema=pa.schema(fields)), temporary)
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise UserError(
            f"cannot write {path}: {error.strerror or error}",
            hint="free some space, then run the same command again: the records are kept",
        ) from error


def _of_one_type(values: Sequence[Any]) -> list[Any]:
    """Numbers stay numbers (an int among floats becomes a float); what is mixed otherwise becomes text."""
    kinds = {type(value) for value in values if value is not None}
    if len(kinds) <= 1:
        return list(values)
    if kinds == {int, float}:
        return [None if value is None else float(value) for value in values]
    return [None if value is None else str(value) for value in values]
