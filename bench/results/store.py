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
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from bench.errors import UserError
from bench.results.aside import set_aside
from bench.results.atomic import clear_errors, write_atomic
from bench.results.digest import Integrity, with_digest
from bench.results.grow import GrowingIndex, tidy_index
from bench.results.index import Index, open_index
from bench.results.line import parse_line
from bench.results.newest import NewestRecords
from bench.results.record import Record
from bench.results.segment import INDEX
from bench.results.stored import stored

__all__ = ["clear_errors", "write_atomic"]  # where everybody looks for them

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
        parsed = parse_line(path, line)
        if parsed is None:
            found.damaged.append(line)
            continue
        record, seal = parsed
        found.records.append(record)
        if seal is Integrity.BROKEN:
            found.edited.append(Edited(path, number, record))
        found.undigested += seal is Integrity.NONE
    return found


def read_records(path: Path) -> tuple[list[Record], list[bytes]]:
    """All records of a ``records.jsonl`` in order, and the lines that are none; see ``read``."""
    found = read(path)
    return found.records, found.damaged


_NEWEST = ("suite", "run", "status", "started", "env", "units")  # what is asked of every record, often


class Store:
    """The records of one run: appended to by a single writer (see ``results.folder.locked``).

    ``records`` maps a cell's id to its newest record. ``damaged`` counts lines and ``edited`` names records
    set aside on opening. What is appended is indexed block by block (``bench.results.index``).
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / RECORDS
        with clear_errors(f"cannot open the records in {folder}"):
            self._file = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
            try:
                self._open()
            except BaseException:
                os.close(self._file)
                raise

    def _open(self) -> None:
        index = open_index(self.path, NewestRecords.COLUMNS)
        bad = set_aside(index, self.folder / DAMAGED)
        self.edited = [edited_at(index, row) for row in bad.edited]
        self.damaged = len(bad.damaged)
        if bad.rows:  # another file lies there now
            os.close(self._file)
            self._file = os.open(self.path, os.O_WRONLY | os.O_APPEND)
            index = open_index(self.path, NewestRecords.COLUMNS)
        tidy_index(self.folder / INDEX, index.valid)
        self.records = NewestRecords(index)
        self._indexed = GrowingIndex(self.path, index.tail)
        if not index.ends_a_line:  # a whole record whose newline was lost would run into the next one
            self._write(b"\n")

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
        self.records.add(record)

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
        self._indexed.add(line)


def edited_at(index: Index, row: int) -> Edited:
    """The edited record of a row."""
    return Edited(index.path, index.columns["line"][row] + 1, index.record(row))


def newest_records(folder: Path) -> list[Record]:
    """The newest record of every cell, read when more is asked of it than the index has.

    Raises UserError if there is none.
    """
    path = folder / RECORDS
    index = open_index(path, _NEWEST) if path.exists() else None
    places = {index.columns["cell"][row]: row for row in index.rows()} if index else {}
    if index is None or not places:
        raise UserError(f"{folder} holds no record", hint="give the folder of a run that has measured")
    return stored(index, places.values())
