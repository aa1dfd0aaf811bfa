"""Where records live: an append-only file per run that no crash can take back.

``records.jsonl`` is the source of truth; everything else in a run folder can be made again from it.
A record is one ``write`` of one line, flushed to the disk before the run goes on, so that a
``kill -9`` costs at most the line being written: on opening, a line that is no record is moved to
``records.damaged.jsonl`` and its cell is measured again. A file system that refuses to write stops
the run with a clear sentence; what was written before stays whole.
"""

from __future__ import annotations

import json
import os
import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from bench.env import Fingerprint, comparable
from bench.errors import UserError
from bench.record import SCHEMA_VERSION, Record

RECORDS, DAMAGED, ENV, PLAN, SUITE = (
    "records.jsonl",
    "records.damaged.jsonl",
    "env.json",
    "plan.json",
    "suite.yaml",
)
_STAMP = "%Y%m%d-%H%M%S"


def read_records(path: Path) -> tuple[list[Record], list[bytes]]:
    """All records of a ``records.jsonl`` in order, and the lines that are none. Changes nothing.

    Raises UserError for records of a newer schema: they are not damaged, only not ours to read.
    """
    records, damaged = [], []
    for line in path.read_bytes().split(b"\n") if path.exists() else ():
        if not line.strip():
            continue
        try:
            records.append(Record.model_validate_json(line))
        except ValidationError:
            if _schema_version(line) > SCHEMA_VERSION:
                raise UserError(
                    f"{path} was written by a newer version of ddposink",
                    hint="update ddposink, or start a new run with --new",
                ) from None
            damaged.append(line)
    return records, damaged


def _schema_version(line: bytes) -> int:
    try:
        version = json.loads(line).get("schema_version", 0)
    except (ValueError, AttributeError):
        return 0
    return version if isinstance(version, int) else 0


class Store:
    """The records of one run: read once, appended to by a single writer (see ``locked``).

    ``records`` maps a cell's id to its newest record; ``damaged`` counts lines set aside on opening.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / RECORDS
        with _clear_errors(f"cannot open the records in {folder}"):
            records, damaged = read_records(self.path)
            self.records = {record.cell: record for record in records}
            self.damaged = len(damaged)
            if damaged:
                self._set_aside(records, damaged)
            self._file = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
            self._end_last_line()

    def append(self, record: Record) -> None:
        """Write a record; on return it is on the disk. Raises UserError if it cannot be written.

        A write that fails is undone and tried once more: a full disk may be a passing thing.
        """
        line = record.model_dump_json().encode() + b"\n"
        with _clear_errors(f"cannot write to {self.path}", kept=len(self.records)):
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

    def _set_aside(self, records: Iterable[Record], damaged: Iterable[bytes]) -> None:
        with open(self.folder / DAMAGED, "ab") as aside:
            aside.writelines(line + b"\n" for line in damaged)
            aside.flush()
            os.fsync(aside.fileno())
        write_atomic(self.path, "".join(record.model_dump_json() + "\n" for record in records))

    def _end_last_line(self) -> None:
        """A whole record whose newline was lost would otherwise run into the next one."""
        data = self.path.read_bytes()
        if data and not data.endswith(b"\n"):
            self._write(b"\n")


def write_atomic(path: Path, text: str) -> None:
    """Replace ``path`` by ``text`` so that a reader sees the old file or the new one, never half."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with _clear_errors(f"cannot write {path}"):
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
def _clear_errors(what: str, kept: int | None = None) -> Iterator[None]:
    """Turn what the file system says into a sentence for the user."""
    try:
        yield
    except OSError as error:
        hint = "check free space and permissions, or choose another folder with --results"
        if kept is not None:
            hint = f"free some space, then run the same command again: {kept} records are kept"
        raise UserError(f"{what}: {error.strerror or error}", hint=hint) from error


