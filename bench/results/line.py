"""One line of a ``records.jsonl``: the record that it is, and whether it is as it was written."""

from __future__ import annotations

from pathlib import Path

from bench.errors import UserError, parse_json
from bench.results.digest import Integrity, integrity_of
from bench.results.record import SCHEMA_VERSION, Record


def parse_line(path: Path, line: bytes) -> tuple[Record, Integrity] | None:
    """The record with what its digest says of it; None for a line that is no record.

    Raises UserError for a record of a newer schema (of the file ``path``): it is not damaged, only not ours
    to read.
    """
    try:
        record, data = Record.model_validate_json(line), parse_json(line)
        _ = record.setting  # parameters that are no JSON (NaN) name no cell
    except ValueError:  # pydantic's is one
        _check_version(path, _schema_version(line))
        return None
    _check_version(path, record.schema_version)  # it may read alike and mean something else
    return record, integrity_of(data)


def _check_version(path: Path, version: int) -> None:
    if version > SCHEMA_VERSION:
        raise UserError(
            f"{path} was written by a newer version of ddposink",
            hint="update ddposink, or start a new run with --new",
        )


def _schema_version(line: bytes) -> int:
    try:
        version = parse_json(line).get("schema_version", 0)
    except (ValueError, AttributeError):
        return 0
    return version if isinstance(version, int) else 0
