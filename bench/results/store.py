"""Where records live: an append-only file per run that no crash can take back.

``records.jsonl`` is the source of truth; everything else in a run folder can be made again from it.
A record is one ``write`` of one line, flushed to the disk before the run goes on, so that a
``kill -9`` costs at most the line being written: on opening, a line that is no record is moved to
``records.damaged.jsonl`` and its cell is measured again, and so is a record that was edited since (its
digest tells, see ``bench.results.digest``). A file system that refuses to write stops the run with a clear
sentence; what was written before stays whole.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from bench.errors import UserError, parse_json
from bench.results.digest import Integrity, integrity_of, with_digest
from bench.results.record import SCHEMA_VERSION, Record

RECORDS, DAMAGED, ENV, PLAN, SUITE = (
    "records.jsonl",
    "records.damaged.jsonl",
    "env.json",
    "plan.json",
    "suite.yaml",
)


@dataclass(frozen=True)
class Edited:
    """A record that does not match its digest."""

    path: Path
    line: int  # counted from 1
    record: Record

    @property
    def where(self) -> str:
        """``FILE:LINE``."""
        return f"{self.path}:{self.line}"

    def __str__(self) -> str:
        return (
            f"{self.record.label!r} (cell {self.record.cell}) was edited after it was measured: "
            f"{'it does not match its digest' if self.record.digest else 'its digest is gone'}"
        )


@dataclass
class Found:
    """What a ``records.jsonl`` holds, in the order of the file."""

    records: list[Record] = field(default_factory=list)  # all of them, edited ones too
    lines: list[bytes] = field(default_factory=list)  # of the records, as they stand
    damaged: list[bytes] = field(default_factory=list)  # lines that are no record
    edited: list[Edited] = field(default_factory=list)
    undigested: int = 0  # records written before there were digests


def read(path: Path) -> Found:
    """Read a ``records.jsonl``, and check every record against its digest. Changes nothing.

    Raises UserError for records of a newer schema: they are not damaged, only not ours to read.
    """
    found = Found()
    for number, line in enumerate(path.read_bytes().split(b"\n") if path.exists() else (), start=1):
        if not line.strip():
            continue
        try:
            record, data = Record.model_validate_json(line), parse_json(line)
        except ValueError:  # pydantic's is one
            _check_version(path, _schema_version(line))
            found.damaged.append(line)
            continue
        _check_version(path, record.schema_version)  # it may read alike and mean something else
        found.records.append(record)
        found.lines.append(line)
        seal = integrity_of(data)
        if seal is Integrity.BROKEN:
            found.edited.append(Edited(path, number, record))
        found.undigested += seal is Integrity.NONE
    return found


def read_records(path: Path) -> tuple[list[Record], list[bytes]]:
    """All records of a ``records.jsonl`` in order, and the lines that are none; see ``read``."""
    found = read(path)
    return found.records, found.damaged


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


class Store:
    """The records of one run: read once, appended to by a single writer (see ``results.folder.locked``).

    ``records`` maps a cell's id to its newest record. ``damaged`` counts lines and ``edited`` names records
    set aside on opening.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / RECORDS
        with clear_errors(f"cannot open the records in {folder}"):
            found = read(self.path)
            self.edited, self.damaged = found.edited, len(found.damaged)
            if self.damaged or self.edited:
                self._set_aside(found)
            self.records = {record.cell: record for record in found.records}
            self._file = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
            self._end_last_line()

    def append(self, record: Record) -> None:
        """Write a record; on return it is on the disk. Raises UserError if it cannot be written.

        A write that fails is undone and tried once more: a full disk may be a passing thing.
        """
        record = with_digest(record)
        line = record.model_dump_json().encode() + b"\n"
        with clear_errors(f"cannot write to {self.path}", kept=len(self.records)):
            try:
                self._write(line)
            except OSError:
                time.sleep(0.5)
                self._write(line)
        self.records[record.cell] = record

    def close(self) -> None:
        """Close the file; the records stay readable."""
        os.close(self._file)

    def _write(self, line: bytes) -> None:
        size = os.fstat(self._file).st_size
        try:
            written = os.write(self._file, line)
            if written < len(line):  # the disk was full in the middle: ask for the error itself
                os.write(self._file, line[written:])
            os.fsync(self._file)
        except BaseException:
            with suppress(OSError):
                os.ftruncate(self._file, size)
            raise

    def _set_aside(self, found: Found) -> None:
        """Move what is no record, or no longer the one that was measured, out of the way."""
        bad = {id(one.record) for one in found.edited}
        apart = [(r, line, id(r) in bad) for r, line in zip(found.records, found.lines, strict=True)]
        with open(self.folder / DAMAGED, "ab") as aside:
            aside.writelines(line + b"\n" for line in found.damaged)
            aside.writelines(line + b"\n" for _, line, edited in apart if edited)
            aside.flush()
            os.fsync(aside.fileno())
        found.records = [record for record, _, edited in apart if not edited]
        found.lines = [line for _, line, edited in apart if not edited]
        write_atomic(self.path, b"".join(line + b"\n" for line in found.lines).decode())

    def _end_last_line(self) -> None:
        """A whole record whose newline was lost would otherwise run into the next one."""
        data = self.path.read_bytes()
        if data and not data.endswith(b"\n"):
            self._write(b"\n")


def newest_records(folder: Path) -> list[Record]:
    """The newest record of every cell. Raises UserError if there is none."""
    records, _ = read_records(folder / RECORDS)
    if not records:
        raise UserError(f"{folder} holds no record", hint="give the folder of a run that has measured")
    return list({record.cell: record for record in records}.values())


def write_atomic(path: Path, text: str) -> None:
    """Replace ``path`` by ``text`` so that a reader sees the old file or the new one, never half."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with clear_errors(f"cannot write {path}"):
        try:
            with open(temporary, "w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise


@contextmanager
def clear_errors(what: str, kept: int | None = None) -> Iterator[None]:
    """Turn what the file system says into a sentence for the user."""
    try:
        yield
    except OSError as error:
        hint = "check free space and permissions, or choose another folder with --results"
        if kept is not None:
            hint = f"free some space, then run the same command again: {kept} records are kept"
        raise UserError(f"{what}: {error.strerror or error}", hint=hint) from error