@dataclass(frozen=True)
class Choice:
    """The run folder to work in; ``why`` says why the newest run was not resumed."""

    folder: Path
    resumed: bool
    why: str | None = None


def run_folders(results: Path, suite: str) -> list[Path]:
    """Folders of all runs of a suite that began properly, newest first."""
    folders = (path.parent for path in (results / suite).glob(f"*/{ENV}"))
    return sorted((f for f in folders if _started(f) is not None), key=lambda f: f.name, reverse=True)


def choose_run(
    results: Path,
    suite: str,
    fingerprint: Fingerprint,
    overrides: Mapping[str, Any],
    *,
    new: bool = False,
) -> Choice:
    """Resume the newest run of ``suite`` made with the same ``--set``, if its numbers may stand beside ours.

    Creates the folder and its fingerprint. Call it under ``locked``.
    """
    earlier = run_folders(results, suite)
    candidates = [folder for folder in earlier if _load(folder / PLAN).get("overrides", {}) == overrides]
    why = None
    if candidates and not new:
        known = _load(candidates[0] / ENV)
        differing = comparable(known, fingerprint) if known else [f"environment ({ENV} cannot be read)"]
        if not differing:
            _write_fingerprint(candidates[0], fingerprint, known)
            return Choice(candidates[0], resumed=True)
        why = f"the newest run {candidates[0].name} was made with another {_listed(differing)}"
    folder = _new_folder(results / suite, earlier)
    _write_fingerprint(folder, fingerprint, {})
    return Choice(folder, resumed=False, why=why)


def _new_folder(parent: Path, earlier: list[Path]) -> Path:
    """A folder whose name sorts after all earlier ones, even within the same second."""
    now = datetime.now(UTC).replace(microsecond=0)
    if earlier:
        now = max(now, (_started(earlier[0]) or now) + timedelta(seconds=1))
    folder = parent / f"{now.strftime(_STAMP)}-{secrets.token_hex(3)}"
    with _clear_errors(f"cannot create a run folder in {parent}"):
        for name in ("artifacts", "logs"):
            (folder / name).mkdir(parents=True)
    return folder


def _started(folder: Path) -> datetime | None:
    try:
        return datetime.strptime(folder.name[:15], _STAMP).replace(tzinfo=UTC)
    except ValueError:  # not one of ours
        return None


def _write_fingerprint(folder: Path, fingerprint: Fingerprint, known: dict[str, Any]) -> None:
    """Keep every fingerprint that a record of this run may name: the newest on top, others below it."""
    earlier = known.pop("earlier", {})
    if known and known.get("id") != fingerprint["id"]:
        earlier |= {known["id"]: known}
    earlier.pop(fingerprint["id"], None)
    data = fingerprint | ({"earlier": earlier} if earlier else {})
    write_atomic(folder / ENV, json.dumps(data, indent=2) + "\n")


def _load(path: Path) -> dict[str, Any]:
    """A JSON object from a run folder; empty if it is not there or not whole."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return data if isinstance(data, dict) else {}


def _listed(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


@contextmanager
def locked(folder: Path, *, wait: bool = False, on_wait: Callable[[str], None] | None = None) -> Iterator[None]:
    """Hold a suite's results folder for one run. A second run waits (``wait``) or is refused clearly."""
    from filelock import FileLock, Timeout

    holder = folder / ".holder"
    with _clear_errors(f"cannot use {folder} for results"):
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / ".lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            who = holder.read_text().strip() if holder.exists() else "another process"
            if not wait:
                raise UserError(
                    f"{folder} is in use by {who}",
                    hint="wait for it with --wait, or write elsewhere with --results DIR",
                ) from None
            if on_wait:
                on_wait(who)
            lock.acquire()
        try:
            holder.write_text(f"process {os.getpid()} (since {datetime.now():%H:%M:%S})\n")
        except OSError:
            lock.release()
            raise
    try:
        yield
    finally:
        with suppress(OSError):
            holder.unlink(missing_ok=True)
        lock.release()
