"""One block of a ``records.jsonl`` in the index: a parquet file whose name says which bytes it is of.

``START-LENGTH-TRUTH-OWN.parquet``: where the block begins, how long it is, a digest of the block's bytes and
one of the file itself (SHA-256, 40 hex digits of it). So a segment is right or it is not used: bytes that
differ in any way have another digest, and a segment that is damaged does not match its own name. Offsets and
line numbers count from the block's beginning.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, MutableSequence, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.results.outline import Outline

INDEX = "records.index"  # the folder of the segments, beside records.jsonl
VERSION = 1  # of what is kept of a line, and of how a line is judged; another one makes the index anew
_DIGITS = 40
_NAME = re.compile(rf"(\d{{15}})-(\d{{1,15}})-([0-9a-f]{{{_DIGITS}}})-([0-9a-f]{{{_DIGITS}}})\.parquet")
_INTEGERS = {"offset", "length", "line"}
_TEXT_OF_INTEGERS = {"seed", "repeat"}  # as text: they may be of any size

Columns = dict[str, MutableSequence[Any]]


@dataclass(frozen=True)
class Segment:
    """A file of the index, as its name describes it."""

    path: Path
    start: int
    length: int
    truth: str
    own: str

    @property
    def end(self) -> int:
        """Where the next block begins."""
        return self.start + self.length

    def read(self, names: Iterable[str]) -> tuple[Columns, int] | None:
        """Columns of the block, and how many lines it has; None if the file is not as it was written."""
        try:
            data = self.path.read_bytes()
        except OSError:
            return None
        return None if _own_digest(data) != self.own else unpack(data, names)


def truth_digest() -> Any:
    """A hash object to be fed the bytes of a block; ``name_of`` takes its ``hexdigest``."""
    return hashlib.sha256(f"ddposink index {VERSION}\n".encode())


def segments(folder: Path) -> list[Segment]:
    """The segments in an index folder by their beginning, whether or not they are still right."""
    try:
        names = os.listdir(folder)
    except OSError:
        return []
    found = [(name, match) for name in names if (match := _NAME.fullmatch(name))]
    made = (Segment(folder / name, int(m[1]), int(m[2]), m[3], m[4]) for name, m in found)
    return sorted(made, key=lambda one: (one.start, one.path.name))


def save(folder: Path, start: int, length: int, truth: str, data: bytes) -> Segment:
    """Write a segment atomically. An OSError is the caller's to ignore: nothing needs an index."""
    folder.mkdir(exist_ok=True)
    truth, own = truth[:_DIGITS], _own_digest(data)
    name = f"{start:015d}-{length}-{truth}-{own}.parquet"
    temporary = folder / f".{name}.{os.getpid()}"
    try:
        temporary.write_bytes(data)
        os.replace(temporary, folder / name)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    return Segment(folder / name, start, length, truth, own)


def moved(segment: Segment, by: int) -> None:
    """Rename a segment whose block now begins ``by`` bytes earlier."""
    name = segment.path.name.partition("-")[2]
    os.replace(segment.path, segment.path.with_name(f"{segment.start - by:015d}-{name}"))


def pack(rows: Sequence[Outline], lines: int) -> bytes:
    """Outlines of a block of so many lines as the bytes of a parquet file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns: dict[str, Any] = dict(zip(Outline._fields, zip(*rows, strict=True), strict=True)) if rows else {}
    arrays, fields = [], []
    for name in Outline._fields:
        values, kind = columns.get(name, ()), pa.int64() if name in _INTEGERS else pa.string()
        if name in _TEXT_OF_INTEGERS:
            values = [None if value is None else str(value) for value in values]
        arrays.append(pa.array(values, type=kind))
        fields.append(pa.field(name, kind))
    table = pa.Table.from_arrays(arrays, schema=pa.schema(fields, metadata={"lines": str(lines)}))
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    return bytes(sink.getvalue())


def unpack(data: bytes, names: Iterable[str]) -> tuple[Columns, int] | None:
    """Some columns of what ``pack`` has made, and the number of lines; None for any other file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    wanted = list(names)
    try:
        table = pq.read_table(
            pa.BufferReader(data),
            columns=wanted,
            use_threads=False,
            read_dictionary=[name for name in wanted if name not in _INTEGERS],
        )
        lines = int(table.schema.metadata[b"lines"])
        return {name: _values(table.column(name).combine_chunks(), name) for name in wanted}, lines
    except (pa.ArrowException, OSError, LookupError, ValueError, TypeError):
        return None


def _values(array: Any, name: str) -> list[Any]:
    """A column as Python values; equal texts are one object."""
    if name in _INTEGERS:
        return list(array.to_pylist())
    known: list[Any] = array.dictionary.to_pylist()
    if name in _TEXT_OF_INTEGERS:
        known = [int(text) for text in known]
    known.append(None)
    places = array.indices.fill_null(len(known) - 1).to_pylist()
    return [known[place] for place in places]


def _own_digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:_DIGITS]
